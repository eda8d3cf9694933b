"""The faults: sixteen, of which 429 comes with Retry-After and without."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.vendors.openai_like import DEFAULT, Script


@dataclass(frozen=True)
class Fault:
    """A fault and how it is made.

    `script`: what the vendor answers, always. `place` makes its base URL out of its host and port, and of those of a server
    that speaks no TLS. `counted`: requests reach the vendor. `timeout_s`: how long the provider waits for it.
    """

    name: str
    what: str
    script: Script = DEFAULT
    place: Callable[[str, str], str] = lambda vendor, _plain: f"http://{vendor}/v1"
    timeout_s: float = 30.0
    counted: bool = True


def _error(status: int, code: str, **headers: str) -> Script:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Script(status=status, error={"message": "no", "code": code}, headers=named)


FAULTS = (
    Fault("connect_refused", "nobody listens", place=lambda *_: "http://127.0.0.1:1/v1", counted=False),
    Fault("tls", "no TLS where TLS is due", place=lambda _, plain: f"https://{plain}/v1", counted=False),
    Fault("dns", "the name does not exist", place=lambda *_: "http://vendor.invalid/v1", counted=False),
    Fault("429_retry_after", "429, Retry-After: 30", _error(429, "rate_limit_exceeded", retry_after="30")),
    Fault("429", "429 without Retry-After", _error(429, "rate_limit_exceeded")),
    Fault("500", "500", _error(500, "server_error")),
    Fault("502", "502", _error(502, "bad_gateway")),
    Fault("529", "529, overloaded", _error(529, "overloaded_error")),
    Fault("slow_first_byte", "nothing comes in time", Script(delay_s=60), timeout_s=0.3),
    Fault("stall", "nothing more comes after half of the answer", Script(fault="hang"), timeout_s=1.0),
    Fault("cut", "the connection breaks after half of the answer", Script(fault="cut")),
    Fault("malformed_json", "half a JSON object", Script(fault="malformed")),
    Fault("empty_choices", "200 without any choice", Script(fault="empty_choices")),
    Fault("wrong_content_type", "200 with a page of HTML", Script(fault="wrong_type")),
    Fault("duplicate_chunk", "text, finish reason and usage come twice", Script(fault="duplicate")),
    Fault("huge_chunk", "5 MiB of text in one piece, after half of the answer", Script(fault="huge")),
    Fault("auth", "401", _error(401, "invalid_api_key")),
)
