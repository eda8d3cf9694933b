"""A vendor on loopback that behaves like Anthropic's Messages API on the wire, faults and prompt cache included.

In tests: `async with AnthropicLike() as vendor: vendor.next(Script(status=429))`. It counts the tokens of what it gets by
itself and writes its own invoice.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from services.common.money import Rates
from tests.vendors.anthropic_cache import Count, PromptCache, Refused, as_blocks, bill, tokens_of
from tests.vendors.http import END, Connection, Ending, HttpServer, event, head, json_response, response

TEXT = "Your order is on its way and arrives on Monday."
LEAST_BUDGET = 1024

Fault = Literal[
    "", "cut", "cut_clean", "no_stop", "reset", "malformed", "empty_content", "wrong_type", "error_event", "hang"
]

FIELDS = frozenset(
    {
        "cache_control", "container", "diagnostics", "inference_geo", "max_tokens", "messages", "metadata", "model",
        "output_config", "service_tier", "speed", "stop_sequences", "stream", "system", "temperature", "thinking",
        "tool_choice", "tools", "top_k", "top_p", "user_profile_id", "workspace_id",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Script:
    """How one request is answered.

    `cut` drops the connection after half of the answer; in a stream, `cut_clean` ends it there with a well-formed end of
    body, and `no_stop` leaves out message_stop alone; `reset` drops the connection before the first byte; `malformed` sends
    half a JSON object; `error_event` reports `error` in the middle of a stream; `hang` sends the headers and half of the
    answer and then nothing more; `delay_s` passes before the first byte. `content` is sent as it is instead of thinking,
    text and tool calls. `usage` replaces fields of the true usage; None leaves it out.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=lambda: {"type": "overloaded_error", "message": "Overloaded"})
    fault: Fault = ""
    delay_s: float = 0.0
    text: str = TEXT
    thinking: str = ""
    tool_calls: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    content: Any = None
    stop_reason: str | None = ""
    usage: Mapping[str, Any] | None = field(default_factory=dict)

    @property
    def blocks(self) -> list[Any]:
        """The content of the answer. A tool call is (id, name, input)."""
        if self.fault == "empty_content":
            return []
        if self.content is not None:
            return list(self.content)
        thought = {"type": "thinking", "thinking": self.thinking, "signature": "c2lnbmVk"}
        return [
            *([thought] if self.thinking else []),
            *([{"type": "text", "text": self.text}] if self.text else []),
            *(
                {"type": "tool_use", "id": id_, "name": name, "input": dict(input_)}
                for id_, name, input_ in self.tool_calls
            ),
        ]

    @property
    def reason(self) -> str | None:
        """Why it stopped: as told, or as its content says."""
        return ("tool_use" if self.tool_calls else "end_turn") if self.stop_reason == "" else self.stop_reason


@dataclass(frozen=True)
class Charged:
    """One line of the invoice."""

    model: str
    count: Count
    output_tokens: int
    nanousd: int


DEFAULT = Script()


class AnthropicLike(HttpServer):
    """The vendor. `requests` holds the JSON bodies it got, `charged` the lines of its invoice.

    `minimum` is the least number of tokens that it caches; `now` is its clock, in seconds; `rates` are what it charges.
    """

    def __init__(
        self,
        api_key: str | None = None,
        *,
        minimum: int = 1024,
        now: Callable[[], float] = time.monotonic,
        rates: Rates | None = None,
        script: Script = DEFAULT,
    ) -> None:
        super().__init__()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.charged: list[Charged] = []
        self.always = script
        self._api_key = api_key
        self._rates = rates or Rates()
        self._cache = PromptCache(minimum, now)
        self._scripts: deque[Script] = deque()
        self._served: set[Connection] = set()

    def next(self, *scripts: Script) -> None:
        """How the next requests are answered, one script each; afterwards `always` holds again."""
        self._scripts.extend(scripts)

    @property
    def connections(self) -> int:
        """How many connections brought requests."""
        return len(self._served)

    @property
    def invoice(self) -> int:
        """What all calls so far cost, in nano-USD."""
        return sum(line.nanousd for line in self.charged)

    def handle(self, connection: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        self._served.add(connection)
        keys = (headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer "))
        if self._api_key is not None and self._api_key not in keys:
            connection.send(_error(401, "authentication_error", "invalid x-api-key: sk-ant-se**ret"))
        elif "anthropic-version" not in headers:
            connection.send(_error(400, "invalid_request_error", "anthropic-version: header is required"))
        elif (method, path) != ("POST", "/v1/messages"):
            connection.send(_error(404, "not_found_error", "Not found"))
        else:
            request = json.loads(body)
            self.requests.append(request)
            self.headers.append(headers)
            self._answer(connection, request)

    def _answer(self, connection: Connection, request: dict[str, Any]) -> None:
        script = self._scripts.popleft() if self._scripts else self.always
        if script.status != 200:
            connection.send(
                json_response(script.status, {"type": "error", "error": dict(script.error)}, script.headers)
            )
            return
        if script.fault == "wrong_type":
            connection.send(response(200, "text/html", b"<html>Welcome to the proxy</html>"))
            return
        try:
            _check(request)
            count = self._cache.count(request)
        except Refused as refused:
            connection.send(_error(400, "invalid_request_error", str(refused)))
            return
        usage = self._charge(request["model"], count, script)
        stream = bool(request.get("stream"))
        pieces = _stream_pieces(script, request["model"], usage) if stream else _whole(script, request["model"], usage)
        drops: Ending = "hang" if script.fault == "hang" else "drop" if script.fault in ("cut", "reset") else ""
        if script.delay_s or drops:
            connection.send_slowly(pieces, delay_s=script.delay_s, then=drops)
        else:
            connection.send(b"".join(pieces))

    def _charge(self, model: str, count: Count, script: Script) -> dict[str, Any] | None:
        output = sum(tokens_of(json.dumps(block)) for block in script.blocks)
        self.charged.append(Charged(model, count, output, bill(self._rates, count, output)))
        if script.usage is None:
            return None
        usage = {
            "input_tokens": count.plain,
            "cache_creation_input_tokens": count.written,
            "cache_read_input_tokens": count.read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": count.written_5m,
                "ephemeral_1h_input_tokens": count.written_1h,
            },
            "output_tokens": output,
            "service_tier": "standard",
        }
        return usage | dict(script.usage)


def _check(request: Mapping[str, Any]) -> None:
    """The rules of the API that a caller breaks most easily. Raises Refused."""
    _need(not (extra := set(request) - FIELDS), f"{', '.join(sorted(extra))}: Extra inputs are not permitted")
    limit = request.get("max_tokens")
    _need(isinstance(limit, int) and limit >= 1, "max_tokens: Field required")
    messages = request.get("messages")
    _need(bool(messages), "messages: at least one message is required")
    assert isinstance(messages, list)
    _need(messages[0]["role"] == "user", "messages: first message must use the user role")
    choice, thinking = request.get("tool_choice", {}), request.get("thinking", {"type": "disabled"})
    _need(not choice or bool(request.get("tools")), "tool_choice may only be specified while providing tools")
    blocks = [*as_blocks(request.get("system", ())), *(b for m in messages for b in as_blocks(m["content"]))]
    for block in blocks:
        _need(block.get("type") != "text" or bool(block["text"].strip()), "text content blocks must be non-empty")
    for index, message in enumerate(messages):
        _need(message["role"] in ("user", "assistant"), "messages: Unexpected role")
        _check_results(messages, index)
    _need(0 <= request.get("temperature", 1) <= 1, "temperature: range: 0..1")
    _need(not {"temperature", "top_p"} <= set(request), "temperature and top_p cannot both be specified")
    _need(all(stop.strip() for stop in request.get("stop_sequences", ())), "stop_sequences: must hold non-whitespace")
    if thinking["type"] in ("enabled", "adaptive"):
        _need(
            choice.get("type") not in ("any", "tool"), "Thinking may not be enabled when tool_choice forces tool use."
        )
        _need("temperature" not in request, "`temperature` may only be set to 1 when thinking is enabled")
        last = next((m for m in reversed(messages) if m["role"] == "assistant"), None)
        kinds = [block["type"] for block in as_blocks(last["content"])] if last else []
        _need("tool_use" not in kinds or kinds[0] == "thinking", "Expected `thinking`, but found `tool_use`.")
    if thinking["type"] == "enabled":
        budget = thinking["budget_tokens"]
        _need(LEAST_BUDGET <= budget < request["max_tokens"], "`max_tokens` must be greater than `budget_tokens`")


def _check_results(messages: list[Any], index: int) -> None:
    """The results of a turn's tools are in the next turn, all of them, in front."""
    used = {block["id"] for block in as_blocks(messages[index]["content"]) if block["type"] == "tool_use"}
    after = as_blocks(messages[index + 1]["content"]) if index + 1 < len(messages) else []
    front = {block.get("tool_use_id") for block in after[: len(used)]}
    _need(used <= front, "`tool_use` ids were found without `tool_result` blocks immediately after")


def _need(good: bool, message: str) -> None:
    if not good:
        raise Refused(message)


def _error(status: int, kind: str, message: str) -> bytes:
    return json_response(status, {"type": "error", "error": {"type": kind, "message": message}})


def _message(script: Script, model: str, content: Sequence[Any], usage: Mapping[str, Any] | None) -> dict[str, Any]:
    message = {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": script.reason,
        "stop_sequence": None,
    }
    return message if usage is None else message | {"usage": usage}


def _whole(script: Script, model: str, usage: Mapping[str, Any] | None) -> Sequence[bytes]:
    if script.fault == "reset":
        return []
    data = json.dumps(_message(script, model, script.blocks, usage)).encode()
    if script.fault == "malformed":
        return [response(200, "application/json", data[: len(data) // 2])]
    whole = response(200, "application/json", data)
    return [whole[:-20]] if script.fault in ("cut", "hang") else [whole]


def _stream_pieces(script: Script, model: str, usage: Mapping[str, Any] | None) -> Sequence[bytes]:
    if script.fault == "reset":
        return []

    def named(kind: str, **fields: Any) -> bytes:
        return event(json.dumps({"type": kind, **fields}), kind)

    start = head(200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"})
    at_begin = None if usage is None else {**usage, "output_tokens": 1} if "output_tokens" in usage else usage
    begun = _message(script, model, [], at_begin) | {"stop_reason": None}
    begin = [start, named("message_start", message=begun), named("ping")]
    pieces = [piece for index, block in enumerate(script.blocks) for piece in _block_pieces(index, block)]
    half_way = [*begin, *pieces[: len(pieces) // 2 + 1]]
    match script.fault:
        case "cut" | "hang":
            return half_way
        case "cut_clean":
            return [*half_way, END]
        case "malformed":
            return [*half_way, event('{"type": "content_block_delta", "delta": {', "content_block_delta"), END]
        case "error_event":
            return [*half_way, named("error", error=dict(script.error)), END]
    cumulative = {} if usage is None else {name: n for name, n in usage.items() if name != "cache_creation"}
    told = {} if usage is None else {"usage": cumulative}
    pieces.append(named("message_delta", delta={"stop_reason": script.reason, "stop_sequence": None}, **told))
    if script.fault != "no_stop":
        pieces.append(named("message_stop"))
    return [*begin, *pieces, END]


def _block_pieces(index: int, block: Any) -> Sequence[bytes]:
    def named(kind: str, **fields: Any) -> bytes:
        return event(json.dumps({"type": kind, "index": index, **fields}), kind)

    def delta(kind: str, name: str, value: str) -> bytes:
        return named("content_block_delta", delta={"type": kind, name: value})

    opening: dict[str, Any]
    match block:
        case {"type": "text", "text": str(text)}:
            opening, words = {"type": "text", "text": ""}, text.split(" ")
            deltas = [delta("text_delta", "text", word if i == 0 else f" {word}") for i, word in enumerate(words)]
        case {"type": "thinking", "thinking": str(text), "signature": str(signature)}:
            opening = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [delta("thinking_delta", "thinking", text), delta("signature_delta", "signature", signature)]
        case {"type": "tool_use", "input": dict(arguments)}:
            opening = dict(block) | {"input": {}}
            written = json.dumps(arguments) if arguments else ""
            parts = ("", written[: len(written) // 2], written[len(written) // 2 :])
            deltas = [delta("input_json_delta", "partial_json", part) for part in parts]
        case _:
            opening, deltas = block, []
    return [named("content_block_start", content_block=opening), *deltas, named("content_block_stop")]
