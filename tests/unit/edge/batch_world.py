"""Batches in memory: a store with holds, a vendor that must not get an item twice, and a process that may die at any call."""

import inspect
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from services.common.chat import Chat
from services.common.errors import FailedPrecondition, MeshError, NotReady, RateLimited, UpstreamUnavailable
from services.common.money import price
from services.edge.domain.batch import (
    MAX_OPEN,
    Batch,
    BatchItem,
    BatchModel,
    BatchStatus,
    Held,
    HoldLost,
    ItemAnswer,
    ItemFailure,
    ItemResult,
    Mode,
    Outcome,
    Plan,
    Ref,
    Submission,
    Tally,
    VendorState,
    Work,
)
from services.edge.domain.batch_items import ItemSteps, Records
from services.edge.domain.batch_worker import BatchWorker, Pace
from services.edge.domain.ledger import UsageRecord
from services.edge.domain.ports import Charge
from services.edge.domain.steps import Steps
from services.edge.domain.trip import Rules
from tests.unit.edge.fakes import BASELINE, BOOK, CHEAP, TIERS, USAGE, World, chat, namespace_rules, text_answer

START = 1_700_000_000.0


class MovingClock:
    def __init__(self) -> None:
        self.at = START

    def now(self) -> float:
        return self.at


class MemoryBatches:
    """The store. It survives every crash."""

    def __init__(self, clock: MovingClock) -> None:
        self.clock = clock
        self.batches: dict[Ref, Batch] = {}
        self.inputs: dict[Ref, list[BatchItem]] = {}
        self.submissions: dict[Ref, dict[str, Submission]] = {}
        self.planned: dict[Ref, dict[int, Plan]] = {}
        self.outcomes: dict[Ref, dict[int, Outcome]] = {}
        self.waiting: dict[Ref, dict[str, UsageRecord]] = {}
        self.due_at: dict[Ref, float] = {}
        self.holders: dict[Ref, tuple[str, float, int]] = {}

    async def create(self, batch: Batch, items: Sequence[BatchItem]) -> Batch:
        if sum(not b.status.ended for b in self.batches.values()) >= MAX_OPEN:
            raise RateLimited("too many")
        ref = Ref(batch.tenant, batch.id)
        self.batches[ref], self.inputs[ref] = batch, list(items)
        self.submissions[ref], self.planned[ref], self.outcomes[ref], self.waiting[ref] = {}, {}, {}, {}
        self.due_at[ref], self.holders[ref] = batch.created_at, ("", 0.0, 0)
        return batch

    async def get(self, ref: Ref) -> Batch | None:
        return self.batches.get(ref)

    async def page(self, tenant: str, limit: int, after: str) -> list[Batch]:
        return list(self.batches.values())

    async def cancel(self, ref: Ref) -> Batch | None:
        batch = self.batches[ref]
        if batch.status is BatchStatus.IN_PROGRESS:
            self.batches[ref] = replace(batch, status=BatchStatus.CANCELLING)
            self.due_at[ref] = 0.0
        return self.batches[ref]

    async def due(self, now: float, at_most: int) -> list[Ref]:
        return [ref for ref, at in sorted(self.due_at.items(), key=lambda row: row[1]) if at <= now][:at_most]

    async def hold(self, ref: Ref, holder: str, for_s: float, now: float) -> Held | None:
        known, until, fence = self.holders[ref]
        if known not in ("", holder) and until > self.clock.at:
            return None
        fence += known != holder
        self.holders[ref] = (holder, self.clock.at + for_s, fence)
        if ref in self.due_at:
            self.due_at[ref] = self.clock.at + for_s
        return Held(ref, holder, fence)

    async def release(self, held: Held, due_at: float | None, *, cancelling: bool) -> None:
        self._check(held)
        if due_at is None:
            self.due_at.pop(held.ref, None)
        elif held.ref in self.due_at:
            new = self.batches[held.ref].status is BatchStatus.CANCELLING and not cancelling
            self.due_at[held.ref] = 0.0 if new else due_at
        self.holders[held.ref] = ("", 0.0, held.fence)

    async def work(self, held: Held) -> Work:
        self._check(held)
        ref = held.ref
        return Work(
            self.batches[ref],
            tuple(self.submissions[ref].values()),
            frozenset(self.planned[ref]),
            frozenset(self.outcomes[ref]),
        )

    async def items(self, ref: Ref, indices: Sequence[int]) -> dict[int, BatchItem]:
        return {index: self.inputs[ref][index] for index in indices}

    async def plans(self, ref: Ref, indices: Sequence[int]) -> dict[int, Plan]:
        return {index: self.planned[ref][index] for index in indices if index in self.planned[ref]}

    async def save_plans(self, held: Held, plans: Mapping[int, Plan]) -> None:
        self._check(held)
        self.planned[held.ref] |= plans

    async def save_submission(self, held: Held, submission: Submission) -> None:
        self._check(held)
        self.submissions[held.ref][submission.id] = submission

    async def commit(self, held: Held, outcomes: Sequence[Outcome]) -> None:
        self._check(held)
        ref = held.ref
        for outcome in outcomes:
            if outcome.index not in self.outcomes[ref]:
                self.outcomes[ref][outcome.index] = outcome
                self.waiting[ref][outcome.record.record_id] = outcome.record
                self.batches[ref] = replace(self.batches[ref], tally=_sum(self.batches[ref].tally, outcome.tally))

    async def unrecorded(self, ref: Ref) -> list[UsageRecord]:
        return list(self.waiting[ref].values())

    async def recorded(self, ref: Ref, records: Sequence[UsageRecord]) -> None:
        for record in records:
            self.waiting[ref].pop(record.record_id, None)

    async def end(self, held: Held, status: BatchStatus, at: float) -> None:
        self._check(held)
        self.batches[held.ref] = replace(self.batches[held.ref], status=status, ended_at=at)

    async def remove_old(self, before: float) -> None:
        return None

    def _check(self, held: Held) -> None:
        if self.holders[held.ref][2] != held.fence:
            raise HoldLost


def _sum(one: Tally, other: Tally) -> Tally:
    names = [name for name in Tally.__slots__ if name != "savings"]
    savings = tuple(a + b for a, b in zip(one.savings, other.savings, strict=True))
    return Tally(**{name: getattr(one, name) + getattr(other, name) for name in names}, savings=savings)


@dataclass
class VendorBatch:
    """A submission as the vendor has it: it ends when it was seen at work `steps` times."""

    submission: Submission
    items: list[int]
    steps: int
    ends: VendorState
    polls: int = 0
    cancelled: bool = False

    @property
    def over(self) -> bool:
        return self.cancelled or self.polls > self.steps


@dataclass
class Behaviour:
    """What becomes of items, by index: answer, twice, error, busy (may pass), missing, undone, untold."""

    items: Mapping[int, str] = field(default_factory=dict)
    steps: int = 1
    ends: VendorState = VendorState.COMPLETED


class MemoryVendor:
    """The provider's batches. `submits` are troubles of the next submissions: refused, limited, lost (it has it) or down."""

    def __init__(self, clock: MovingClock, mode: Mode = Mode.VENDOR) -> None:
        self.clock = clock
        self.mode = mode
        self.batches: list[VendorBatch] = []
        self.behaviours: list[Behaviour] = []
        self.submits: list[str] = []
        self.polls: list[str] = []
        self.ran: list[int] = []
        self.charge = Charge(
            price(CHEAP, USAGE) // 2, CHEAP, batch_discount=price(CHEAP, USAGE) - price(CHEAP, USAGE) // 2
        )

    async def models(self) -> Sequence[BatchModel]:
        return [BatchModel(model, "vendor", self.mode) for model in ("gpt-4o-mini", "gpt-4o", "small")]

    def behaviour(self, number: int) -> Behaviour:
        return self.behaviours[min(number, len(self.behaviours) - 1)] if self.behaviours else Behaviour()

    async def submit(
        self, batch: Batch, submission: Submission, chats: Mapping[int, Chat]
    ) -> tuple[str, list[ItemFailure]]:
        assert self.clock.at < submission.not_after
        trouble = self.submits.pop(0) if self.submits else ""
        if trouble == "limited":
            raise RateLimited("slow down", retry_after_s=7.0)
        if trouble == "refused":
            raise FailedPrecondition("it came too late")
        if trouble == "down":
            raise UpstreamUnavailable("cannot be reached")
        behaviour = self.behaviour(len(self.batches))
        untold = [i for i in chats if behaviour.items.get(i) == "untold"]
        told = [i for i in chats if i not in untold]
        for before in self.batches:
            assert before.submission.id != submission.id, "a submission was sent twice"
            for index in set(told) & set(before.items):
                assert before.over, f"item {index} was sent while another batch had it"
                assert self.fate(before, index) != "answer", f"item {index} was sent although it had an answer"
        failures = [ItemFailure(i, "INVALID_INPUT", "cannot be told", retryable=False) for i in untold]
        if not told:
            return "", failures
        made = VendorBatch(submission, told, behaviour.steps, behaviour.ends)
        self.batches.append(made)
        if trouble == "lost":
            raise UpstreamUnavailable("the connection broke")
        return f"vb-{len(self.batches) - 1}", failures

    async def find(self, submission: Submission) -> str:
        assert self.clock.at >= submission.not_after, "it may be under way still"
        for number, batch in enumerate(self.batches):
            if batch.submission.id == submission.id:
                return f"vb-{number}"
        return ""

    def fate(self, batch: VendorBatch, index: int) -> str:
        fate = self.behaviour(self.batches.index(batch)).items.get(index, "answer")
        if batch.ends is VendorState.GONE:
            return "missing"
        return "answer" if fate == "twice" else fate

    async def poll(self, submission: Submission) -> tuple[VendorState, int]:
        if self.polls and self.polls.pop(0) == "down":
            raise NotReady("the provider is down")
        batch = self.batches[int(submission.vendor_batch_id[3:])]
        batch.polls += 1
        if batch.cancelled:
            return VendorState.CANCELLED, 0
        return (batch.ends if batch.over else VendorState.RUNNING), 0

    async def results(self, submission: Submission, sent_tokens: Mapping[int, int]) -> AsyncGenerator[ItemResult]:
        batch = self.batches[int(submission.vendor_batch_id[3:])]
        assert batch.over
        for index in batch.items:
            if index in sent_tokens:
                for result in self._results(batch, index):
                    yield result

    def _results(self, batch: VendorBatch, index: int) -> list[ItemResult]:
        fate = self.behaviour(self.batches.index(batch)).items.get(index, "answer")
        match fate:
            case "error":
                return [ItemFailure(index, "UPSTREAM_REJECTED", "no", retryable=False)]
            case "busy":
                return [ItemFailure(index, "UPSTREAM_UNAVAILABLE", "busy", retryable=True, wasted=5)]
            case "undone":
                return [ItemFailure(index, "DEADLINE_EXCEEDED", "not come to", retryable=True)]
            case "missing":
                return []
        answers: list[ItemResult] = [
            ItemAnswer(index, text_answer(f"{number}: {index}"), USAGE, self.charge, "gpt-4o-mini")
            for number in range(2 if fate == "twice" else 1)
        ]
        failed = ItemFailure(index, "UPSTREAM_REJECTED", "no", retryable=False)
        return [failed, *answers] if fate == "twice" else answers

    async def cancel(self, submission: Submission) -> None:
        batch = self.batches[int(submission.vendor_batch_id[3:])]
        if not batch.over:
            batch.cancelled = True

    async def run(
        self, batch: Batch, candidates: Sequence[str], chats: Mapping[int, Chat]
    ) -> AsyncGenerator[ItemResult]:
        for index in chats:
            self.ran.append(index)
            fate = self.behaviour(self.ran.count(index) - 1).items.get(index, "answer")
            if fate in ("error", "untold"):
                yield ItemFailure(index, "UPSTREAM_REJECTED", "no", retryable=False, wasted=3)
            elif fate in ("busy", "undone"):
                yield ItemFailure(index, "RATE_LIMITED", "busy", retryable=True, wasted=5)
            elif fate != "missing":
                yield ItemAnswer(index, text_answer(f"{index}"), USAGE, Charge(price(CHEAP, USAGE), CHEAP), "small")


class MemoryLedger:
    """Keeps a record once, as the real one does: by hour and id."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], UsageRecord] = {}

    async def write(self, records: list[UsageRecord]) -> None:
        for record in records:
            self.records.setdefault((record.hour, record.record_id), record)


class Died(BaseException):
    """The process was killed."""


class Life:
    """Counts calls to the outside. At a call whose number is in `ends`, the process dies: before its effect, or after."""

    def __init__(self) -> None:
        self.calls = 0
        self.ends: dict[int, str] = {}
        self.dead = False

    def before(self) -> None:
        self.calls += 1
        if self.dead or self.ends.get(self.calls) == "before":
            self.dead = True
            raise Died

    def after(self) -> None:
        if self.dead or self.ends.get(self.calls) == "after":
            self.dead = True
            raise Died


class Mortal:
    """A port as one process sees it."""

    def __init__(self, port: object, life: Life) -> None:
        self._port = port
        self._life = life

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if inspect.isasyncgenfunction(method):
            return lambda *args, **kwargs: self._streamed(method, *args, **kwargs)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._life.before()
            result = await method(*args, **kwargs)
            self._life.after()
            return result

        return call

    async def _streamed(self, method: Callable[..., AsyncGenerator[Any]], *args: Any) -> AsyncGenerator[Any]:
        self._life.before()
        async for piece in method(*args):
            yield piece
            self._life.before()


class BatchWorld:
    """Everything around batches. `live` is one life of an edge."""

    def __init__(self, mode: Mode = Mode.VENDOR, **rules) -> None:
        self.clock = MovingClock()
        self.store = MemoryBatches(self.clock)
        self.vendor = MemoryVendor(self.clock, mode)
        self.ledger = MemoryLedger()
        self.around = World(**rules)
        self.rules = {name: value for name, value in rules.items() if name not in ("budgeted", "budgets")}
        self.degraded: list[tuple[str, str]] = []
        self.defects: list[Exception] = []
        self.pace = Pace()

    async def create(self, size: int, **fields) -> Ref:
        batch = Batch("b-1", "acme", size, self.clock.at, **fields)
        await self.store.create(batch, [BatchItem(f"c-{i}", chat(f"question {i}")) for i in range(size)])
        return Ref("acme", "b-1")

    def worker(self, life: Life) -> BatchWorker:
        around = self.around
        records = Records(around.spool)
        note = lambda service, error: self.degraded.append((service, error.reason))  # noqa: E731
        steps = Steps(
            Rules({"default": namespace_rules(**self.rules)}, TIERS, lambda _: BASELINE, _rates, around.book),
            around.embedder,
            around.cache,
            around.router,
            around.compressor,
            around.provider,
            around.budgets,
            records,
            self.clock,
            note,
            lambda: 0.5,
            around._check_scope,
            around.traffic,
        )
        return BatchWorker(
            Mortal(self.store, life),  # type: ignore[arg-type]
            Mortal(self.vendor, life),  # type: ignore[arg-type]
            ItemSteps(steps, records),
            Mortal(self.ledger, life),  # type: ignore[arg-type]
            around.budgets,
            self.clock,
            note,
            lambda _, error: self.defects.append(error),
            self.pace,
        )

    async def live(self, ref: Ref, life: Life, turns: int = 500) -> bool:
        """Works until the batch needs nobody any more, or the process dies; whether it lived on. Time flies."""
        worker = self.worker(life)
        for _ in range(turns):
            at = self.store.due_at.get(ref)
            if at is None:
                return True
            self.clock.at = max(self.clock.at, at)
            try:
                await worker.look_after(ref)
            except Died:
                return False
            except MeshError:
                pass
            assert not self.defects, self.defects
            self.clock.at += self.pace.idle_s
        raise AssertionError("it never ends")

    async def to_its_end(self, ref: Ref) -> Batch:
        assert await self.live(ref, Life())
        batch = self.store.batches[ref]
        assert batch.status.ended
        return batch

    def check(self, ref: Ref) -> None:
        """What must hold for every batch that has ended."""
        batch, outcomes = self.store.batches[ref], self.store.outcomes[ref]
        assert sorted(outcomes) == list(range(batch.total))
        assert [o.custom_id for _, o in sorted(outcomes.items())] == [f"c-{i}" for i in range(batch.total)]
        assert not self.store.waiting[ref]
        records = [r for r in self.ledger.records.values() if r.outcome != "shadow"]
        assert sorted(r.record_id for r in records) == sorted(batch.record_id(i) for i in range(batch.total))
        assert all(record.bill.identity_holds for record in records)
        assert sum(r.bill.actual for r in records) == batch.tally.actual
        assert sum(o.record.bill.actual for o in outcomes.values()) == batch.tally.actual
        assert batch.tally.ended == batch.total
        answered = [o for o in outcomes.values() if o.record.outcome in ("miss", "bypass")]
        direct = sum(i.cost for o in answered for i in o.record.bill.items if not i.overhead)
        charge = self.vendor.charge if self.vendor.mode is Mode.VENDOR else Charge(price(CHEAP, USAGE), CHEAP)
        assert direct == charge.cost * len(answered)
        assert batch.tally.savings[4] == charge.batch_discount * len(answered)
        assert not self.around.spool.records


def _rates(model: str, *, input_tokens: int = 0):
    return BOOK.get(model)
