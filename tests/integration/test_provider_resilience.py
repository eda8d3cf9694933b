"""Hedges and callers who leave, through the real provider over gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common import telemetry
from services.common.testing import serve
from services.provider.app import build
from services.provider.settings import ProviderSettings
from tests.vendors.openai_like import DEFAULT, TEXT, OpenAILike, Script
from tests.waiting import until

MODEL = "gpt-4o-mini"
CALLERS = 200
SLOTS = 64
FIELDS = {
    "caller": caller_pb2.Caller(tenant="acme"),
    "chat": chat_pb2.Chat(
        messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="Where is my order?")])]
    ),
    "candidates": [MODEL],
}


class Place:
    """A provider with two vendors of one model."""

    def __init__(self, first: OpenAILike, second: OpenAILike, stub: provider_pb2_grpc.ProviderServiceAsyncStub) -> None:
        self.first = first
        self.second = second
        self.stub = stub

    async def first_delta(self) -> object:
        """Opens a stream and reads its first piece."""
        call = self.stub.StreamGenerate(provider_pb2.StreamGenerateRequest(**FIELDS), timeout=120)
        async for event in call:
            if event.delta.text:
                return call
        raise AssertionError("the stream ended without a piece")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        vendors = [await stack.enter_async_context(OpenAILike()) for _ in range(2)]
        entries = [
            {
                "name": name,
                "kind": "openai",
                "base_url": vendor.base_url,
                "models": {MODEL: MODEL},
                "max_concurrency": SLOTS,
                "max_waiting": CALLERS,
                "max_wait_s": 120,
            }
            for name, vendor in zip(("first", "second"), vendors, strict=True)
        ]
        path = tmp_path / "vendors.yaml"
        path.write_text(json.dumps({"vendors": entries}))
        settings = ProviderSettings(vendors_file=path, hedge_floor_s=0.05)
        closing = await stack.enter_async_context(AsyncExitStack())
        channel = await stack.enter_async_context(serve(await build(settings, closing)))
        yield Place(vendors[0], vendors[1], provider_pb2_grpc.ProviderServiceStub(channel))


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_slow_vendor_is_outrun_and_its_call_ends(place: Place, streaming: bool) -> None:
    place.first.next(Script(delay_s=60))
    if streaming:
        request = provider_pb2.StreamGenerateRequest(**FIELDS, hedge=True)
        events = [event async for event in place.stub.StreamGenerate(request, timeout=50)]
        assert "".join(event.delta.text for event in events) == TEXT
        done = events[-1].finished
    else:
        done = await place.stub.Generate(provider_pb2.GenerateRequest(**FIELDS, hedge=True), timeout=50)
    assert [(a.vendor, a.outcome) for a in done.attempts] == [("first", "HEDGED_LOST"), ("second", "ok")]
    assert done.charge.wasted_nanousd == done.attempts[0].cost_nanousd > 0
    assert done.charge.cost_nanousd == done.attempts[1].cost_nanousd
    await until(lambda: place.first.hang_ups == 1)
    assert (len(place.first.requests), len(place.second.requests)) == (1, 1)


async def test_a_hedge_never_exceeds_the_requests_budget(place: Place) -> None:
    place.first.next(Script(delay_s=0.5))
    request = provider_pb2.GenerateRequest(**FIELDS, hedge=True, max_attempts=1)
    done = await place.stub.Generate(request, timeout=50)
    assert [(a.vendor, a.outcome) for a in done.attempts] == [("first", "ok")]
    assert place.second.requests == []


async def test_callers_who_leave_cost_what_they_got_and_no_slot(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = InMemorySpanExporter()
    tracing = TracerProvider()
    tracing.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer", tracing.get_tracer)
    place.first.always = Script(fault="hang")

    async def leave() -> None:
        call = await place.first_delta()
        call.cancel()

    await asyncio.gather(*(leave() for _ in range(CALLERS)))
    await until(lambda: place.first.hang_ups == CALLERS)
    assert len(place.first.requests) == CALLERS
    assert place.second.requests == []
    attempts = [span for span in exporter.get_finished_spans() if span.name == f"chat {MODEL}"]
    assert [span.status.description for span in attempts] == ["CANCELLED"] * CALLERS
    assert all((span.attributes or {})[telemetry.COST_SPAN] > 0 for span in attempts)

    # As many calls at once as there are slots: none of them waits.
    calls = await asyncio.gather(*(place.first_delta() for _ in range(SLOTS)))
    assert len(place.first.requests) == CALLERS + SLOTS
    for call in calls:
        call.cancel()
    place.first.always = DEFAULT
    done = await place.stub.Generate(provider_pb2.GenerateRequest(**FIELDS), timeout=50)
    assert [(a.vendor, a.outcome) for a in done.attempts] == [("first", "ok")]
