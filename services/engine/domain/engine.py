"""Who gets a slot, and what an answer cost."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from services.common.chat import Chat, FinishReason, Message, Role, Sampling, TextPart
from services.common.money import Usage
from services.engine.domain.backend import Backend, Completed, Piece, PromptSize
from services.engine.domain.meter import ComputeCost, DeviceMeter, compute_cost
from services.engine.domain.tally import Tally

_PROBE = Chat((Message(Role.USER, (TextPart("Hi"),)),), sampling=Sampling(max_output_tokens=1))


class Busy(Exception):
    """All slots are taken and the queue is full."""


class NotLoaded(Exception):
    """The model has not produced a token yet."""


class ModelNotServed(Exception):
    """The request names a model that is neither the engine's nor one of its adapters."""


class AnswerCut(Exception):
    """The library stopped before the answer was complete."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request got a slot."""

    model: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    finish_reason: FinishReason
    usage: Usage
    compute: ComputeCost


@dataclass(frozen=True, slots=True)
class Status:
    """How the engine fares; times are device-nanoseconds, and counts are those of complete answers, since start.

    `unbilled_ns` is the part of `busy_ns` that went to requests without an answer.
    """

    backend: str
    model: str
    adapters: tuple[str, ...]
    max_context_tokens: int
    running: int
    waiting: int
    max_running: int
    idle_ns: int
    busy_ns: int
    unbilled_ns: int
    answers: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    prefix_hit_rate: float
    kv_cache_use: float | None
    library_metrics: Mapping[str, float]


class Engine:
    """One model with `max_running` slots, a bounded queue before them, and a meter over them."""

    def __init__(
        self,
        backend: Backend,
        meter: DeviceMeter,
        tally: Tally,
        *,
        model: str,
        max_running: int,
        max_waiting: int,
        nanousd_per_device_hour: int,
    ) -> None:
        """`model` is the served model's name in the price book and in the policy."""
        self._backend = backend
        self._meter = meter
        self._tally = tally
        self._model = model
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._price = nanousd_per_device_hour
        self._slots = asyncio.Semaphore(max_running)
        self._waiting = 0
        self._proven = False
        self._lack: str | None = None

    async def start(self) -> None:
        """Loads the model and makes it and each adapter produce one token. Only then is the engine ready."""
        await self._backend.start()
        for adapter in (None, *self._backend.adapters):
            async with aclosing(self._compute(_PROBE, adapter)) as events:
                async for event in events:
                    if not isinstance(event, Finished):
                        continue
                    self._tally.lost(event.compute.prefill_ns + event.compute.decode_ns)
                    if not event.usage.output_tokens:
                        raise AnswerCut(f"{adapter or self._model} was loaded and produced no token")
        self._proven = True

    def lack(self, why: str | None) -> None:
        """Notes what keeps the model from being loaded; None: nothing does any more."""
        self._lack = why

    async def missing(self) -> str | None:
        """What keeps the engine from answering; None when nothing does."""
        if self._lack:
            return self._lack
        if not self._proven:
            return f"the model {self._model} is loading"
        return self._backend.fault

    async def stream(self, chat: Chat, model: str = "") -> AsyncGenerator[Started | Piece | Finished]:
        """Waits for a slot, then streams one answer; `Finished` comes last. Closing the generator frees the slot.

        Raises NotLoaded, ModelNotServed, Busy, AnswerCut, and InvalidInput for a prompt that the model cannot take.
        """
        if not self._proven:
            raise NotLoaded(f"the model {self._model} is loading")
        adapter = self._adapter(model)
        if self._slots.locked() and self._waiting >= self._max_waiting:
            raise Busy(f"all {self._max_running} slots and {self._max_waiting} places in the queue are taken")
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        try:
            yield Started(adapter or self._model)
            async with aclosing(self._compute(chat, adapter)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        self._tally.answered(event.usage)
                    yield event
        finally:
            self._slots.release()

    def status(self) -> Status:
        """A snapshot."""
        backend, meter, tally = self._backend, self._meter, self._tally
        return Status(
            backend=backend.name,
            model=self._model,
            adapters=backend.adapters,
            max_context_tokens=backend.max_context_tokens,
            running=meter.running,
            waiting=self._waiting,
            max_running=self._max_running,
            idle_ns=meter.idle_ns,
            busy_ns=meter.busy_ns,
            unbilled_ns=tally.unbilled_ns,
            answers=tally.answers,
            input_tokens=tally.input_tokens,
            cached_tokens=tally.cached_tokens,
            output_tokens=tally.output_tokens,
            output_tokens_per_second=tally.output_tokens_per_second,
            prefix_hit_rate=tally.prefix_hit_rate,
            kv_cache_use=backend.kv_cache_use,
            library_metrics=backend.metrics(),
        )

    def _adapter(self, model: str) -> str | None:
        if model in ("", self._model):
            return None
        if model in self._backend.adapters:
            return model
        raise ModelNotServed(f"this engine serves {', '.join((self._model, *self._backend.adapters))}")

    async def _compute(self, chat: Chat, adapter: str | None) -> AsyncGenerator[Piece | Finished]:
        completed: Completed | None = None
        share = self._meter.start(_about_tokens(chat))
        try:
            async with aclosing(self._backend.generate(chat, adapter)) as events:
                async for event in events:
                    match event:
                        case PromptSize(tokens, cached):
                            self._meter.correct(share, tokens - cached)
                        case Completed():
                            completed = event
                        case Piece():
                            if not share.decoding:
                                self._meter.first_token(share)
                            yield event
        finally:
            self._meter.stop(share)
            if completed is None:
                self._tally.lost(share.prefill_ns + share.decode_ns)
        if completed is None:
            raise AnswerCut("the model stopped before the answer was complete")
        usage = Usage(
            input_tokens=completed.input_tokens,
            cache_read_input_tokens=completed.cached_tokens,
            output_tokens=completed.output_tokens,
        )
        yield Finished(completed.finish_reason, usage, compute_cost(share, self._price))


def _about_tokens(chat: Chat) -> int:
    """Prompt tokens until the library has counted them."""
    return sum(len(message.text) for message in chat.messages) // 4
