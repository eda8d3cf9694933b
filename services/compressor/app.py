"""What the compressor is made of."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

from llmmesh.compressor.v1.compressor_pb2_grpc import add_CompressorServiceServicer_to_server
from services.common.runtime import Service
from services.compressor.servicer import CompressorServicer
from services.compressor.settings import CompressorSettings


async def build(settings: CompressorSettings, stack: AsyncExitStack) -> list[Service]:
    """The compressor's services."""
    executor = stack.enter_context(ThreadPoolExecutor(settings.workers, thread_name_prefix="compress"))
    servicer = CompressorServicer(executor, settings.max_characters)
    return [Service("llmmesh.compressor.v1.CompressorService", servicer, add_CompressorServiceServicer_to_server)]
