"""A vendor on loopback that behaves like OpenAI's chat-completions API on the wire, faults included, at little CPU.

In tests: `async with OpenAILike() as vendor: vendor.next(Script(status=429))`. As a process for benchmarks, without any
latency of its own: `python -m tests.vendors.openai_like --port 9090`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import uvloop

from tests.vendors.http import END, Connection, Ending, HttpServer, event, head, json_response, response
from tests.vendors.openai_cache import PromptCache, Refused, refuse_hints, tokens_of

TEXT = "Your order is on its way and arrives on Monday."

HUGE_CHARS = 5 * 1024 * 1024

Fault = Literal[
    "",
    "cut",
    "cut_clean",
    "reset",
    "malformed",
    "empty_choices",
    "wrong_type",
    "error_event",
    "hang",
    "duplicate",
    "huge",
]


@dataclass(frozen=True)
class Script:
    """How one request is answered.

    `cut` drops the connection after half of the answer, `cut_clean` ends it there with a well-formed end of body but no
    finish reason; `reset` drops it before the first byte; `malformed` sends half a JSON object; `error_event` reports an
    error in the middle of a stream; `hang` sends the headers and half of the answer and then nothing more; `duplicate` sends
    a piece of text, the finish reason and the usage twice, or the choice of a whole answer; `huge` sends HUGE_CHARS in one
    piece in the middle; `delay_s` passes before the first byte, `pace_s` before every further piece. `deltas` are sent as
    they are instead of text, reasoning and tool calls; the message of a whole answer is the first of them.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    fault: Fault = ""
    delay_s: float = 0.0
    pace_s: float = 0.0
    text: str = TEXT
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    deltas: Sequence[Any] = ()
    finish_reason: str | None = "stop"
    usage: Mapping[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    )


DEFAULT = Script()


class OpenAILike(HttpServer):
    """The vendor. `requests` holds the JSON bodies it got.

    With a prompt cache it counts tokens by itself, takes hints about the cache and writes an invoice; without one it is a
    compatible vendor that refuses what it does not know.
    """

    def __init__(
        self,
        api_key: str | None = None,
        port: int = 0,
        script: Script = DEFAULT,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        super().__init__(port)
        self._prompt_cache = prompt_cache
        self.requests: list[dict[str, Any]] = []
        self.always = script
        self.keep_requests = True
        self._api_key = api_key
        self._scripts: deque[Script] = deque()

    def next(self, *scripts: Script) -> None:
        """How the next requests are answered, one script each; afterwards `always` holds again."""
        self._scripts.extend(scripts)

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return f"{self.url}/v1"

    def handle(self, connection: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        if self._api_key is not None and headers.get("authorization") != f"Bearer {self._api_key}":
            error = {"message": "Incorrect API key provided: sk-se**ret.", "code": "invalid_api_key"}
            connection.send(json_response(401, {"error": error}))
        elif (method, path) == ("GET", "/v1/models"):
            connection.send(json_response(200, {"object": "list", "data": [{"id": "any", "object": "model"}]}))
        elif (method, path) == ("POST", "/v1/chat/completions"):
            request = json.loads(body)
            if self.keep_requests:
                self.requests.append(request)
            script = self._scripts.popleft() if self._scripts else self.always
            try:
                script = self._charged(script, request, body)
            except Refused as refused:
                error = {"message": str(refused), "type": "invalid_request_error", "code": "unknown_parameter"}
                connection.send(json_response(400, {"error": error}))
                return
            with_usage = bool((request.get("stream_options") or {}).get("include_usage"))
            pieces = _pieces(script, request["model"], bool(request.get("stream")), with_usage)
            if script.delay_s or script.pace_s or script.fault:
                ending: Ending = (
                    "hang" if script.fault == "hang" else "drop" if script.fault in ("cut", "reset") else ""
                )
                connection.send_slowly(pieces, delay_s=script.delay_s, pace_s=script.pace_s, then=ending)
            else:
                connection.send(b"".join(pieces))
        else:
            connection.send(json_response(404, {"error": {"message": "Unknown request URL", "code": "unknown_url"}}))

    @property
    def invoice(self) -> int:
        """What all calls so far cost, in nano-USD; 0 without a prompt cache."""
        return 0 if self._prompt_cache is None else self._prompt_cache.invoice

    def _charged(self, script: Script, request: Mapping[str, Any], body: bytes) -> Script:
        if self._prompt_cache is None:
            if b'"prompt_cache' in body:
                refuse_hints(request)
            return script
        if script.status != 200 or script.usage is None:
            return script
        return replace(script, usage=self._prompt_cache.usage(request, tokens_of(script.text)))


def _pieces(script: Script, model: str, stream: bool, with_usage: bool) -> Sequence[bytes]:
    """What is written, head first."""
    if script is DEFAULT:
        return _default_pieces(model, stream, with_usage)
    if script.status != 200:
        return [json_response(script.status, {"error": dict(script.error)}, script.headers)]
    if script.fault == "reset":
        return []
    if script.fault == "wrong_type":
        return [response(200, "text/html", b"<html>Welcome to the proxy</html>")]
    return _stream_pieces(script, model, with_usage) if stream else _whole_pieces(script, model)


@cache
def _default_pieces(model: str, stream: bool, with_usage: bool) -> Sequence[bytes]:
    return [b"".join(_stream_pieces(DEFAULT, model, with_usage) if stream else _whole_pieces(DEFAULT, model))]


def _whole_pieces(script: Script, model: str) -> Sequence[bytes]:
    message: dict[str, Any] = {"role": "assistant", "content": script.text or None}
    if script.reasoning:
        message["reasoning_content"] = script.reasoning
    if script.tool_calls:
        message["tool_calls"] = list(script.tool_calls)
    if script.deltas:
        message = script.deltas[0]
    if script.fault == "huge":
        message["content"] = "x" * HUGE_CHARS
    choice = {"index": 0, "message": message, "finish_reason": script.finish_reason}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [] if script.fault == "empty_choices" else [choice] * (2 if script.fault == "duplicate" else 1),
    }
    if script.usage is not None:
        body["usage"] = dict(script.usage)
    data = json.dumps(body).encode()
    if script.fault == "malformed":
        return [response(200, "application/json", data[: len(data) // 2])]
    whole = response(200, "application/json", data)
    return [whole[:-20]] if script.fault in ("cut", "cut_clean", "hang") else [whole]


def _stream_pieces(script: Script, model: str, with_usage: bool) -> Sequence[bytes]:
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model}

    def chunk(delta: Any, finish_reason: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        return event(json.dumps({**base, "choices": [] if script.fault == "empty_choices" else choices}))

    pieces = [chunk({"role": "assistant", "content": ""})]
    if script.reasoning:
        pieces.append(chunk({"reasoning_content": script.reasoning}))
    words = script.text.split(" ") if script.text else []
    pieces += [chunk({"content": word if i == 0 else f" {word}"}) for i, word in enumerate(words)]
    for index, call in enumerate(script.tool_calls):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        opening = {"index": index, "id": call["id"], "type": "function", "function": {"name": name, "arguments": ""}}
        pieces.append(chunk({"tool_calls": [opening]}))
        half = len(arguments) // 2
        for part in (arguments[:half], arguments[half:]):
            pieces.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]}))
    start = head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
    if script.deltas:
        pieces = [chunk(delta) for delta in script.deltas]
    half_way = len(pieces) // 2 + 1
    match script.fault:
        case "cut" | "hang":
            return [start, *pieces[:half_way]]
        case "cut_clean":
            return [start, *pieces[:half_way], END]
        case "malformed":
            return [start, *pieces[:half_way], event('{"choices": [{'), END]
        case "error_event":
            return [
                start,
                *pieces[:half_way],
                event('{"error": {"message": "overloaded", "type": "server_error"}}'),
                END,
            ]
        case "duplicate":
            pieces.insert(half_way, pieces[half_way])
        case "huge":
            pieces.insert(half_way, chunk({"content": "x" * HUGE_CHARS}))
    times = 2 if script.fault == "duplicate" else 1
    if script.finish_reason is not None:
        pieces += [chunk({}, script.finish_reason)] * times
    if with_usage and script.usage is not None:
        pieces += [event(json.dumps({**base, "choices": [], "usage": dict(script.usage)}))] * times
    return [start, *pieces, event("[DONE]"), END]


def main() -> None:
    """Serves until it is killed; prints the base URL when it listens."""
    parser = argparse.ArgumentParser(prog="python -m tests.vendors.openai_like", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before the first byte of every answer")
    parser.add_argument("--pace-ms", type=float, default=0.0, help="before every further piece of a stream")
    options = parser.parse_args()

    async def serve() -> None:
        slow = Script(delay_s=options.delay_ms / 1000, pace_s=options.pace_ms / 1000)
        script = DEFAULT if slow == DEFAULT else slow
        async with OpenAILike(port=options.port, script=script) as vendor:
            vendor.keep_requests = False
            print(vendor.base_url, flush=True)
            await asyncio.Event().wait()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
