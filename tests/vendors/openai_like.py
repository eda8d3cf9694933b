"""A vendor on loopback that behaves like OpenAI's chat-completions API on the wire, faults included, at little CPU.

In tests: `async with OpenAILike() as vendor: vendor.next(Script(status=429))`. As a process for benchmarks, without any
latency of its own: `python -m tests.vendors.openai_like --port 9090`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast

import uvloop

TEXT = "Your order is on its way and arrives on Monday."

Fault = Literal["", "cut", "cut_clean", "reset", "malformed", "empty_choices", "wrong_type", "error_event", "hang"]


@dataclass(frozen=True)
class Script:
    """How one request is answered.

    `cut` drops the connection after half of the answer, `cut_clean` ends it there with a well-formed end of body but no
    finish reason; `reset` drops it before the first byte; `malformed` sends half a JSON object; `error_event` reports an
    error in the middle of a stream; `hang` sends the headers and half of the answer and then nothing more; `delay_s` passes
    before the first byte. `deltas` are sent as they are instead of text, reasoning and tool calls; the message of a whole
    answer is the first of them.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, Any] = field(default_factory=dict)
    fault: Fault = ""
    delay_s: float = 0.0
    text: str = TEXT
    reasoning: str = ""
    tool_calls: Sequence[Mapping[str, Any]] = ()
    deltas: Sequence[Any] = ()
    finish_reason: str | None = "stop"
    usage: Mapping[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    )


DEFAULT = Script()


class OpenAILike:
    """The vendor. `requests` holds the JSON bodies it got; `hang_ups` counts clients that left before their answer's end."""

    def __init__(self, api_key: str | None = None, port: int = 0, script: Script = DEFAULT) -> None:
        self.requests: list[dict[str, Any]] = []
        self.hang_ups = 0
        self.hung_up = asyncio.Event()
        self.always = script
        self.keep_requests = True
        self._api_key = api_key
        self._port = port
        self._scripts: deque[Script] = deque()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()

    def next(self, *scripts: Script) -> None:
        """How the next requests are answered, one script each; afterwards `always` holds again."""
        self._scripts.extend(scripts)

    @property
    def base_url(self) -> str:
        """Where the API is."""
        return f"http://127.0.0.1:{self._port}/v1"

    async def __aenter__(self) -> OpenAILike:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self._connections, self._handle, self._hang_up), "127.0.0.1", self._port
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def _hang_up(self) -> None:
        self.hang_ups += 1
        self.hung_up.set()

    def _handle(self, connection: _Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        if self._api_key is not None and headers.get("authorization") != f"Bearer {self._api_key}":
            error = {"message": "Incorrect API key provided: sk-se**ret.", "code": "invalid_api_key"}
            connection.send(_json_response(401, {"error": error}))
        elif (method, path) == ("GET", "/v1/models"):
            connection.send(_json_response(200, {"object": "list", "data": [{"id": "any", "object": "model"}]}))
        elif (method, path) == ("POST", "/v1/chat/completions"):
            request = json.loads(body)
            if self.keep_requests:
                self.requests.append(request)
            script = self._scripts.popleft() if self._scripts else self.always
            with_usage = bool((request.get("stream_options") or {}).get("include_usage"))
            pieces = _pieces(script, request["model"], bool(request.get("stream")), with_usage)
            if script.delay_s or script.fault:
                connection.send_slowly(script, pieces)
            else:
                connection.send(b"".join(pieces))
        else:
            connection.send(_json_response(404, {"error": {"message": "Unknown request URL", "code": "unknown_url"}}))


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with keep-alive."""

    def __init__(
        self,
        connections: set[_Connection],
        handle: Callable[[_Connection, str, str, Mapping[str, str], bytes], None],
        hang_up: Callable[[], None],
    ) -> None:
        self._connections = connections
        self._handle = handle
        self._hang_up = hang_up
        self._buffer = b""
        self._sending: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._sending is not None and not self._sending.done():
            self._sending.cancel()
            self._hang_up()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ", 2)
            headers = {}
            for line in head[1:]:
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            size = end + 4 + int(headers.get("content-length", "0"))
            if len(self._buffer) < size:
                return
            body, self._buffer = self._buffer[end + 4 : size], self._buffer[size:]
            self._handle(self, method, path, headers, body)

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def send_slowly(self, script: Script, pieces: Sequence[bytes]) -> None:
        self._sending = asyncio.get_running_loop().create_task(self._send_slowly(script, pieces))

    def abort(self) -> None:
        self._transport.abort()

    async def _send_slowly(self, script: Script, pieces: Sequence[bytes]) -> None:
        if script.delay_s:
            await asyncio.sleep(script.delay_s)
        for piece in pieces:
            self._transport.write(piece)
        if script.fault == "hang":
            await asyncio.Event().wait()
        if script.fault in ("cut", "reset"):
            self._sending = None
            self._transport.close()


def _pieces(script: Script, model: str, stream: bool, with_usage: bool) -> Sequence[bytes]:
    """What is written, head first."""
    if script is DEFAULT:
        return _default_pieces(model, stream, with_usage)
    if script.status != 200:
        return [_json_response(script.status, {"error": dict(script.error)}, script.headers)]
    if script.fault == "reset":
        return []
    if script.fault == "wrong_type":
        return [_response(200, "text/html", b"<html>Welcome to the proxy</html>")]
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
    choice = {"index": 0, "message": message, "finish_reason": script.finish_reason}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": model,
        "choices": [] if script.fault == "empty_choices" else [choice],
    }
    if script.usage is not None:
        body["usage"] = dict(script.usage)
    data = json.dumps(body).encode()
    if script.fault == "malformed":
        return [_response(200, "application/json", data[: len(data) // 2])]
    whole = _response(200, "application/json", data)
    return [whole[:-20]] if script.fault in ("cut", "cut_clean", "hang") else [whole]


def _stream_pieces(script: Script, model: str, with_usage: bool) -> Sequence[bytes]:
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": model}

    def chunk(delta: Any, finish_reason: str | None = None) -> bytes:
        choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
        return _event(json.dumps({**base, "choices": [] if script.fault == "empty_choices" else choices}))

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
    head = _head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
    end = b"0\r\n\r\n"
    if script.deltas:
        pieces = [chunk(delta) for delta in script.deltas]
    half_way = len(pieces) // 2 + 1
    match script.fault:
        case "cut" | "hang":
            return [head, *pieces[:half_way]]
        case "cut_clean":
            return [head, *pieces[:half_way], end]
        case "malformed":
            return [head, *pieces[:half_way], _event('{"choices": [{'), end]
        case "error_event":
            return [
                head,
                *pieces[:half_way],
                _event('{"error": {"message": "overloaded", "type": "server_error"}}'),
                end,
            ]
    if script.finish_reason is not None:
        pieces.append(chunk({}, script.finish_reason))
    if with_usage and script.usage is not None:
        pieces.append(_event(json.dumps({**base, "choices": [], "usage": dict(script.usage)})))
    return [head, *pieces, _event("[DONE]"), end]


def _event(data: str) -> bytes:
    line = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(line), line)


def _head(status: int, headers: Mapping[str, str]) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} -", *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()


def _response(status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    return _head(status, {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}) + body


def _json_response(status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
    return _response(status, "application/json", json.dumps(body).encode(), headers)


def main() -> None:
    """Serves until it is killed; prints the base URL when it listens."""
    parser = argparse.ArgumentParser(prog="python -m tests.vendors.openai_like", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="before the first byte of every answer")
    options = parser.parse_args()

    async def serve() -> None:
        script = Script(delay_s=options.delay_ms / 1000) if options.delay_ms else DEFAULT
        async with OpenAILike(port=options.port, script=script) as vendor:
            vendor.keep_requests = False
            print(vendor.base_url, flush=True)
            await asyncio.Event().wait()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
