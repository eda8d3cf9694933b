import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import pytest

from services.common.chat import Chat, FinishReason, Message, Role, TextDelta, TextPart
from services.engine.domain.backend import Completed, Piece, PromptSize
from services.engine.domain.engine import AnswerCut, Busy, Engine, Finished, ModelNotServed, NotLoaded, Started
from services.engine.domain.meter import DeviceMeter
from services.engine.domain.tally import Tally

CHAT = Chat((Message(Role.USER, (TextPart("Hi"),)),))


class Scripted:
    """A backend whose answers wait for `go`."""

    name = "scripted"
    adapters: tuple[str, ...] = ("legal",)
    max_context_tokens = 100
    fault: str | None = None
    kv_cache_use: float | None = None

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.complete = True
        self.cancelled = 0
        self.tokens = 1
        self.seen: list[str | None] = []

    def metrics(self) -> Mapping[str, float]:
        return {}

    async def start(self) -> None:
        pass

    async def generate(self, chat: Chat, adapter: str | None) -> AsyncGenerator[PromptSize | Piece | Completed]:
        self.seen.append(adapter)
        try:
            yield Piece(TextDelta("Hello"))
            await self.go.wait()
            if self.complete:
                yield Completed(FinishReason.STOP, 10, 4, self.tokens)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


class Ticks:
    """Every look at the clock is a second later."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1_000_000_000
        return self.now


async def started(backend: Scripted, *, slots: int = 1, queue: int = 1) -> Engine:
    engine = Engine(
        backend,
        DeviceMeter(Ticks()),
        Tally(Ticks()),
        model="small",
        max_running=slots,
        max_waiting=queue,
        nanousd_per_device_hour=3_600_000_000_000,
    )
    await engine.start()
    return engine


async def consume(engine: Engine, model: str = "") -> list[Started | Piece | Finished]:
    return [event async for event in engine.stream(CHAT, model)]


async def test_is_not_ready_before_a_token_came_out() -> None:
    backend = Scripted()
    engine = Engine(
        backend,
        DeviceMeter(Ticks()),
        Tally(Ticks()),
        model="small",
        max_running=1,
        max_waiting=1,
        nanousd_per_device_hour=1,
    )
    assert await engine.missing() == "the model small is loading"
    with pytest.raises(NotLoaded):
        await consume(engine)
    backend.complete = False
    with pytest.raises(AnswerCut):
        await engine.start()
    assert await engine.missing() is not None
    backend.complete, backend.tokens = True, 0
    with pytest.raises(AnswerCut, match="no token"):
        await engine.start()
    backend.tokens = 1
    backend.seen.clear()
    await engine.start()
    assert backend.seen == [None, "legal"]
    assert await engine.missing() is None


async def test_a_fault_of_the_library_makes_it_unready() -> None:
    backend = Scripted()
    engine = await started(backend)
    backend.fault = "it died"
    assert await engine.missing() == "it died"


async def test_an_answer_ends_with_usage_and_cost() -> None:
    events = await consume(await started(Scripted()))
    assert events[:2] == [Started("small"), Piece(TextDelta("Hello"))]
    last = events[2]
    assert isinstance(last, Finished)
    assert (last.usage.input_tokens, last.usage.cache_read_input_tokens, last.usage.output_tokens) == (10, 4, 1)
    assert last.compute.prefill_ns > 0
    assert last.compute.decode_ns > 0
    assert last.compute.cost_nanousd == last.compute.prefill_ns + last.compute.decode_ns


async def test_a_stream_that_stops_early_is_an_error_and_never_finished() -> None:
    backend = Scripted()
    engine = await started(backend)
    backend.complete = False
    with pytest.raises(AnswerCut):
        await consume(engine)
    assert engine.status().running == 0


async def test_a_full_queue_refuses_at_once() -> None:
    backend = Scripted()
    engine = await started(backend, slots=1, queue=1)
    backend.go.clear()
    tasks = [asyncio.create_task(consume(engine)) for _ in range(2)]
    while engine.status().waiting < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert engine.status().running == 1
    with pytest.raises(Busy):
        await consume(engine)
    backend.go.set()
    answers = await asyncio.gather(*tasks)
    assert all(isinstance(events[-1], Finished) for events in answers)


async def test_closing_the_stream_cancels_the_computation_and_frees_the_slot() -> None:
    backend = Scripted()
    engine = await started(backend)
    backend.go.clear()
    async with aclosing(engine.stream(CHAT)) as events:
        assert await anext(events) == Started("small")
        await anext(events)
        assert engine.status().running == 1
    assert backend.cancelled == 1
    assert engine.status().running == 0
    assert engine.status().answers == 0
    assert engine.status().unbilled_ns == engine.status().busy_ns
    backend.go.set()
    assert isinstance((await consume(engine))[-1], Finished)


async def test_cancelling_a_waiting_request_leaves_the_queue() -> None:
    backend = Scripted()
    engine = await started(backend)
    backend.go.clear()
    running = asyncio.create_task(consume(engine))
    waiting = asyncio.create_task(consume(engine))
    while engine.status().waiting < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert engine.status().waiting == 0
    backend.go.set()
    assert isinstance((await running)[-1], Finished)


async def test_a_model_must_be_the_engines_or_an_adapter() -> None:
    backend = Scripted()
    engine = await started(backend)
    assert (await consume(engine, "legal"))[0] == Started("legal")
    assert backend.seen[-1] == "legal"
    await consume(engine, "small")
    assert backend.seen[-1] is None
    with pytest.raises(ModelNotServed, match="small, legal"):
        await consume(engine, "other")
