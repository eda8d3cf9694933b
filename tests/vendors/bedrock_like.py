"""A vendor on loopback that behaves like Amazon Bedrock's Converse API on the wire, faults and prompt cache included.

In tests: `async with BedrockLike() as vendor: vendor.next(Script(status=429, code="ThrottlingException"))`.
"""

from __future__ import annotations

import asyncio
import json
import re
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

from services.common.money import Rates
from tests.vendors.anthropic_cache import Count, PromptCache, Refused, bill, tokens_of
from tests.vendors.http import END, Connection, Ending, HttpServer, chunk, head, json_response, response

TEXT = "Your order is on its way and arrives on Monday."
ACCESS_KEY = "AKIATESTTESTTESTTEST"

Fault = Literal[
    "",
    "cut",
    "cut_clean",
    "reset",
    "malformed",
    "wrong_type",
    "exception",
    "error",
    "hang",
    "no_metadata",
    "lost_metadata",
]

_PATH = re.compile(r"/model/([^/]+)/converse(-stream)?")
_SIGNATURE = re.compile(
    r"AWS4-HMAC-SHA256 Credential=(?P<key>[^/]+)/\d{8}/[a-z0-9-]+/bedrock/aws4_request, "
    r"SignedHeaders=(?P<headers>[a-z0-9;-]+), Signature=[0-9a-f]{64}"
)


@dataclass(frozen=True)
class Script:
    """How one request is answered.

    `cut` drops the connection after half of the answer, `cut_clean` ends it there with a well-formed end of body; `reset`
    drops it before the first byte; `malformed` sends half a JSON object, or a frame whose checksum is wrong; `exception`
    reports `code` in the middle of a stream, and `error` one outside the model of the API; `hang` sends half of the answer
    and then nothing more; `no_metadata` leaves the last event of a stream out, `lost_metadata` drops the connection instead;
    `delay_s` passes before the first byte. `content` are the content blocks of a whole answer and `events` the (type,
    payload) of a stream, sent as they are. `usage` is what is reported, by default what was counted. `dribble` sends a
    stream in chunks of this many bytes.
    """

    status: int = 200
    code: str = ""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: Fault = ""
    delay_s: float = 0.0
    text: str = TEXT
    reasoning: str = ""
    tool_calls: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    content: Sequence[Any] | None = None
    events: Sequence[tuple[str, Any]] | None = None
    stop_reason: str | None = "end_turn"
    usage: Mapping[str, Any] | Literal["counted"] | None = "counted"
    dribble: int = 0


class BedrockLike(HttpServer):
    """The vendor. `requests` holds the JSON bodies it got and `models` whose they were; `got_request` tells of each.

    Its own accounting: a token is four letters of a block's text or JSON; `invoice` is what all calls cost by `rates`, in
    nano-USD. Cache points are kept as for Claude: prefixes of at least `minimum` tokens, by the clock `now`, in seconds.
    """

    def __init__(
        self, rates: Rates | None = None, minimum: int = 1024, now: Callable[[], float] = time.time, port: int = 0
    ) -> None:
        super().__init__(port)
        self.requests: list[dict[str, Any]] = []
        self.models: list[str] = []
        self.got_request = asyncio.Event()
        self.headers: list[Mapping[str, str]] = []
        self.invoice = 0
        self.always = Script()
        self._rates = rates or Rates()
        self._cache = PromptCache(minimum, now)
        self._scripts: deque[Script] = deque()

    def next(self, *scripts: Script) -> None:
        """How the next requests are answered, one script each; afterwards `always` holds again."""
        self._scripts.extend(scripts)

    def handle(self, connection: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        if method != "POST" or (where := _PATH.fullmatch(path)) is None:
            connection.send(_error(404, "UnknownOperationException", ""))
            return
        if (error := _refusal(headers)) is not None:
            connection.send(error)
            return
        request = json.loads(body)
        model = unquote(where[1])
        self.requests.append(request)
        self.got_request.set()
        self.models.append(model)
        self.headers.append(headers)
        script = self._scripts.popleft() if self._scripts else self.always
        pieces = self._pieces(script, model, request, stream=where[2] is not None)
        ending: Ending = (
            "hang" if script.fault == "hang" else "drop" if script.fault in ("cut", "reset", "lost_metadata") else ""
        )
        connection.send_slowly(pieces, delay_s=script.delay_s, then=ending)

    def _pieces(self, script: Script, model: str, request: Mapping[str, Any], *, stream: bool) -> Sequence[bytes]:
        """What is written, head first."""
        if script.status != 200:
            return [_error(script.status, script.code, script.message, script.headers)]
        if script.fault == "reset":
            return []
        if script.fault == "wrong_type":
            return [response(200, "text/html", b"<html>Welcome to the proxy</html>")]
        try:
            count = self._cache.count(_prompt(model, request))
        except Refused as error:
            return [_error(400, "ValidationException", str(error))]
        frames, output = _frames(script) if stream else ([], _size(_content(script)))
        self.invoice += bill(self._rates, count, output)
        reported = _reported(count, output) if script.usage == "counted" else script.usage
        if not stream:
            return _whole(script, reported)
        if script.fault in ("", "no_metadata", "lost_metadata") and script.stop_reason is not None:
            frames.append(event_frame("messageStop", {"stopReason": script.stop_reason}))
            if not script.fault and reported is not None:
                frames.append(event_frame("metadata", {"usage": reported, "metrics": {"latencyMs": 12}}))
        start = head(200, {"content-type": "application/vnd.amazon.eventstream", "transfer-encoding": "chunked"})
        end = [] if script.fault in ("cut", "hang", "lost_metadata") else [END]
        data = b"".join(frames)
        if script.dribble:
            frames = [data[i : i + script.dribble] for i in range(0, len(data), script.dribble)]
        return [start, *(chunk(frame) for frame in frames), *end]


def _refusal(headers: Mapping[str, str]) -> bytes | None:
    """What a request gets that is not signed, or by a key that is not known."""
    signature = _SIGNATURE.fullmatch(headers.get("authorization", ""))
    if signature is None or "x-amz-date" not in headers:
        return _error(403, "MissingAuthenticationTokenException", "Missing Authentication Token")
    if signature["key"] != ACCESS_KEY:
        message = "The security token included in the request is invalid."
        return _error(403, "UnrecognizedClientException", message)
    return None


def _error(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> bytes:
    kind = {"x-amzn-errortype": f"{code}:http://internal.amazon.com/coral/com.amazon.bedrock/"} if code else {}
    return json_response(status, {"message": message}, {**kind, **(headers or {})})


def _content(script: Script) -> Sequence[Any]:
    if script.content is not None:
        return script.content
    blocks: list[Any] = []
    if script.reasoning:
        blocks.append({"reasoningContent": {"reasoningText": {"text": script.reasoning, "signature": "c2lnbmVk"}}})
    if script.text:
        blocks.append({"text": script.text})
    calls = [{"toolUseId": id_, "name": name, "input": arguments} for id_, name, arguments in script.tool_calls]
    return blocks + [{"toolUse": call} for call in calls]


def _whole(script: Script, usage: Mapping[str, Any] | None) -> Sequence[bytes]:
    body = {
        "metrics": {"latencyMs": 12},
        "output": {"message": {"role": "assistant", "content": _content(script)}},
        **({"stopReason": script.stop_reason} if script.stop_reason is not None else {}),
        **({"usage": usage} if usage is not None else {}),
    }
    data = json.dumps(body).encode()
    if script.fault == "malformed":
        return [response(200, "application/json", data[: len(data) // 2])]
    whole = response(200, "application/json", data)
    return [whole[:-20]] if script.fault in ("cut", "hang") else [whole]


def _frames(script: Script) -> tuple[list[bytes], int]:
    """The events of the message as far as the script goes, and how many tokens they make."""
    events = list(script.events) if script.events is not None else list(_message_events(script))
    frames = [event_frame(kind, payload) for kind, payload in events]
    if script.fault in ("", "no_metadata", "lost_metadata"):
        return frames, _size(_content(script))
    half_way = len(frames) // 2 + 1
    frames = frames[:half_way]
    sent = [payload["delta"] for kind, payload in events[:half_way] if kind == "contentBlockDelta"]
    match script.fault:
        case "cut_clean":
            frames.append(event_frame("contentBlockStop", {"contentBlockIndex": 0})[:-7])
        case "malformed":
            frames.append(event_frame("contentBlockStop", {"contentBlockIndex": 0})[:-4] + bytes(4))
        case "exception":
            frames.append(exception_frame(script.code, {"message": script.message}))
        case "error":
            frames.append(frame({":message-type": "error", ":error-code": script.code, ":error-message": "x"}, b""))
    return frames, _size(sent)


def _message_events(script: Script) -> Iterator[tuple[str, Any]]:
    yield "messageStart", {"role": "assistant"}
    block = 0
    if script.reasoning:
        yield (
            "contentBlockDelta",
            {"contentBlockIndex": block, "delta": {"reasoningContent": {"text": script.reasoning}}},
        )
        yield (
            "contentBlockDelta",
            {"contentBlockIndex": block, "delta": {"reasoningContent": {"signature": "c2lnbmVk"}}},
        )
        yield "contentBlockStop", {"contentBlockIndex": block}
        block += 1
    if script.text:
        for i, word in enumerate(script.text.split(" ")):
            yield "contentBlockDelta", {"contentBlockIndex": block, "delta": {"text": f" {word}" if i else word}}
        yield "contentBlockStop", {"contentBlockIndex": block}
        block += 1
    for id_, name, arguments in script.tool_calls:
        yield "contentBlockStart", {"contentBlockIndex": block, "start": {"toolUse": {"toolUseId": id_, "name": name}}}
        data = json.dumps(arguments) if arguments else ""
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            yield "contentBlockDelta", {"contentBlockIndex": block, "delta": {"toolUse": {"input": part}}}
        yield "contentBlockStop", {"contentBlockIndex": block}
        block += 1


def event_frame(kind: str, payload: Any) -> bytes:
    """An event; like Bedrock's with padding, so that its length tells nothing."""
    body = {**payload, "p": "abcdefgh"} if isinstance(payload, dict) else payload
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return frame(headers, json.dumps(body).encode())


def exception_frame(kind: str, payload: Any) -> bytes:
    """An exception of the API's model."""
    headers = {":exception-type": kind, ":content-type": "application/json", ":message-type": "exception"}
    return frame(headers, json.dumps(payload).encode())


def frame(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message of application/vnd.amazon.eventstream: lengths, their CRC, headers of strings, payload, CRC of it all."""
    lines = b""
    for name, value in headers.items():
        data = value.encode()
        lines += struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(data)) + data
    lengths = struct.pack("!II", 12 + len(lines) + len(payload) + 4, len(lines))
    message = lengths + struct.pack("!I", zlib.crc32(lengths)) + lines + payload
    return message + struct.pack("!I", zlib.crc32(message))


def _prompt(model: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as the prompt cache, which is Anthropic's behind Bedrock too, reads it."""
    tools = request.get("toolConfig", {})
    return {
        "model": model,
        "tools": _marked(tools.get("tools", ())),
        "system": _marked(request.get("system", ())),
        "messages": [{"role": m["role"], "content": _marked(m["content"])} for m in request["messages"]],
        "tool_choice": tools.get("toolChoice"),
        "output_config": {"format": request.get("outputConfig", {}).get("textFormat")},
    }


def _marked(entries: Sequence[Any]) -> list[dict[str, Any]]:
    """The blocks, each with the cache point that follows it."""
    blocks: list[dict[str, Any]] = []
    for entry in entries:
        point = entry.get("cachePoint")
        if point is None:
            blocks.append({"type": "text", **entry} if "text" in entry else dict(entry))
            continue
        if point["type"] != "default" or not blocks or "cache_control" in blocks[-1]:
            raise Refused("a cache point must follow a block")
        blocks[-1]["cache_control"] = {"type": "ephemeral", "ttl": point.get("ttl", "5m")}
    return blocks


def _reported(count: Count, output: int) -> dict[str, Any]:
    """Usage as Converse reports it: what was read and written is not part of the input tokens."""
    details = [("1h", count.written_1h), ("5m", count.written_5m)]
    return {
        "inputTokens": count.plain,
        "outputTokens": output,
        "totalTokens": count.total + output,
        "cacheReadInputTokens": count.read,
        "cacheWriteInputTokens": count.written,
        "cacheDetails": [{"ttl": ttl, "inputTokens": tokens} for ttl, tokens in details if tokens],
    }


def _size(blocks: Sequence[Any]) -> int:
    """Tokens of content blocks: a text's own letters, any other block's as JSON."""
    texts = (b["text"] if isinstance(b, dict) and isinstance(b.get("text"), str) else json.dumps(b) for b in blocks)
    return sum(tokens_of(text) for text in texts)
