"""`python -m benchmarks.hops.otlp_receiver`: an OTLP endpoint that takes every span and counts them.

`Count` of `bench.Spans` answers with the number so far, in decimal.
"""

import argparse
import asyncio

import grpc
import uvloop
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

COUNT = "/bench.Spans/Count"


class Receiver(TraceServiceServicer):
    """Counts spans."""

    def __init__(self) -> None:
        self.spans = 0

    async def Export(self, request: ExportTraceServiceRequest, context: object) -> ExportTraceServiceResponse:
        """Takes a batch."""
        self.spans += sum(len(s.spans) for resource in request.resource_spans for s in resource.scope_spans)
        return ExportTraceServiceResponse()

    async def count(self, _request: bytes, _context: object) -> bytes:
        """How many there were."""
        return str(self.spans).encode()


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))


async def _serve(port: int) -> None:
    receiver = Receiver()
    server = grpc.aio.server()
    add_TraceServiceServicer_to_server(receiver, server)  # type: ignore[no-untyped-call]
    _, service, method = COUNT.split("/")
    count: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(receiver.count)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: count}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
