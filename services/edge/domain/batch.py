"""Batches as they are kept: what was asked, where each item is, and what comes next. Decisions without effects.

An item is looked up in the cache. A miss is planned (routed, maybe shortened), joins a submission, and ends with a result. What
is kept decides where a batch is: it can be taken up at any point by whoever holds it.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from services.common.chat import Answer, Chat
from services.common.money import CostItem, Usage
from services.edge.domain.ledger import UsageRecord
from services.edge.domain.ports import CacheControl, Charge, Question, Route, Vector
from services.edge.domain.trip import NamespaceRules, Receipt, Trip

WINDOW_S = 86_400.0  # from a batch's creation to its end
KEPT_S = 7 * 86_400.0  # from its end to its removal
MAX_TRIES = 2  # submissions of one item to vendors
MAX_OPEN = 20  # batches of a tenant
MAX_SUBMISSION_BYTES = 20 * 1024 * 1024  # of chats on the wire: a message of the mesh holds 32 MiB
MAX_RUN = 16  # items that are run in one go
CANCELLED = "CANCELLED"


class BatchStatus(StrEnum):
    """How far a batch is."""

    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def ended(self) -> bool:
        """Whether nothing changes any more."""
        return self not in (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts and sums over the items that have ended; money in nano-USD, `savings` by layer in the waterfall's order."""

    answered: int = 0
    cached: int = 0
    failed: int = 0
    cancelled: int = 0
    unpriced: int = 0
    actual: int = 0
    baseline: int = 0
    overhead: int = 0
    savings: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)

    @property
    def ended(self) -> int:
        """Items with a result."""
        return self.answered + self.failed + self.cancelled


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as it stands. Times are seconds since the Unix epoch; `digest` stands for the content, `key` for the request."""

    id: str
    tenant: str
    total: int
    created_at: float
    namespace: str = "default"
    endpoint: str = ""
    user: str = ""
    control: CacheControl = field(default_factory=CacheControl)
    key: str = ""
    digest: str = ""
    status: BatchStatus = BatchStatus.IN_PROGRESS
    ended_at: float | None = None
    tally: Tally = field(default_factory=Tally)

    @property
    def expires_at(self) -> float:
        """When its window closes."""
        return self.created_at + WINDOW_S

    def record_id(self, index: int) -> str:
        """Names an item's usage record, whoever writes it, however often."""
        return f"{self.id}-{index}"

    def question(self, index: int, item: "BatchItem") -> Question:
        """An item as a question of its own."""
        return Question(
            self.tenant,
            self.record_id(index),
            item.chat,
            item.model,
            self.namespace,
            self.endpoint,
            self.user,
            self.control,
            item.wire,
            batch=True,
        )


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One question of a batch; `wire` as in Question."""

    custom_id: str
    chat: Chat
    model: str = "auto"
    wire: object = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a missed item goes on, and what was found out and spent about it until then.

    `chat` is what is sent, None where it is the question's own; `sent_tokens` our estimate of its prompt. `bound` is the most
    that it may cost, in nano-USD. `size` is about its size on the wire, in bytes. `budget_notice` and `lesser` as in Trip.
    """

    outcome: str
    candidates: tuple[str, ...]
    tier: str
    reason: str
    sent_tokens: int
    bound: int
    size: int
    chat: Chat | None = None
    overhead: tuple[CostItem, ...] = ()
    removed_tokens: int = 0
    cache_reason: str = ""
    similarity: float | None = None
    degraded: tuple[str, ...] = ()
    namespace_version: int | None = None
    vector: Vector | None = None
    lesson: bytes = b""
    budget_notice: str = ""
    lesser: bool = False

    def trip(self, question: Question, rules: NamespaceRules, record_id: str) -> Trip:
        """The item's trip where it was left."""
        return Trip(
            question,
            rules,
            record_id,
            outcome=self.outcome,
            vector=self.vector,
            lesson=self.lesson,
            degraded=list(self.degraded),
            overhead=list(self.overhead),
            cache_reason=self.cache_reason,
            similarity=self.similarity,
            route=Route(self.candidates, self.tier, self.reason),
            namespace_version=self.namespace_version,
            removed_tokens=self.removed_tokens,
            budget_notice=self.budget_notice,
            lesser=self.lesser,
        )


class Mode(StrEnum):
    """How a model takes batches: by its vendor's batch API, or item by item."""

    VENDOR = "vendor"
    RUN = "run"


@dataclass(frozen=True, slots=True)
class Submission:
    """Items that go to one model together.

    `made` is when it was put together, `begun_at` when somebody was about to send it first; the vendor is not to hear of it after
    `not_after`. It is `sent` from then on; until it has `vendor_batch_id` nobody knows whether it arrived. `failures` counts what
    went wrong since the last progress. When it has `ended`, `why` says how. `failures_of` holds, by item, what went wrong with
    those without an answer, and what that cost in all. `windows` names those of the budgets in which it has reserved.
    """

    id: str
    mode: Mode
    model: str
    vendor: str
    candidates: tuple[str, ...]
    items: tuple[int, ...]
    made: float
    begun_at: float = 0.0
    not_after: float = 0.0
    vendor_batch_id: str = ""
    sent: bool = False
    cancelling: bool = False
    polls: int = 0
    failures: int = 0
    next_at: float = 0.0
    ended: bool = False
    why: str = ""
    failures_of: Mapping[int, "ItemFailure"] = field(default_factory=dict)
    windows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """Where a batch is: submissions in the order of their making, items with a plan, and items with a result."""

    batch: Batch
    submissions: tuple[Submission, ...]
    planned: frozenset[int]
    done: frozenset[int]

    @property
    def unseen(self) -> list[int]:
        """Items that nobody looked up yet, in order."""
        return [i for i in range(self.batch.total) if i not in self.planned and i not in self.done]

    @property
    def open(self) -> list[Submission]:
        """Submissions that may bring results still."""
        return [submission for submission in self.submissions if not submission.ended]

    @property
    def unsent(self) -> list[int]:
        """Missed items that are in no open submission, in order."""
        under_way = {index for submission in self.open for index in submission.items}
        return sorted(self.planned - self.done - under_way)

    def tries(self) -> Counter[int]:
        """By item, how many vendors' batches it has been in."""
        return Counter(index for s in self.submissions if s.mode is Mode.VENDOR for index in s.items)

    def last_errors(self) -> dict[int, tuple[str, str]]:
        """By item, reason and message of the last ended submission that it was in."""
        found: dict[int, tuple[str, str]] = {}
        for submission in self.submissions:
            if submission.ended:
                missing = ("UPSTREAM_UNAVAILABLE", f"{submission.vendor} sent no result for it: {submission.why}")
                found |= dict.fromkeys(submission.items, missing)
                found |= {index: (f.reason, f.message) for index, f in submission.failures_of.items()}
        return found

    def windows(self) -> dict[int, tuple[str, ...]]:
        """By item, in which windows of budgets the last submission that it was in has reserved."""
        return {index: submission.windows for submission in self.submissions for index in submission.items}

    def wasted(self) -> dict[int, list[tuple[str, int]]]:
        """By item, (model, nano-USD) of what was spent on it without an answer."""
        found: dict[int, list[tuple[str, int]]] = {}
        for submission in self.submissions:
            for index, failure in submission.failures_of.items():
                if failure.wasted:
                    found.setdefault(index, []).append((submission.model, failure.wasted))
        return found


def groups(indices: Sequence[int], plans: Mapping[int, Plan]) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Items by their candidates, in groups that fit into one message."""
    by_candidates: dict[tuple[str, ...], list[int]] = {}
    for index in indices:
        by_candidates.setdefault(plans[index].candidates, []).append(index)
    found = []
    for candidates, members in by_candidates.items():
        group: list[int] = []
        size = 0
        for index in members:
            if group and size + plans[index].size > MAX_SUBMISSION_BYTES:
                found.append((candidates, tuple(group)))
                group, size = [], 0
            group.append(index)
            size += plans[index].size
        found.append((candidates, tuple(group)))
    return found


def choose(candidates: Sequence[str], models: Collection["BatchModel"]) -> "BatchModel | None":
    """The first candidate that is served, at a vendor with a batch API if one serves it; None when none is."""
    for model in candidates:
        served = [row for row in models if row.model == model]
        if served:
            return min(served, key=lambda row: row.mode is Mode.RUN)
    return None


@dataclass(frozen=True, slots=True)
class BatchModel:
    """A model at a vendor."""

    model: str
    vendor: str
    mode: Mode


class VendorState(StrEnum):
    """How far a vendor's batch is; all but RUNNING are final."""

    RUNNING = "running"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """A model's answer to an item."""

    index: int
    answer: Answer
    usage: Usage
    charge: Charge
    model: str


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why an item got no answer, whether another try may bring one, and what it cost nevertheless, in nano-USD."""

    index: int
    reason: str
    message: str
    retryable: bool
    wasted: int = 0


ItemResult = ItemAnswer | ItemFailure


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an item ended, and its usage record. `error` is (reason, message) where it has no answer."""

    index: int
    custom_id: str
    record: UsageRecord
    receipt: Receipt
    answer: Answer | None = None
    usage: Usage = field(default_factory=Usage)
    error: tuple[str, str] = ("", "")

    @property
    def tally(self) -> Tally:
        """What it adds to its batch's."""
        bill, saved = self.record.bill, self.record.bill.savings
        cancelled = self.error[0] == CANCELLED
        return Tally(
            answered=int(self.answer is not None),
            cached=int(self.record.outcome in ("exact_hit", "semantic_hit")),
            failed=int(self.answer is None and not cancelled),
            cancelled=int(cancelled),
            unpriced=int(bill.unpriced),
            actual=bill.actual,
            baseline=bill.baseline,
            overhead=bill.overhead,
            savings=(saved.cache, saved.routing, saved.compression, saved.prompt_cache, saved.batch),
        )


@dataclass(frozen=True, slots=True)
class Ref:
    """Names a batch over all tenants."""

    tenant: str
    id: str


@dataclass(frozen=True, slots=True)
class Held:
    """A batch in somebody's hands. `fence` rises with every new holder: what an earlier one writes is refused."""

    ref: Ref
    holder: str
    fence: int


class HoldLost(Exception):
    """Somebody else holds the batch by now."""


class BatchStore(Protocol):
    """Where batches are kept. Every method raises MeshError when it is away; those with `held` raise HoldLost."""

    async def create(self, batch: Batch, items: Sequence[BatchItem]) -> Batch:
        """Keeps a new batch, or gives the one that its key made before. Raises FailedPrecondition and RateLimited."""
        ...

    async def get(self, ref: Ref) -> Batch | None: ...

    async def page(self, tenant: str, limit: int, after: str) -> list[Batch]:
        """The tenant's batches, the newest first, from behind the one named `after` on."""
        ...

    async def cancel(self, ref: Ref) -> Batch | None:
        """Notes that a batch is to end; one that has ended stays as it is."""
        ...

    async def due(self, now: float, at_most: int) -> list[Ref]:
        """Batches that somebody should look after."""
        ...

    async def hold(self, ref: Ref, holder: str, for_s: float, now: float) -> Held | None:
        """Takes a batch, or keeps it; None while another has it, or when it is not there any more."""
        ...

    async def release(self, held: Held, due_at: float | None, *, cancelling: bool) -> None:
        """Gives it back until `due_at`, None when it needs nobody any more. At once where a cancel came that was not known."""
        ...

    async def work(self, held: Held) -> Work: ...

    async def items(self, ref: Ref, indices: Sequence[int]) -> dict[int, BatchItem]: ...

    async def plans(self, ref: Ref, indices: Sequence[int]) -> dict[int, Plan]: ...

    async def save_plans(self, held: Held, plans: Mapping[int, Plan]) -> None: ...

    async def save_submission(self, held: Held, submission: Submission) -> None: ...

    async def commit(self, held: Held, outcomes: Sequence[Outcome]) -> None:
        """Ends items. One that has ended stays as it is, and its record the only one."""
        ...

    async def unrecorded(self, ref: Ref) -> list[UsageRecord]:
        """Records of ended items that the ledger may not have."""
        ...

    async def recorded(self, ref: Ref, records: Sequence[UsageRecord]) -> None:
        """The ledger has them."""
        ...

    async def end(self, held: Held, status: BatchStatus, at: float) -> None: ...

    async def remove_old(self, before: float) -> None:
        """Forgets batches that ended before a time."""
        ...


class BatchProvider(Protocol):
    """Vendors' batches. Every method raises MeshError; none repeats by itself."""

    async def models(self) -> Sequence[BatchModel]: ...

    async def submit(
        self, batch: Batch, submission: Submission, chats: Mapping[int, Chat]
    ) -> tuple[str, list[ItemFailure]]:
        """The vendor's id, empty where it got nothing, and the items that it cannot be told. `batch` says on whose behalf."""
        ...

    async def find(self, submission: Submission) -> str:
        """The vendor's id of a submission; empty when it did not arrive. Raises NotReady while that cannot be told."""
        ...

    async def poll(self, submission: Submission) -> tuple[VendorState, int]: ...

    def results(self, submission: Submission, sent_tokens: Mapping[int, int]) -> AsyncGenerator[ItemResult]: ...

    async def cancel(self, submission: Submission) -> None: ...

    def run(self, batch: Batch, candidates: Sequence[str], chats: Mapping[int, Chat]) -> AsyncGenerator[ItemResult]: ...
