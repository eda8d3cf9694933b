"""What the vendors' APIs over HTTP have in common: errors, and values that may be something else than documented."""

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from uuid import uuid4

from services.provider.domain.vendor import Call, Reason, VendorError

NONSENSE = (ValueError, TypeError, AttributeError, LookupError, RuntimeError)
"""What the shapes of an SDK, which it does not enforce, turn into when something else came."""

_CONNECT_TIMEOUT_S = 5.0
_MAX_COUNT = 1_000_000_000
_LONGEST_WAIT_S = 7 * 86_400
_NUMBER = re.compile(r"\s*\d+(\.\d+)?\s*")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def connect_timeout_s(call: Call) -> float:
    """How long a connection may take to come up, in seconds."""
    return min(_CONNECT_TIMEOUT_S, call.timeout_s / 2)


def nonsense(vendor: str) -> VendorError:
    """What came is not the documented shape."""
    return VendorError(Reason.UNAVAILABLE, f"{vendor} answered with something that is no answer", billed=True)


def unreachable(vendor: str, *, timed_out: bool, billed: bool) -> VendorError:
    """No connection, or it broke. `billed`: the vendor had the whole request; what fails earlier is on no invoice."""
    what = "did not answer in time" if timed_out else "cannot be reached or broke the connection"
    return VendorError(Reason.UNAVAILABLE, f"{vendor} {what}", billed=billed)


def refused(
    vendor: str, status: int, code: object, headers: Mapping[str, str], *, too_long: bool = False
) -> VendorError:
    """The vendor answered with an HTTP status that is no success.

    `code` is its error code, told where it is one: its message may quote the prompt or the key and is never passed on.
    `too_long`: the request does not fit into the model's context.
    """
    if status < 400:
        return nonsense(vendor)
    message = f"{vendor} answered {status}{identifier(code)}"
    retry_after_s = retry_after(headers, datetime.now(UTC))
    if status == 429:
        return VendorError(Reason.RATE_LIMITED, message, retry_after_s=retry_after_s)
    if status in (401, 403):
        return VendorError(Reason.CREDENTIAL, f"{vendor} refused our key ({status})")
    if status >= 500 or status == 408:
        return VendorError(Reason.UNAVAILABLE, message, retry_after_s=retry_after_s)
    if too_long:
        return VendorError(Reason.INVALID_INPUT, message, field="chat.messages")
    return VendorError(Reason.REJECTED, message)


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the vendor asks us to wait; None where it does not say, or says nonsense."""
    seconds = None
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        elif value := headers.get("retry-after"):
            seconds = float(value) if _NUMBER.fullmatch(value) else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError):
        return None
    return None if seconds is None or not math.isfinite(seconds) else min(max(seconds, 0.0), _LONGEST_WAIT_S)


def text(value: object) -> str:
    """Text that may be missing or come in parts. Raises for what is none."""
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(text(part["text"]) for part in value if part.get("type") in ("text", "output_text"))
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where text is due")
    try:
        value.encode()
    except UnicodeEncodeError:  # half a surrogate pair, escaped, is no character and fits in no message
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def arguments(value: object) -> str:
    """Arguments of a tool call as JSON text; some vendors send the object itself."""
    return text(json.dumps(value) if isinstance(value, dict) else value)


def made_up_id() -> str:
    """An id for a tool call whose vendor gives none."""
    return f"call_{uuid4().hex[:24]}"


def count(holder: object, name: str) -> int | None:
    """A count of tokens, 0 or more; None for what is missing or none."""
    value = getattr(holder, name, None)
    good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT
    return value if good else None


def identifier(value: object) -> str:
    """The value in brackets, after a blank, where it is a short name without prose; else nothing."""
    return f" ({value})" if isinstance(value, str) and _IDENTIFIER.fullmatch(value) else ""
