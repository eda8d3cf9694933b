"""Batches at vendors: what a vendor's batch API can do, what its results cost, and items run one by one where there is none."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from services.common.chat import Answer, AnswerBuilder, Chat
from services.common.chat_pb import Caller
from services.common.money import RatesOf, Usage
from services.common.tokens import estimate_tokens
from services.provider.domain.charge import Charge, list_charge, reported
from services.provider.domain.dispatch import Dispatcher, Finished, Order, Started
from services.provider.domain.plan import NoAnswer
from services.provider.domain.vendor import Reason, VendorError

MARK = "llmmesh_submission"
"""Under this name a submission's id stands in a vendor's metadata, where the vendor keeps some."""


class BatchState(StrEnum):
    """How far a vendor's batch is; all but RUNNING are final. GONE: the vendor does not know it."""

    RUNNING = "running"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"
    GONE = "gone"


class BatchMode(StrEnum):
    """How a model takes batches: by its vendor's batch API, or item by item."""

    VENDOR = "vendor"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One chat of a submission, under the vendor's name for it (`item_name`)."""

    name: str
    chat: Chat


@dataclass(frozen=True, slots=True)
class Submission:
    """What is handed to a vendor: `id` marks it there, `model` is the vendor's id of the model.

    `too_late` tells, when the vendor is about to hear of it, that it must not any more.
    """

    id: str
    model: str
    items: Sequence[BatchItem]
    too_late: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Answered:
    """The vendor's answer to one item; `usage` is None where it reports none."""

    name: str
    answer: Answer
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Failed:
    """An item without an answer. `billed`: the vendor has probably computed one."""

    name: str
    reason: Reason
    message: str
    billed: bool = False


@dataclass(frozen=True, slots=True)
class Submitted:
    """The vendor's id of the new batch, empty when no item was left; and the items that its API cannot be told."""

    batch_id: str
    refused: tuple[Failed, ...] = ()


@dataclass(frozen=True, slots=True)
class Sought:
    """A submission that a vendor may have: sent between two times, in seconds since the Unix epoch, of at most so many items."""

    id: str
    since: float
    until: float
    items: int


class CannotTellError(Exception):
    """The vendor cannot tell yet whether it has a submission."""


class TooLateError(Exception):
    """A submission must not be sent any more."""


@runtime_checkable
class BatchVendor(Protocol):
    """A vendor's batch API. Every method raises VendorError; none repeats by itself."""

    async def submit(self, submission: Submission) -> Submitted:
        """Hands it in. Raises TooLateError. UNAVAILABLE leaves open whether the vendor has it."""
        ...

    async def find(self, sought: Sought) -> str | None:
        """The id of the batch that a submission became; None when the vendor has none. Raises CannotTellError."""
        ...

    async def poll(self, batch_id: str) -> tuple[BatchState, int]:
        """How far it is, and how many items are done as far as the vendor says."""
        ...

    def results(self, batch_id: str) -> AsyncGenerator[Answered | Failed]:
        """What the vendor has for the items of a batch that ended."""
        ...

    async def cancel(self, batch_id: str) -> None:
        """Asks for its end; nothing happens to one that has ended."""
        ...


@dataclass(frozen=True, slots=True)
class SentItem:
    """An item as it was sent, with our estimate of its prompt tokens."""

    id: str
    input_tokens: int


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """An item with an answer. `model` is the price book's name, `wasted` the cost of failed attempts, in nano-USD."""

    id: str
    answer: Answer
    usage: Usage
    charge: Charge
    model: str
    wasted: int = 0


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """An item without an answer: why, whether another submission may help, and what it cost nevertheless, in nano-USD."""

    id: str
    reason: str
    message: str
    retryable: bool
    wasted: int = 0


ItemResult = ItemAnswer | ItemFailure


def item_name(submission_id: str, item_id: str) -> str:
    """An item's name at the vendor: it tells which submission it belongs to, also where a batch cannot."""
    return f"{submission_id}-{item_id}"


def belongs(name: object, submission_id: str) -> bool:
    """Whether an item of that name at a vendor is one of the submission's."""
    return isinstance(name, str) and name.startswith(f"{submission_id}-")


class UnknownVendor(Exception):
    """No vendor of that name takes batches of that model."""


class BatchDesk:
    """Takes submissions to vendors and brings results back, with their prices. It keeps nothing."""

    def __init__(
        self,
        vendors: Mapping[str, BatchVendor],
        models: Mapping[tuple[str, str], str],
        dispatcher: Dispatcher,
        rates: RatesOf,
        batch_rates: RatesOf,
        now: Callable[[], float],
        at_once: int,
    ) -> None:
        """`vendors` are those with a batch API by name, `models` their ids of models by (vendor, the price book's name).

        `rates` are the list's, `batch_rates` those of a batch; `now` tells seconds since the Unix epoch. Items that are run one
        by one share `at_once` places, whatever they belong to.
        """
        self._vendors = vendors
        self._models = models
        self._dispatcher = dispatcher
        self._rates = rates
        self._batch_rates = batch_rates
        self._now = now
        self._places = asyncio.Semaphore(at_once)

    @property
    def modes(self) -> list[tuple[str, str, BatchMode]]:
        """(model, vendor, mode) by model, those with a batch API first."""
        rows = []
        for model, vendor in self._dispatcher.models:
            mode = BatchMode.VENDOR if (vendor, model) in self._models else BatchMode.RUN
            rows.append((model, vendor, mode))
        return sorted(rows, key=lambda row: (row[0], row[2] is BatchMode.RUN))

    async def submit(
        self, submission_id: str, vendor: str, model: str, items: Mapping[str, Chat], not_after: float
    ) -> tuple[str, list[ItemFailure]]:
        """The vendor's id of the batch, and what it was not told. Raises UnknownVendor, TooLateError and VendorError."""
        vendor_model = self._models.get((vendor, model))
        if vendor_model is None:
            raise UnknownVendor(f"{vendor} takes no batches of {model}")
        named = [BatchItem(item_name(submission_id, id_), chat) for id_, chat in items.items()]
        submission = Submission(submission_id, vendor_model, named, lambda: self._now() >= not_after)
        submitted = await self._vendor(vendor).submit(submission)
        ids = {item_name(submission_id, id_): id_ for id_ in items}
        refused = [ItemFailure(ids[f.name], f.reason.value, f.message, retryable=False) for f in submitted.refused]
        return submitted.batch_id, refused

    async def find(self, vendor: str, sought: Sought) -> str | None:
        """The vendor's id of a submission, if it has it. Raises UnknownVendor, CannotTellError and VendorError."""
        return await self._vendor(vendor).find(sought)

    async def poll(self, vendor: str, batch_id: str) -> tuple[BatchState, int]:
        """How far a vendor's batch is. Raises UnknownVendor and VendorError."""
        return await self._vendor(vendor).poll(batch_id)

    async def cancel(self, vendor: str, batch_id: str) -> None:
        """Asks for its end. Raises UnknownVendor and VendorError."""
        await self._vendor(vendor).cancel(batch_id)

    async def results(
        self, submission_id: str, vendor: str, model: str, batch_id: str, sent: Sequence[SentItem]
    ) -> AsyncGenerator[ItemResult]:
        """The results of the items that were sent, at the batch price. Raises UnknownVendor and VendorError."""
        wanted = {item_name(submission_id, item.id): item for item in sent}
        async with aclosing(self._vendor(vendor).results(batch_id)) as results:
            async for result in results:
                item = wanted.get(result.name)
                if item is None:
                    continue
                if isinstance(result, Answered):
                    text = result.answer.message.text
                    usage = reported(result.usage, text) or Usage(
                        item.input_tokens, estimate_tokens(text), estimated=True
                    )
                    charge = self._charge(model, usage)
                    yield ItemAnswer(item.id, result.answer, usage, charge, model)
                else:
                    guess = Usage(item.input_tokens, estimated=True)
                    wasted = self._charge(model, guess).cost if result.billed else 0
                    reason = result.reason
                    yield ItemFailure(item.id, reason.value, result.message, reason.may_pass, wasted)

    def _charge(self, model: str, usage: Usage) -> Charge:
        size = usage.input_tokens
        return list_charge(self._rates(model, input_tokens=size), usage, self._batch_rates(model, input_tokens=size))

    async def run(
        self, caller: Caller, candidates: Sequence[str], items: Mapping[str, Chat]
    ) -> AsyncGenerator[ItemResult]:
        """Answers items through the dispatcher, a few at once, as they come. Closing it cancels what is under way."""
        done: asyncio.Queue[ItemResult | Exception] = asyncio.Queue()

        async def one(id_: str, chat: Chat) -> None:
            async with self._places:
                try:
                    done.put_nowait(await self._answer(caller, candidates, id_, chat))
                except Exception as error:
                    done.put_nowait(error)

        tasks = [asyncio.create_task(one(id_, chat)) for id_, chat in items.items()]
        try:
            for _ in tasks:
                result = await done.get()
                if isinstance(result, Exception):
                    raise result
                yield result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, caller: Caller, candidates: Sequence[str], id_: str, chat: Chat) -> ItemResult:
        order = Order(chat, caller, tuple(candidates), streaming=False, deadline=None)
        builder, model = AnswerBuilder(), ""
        try:
            async with aclosing(self._dispatcher.answer(order)) as events:
                async for event in events:
                    match event:
                        case Started():
                            model = event.model
                        case Finished():
                            answer = builder.build(event.finish_reason)
                            return ItemAnswer(id_, answer, event.usage, event.charge, model, event.wasted)
                        case _:
                            builder.add(event)
        except NoAnswer as error:
            reason = next((reason for reason in Reason if reason.value == error.reason), None)
            retryable = reason is None or reason.may_pass
            return ItemFailure(id_, error.reason, error.message, retryable, error.wasted)
        raise AssertionError("an answer ends with Finished or an error")

    def _vendor(self, name: str) -> BatchVendor:
        vendor = self._vendors.get(name)
        if vendor is None:
            raise UnknownVendor(f"no vendor with a batch API is named {name}")
        return vendor


def failure_of(name: str, error: VendorError) -> Failed:
    """An item that could not be written, or whose answer could not be read."""
    return Failed(name, error.reason, error.message, error.billed)
