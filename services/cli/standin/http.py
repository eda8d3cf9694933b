"""Just enough HTTP/1.1 to serve an API on loopback: keep-alive, JSON, server-sent events, cancellation on hang-up."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

_MAX_BODY_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """One request; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """A JSON body, or a stream of server-sent events (the text after `data: `)."""

    status: int
    body: Mapping[str, Any] | AsyncGenerator[str]
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Request], Awaitable[Reply]]


@asynccontextmanager
async def serve(handler: Handler, host: str, port: int) -> AsyncIterator[int]:
    """Listens and yields the port; 0 lets the system choose. A handler is cancelled when its client hangs up."""
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(_converse(handler, reader, writer))
        connections.add(task)
        task.add_done_callback(connections.discard)

    server = await asyncio.start_server(accept, host, port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _converse(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers the requests of one connection, one after the other."""
    try:
        while (request := await _read(reader)) is not None:
            answering = asyncio.ensure_future(_answer(handler, request, writer))
            hang_up = asyncio.ensure_future(reader.read(1))
            try:
                await asyncio.wait({answering, hang_up}, return_when=asyncio.FIRST_COMPLETED)
                if hang_up.done():
                    break
                await answering
            finally:
                for task in (answering, hang_up):
                    task.cancel()
                await asyncio.gather(answering, hang_up, return_exceptions=True)
    except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        pass  # the client left, or does not speak HTTP
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:-2])}
    length = int(headers.get("content-length", "0"))
    if length > _MAX_BODY_BYTES:
        return None
    return Request(method, path.partition("?")[0], headers, await reader.readexactly(length))


async def _answer(handler: Handler, request: Request, writer: asyncio.StreamWriter) -> None:
    reply = await handler(request)
    head = [f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}"]
    head += [f"{name}: {value}" for name, value in reply.headers.items()]
    if isinstance(reply.body, Mapping):
        body = json.dumps(reply.body).encode()
        head += ["content-type: application/json", f"content-length: {len(body)}", "", ""]
        writer.write("\r\n".join(head).encode() + body)
        await writer.drain()
        return
    head += ["content-type: text/event-stream", "transfer-encoding: chunked", "", ""]
    async with aclosing(reply.body) as events:
        writer.write("\r\n".join(head).encode())
        async for event in events:
            data = f"data: {event}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
    writer.write(b"0\r\n\r\n")
    await writer.drain()
