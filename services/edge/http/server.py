"""The HTTP server inside the edge's process and event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import structlog
import uvicorn
from starlette.applications import Starlette

from services.common.yaml_file import ConfigError

log = structlog.get_logger()


class _Server(uvicorn.Server):
    """Without signal handlers of its own: the process has them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve_http(app: Starlette, host: str, port: int, grace_s: float) -> AsyncIterator[int]:
    """Serves until the block ends; open answers then get `grace_s` seconds. Yields the port. Raises ConfigError."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen for HTTP on {host}:{port}: {error.strerror}") from None
    config = uvicorn.Config(
        app,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace_s)),
    )
    server = _Server(config)
    number = int(listener.getsockname()[1])
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    log.info("listening_http", address=f"{host}:{number}")
    try:
        yield number
    finally:
        server.should_exit = True
        with suppress(asyncio.CancelledError):
            await serving
        listener.close()
