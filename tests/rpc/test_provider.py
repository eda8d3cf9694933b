from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llmmesh.common.v1 import caller_pb2, chat_pb2, usage_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.chat import Delta, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from services.common.errors import (
    AllCandidatesFailed,
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    RateLimited,
    StreamCut,
    UnknownModel,
    UpstreamCredential,
    UpstreamRejected,
    from_rpc_error,
)
from services.common.money import Rates, Usage
from services.common.runtime import Service
from services.common.testing import serve
from services.provider.adapters.spans import SpanWatch
from services.provider.domain.breaker import Breaker
from services.provider.domain.dispatch import Dispatcher
from services.provider.domain.plan import Candidate, RetryRules
from services.provider.domain.slots import Slots
from services.provider.domain.vendor import Call, Completion, Reason, VendorError
from services.provider.servicer import ProviderServicer

CALLER = caller_pb2.Caller(tenant="acme", request_id="r1")
CHAT = chat_pb2.Chat(messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="Hi")])])
RATES = Rates(input=1_000_000, output=2_000_000)
OK: tuple[Delta | Completion, ...] = (
    ReasoningDelta("Greet."),
    TextDelta("Hello"),
    ToolCallDelta(0, "call-1", "wave", "{}"),
    Completion(FinishReason.TOOL_CALLS, Usage(100, 10, cache_read_input_tokens=40), "m-1"),
)


class FakeVendor:
    """Plays its script, then waits for ever if it has no end."""

    def __init__(self, *script: Delta | Completion | VendorError) -> None:
        self._script = script
        self.calls: list[Call] = []
        self.left = asyncio.Event()

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        self.calls.append(call)
        try:
            for event in self._script:
                if isinstance(event, VendorError):
                    raise event
                yield event
            await asyncio.Event().wait()
        finally:
            self.left.set()


@asynccontextmanager
async def provider_over(**vendors: FakeVendor) -> AsyncIterator[provider_pb2_grpc.ProviderServiceAsyncStub]:
    candidates = {
        model: [Candidate(model, f"at-{model}", model, v, Breaker(9, 1, time.monotonic), 30.0, 30.0, Slots(8, 8, 5.0))]
        for model, v in vendors.items()
    }
    dispatcher = Dispatcher(
        candidates,
        lambda model, *, input_tokens=0: {"cheap": RATES}.get(model),
        RetryRules(2, 0.0, 0.0),
        SpanWatch(),
        monotonic=time.monotonic,
        random=lambda: 0.0,
    )
    service = Service(
        "llmmesh.provider.v1.ProviderService",
        ProviderServicer(dispatcher),
        provider_pb2_grpc.add_ProviderServiceServicer_to_server,
    )
    async with serve([service]) as channel:
        yield provider_pb2_grpc.ProviderServiceStub(channel)


def whole(*candidates: str) -> provider_pb2.GenerateRequest:
    return provider_pb2.GenerateRequest(caller=CALLER, chat=CHAT, candidates=candidates)


def streamed(*candidates: str) -> provider_pb2.StreamGenerateRequest:
    return provider_pb2.StreamGenerateRequest(caller=CALLER, chat=CHAT, candidates=candidates)


async def refused(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_whole_answer_has_text_tools_usage_and_charge() -> None:
    vendor = FakeVendor(*OK)
    async with provider_over(cheap=vendor) as provider:
        response = await provider.Generate(whole("cheap"))
    message = response.answer.message
    assert (message.parts[0].text, message.reasoning) == ("Hello", "Greet.")
    assert (message.tool_calls[0].id, message.tool_calls[0].name) == ("call-1", "wave")
    assert response.answer.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    assert (response.usage.input_tokens, response.usage.cache_read_input_tokens) == (100, 40)
    assert (response.model, response.vendor) == ("cheap", "at-cheap")
    charge = response.charge
    assert (charge.cost_nanousd, charge.component) == (60 + 20, usage_pb2.COST_COMPONENT_PROVIDER)
    assert charge.rates.input_nanousd_per_mtok == RATES.input
    assert [attempt.outcome for attempt in response.attempts] == ["ok"]
    assert not vendor.calls[0].streaming


async def test_a_stream_is_started_pieces_finished() -> None:
    failing = FakeVendor(VendorError(Reason.UNAVAILABLE, "down"))
    async with provider_over(down=failing, cheap=FakeVendor(*OK)) as provider:
        events = [event async for event in provider.StreamGenerate(streamed("down", "cheap"))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds == ["started", "delta", "delta", "delta", "finished"]
    assert (events[0].started.vendor, events[0].started.component) == ("at-cheap", usage_pb2.COST_COMPONENT_PROVIDER)
    assert [a.outcome for a in events[-1].finished.attempts] == ["UPSTREAM_UNAVAILABLE", "ok"]


async def test_a_cut_stream_is_an_error() -> None:
    vendor = FakeVendor(TextDelta("Hel"), VendorError(Reason.CUT, "gone"))
    async with provider_over(cheap=vendor) as provider:
        seen: list[str | None] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 (what came before counts)
            async for event in provider.StreamGenerate(streamed("cheap")):
                seen.append(event.WhichOneof("event"))
    error = from_rpc_error(caught.value)
    assert seen == ["started", "delta"]
    assert isinstance(error, StreamCut)
    assert error.retryable
    assert int(error.metadata["wasted_nanousd"]) > 0


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (Reason.RATE_LIMITED, RateLimited),
        (Reason.REJECTED, UpstreamRejected),
        (Reason.CREDENTIAL, UpstreamCredential),
        (Reason.INVALID_INPUT, InvalidInput),
        (Reason.UNAVAILABLE, AllCandidatesFailed),
    ],
)
async def test_each_failure_has_its_name(reason: Reason, kind: type[MeshError]) -> None:
    async with provider_over(cheap=FakeVendor(VendorError(reason, "why", retry_after_s=0.0))) as provider:
        error = await refused(provider.Generate(whole("cheap")))
    assert type(error) is kind


async def test_a_refused_request_tells_what_failed_attempts_cost() -> None:
    refusing = FakeVendor(VendorError(Reason.INVALID_INPUT, "too long", field="chat.messages", billed=True))
    async with provider_over(cheap=refusing) as provider:
        error = await refused(provider.Generate(whole("cheap")))
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "chat.messages"
    assert int(error.metadata["wasted_nanousd"]) > 0


async def test_cancelling_the_caller_cancels_the_vendor() -> None:
    vendor = FakeVendor(TextDelta("Hel"))
    async with provider_over(cheap=vendor) as provider:
        call = provider.StreamGenerate(streamed("cheap"))
        await call.read()
        await call.read()
        call.cancel()
        await vendor.left.wait()


async def test_the_deadline_ends_a_silent_vendor() -> None:
    vendor = FakeVendor()
    async with provider_over(cheap=vendor) as provider:
        error = await refused(provider.Generate(whole("cheap"), timeout=0.2))
        assert isinstance(error, DeadlineExceeded)
        await vendor.left.wait()


@pytest.mark.parametrize(
    ("candidates", "field"),
    [([], "candidates"), (["cheap"] * 17, "candidates"), (["nope", "never"], "candidates")],
)
async def test_candidates_are_checked(candidates: Sequence[str], field: str) -> None:
    async with provider_over(cheap=FakeVendor(*OK)) as provider:
        error = await refused(provider.Generate(whole(*candidates)))
    assert isinstance(error, InvalidInput | UnknownModel)
    assert error.violations[0].field == field


async def test_the_attempt_budget_is_checked() -> None:
    async with provider_over(cheap=FakeVendor(*OK)) as provider:
        request = whole("cheap")
        request.max_attempts = 0
        error = await refused(provider.Generate(request))
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "max_attempts"


async def test_lists_the_models() -> None:
    async with provider_over(dear=FakeVendor(*OK), cheap=FakeVendor(*OK)) as provider:
        response = await provider.ListModels(provider_pb2.ListModelsRequest())
    assert [(m.model, m.vendor) for m in response.models] == [("cheap", "at-cheap"), ("dear", "at-dear")]
