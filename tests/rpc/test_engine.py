from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.engine.v1 import engine_pb2, engine_pb2_grpc
from services.common.chat import Chat, FinishReason, TextDelta
from services.common.errors import (
    InvalidInput,
    MeshError,
    NotReady,
    RateLimited,
    StreamCut,
    UnknownModel,
    from_rpc_error,
)
from services.common.runtime import Service
from services.common.testing import serve
from services.engine.domain.backend import Completed, Piece, PromptSize
from services.engine.domain.engine import Engine
from services.engine.domain.meter import DeviceMeter
from services.engine.domain.tally import Tally
from services.engine.servicer import EngineServicer

CALLER = caller_pb2.Caller(tenant="acme")
CHAT = chat_pb2.Chat(messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="Hi")])])
REQUEST = engine_pb2.StreamGenerateRequest(caller=CALLER, chat=CHAT)


class FakeBackend:
    """Says "Hello you", waiting for `go` in between."""

    name = "fake"
    adapters: tuple[str, ...] = ()
    max_context_tokens = 128
    fault: str | None = None
    kv_cache_use: float | None = 0.25

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.dies = False
        self.left = asyncio.Event()

    def metrics(self) -> Mapping[str, float]:
        return {"fake:steps_total": 7.0}

    async def start(self) -> None:
        pass

    async def generate(self, chat: Chat, adapter: str | None) -> AsyncGenerator[PromptSize | Piece | Completed]:
        try:
            yield PromptSize(12, 8)
            yield Piece(TextDelta("Hello"))
            await self.go.wait()
            if not self.dies:
                yield Piece(TextDelta(" you"))
                yield Completed(FinishReason.STOP, 12, 8, 2)
        finally:
            self.left.set()


@asynccontextmanager
async def engine_over(
    backend: FakeBackend, *, start: bool = True, slots: int = 1, queue: int = 0
) -> AsyncIterator[engine_pb2_grpc.EngineServiceAsyncStub]:
    ticks = itertools.count(0, 1_000_000)
    engine = Engine(
        backend,
        DeviceMeter(lambda: next(ticks)),
        Tally(lambda: next(ticks)),
        model="small",
        max_running=slots,
        max_waiting=queue,
        nanousd_per_device_hour=3_600_000_000_000,
    )
    if start:
        await engine.start()
        backend.left.clear()
    service = Service(
        "llmmesh.engine.v1.EngineService", EngineServicer(engine), engine_pb2_grpc.add_EngineServiceServicer_to_server
    )
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(serve([service]))
        yield engine_pb2_grpc.EngineServiceStub(channel)


async def refused(call: grpc.aio.UnaryUnaryCall[Any, Any] | grpc.aio.UnaryStreamCall[Any, Any]) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 (both shapes of call end here)
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            async for _ in call:
                pass
    return from_rpc_error(caught.value)


async def test_streams_started_pieces_and_finished() -> None:
    async with engine_over(FakeBackend()) as engine:
        events = [event async for event in engine.StreamGenerate(REQUEST)]
    assert [event.WhichOneof("event") for event in events] == ["started", "delta", "delta", "finished"]
    assert events[0].started.model == "small"
    done = events[-1].finished
    assert done.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert (done.usage.input_tokens, done.usage.cache_read_input_tokens, done.usage.output_tokens) == (12, 8, 2)
    spent = done.compute.prefill_time.ToNanoseconds() + done.compute.decode_time.ToNanoseconds()
    assert done.compute.cost_nanousd == spent > 0


async def test_generates_a_whole_answer() -> None:
    async with engine_over(FakeBackend()) as engine:
        response = await engine.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=CHAT))
    assert response.answer.message.parts[0].text == "Hello you"
    assert response.model == "small"


async def test_a_fault_of_the_library_cuts_the_stream() -> None:
    backend = FakeBackend()
    async with engine_over(backend) as engine:
        backend.dies = True
        assert isinstance(await refused(engine.StreamGenerate(REQUEST)), StreamCut)
        unary = engine.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=CHAT))
        assert isinstance(await refused(unary), StreamCut)


async def test_cancelling_frees_the_slot() -> None:
    backend = FakeBackend()
    async with engine_over(backend) as engine:
        backend.go.clear()
        call = engine.StreamGenerate(REQUEST)
        await call.read()
        await call.read()
        assert (await engine.GetStatus(engine_pb2.GetStatusRequest())).running == 1
        call.cancel()
        await backend.left.wait()
        assert (await engine.GetStatus(engine_pb2.GetStatusRequest())).running == 0


async def test_a_full_queue_says_when_to_come_back() -> None:
    backend = FakeBackend()
    async with engine_over(backend) as engine:
        backend.go.clear()
        events = aiter(engine.StreamGenerate(REQUEST))
        assert (await anext(events)).started.model == "small"
        error = await refused(engine.StreamGenerate(REQUEST))
        assert isinstance(error, RateLimited)
        assert error.retry_after_s == 1.0
        backend.go.set()
        assert [event.WhichOneof("event") async for event in events][-1] == "finished"


async def test_before_the_model_is_loaded_calls_may_be_retried() -> None:
    async with engine_over(FakeBackend(), start=False) as engine:
        assert isinstance(await refused(engine.StreamGenerate(REQUEST)), NotReady)


async def test_another_model_is_refused_by_name() -> None:
    async with engine_over(FakeBackend()) as engine:
        call = engine.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=CHAT, model="large"))
        error = await refused(call)
    assert isinstance(error, UnknownModel)
    assert error.violations[0].field == "model"


async def test_bad_input_is_named_by_field() -> None:
    async with engine_over(FakeBackend()) as engine:
        error = await refused(engine.Generate(engine_pb2.GenerateRequest(caller=CALLER)))
        assert isinstance(error, InvalidInput)
        assert error.violations[0].field == "chat.messages"
        error = await refused(engine.Generate(engine_pb2.GenerateRequest(chat=CHAT)))
        assert isinstance(error, InvalidInput)
        assert error.violations[0].field == "caller.tenant"


async def test_another_adapter_is_refused_by_name_and_a_loaded_one_answers() -> None:
    backend = FakeBackend()
    backend.adapters = ("legal",)
    async with engine_over(backend) as engine:
        status = await engine.GetStatus(engine_pb2.GetStatusRequest())
        assert list(status.adapters) == ["legal"]
        answered = await engine.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=CHAT, model="legal"))
        assert answered.model == "legal"
        error = await refused(engine.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=CHAT, model="medical")))
    assert isinstance(error, UnknownModel)
    assert "small, legal" in error.violations[0].description


async def test_status_accounts_for_all_time_and_counts_answers() -> None:
    async with engine_over(FakeBackend(), slots=3) as engine:
        await engine.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=CHAT))
        status = await engine.GetStatus(engine_pb2.GetStatusRequest())
    assert (status.backend, status.model, status.max_context_tokens, status.max_running) == ("fake", "small", 128, 3)
    assert status.idle_time.ToNanoseconds() > 0
    # The proof of readiness is nobody's answer.
    assert status.busy_time.ToNanoseconds() > status.unbilled_time.ToNanoseconds() > 0
    assert (status.answers, status.input_tokens, status.cached_input_tokens, status.output_tokens) == (1, 12, 8, 2)
    assert status.prefix_hit_rate == pytest.approx(8 / 12)
    assert status.output_tokens_per_second > 0
    assert status.kv_cache_use == 0.25
    assert dict(status.library_metrics) == {"fake:steps_total": 7.0}


async def test_what_the_library_does_not_tell_is_unset() -> None:
    backend = FakeBackend()
    backend.kv_cache_use = None
    async with engine_over(backend) as engine:
        assert not (await engine.GetStatus(engine_pb2.GetStatusRequest())).HasField("kv_cache_use")
