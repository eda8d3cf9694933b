"""The walk's steps for items of batches: the same ones, taken apart where an answer takes hours."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace

from services.common.chat import Chat, TextPart
from services.common.errors import MeshError, NotReady, of_reason
from services.common.tokens import estimate_chat_tokens
from services.edge.domain.batch import CANCELLED, Batch, BatchItem, ItemAnswer, Outcome, Plan
from services.edge.domain.budgets import Window, notice
from services.edge.domain.ledger import Spool, UsageRecord
from services.edge.domain.ports import Route
from services.edge.domain.steps import Steps, bounded
from services.edge.domain.trip import Trip

_PLACE = 128  # bytes, about, for what stands around a text


class Records:
    """A spool that keeps the records that are waited for, and passes on the others."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._kept: dict[str, UsageRecord | None] = {}

    def wait_for(self, record_id: str) -> None:
        """Keeps the record of that id when it comes."""
        self._kept[record_id] = None

    def take(self, record_id: str) -> UsageRecord | None:
        """The record that was waited for, if it came."""
        return self._kept.pop(record_id, None)

    def append(self, record: UsageRecord) -> None:
        if record.record_id in self._kept:
            self._kept[record.record_id] = record
        else:
            self._spool.append(record)


class ItemSteps:
    """What can be done for one item."""

    def __init__(self, steps: Steps, records: Records) -> None:
        """`records` is the spool of `steps`, which nobody else uses."""
        self._steps = steps
        self._records = records

    def windows(self, batch: Batch) -> tuple[Window, ...]:
        """The budgets that its items count against now."""
        return self._steps.windows(batch)

    def degrade(self, item: BatchItem, plan: Plan, overdrawn: Sequence[Window]) -> Plan:
        """How an item goes on where soft budgets are used up."""
        chat = plan.chat or item.chat
        asked = Route(plan.candidates, plan.tier, plan.reason)
        gets = self._steps.degrade(asked, overdrawn, chat, plan.sent_tokens)
        return replace(
            plan,
            candidates=gets.candidates,
            tier=gets.tier,
            reason=gets.reason,
            bound=self._steps.upper_bound(gets.candidates, chat, plan.sent_tokens),
            budget_notice=notice(overdrawn, asked, gets),
            lesser=plan.lesser or gets != asked,
        )

    async def look_up(self, batch: Batch, index: int, item: BatchItem, *, patient: bool) -> Outcome | Plan:
        """The end of an item that the cache answers, else how it goes on.

        Raises MeshError; with `patient` also NotReady where a normal request would go on without a service.
        """
        rules = self._steps.rules_of(batch.namespace)
        trip = Trip(batch.question(index, item), rules, batch.record_id(index))
        found = await self._steps.find_exact(trip) or await self._steps.find_semantic(trip)
        if found is not None and found.answer is not None:
            self._records.wait_for(trip.record_id)
            usage, receipt = self._steps.settle_hit(trip, found)
            return Outcome(index, item.custom_id, self._record(trip), receipt, found.answer, usage)
        _insist(trip, patient)
        # A batch reserves for many items at once, not for each.
        route, chat = await self._steps.plan(trip, reserve=False)
        _insist(trip, patient)
        if self.windows(batch):
            chat = bounded(chat)
        tokens = estimate_chat_tokens(chat)
        return Plan(
            trip.outcome,
            route.candidates,
            route.tier,
            route.reason,
            tokens,
            self._steps.upper_bound(route.candidates, chat, tokens),
            _size(chat),
            None if chat is item.chat else chat,
            tuple(trip.overhead),
            trip.removed_tokens,
            trip.cache_reason,
            trip.similarity,
            tuple(trip.degraded),
            trip.namespace_version,
            trip.vector,
            trip.lesson,
        )

    async def answered(
        self,
        batch: Batch,
        item: BatchItem,
        plan: Plan,
        result: ItemAnswer,
        wasted: Iterable[tuple[str, int]],
        windows: tuple[str, ...],
    ) -> Outcome:
        """The end of an item that a model answered, stored in the cache. `wasted` is what earlier tries cost.

        `windows` names the budgets in which money was set aside for it.
        """
        trip = self._trip(batch, result.index, item, plan, wasted, windows)
        self._records.wait_for(trip.record_id)
        done = await self._steps.settle_answer(trip, result.answer, result.usage, result.charge, result.model)
        return Outcome(result.index, item.custom_id, self._record(trip), done.receipt, done.answer, done.usage)

    async def failed(
        self,
        batch: Batch,
        index: int,
        item: BatchItem,
        plan: Plan | None,
        error: tuple[str, str],
        wasted: Iterable[tuple[str, int]],
        windows: tuple[str, ...] = (),
    ) -> Outcome:
        """The end of an item without an answer: `error` is reason and message."""
        trip = self._trip(batch, index, item, plan, wasted, windows)
        self._records.wait_for(trip.record_id)
        await self._steps.settle_failure(trip, _raised(*error))
        record = self._record(trip)
        return Outcome(index, item.custom_id, record, trip.receipt("", trip.tier, record.bill), error=error)

    def _trip(
        self,
        batch: Batch,
        index: int,
        item: BatchItem,
        plan: Plan | None,
        wasted: Iterable[tuple[str, int]],
        windows: tuple[str, ...],
    ) -> Trip:
        question, record_id = batch.question(index, item), batch.record_id(index)
        try:
            rules = self._steps.rules_of(batch.namespace)
        except MeshError:  # the namespace is gone since: nothing is stored in it
            question = replace(question, control=replace(question.control, no_store=True))
            rules = self._steps.rules_of("default")
        trip = plan.trip(question, rules, record_id) if plan else Trip(question, rules, record_id)
        for model, cost in wasted:
            trip.spend("provider", model, cost)
        trip.windows = windows
        return trip

    def _record(self, trip: Trip) -> UsageRecord:
        record = self._records.take(trip.record_id)
        if record is None:
            raise AssertionError("what is settled has a record")
        return record


def _insist(trip: Trip, patient: bool) -> None:
    if patient and trip.degraded:
        raise NotReady(f"{trip.degraded[0]} is down, and a batch can wait")


def _raised(reason: str, message: str) -> BaseException:
    return asyncio.CancelledError() if reason == CANCELLED else of_reason(reason, message)


def _size(chat: Chat) -> int:
    """About how many bytes the chat takes on the wire."""
    size = 0
    for message in chat.messages:
        size += _PLACE + len(message.reasoning.encode())
        size += sum(_PLACE + len(call.arguments_json.encode()) for call in message.tool_calls)
        for part in message.parts:
            size += _PLACE + (len(part.text.encode()) if isinstance(part, TextPart) else len(part.data) + len(part.url))
    for tool in chat.tools:
        size += _PLACE + len(tool.description.encode()) + len(tool.parameters_json_schema.encode())
    return size + len(chat.response_format.json_schema.encode())
