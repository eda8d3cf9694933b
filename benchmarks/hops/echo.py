"""`python -m benchmarks.hops.echo`: a gRPC server with nothing around it, which echoes bytes or asks the next one to."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable

import grpc
import uvloop

METHOD = "/bench.Echo/Echo"


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--next", help="host:port of the next server of the chain; without it this one is the last")
    options = parser.parse_args()
    uvloop.run(_serve(options.port, options.next))


async def _serve(port: int, following: str | None) -> None:
    async def echo(data: bytes, _context: object) -> bytes:
        return data

    answer: Callable[[bytes, object], Awaitable[bytes]] = echo
    if following:
        onward: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        onward = grpc.aio.insecure_channel(following).unary_unary(METHOD)

        async def forward(data: bytes, _context: object) -> bytes:
            return await onward(data)

        answer = forward
    _, service, method = METHOD.split("/")
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
