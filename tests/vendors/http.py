"""A small HTTP/1.1 server on loopback for servers that behave like vendors, at little CPU.

A vendor-like server derives from `HttpServer` and answers in `handle` with `connection.send` or `connection.send_slowly`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self, cast

Ending = Literal["", "hang", "drop"]

END = b"0\r\n\r\n"


class HttpServer:
    """Listens while it is entered. `hang_ups` counts clients that left before their answer's end."""

    def __init__(self, port: int = 0) -> None:
        """Port 0 lets the system choose one."""
        self.hang_ups = 0
        self.hung_up = asyncio.Event()
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self._connections, self.handle, self._hang_up), "127.0.0.1", self._port
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        await self._server.wait_closed()

    def handle(self, connection: Connection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        """Answers one request; header names are in lower case, the path has its query."""
        raise NotImplementedError

    def _hang_up(self) -> None:
        self.hang_ups += 1
        self.hung_up.set()


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with keep-alive."""

    def __init__(
        self,
        connections: set[Connection],
        handle: Callable[[Connection, str, str, Mapping[str, str], bytes], None],
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
        """All at once."""
        self._transport.write(data)

    def send_slowly(
        self, pieces: Sequence[bytes], *, delay_s: float = 0.0, pace_s: float = 0.0, then: Ending = ""
    ) -> None:
        """Pieces after `delay_s`, with `pace_s` between two; then nothing more ("hang"), or the connection drops ("drop"),
        or it goes on.
        """
        self._sending = asyncio.get_running_loop().create_task(self._send_slowly(pieces, delay_s, pace_s, then))

    def abort(self) -> None:
        """Drops it."""
        self._transport.abort()

    async def _send_slowly(self, pieces: Sequence[bytes], delay_s: float, pace_s: float, then: Ending) -> None:
        if delay_s:
            await asyncio.sleep(delay_s)
        for number, piece in enumerate(pieces):
            if pace_s and number:
                await asyncio.sleep(pace_s)
            self._transport.write(piece)
        if then == "hang":
            await asyncio.Event().wait()
        if then == "drop":
            self._sending = None
            self._transport.close()


def event(data: str, name: str = "") -> bytes:
    """One server-sent event, as a chunk of a chunked body."""
    line = ((f"event: {name}\n" if name else "") + f"data: {data}\n\n").encode()
    return chunk(line)


def chunk(line: bytes) -> bytes:
    """A chunk of a chunked body; END ends it."""
    return b"%x\r\n%b\r\n" % (len(line), line)


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The status line and the headers."""
    return "\r\n".join([f"HTTP/1.1 {status} -", *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()


def response(status: int, content_type: str, body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole response."""
    return head(status, {"content-type": content_type, "content-length": str(len(body)), **(headers or {})}) + body


def json_response(status: int, body: Any, headers: Mapping[str, str] | None = None) -> bytes:
    """A whole response of JSON."""
    return response(status, "application/json", json.dumps(body).encode(), headers)
