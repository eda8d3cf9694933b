"""What calls leave behind in the metrics of the services that took them."""

import asyncio
import itertools
from contextlib import suppress

import grpc
import pytest

from llmmesh.engine.v1 import engine_pb2
from services.common import metrics
from services.common.chat_pb import chat_from_pb
from services.engine.adapters.metrics import tell_forever
from services.engine.domain.engine import Engine
from services.engine.domain.meter import DeviceMeter
from services.engine.domain.tally import Tally
from tests.rpc.test_engine import CALLER, CHAT, FakeBackend, engine_over
from tests.waiting import until

METHOD = "llmmesh.engine.v1.EngineService/Generate"


def value(name: str, **labels: str) -> float:
    return metrics.registry_of("engine").get_sample_value(name, labels) or 0.0


async def test_calls_are_timed_by_method_and_code():
    before = {code: value("llmmesh_rpc_seconds_count", method=METHOD, code=code) for code in ("OK", "INVALID_ARGUMENT")}
    async with engine_over(FakeBackend()) as stub:
        await stub.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=CHAT))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.Generate(engine_pb2.GenerateRequest())
    for code, was in before.items():
        assert value("llmmesh_rpc_seconds_count", method=METHOD, code=code) == was + 1


async def test_the_engine_tells_what_it_did():
    ticks = itertools.count(0, 1_000_000)
    engine = Engine(
        FakeBackend(),
        DeviceMeter(lambda: next(ticks)),
        Tally(lambda: next(ticks)),
        model="small",
        max_running=3,
        max_waiting=0,
        nanousd_per_device_hour=0,
    )
    await engine.start()
    async for _ in engine.stream(chat_from_pb(CHAT)):
        pass
    before = value("llmmesh_engine_answers_total")
    telling = asyncio.create_task(tell_forever(engine))
    try:
        await until(lambda: value("llmmesh_engine_answers_total") == before + 1)
    finally:
        telling.cancel()
        with suppress(asyncio.CancelledError):
            await telling
    assert value("llmmesh_engine_kv_cache_ratio") == 0.25
    assert value("llmmesh_engine_slots") == 3
    assert value("llmmesh_engine_device_seconds_total", state="busy") > 0
    assert value("llmmesh_engine_tokens_total", type="cached") == 8
