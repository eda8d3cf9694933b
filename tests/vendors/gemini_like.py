"""A vendor on loopback that behaves like Google's Gemini API on the wire, faults and invoice included, at little CPU.

In tests: `async with GeminiLike() as vendor: vendor.next(Script(status=429))`.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from services.common.money import Rates
from tests.vendors.http import END, Connection, Ending, HttpServer, event, head, json_response, response

TEXT = "Your order is on its way and arrives on Monday."
MIN_CACHED_TOKENS = 1024
CACHE_BLOCK_TOKENS = 128
CACHE_TTL_S = 3600.0

Fault = Literal[
    "",
    "cut",
    "cut_late",
    "cut_clean",
    "reset",
    "malformed",
    "empty_candidates",
    "wrong_type",
    "error_first",
    "error_event",
    "hang",
]

_LETTERS_A_TOKEN = 4
_PATH = re.compile(r"/v1beta/models/([\w.-]+):(generateContent|streamGenerateContent\?alt=sse)")
_FREE_FORM = ("args", "response", "parametersJsonSchema", "responseJsonSchema")


@dataclass(frozen=True)
class Script:
    """How one request is answered.

    `cut` drops the connection after half of the answer, `cut_late` after its finish reason, `cut_clean` ends it half-way with a
    well-formed end of body but no finish reason; `reset` drops it before the first byte; `malformed` sends half a JSON object;
    `error_first` and `error_event` report `error` as the first event of a stream or in the middle of it; `hang` sends the
    headers and half of the answer and then nothing more; `delay_s` passes before the first byte. `parts` are sent as they are
    instead of reasoning, text and tool calls. `block_reason` refuses the prompt. `usage` is what is reported: the vendor's own
    count, this, or nothing.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    fault: Fault = ""
    delay_s: float = 0.0
    text: str = TEXT
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    parts: Sequence[Any] = ()
    finish_reason: Any = "STOP"
    block_reason: str = ""
    usage: Mapping[str, Any] | Literal["counted"] | None = "counted"


class GeminiLike(HttpServer):
    """The vendor. `requests` holds the JSON bodies it got, in camel case; `charged` the model and counts of whole answers."""

    def __init__(self, api_key: str | None = None, port: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds, for the lifetime of cached prefixes."""
        super().__init__(port)
        self.requests: list[dict[str, Any]] = []
        self.models: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.charged: list[tuple[str, Mapping[str, Any]]] = []
        self.always = Script()
        self._api_key = api_key
        self._scripts: deque[Script] = deque()
        self._clock = clock
        self._kept: dict[bytes, float] = {}

    def next(self, *scripts: Script) -> None:
        """How the next requests are answered, one script each; afterwards `always` holds again."""
        self._scripts.extend(scripts)

    def invoice(self, rates: Mapping[str, Rates]) -> int:
        """What the answers so far cost by model, in nano-USD; each is rounded half up."""
        total = 0
        for model, usage in self.charged:
            rate = rates[model]
            cached = usage.get("cachedContentTokenCount", 0)
            fresh = usage["promptTokenCount"] - cached + usage.get("toolUsePromptTokenCount", 0)
            written = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
            micro = fresh * rate.input + cached * rate.cache_read + written * rate.output
            total += (2 * micro + 1_000_000) // 2_000_000
        return total

    def handle(self, connection: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        known = _PATH.fullmatch(path) if method == "POST" else None
        if self._api_key is not None and headers.get("x-goog-api-key") != self._api_key:
            info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
            message = "API key not valid: AIza-se**ret."
            error = {"code": 400, "message": message, "status": "INVALID_ARGUMENT", "details": [info]}
            connection.send(json_response(400, {"error": error}))
        elif known is None:
            missing = {"code": 404, "message": f"{path} is not found", "status": "NOT_FOUND"}
            connection.send(json_response(404, {"error": missing}))
        else:
            model, stream = known[1], known[2] != "generateContent"
            request = _spelled(json.loads(body))
            self.requests.append(request)
            self.models.append(model)
            self.headers.append(headers)
            script = self._scripts.popleft() if self._scripts else self.always
            pieces = self._pieces(script, model, stream, request)
            if script.delay_s or script.fault:
                drops = script.fault in ("cut", "cut_late", "reset")
                ending: Ending = "hang" if script.fault == "hang" else "drop" if drops else ""
                connection.send_slowly(pieces, delay_s=script.delay_s, then=ending)
            else:
                connection.send(b"".join(pieces))

    def _pieces(self, script: Script, model: str, stream: bool, request: Mapping[str, Any]) -> Sequence[bytes]:
        """What is written, head first."""
        if script.status != 200:
            error = {"code": script.status, **script.error}
            return [json_response(script.status, {"error": error}, script.headers)]
        if script.fault == "reset":
            return []
        if script.fault == "wrong_type":
            return [response(200, "text/html", b"<html>Welcome to the proxy</html>")]
        counted = self._counted(script, model, request)
        if script.fault in ("", "cut_late"):
            self.charged.append((model, script.usage if isinstance(script.usage, Mapping) else counted))
        usage = counted if script.usage == "counted" else script.usage
        base = {"modelVersion": model, "responseId": "r-1"}
        return _stream_pieces(script, base, usage) if stream else _whole_pieces(script, base, usage)

    def _counted(self, script: Script, model: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The vendor's own count. As on any protobuf's JSON, what is 0 is left out."""
        prompt = "".join(
            json.dumps(request[part], separators=(",", ":"))
            for part in ("systemInstruction", "tools", "contents")
            if part in request
        )
        calls = "".join(json.dumps(call) for call in script.tool_calls)
        counts = {
            "promptTokenCount": _tokens(prompt),
            "cachedContentTokenCount": self._cached(model, prompt),
            "candidatesTokenCount": 0 if script.block_reason else _tokens(script.text + calls),
            "thoughtsTokenCount": _tokens(script.reasoning),
        }
        counts["totalTokenCount"] = sum(counts.values()) - counts["cachedContentTokenCount"]
        return {name: count for name, count in counts.items() if count}

    def _cached(self, model: str, prompt: str) -> int:
        """Tokens of the longest beginning, in whole blocks, that a request of the last hour had too; the prompt is kept."""
        now, letters = self._clock(), CACHE_BLOCK_TOKENS * _LETTERS_A_TOKEN
        digest, known = hashlib.blake2b(model.encode()), 0
        for end in range(letters, len(prompt) + 1, letters):
            digest.update(prompt[end - letters : end].encode())
            key = digest.digest()
            if known == end - letters and now - self._kept.get(key, float("-inf")) < CACHE_TTL_S:
                known = end
            self._kept[key] = now
        tokens = known // _LETTERS_A_TOKEN
        return tokens if tokens >= MIN_CACHED_TOKENS else 0


def _tokens(text: str) -> int:
    return -(-len(text) // _LETTERS_A_TOKEN)


def _spelled(value: Any) -> Any:
    """Protobuf's JSON knows a field by two spellings; here all are in camel case, but for what the caller wrote himself."""
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    if not isinstance(value, dict):
        return value
    spelled = {re.sub(r"_([a-z])", lambda found: found[1].upper(), name): item for name, item in value.items()}
    return {name: item if name in _FREE_FORM else _spelled(item) for name, item in spelled.items()}


def _candidate(parts: Sequence[Any], finish_reason: Any = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    return candidate if finish_reason is None else {**candidate, "finishReason": finish_reason}


def _whole_pieces(script: Script, base: Mapping[str, Any], usage: Mapping[str, Any] | None) -> Sequence[bytes]:
    parts = [{"text": script.reasoning, "thought": True}] if script.reasoning else []
    parts += [{"text": script.text}] if script.text else []
    parts += [{"functionCall": dict(call)} for call in script.tool_calls]
    body: dict[str, Any] = {**base, "candidates": [_candidate(script.parts or parts, script.finish_reason)]}
    if script.fault == "empty_candidates":
        body["candidates"] = []
    if script.block_reason:
        del body["candidates"]
        body["promptFeedback"] = {"blockReason": script.block_reason}
    if usage is not None:
        body["usageMetadata"] = dict(usage)
    data = json.dumps(body).encode()
    if script.fault == "malformed":
        return [response(200, "application/json", data[: len(data) // 2])]
    whole = response(200, "application/json", data)
    return [whole[:-20]] if script.fault in ("cut", "cut_clean", "hang") else [whole]


def _stream_pieces(script: Script, base: Mapping[str, Any], usage: Mapping[str, Any] | None) -> Sequence[bytes]:
    prompt = (usage or {}).get("promptTokenCount")
    early = {} if prompt is None else {"usageMetadata": {"promptTokenCount": prompt, "totalTokenCount": prompt}}
    late = {} if usage is None else {"usageMetadata": dict(usage)}
    start = head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
    error = event(
        json.dumps({"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE", **script.error}})
    )

    def chunk(*parts: Any) -> bytes:
        candidates = [] if script.fault == "empty_candidates" else [_candidate(parts)]
        return event(json.dumps({"candidates": candidates, **early, **base}))

    if script.block_reason:
        feedback = {"promptFeedback": {"blockReason": script.block_reason}}
        return [start, event(json.dumps({**feedback, **late, **base})), END]
    words = script.text.split(" ") if script.text else []
    pieces = [chunk({"text": script.reasoning, "thought": True})] if script.reasoning else []
    pieces += [chunk({"text": word if number == 0 else f" {word}"}) for number, word in enumerate(words)]
    pieces += [chunk({"functionCall": dict(call)}) for call in script.tool_calls]
    if script.parts:
        pieces = [chunk(part) for part in script.parts]
    half_way = len(pieces) // 2 + 1
    match script.fault:
        case "cut" | "hang":
            return [start, *pieces[:half_way]]
        case "cut_clean":
            return [start, *pieces[:half_way], END]
        case "malformed":
            return [start, *pieces[:half_way], event('{"candidates": [{'), END]
        case "error_first":
            return [start, error, END]
        case "error_event":
            return [start, *pieces[:half_way], error, END]
        case "empty_candidates":
            return [start, *pieces, END]
    last = event(json.dumps({"candidates": [_candidate([{"text": ""}], script.finish_reason)], **late, **base}))
    return [start, *pieces, last] if script.fault == "cut_late" else [start, *pieces, last, END]
