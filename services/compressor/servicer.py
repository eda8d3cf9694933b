"""RPC to domain call."""

import asyncio
from concurrent.futures import Executor

import grpc

from llmmesh.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from services.common import telemetry
from services.compressor import convert
from services.compressor.domain.compress import compress


class CompressorServicer(compressor_pb2_grpc.CompressorServiceServicer):
    """Shortens chats in `executor`, away from the event loop."""

    def __init__(self, executor: Executor, max_characters: int) -> None:
        self._executor = executor
        self._max_characters = max_characters

    async def Compress(
        self,
        request: compressor_pb2.CompressRequest,
        context: grpc.aio.ServicerContext[compressor_pb2.CompressRequest, compressor_pb2.CompressResponse],
    ) -> compressor_pb2.CompressResponse:
        """Compresses the long text of a chat under a token budget."""
        response = await asyncio.get_running_loop().run_in_executor(self._executor, self._compress, request)
        span = telemetry.span()
        span.set_attribute(telemetry.COMPRESS_ORIGINAL_TOKENS, response.original_tokens)
        span.set_attribute(telemetry.COMPRESS_KEPT_TOKENS, response.kept_tokens)
        span.set_attribute(telemetry.COMPRESS_REASON, response.reason)
        return response

    def _compress(self, request: compressor_pb2.CompressRequest) -> compressor_pb2.CompressResponse:
        return convert.outcome_to_pb(compress(convert.order_from_pb(request, self._max_characters)))
