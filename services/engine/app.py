"""What the engine service is made of."""

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

import structlog

from llmmesh.engine.v1 import engine_pb2_grpc
from services.common.money import NANO
from services.common.runtime import Service
from services.engine.adapters.llamacpp import LlamaCpp
from services.engine.adapters.metrics import tell_forever
from services.engine.domain.backend import Backend, ModelAbsent
from services.engine.domain.engine import Engine
from services.engine.domain.meter import DeviceMeter
from services.engine.domain.tally import Tally
from services.engine.servicer import EngineServicer
from services.engine.settings import EngineSettings

log = structlog.get_logger()

LOOK_FOR_MODEL_S = 2.0
VLLM_STEP_TOKENS = 2048  # what vLLM mostly chooses for a server


async def build(settings: EngineSettings, stack: AsyncExitStack) -> Sequence[Service]:
    """The engine's service; the model loads while it already answers health checks."""
    engine = open_engine(settings, stack)
    loading = asyncio.create_task(_load(engine))
    stack.push_async_callback(_stop, loading)
    stack.push_async_callback(_stop, asyncio.create_task(tell_forever(engine)))
    return [
        Service(
            "llmmesh.engine.v1.EngineService",
            EngineServicer(engine),
            engine_pb2_grpc.add_EngineServiceServicer_to_server,
            missing=engine.missing,
        )
    ]


def open_engine(settings: EngineSettings, stack: AsyncExitStack) -> Engine:
    """An engine that is not started yet."""
    if settings.backend == "vllm":
        from services.engine.adapters.vllm import Vllm  # needs an environment of its own

        vllm = Vllm(settings)
        stack.push_async_callback(vllm.close)
        devices = settings.vllm_tensor_parallel_size * settings.vllm_pipeline_parallel_size
        step_tokens = settings.vllm_max_num_batched_tokens or VLLM_STEP_TOKENS
        return _engine(settings, vllm, settings.vllm_max_num_seqs, step_tokens, devices)
    llamacpp = LlamaCpp(
        settings.model_path,
        slots=settings.slots,
        threads=settings.threads or max(1, (os.cpu_count() or 1) // 2),
        context_tokens=settings.context_tokens,
        batch_tokens=settings.batch_tokens,
        prompt_cache_mib=settings.prompt_cache_mib,
        default_output_tokens=settings.default_output_tokens,
    )
    stack.push_async_callback(llamacpp.close)
    return _engine(settings, llamacpp, settings.slots, settings.batch_tokens)


def _engine(settings: EngineSettings, backend: Backend, max_running: int, step_tokens: int, devices: int = 1) -> Engine:
    weight = settings.decode_token_weight
    return Engine(
        backend,
        DeviceMeter(time.monotonic_ns, devices, step_tokens=step_tokens, decode_weight=weight),
        Tally(time.monotonic_ns),
        model=settings.model_name,
        max_running=max_running,
        max_waiting=settings.max_waiting,
        nanousd_per_device_hour=int(settings.price_usd_per_hour * NANO),
    )


async def _load(engine: Engine) -> None:
    """Loads the model; while its files are not there, looks for them now and then."""
    while True:
        try:
            await engine.start()
        except ModelAbsent as error:
            engine.lack(str(error))
            await asyncio.sleep(LOOK_FOR_MODEL_S)
        except Exception as error:
            log.error("model_failed_to_load", exc_info=error)
            engine.lack(f"the model failed to load: {error}")
            return
        else:
            engine.lack(None)
            return


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
