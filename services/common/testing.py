"""For tests: services in this process behind a real server and a real channel."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from services.common.channels import open_channel
from services.common.runtime import Service, make_server
from services.common.settings import ServiceSettings


@asynccontextmanager
async def serve(services: Sequence[Service]) -> AsyncIterator[grpc.aio.Channel]:
    """Starts the services on a free port and yields a channel to them."""
    server, _ = make_server(services, ServiceSettings())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)
