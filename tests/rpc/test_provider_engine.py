"""The provider's adapter for our own engine, against a scripted engine service on a real channel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from llmmesh.common.v1 import chat_pb2, usage_pb2
from llmmesh.engine.v1 import engine_pb2, engine_pb2_grpc
from services.common import telemetry
from services.common.chat import Chat, Delta, FinishReason, Message, Role, TextDelta, TextPart
from services.common.chat_pb import Caller
from services.common.errors import (
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    NotReady,
    RateLimited,
    StreamCut,
    UnknownModel,
    Violation,
)
from services.common.money import Rates, Usage
from services.common.runtime import Service
from services.common.testing import serve
from services.provider.adapters.engine import EngineVendor
from services.provider.adapters.spans import SpanWatch
from services.provider.domain.charge import Charge, Compute
from services.provider.domain.vendor import Call, Completion, Reason, VendorError

CHAT = Chat((Message(Role.USER, (TextPart("Hi"),)),))
USAGE = usage_pb2.Usage(input_tokens=10, cache_read_input_tokens=4, output_tokens=2)
COMPUTE = engine_pb2.ComputeCost(cost_nanousd=900, prefill_cost_nanousd=400)
STARTED = engine_pb2.StreamGenerateResponse(started=engine_pb2.Started(model="small"))
PIECE = engine_pb2.StreamGenerateResponse(delta=chat_pb2.Delta(text="Hello"))
FINISHED = engine_pb2.StreamGenerateResponse(
    finished=engine_pb2.Finished(finish_reason=chat_pb2.FINISH_REASON_STOP, usage=USAGE, compute=COMPUTE)
)
COMPLETION = Completion(
    FinishReason.STOP, Usage(10, 2, cache_read_input_tokens=4), "small", Compute(cost=900, prefill_cost=400)
)


class ScriptedEngine(engine_pb2_grpc.EngineServiceServicer):
    """Sends its script."""

    def __init__(
        self,
        script: Sequence[engine_pb2.StreamGenerateResponse | MeshError],
        finish_reason: chat_pb2.FinishReason.ValueType = chat_pb2.FINISH_REASON_STOP,
    ) -> None:
        self._script = script
        self._finish_reason = finish_reason
        self.metadata: dict[str, str | bytes] = {}
        self.time_left: float | None = None

    async def Generate(
        self, request: engine_pb2.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> engine_pb2.GenerateResponse:
        self.time_left = context.time_remaining()
        message = chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text="Hello")])
        answer = chat_pb2.Answer(message=message, finish_reason=self._finish_reason)
        return engine_pb2.GenerateResponse(answer=answer, usage=USAGE, compute=COMPUTE, model="small")

    async def StreamGenerate(
        self, request: engine_pb2.StreamGenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[engine_pb2.StreamGenerateResponse]:
        self.metadata = dict(context.invocation_metadata() or ())
        self.time_left = context.time_remaining()
        for event in self._script:
            if isinstance(event, MeshError):
                raise event
            yield event

    async def GetStatus(
        self, request: engine_pb2.GetStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> engine_pb2.GetStatusResponse:
        return engine_pb2.GetStatusResponse()


@asynccontextmanager
async def vendor_over(engine: ScriptedEngine) -> AsyncIterator[EngineVendor]:
    service = Service("llmmesh.engine.v1.EngineService", engine, engine_pb2_grpc.add_EngineServiceServicer_to_server)
    async with serve([service]) as channel:
        yield EngineVendor("our-engine", channel)


def call(*, streaming: bool = True, deadline_s: float | None = None, trace: tuple[tuple[str, str], ...] = ()) -> Call:
    return Call("small", CHAT, Caller("acme", request_id="r1"), streaming, 10.0, deadline_s, trace)


async def events_of(engine: ScriptedEngine, wanted: Call) -> list[Delta | Completion]:
    async with vendor_over(engine) as vendor:
        return [event async for event in vendor.call(wanted)]


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_answer_comes_with_its_measured_cost(streaming: bool) -> None:
    events = await events_of(ScriptedEngine([STARTED, PIECE, FINISHED]), call(streaming=streaming))
    assert events == [TextDelta("Hello"), COMPLETION]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RateLimited("busy", retry_after_s=1.5), Reason.RATE_LIMITED),
        (InvalidInput(violations=[Violation("chat.messages", "600 tokens")]), Reason.INVALID_INPUT),
        (NotReady("loading"), Reason.UNAVAILABLE),
        (StreamCut("gone"), Reason.CUT),
        (UnknownModel("this engine serves another"), Reason.REJECTED),
        (DeadlineExceeded("too slow"), Reason.UNAVAILABLE),
    ],
)
async def test_each_error_of_the_engine_has_its_reason(error: MeshError, reason: Reason) -> None:
    with pytest.raises(VendorError) as caught:
        await events_of(ScriptedEngine([error]), call())
    assert caught.value.reason is reason
    assert caught.value.retry_after_s == error.retry_after_s


async def test_a_stream_without_finished_is_cut() -> None:
    with pytest.raises(VendorError) as caught:
        await events_of(ScriptedEngine([STARTED, PIECE]), call())
    assert caught.value.reason is Reason.CUT


@pytest.mark.parametrize("streaming", [True, False])
async def test_an_answer_without_a_known_end_is_cut(streaming: bool) -> None:
    end = engine_pb2.StreamGenerateResponse(finished=engine_pb2.Finished(usage=USAGE, compute=COMPUTE))
    engine = ScriptedEngine([STARTED, PIECE, end], chat_pb2.FINISH_REASON_UNSPECIFIED)
    with pytest.raises(VendorError) as caught:
        await events_of(engine, call(streaming=streaming))
    assert caught.value.reason is Reason.CUT


async def test_a_malformed_answer_is_the_engines_fault_and_not_the_requests() -> None:
    usage = usage_pb2.Usage(input_tokens=-1)
    end = engine_pb2.StreamGenerateResponse(
        finished=engine_pb2.Finished(finish_reason=chat_pb2.FINISH_REASON_STOP, usage=usage, compute=COMPUTE)
    )
    with pytest.raises(VendorError) as caught:
        await events_of(ScriptedEngine([STARTED, PIECE, end]), call())
    assert caught.value.reason is Reason.UNAVAILABLE


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_engine_knows_the_callers_deadline(streaming: bool) -> None:
    engine = ScriptedEngine([STARTED, PIECE, FINISHED])
    # gRPC writes a timeout with few digits, rounded up.
    await events_of(engine, call(streaming=streaming, deadline_s=4.9))
    assert engine.time_left is not None
    assert 0 < engine.time_left <= 5.0


async def test_the_callers_deadline_is_no_fault_of_the_engine() -> None:
    with pytest.raises(VendorError) as caught:
        await events_of(ScriptedEngine([DeadlineExceeded("the deadline passed")]), call(deadline_s=5.0))
    assert caught.value.reason is Reason.DEADLINE


async def test_the_trace_goes_on_in_the_engine() -> None:
    engine = ScriptedEngine([STARTED, PIECE, FINISHED])
    await events_of(engine, call(trace=(("traceparent", "00-" + "1" * 32 + "-" + "2" * 16 + "-01"),)))
    assert engine.metadata["traceparent"] == "00-" + "1" * 32 + "-" + "2" * 16 + "-01"


def test_an_attempt_is_a_client_span_with_its_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer", tracing.get_tracer)
    watch = SpanWatch()
    answered = watch.attempt("gpt-4o", "openai", 2)
    assert answered.trace[0][0] == "traceparent"
    answered.answered(COMPLETION, Usage(10, 2, cache_read_input_tokens=4), Charge(900, Rates(), "engine"))
    answered.end()
    failed = watch.attempt("gpt-4o", "openai", 1)
    failed.failed(Reason.RATE_LIMITED, 0)
    failed.end()
    cancelled = watch.attempt("gpt-4o", "openai", 1)
    cancelled.cancelled(70, 200)
    cancelled.end()
    first, second, third = exporter.get_finished_spans()
    assert first.name == "chat gpt-4o"
    assert first.attributes == {
        telemetry.GEN_AI_OPERATION: "chat",
        telemetry.GEN_AI_PROVIDER: "openai",
        telemetry.GEN_AI_REQUEST_MODEL: "gpt-4o",
        telemetry.GEN_AI_RESPONSE_MODEL: "small",
        telemetry.GEN_AI_FINISH_REASONS: ("stop",),
        telemetry.GEN_AI_INPUT_TOKENS: 10,
        telemetry.GEN_AI_OUTPUT_TOKENS: 2,
        telemetry.GEN_AI_CACHE_READ_TOKENS: 4,
        telemetry.GEN_AI_CACHE_WRITE_TOKENS: 0,
        telemetry.GEN_AI_CACHE_CREATION_TOKENS: 0,
        telemetry.OPENINFERENCE_KIND: "LLM",
        telemetry.LLM_MODEL: "gpt-4o",
        telemetry.LLM_PROMPT_TOKENS: 10,
        telemetry.LLM_COMPLETION_TOKENS: 2,
        telemetry.LLM_TOTAL_TOKENS: 12,
        telemetry.LLM_COST: 9e-7,
        telemetry.PROVIDER_VENDOR: "openai",
        telemetry.PROVIDER_ATTEMPT: 2,
        telemetry.COST_SPAN: 900,
        telemetry.GEN_AI_COST: 9e-7,
    }
    assert second.status.description == "RATE_LIMITED"
    assert telemetry.COST_SPAN not in (second.attributes or {})
    assert third.status.description == "CANCELLED"
    assert (third.attributes or {})[telemetry.COST_SPAN] == 70


def test_a_model_that_nobody_serves_is_logged_once() -> None:
    watch = SpanWatch()
    with capture_logs() as lines:
        for model in ("nope", "never", "nope"):
            watch.not_served(model)
    assert [line["model"] for line in lines] == ["nope", "never"]
