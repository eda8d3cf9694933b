"""Who gets a slot, and what an answer cost."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from services.common.chat import Chat, FinishReason, Message, Role, Sampling, TextPart
from services.common.money import Usage
from services.engine.domain.backend import Backend, Completed, Piece
from services.engine.domain.meter import ComputeCost, DeviceMeter, compute_cost

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
    """How the engine fares; times are device-nanoseconds since start."""

    backend: str
    model: str
    adapters: tuple[str, ...]
    max_context_tokens: int
    running: int
    waiting: int
    max_running: int
    idle_ns: int
    busy_ns: int


class Engine:
    """One model with `max_running` slots, a bounded queue before them, and a meter over them."""

    def __init__(
        self,
        backend: Backend,
        meter: DeviceMeter,
        *,
        model: str,
        max_running: int,
        max_waiting: int,
        nanousd_per_device_hour: int,
    ) -> None:
        """`model` is the served model's name in the price book and in the policy."""
        self._backend = backend
        self._meter = meter
        self._model = model
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._price = nanousd_per_device_hour
        self._slots = asyncio.Semaphore(max_running)
        self._waiting = 0
        self._proven = False
        self._lack: str | None = None

    async def start(self) -> None:
        """Loads the model and makes it produce one token. Only then is the engine ready."""
        await self._backend.start()
        async with aclosing(self._compute(_PROBE, None)) as events:
            async for _ in events:
                pass
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
                    yield event
        finally:
            self._slots.release()

    def status(self) -> Status:
        """A snapshot."""
        return Status(
            self._backend.name,
            self._model,
            self._backend.adapters,
            self._backend.max_context_tokens,
            self._meter.running,
            self._waiting,
            self._max_running,
            self._meter.idle_ns,
            self._meter.busy_ns,
        )

    def _adapter(self, model: str) -> str | None:
        if model in ("", self._model):
            return None
        if model in self._backend.adapters:
            return model
        raise ModelNotServed(f"this engine serves {', '.join((self._model, *self._backend.adapters))}")

    async def _compute(self, chat: Chat, adapter: str | None) -> AsyncGenerator[Piece | Finished]:
        completed: Completed | None = None
        share = self._meter.start()
        try:
            async with aclosing(self._backend.generate(chat, adapter)) as events:
                async for event in events:
                    if isinstance(event, Completed):
                        completed = event
                        continue
                    if not share.decoding:
                        self._meter.first_token(share)
                    yield event
        finally:
            self._meter.stop(share)
        if completed is None:
            raise AnswerCut("the model stopped before the answer was complete")
        usage = Usage(
            input_tokens=completed.input_tokens,
            cache_read_input_tokens=completed.cached_tokens,
            output_tokens=completed.output_tokens,
        )
        yield Finished(completed.finish_reason, usage, compute_cost(share, self._price))
