"""The walk's surroundings, in memory: each can be told to fail, and remembers what it was asked."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager

from services.common.chat import Answer, Chat, Delta, FinishReason, Message, Role, Sampling, TextDelta, TextPart
from services.common.errors import FailedPrecondition, MeshError, NotReady
from services.common.money import Rates, Usage, price
from services.edge.domain.budgets import RESERVATION_S, Budget, BudgetBook, Mode, Period, Window
from services.edge.domain.keys import Key
from services.edge.domain.ledger import UsageRecord
from services.edge.domain.ports import (
    AnswerEnd,
    Charge,
    Compressed,
    Embedded,
    Found,
    Generated,
    Lease,
    LessonKind,
    Question,
    Route,
    StreamFinished,
    StreamStarted,
    Vector,
)
from services.edge.domain.steps import Steps
from services.edge.domain.traffic import Pair, Recording
from services.edge.domain.trip import NamespaceRules, Rules
from services.edge.domain.walk import Walk

BASELINE = Rates(2_500_000_000, 10_000_000_000)
CHEAP = Rates(150_000_000, 600_000_000)
BOOK = {"gpt-4o": BASELINE, "gpt-4o-mini": CHEAP, "small": Rates(10_000_000, 40_000_000)}
TIERS = {"simple": ("small",), "medium": ("gpt-4o-mini",), "reasoning": ("gpt-4o",)}
VECTOR = Vector(b"\0\0\x80?", "tiny", 1)
USAGE = Usage(input_tokens=1000, output_tokens=100)
EMBED_COST, ROUTE_COST, VERIFIER_COST, COMPRESS_COST = 7, 3, 11, 13


def text_answer(text: str = "Yes.", finish: FinishReason = FinishReason.STOP) -> Answer:
    return Answer(Message(Role.ASSISTANT, (TextPart(text),) if text else ()), finish)


def hit(*, semantic: bool = False, **fields) -> Found:
    return Found(
        text_answer(),
        semantic=semantic,
        entry_id="e1",
        model="gpt-4o-mini",
        tier="medium",
        usage=USAGE,
        similarity=0.93 if semantic else None,
        reason="served" if semantic else "",
        verifier_cost=VERIFIER_COST if semantic else 0,
        **fields,
    )


def chat(text: str = "Where is my order?", **sampling) -> Chat:
    return Chat((Message(Role.USER, (TextPart(text),)),), sampling=Sampling(**sampling))


def question(text: str = "Where is my order?", *, temperature: float | None = None, **fields) -> Question:
    return Question("acme", "r-1", chat(text, temperature=temperature), **fields)


def namespace_rules(**fields) -> NamespaceRules:
    defaults = {
        "exact": True,
        "semantic": True,
        "max_temperature": 1.0,
        "per_user": False,
        "store_tool_calls": False,
        "learn": True,
        "shadow_share": 0.0,
        "stale_share": 0.0,
        "canary_share": 0.0,
        "compress": False,
        "compression_rate": 0.5,
        "min_block_tokens": 10,
        "default_tier": "medium",
    }
    return NamespaceRules(**(defaults | fields))


class Clock:
    def now(self) -> float:
        return 1_700_000_000.0


class NoLimits:
    """Everybody may ask as often as they like."""

    async def admit(self, key: Key) -> None:
        return None


class FakePort:
    """Raises `error` when it is set."""

    def __init__(self) -> None:
        self.error: MeshError | None = None
        self.calls = 0

    def called(self) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error


class FakeEmbedder(FakePort):
    async def embed(self, text: str) -> Embedded:
        self.called()
        return Embedded(VECTOR, EMBED_COST)


class FakeCache(FakePort):
    def __init__(self) -> None:
        super().__init__()
        self.exact: Found = Found()
        self.semantic: Found = Found(reason="no_candidate", verifier_cost=VERIFIER_COST)
        self.store_error: MeshError | None = None
        self.learn_error: MeshError | None = None
        self.learned: list[tuple[bytes, str, str]] = []
        self.words: list[tuple[str, str, str, bool]] = []
        self.version: int | None = None
        self.stored: list[tuple[Question, Vector | None, Answer, Usage, str, str]] = []

    async def lookup(self, question: Question, vector: Vector | None) -> Found:
        self.called()
        return self.exact if vector is None else self.semantic

    async def store(
        self,
        question: Question,
        vector: Vector | None,
        answer: Answer,
        usage: Usage,
        model: str,
        tier: str,
        namespace_version: int | None,
    ) -> str:
        self.version = namespace_version
        if self.store_error or self.error:
            raise self.store_error or self.error
        self.stored.append((question, vector, answer, usage, model, tier))
        return "new-entry"

    async def learn(self, question: Question, lesson: bytes, answer: Answer, kind: LessonKind) -> None:
        if self.learn_error:
            raise self.learn_error
        self.learned.append((lesson, answer.message.text, kind.value))

    async def feedback(self, tenant: str, namespace: str, request_id: str, right: bool) -> bool:
        self.called()
        self.words.append((tenant, namespace, request_id, right))
        return request_id != "unknown"


class FakeLeases(FakePort):
    """Leases of all replicas, in memory. A holder whose publishing ends without a last word has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.token = 0
        self.held: dict[bytes, tuple[str, int]] = {}
        self.done: dict[bytes, int] = {}
        self.published: dict[int, list[tuple[Delta, ...] | AnswerEnd | None]] = {}
        self.followers = 0
        self._news = asyncio.Event()

    def _say(self, token: int, batch: tuple[Delta, ...] | AnswerEnd | None) -> None:
        self.published[token].append(batch)
        self._news.set()
        self._news = asyncio.Event()

    def expire(self, key: bytes) -> None:
        """As if the holder had not been heard of for too long."""
        _, token = self.held.pop(key)
        self._say(token, None)

    async def acquire(self, question: Question, key: bytes, holder: str, *, keep_only: bool = False) -> Lease:
        self.called()
        current, token = self.held.get(key, ("", 0))
        if current == holder:
            return Lease(True, token, bool(self.followers))
        if current or keep_only or key in self.done:
            return Lease(False, token)
        self.token += 1
        self.held[key] = (holder, self.token)
        self.published[self.token] = []
        return Lease(True, self.token)

    async def publish(
        self, question: Question, key: bytes, token: int, batches: AsyncGenerator[tuple[Delta, ...] | AnswerEnd]
    ) -> None:
        said: AnswerEnd | None = None
        async for batch in batches:
            if self.held.get(key, ("", 0))[1] != token:
                raise FailedPrecondition("the lease is lost")
            self._say(token, batch)
            said = batch if isinstance(batch, AnswerEnd) else None
        if self.held.get(key, ("", 0))[1] == token:
            del self.held[key]
            if said is None:
                self._say(token, None)
            elif said.entry_id:
                self.done[key] = token

    async def follow(self, question: Question, key: bytes) -> AsyncGenerator[Delta | AnswerEnd]:
        self.called()
        token = self.held[key][1] if key in self.held else self.done.get(key)
        if token is None:
            return
        position = 0
        self.followers += 1
        try:
            while True:
                while position == len(self.published[token]):
                    await self._news.wait()
                batch = self.published[token][position]
                position += 1
                if batch is None:
                    return
                if isinstance(batch, AnswerEnd):
                    yield batch
                    return
                for delta in batch:
                    yield delta
        finally:
            self.followers -= 1


class FakeRouter(FakePort):
    vector: Vector | None = None

    async def route(self, question: Question, vector: Vector | None) -> Route:
        self.vector = vector
        self.called()
        return Route(("gpt-4o-mini", "gpt-4o"), "medium", "short question", ROUTE_COST)


class FakeCompressor(FakePort):
    applied = True

    async def compress(self, chat: Chat, rate: float, min_block_tokens: int) -> Compressed:
        self.called()
        shorter = Chat((Message(Role.USER, (TextPart("order?"),)),), sampling=chat.sampling)
        return Compressed(
            shorter if self.applied else chat, 400, 150 if self.applied else 400, self.applied, COMPRESS_COST
        )


class FakeProvider(FakePort):
    """Answers "Yes." in two pieces; `cut_after` ends a stream with `error` after so many; with `hangs` it waits for `hang`.

    `script` says for the next calls which pieces come, and which error after them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answer = text_answer()
        self.charge = Charge(price(CHEAP, USAGE), CHEAP)
        self.cut_after: int | None = None
        self.hang = asyncio.Event()
        self.hangs = False
        self.closed = False
        self.chats: list[Chat] = []
        self.candidates: Sequence[str] = ()
        self.script: list[tuple[tuple[str, ...], MeshError | None]] = []

    async def generate(
        self, question: Question, chat: Chat, candidates: Sequence[str], *, hedge: bool = False
    ) -> Generated:
        self.hedge = hedge
        self.chats.append(chat)
        self.candidates = candidates
        self.called()
        if self.hangs:
            await self.hang.wait()
        answer = self.answer
        if self.script:
            pieces, error = self.script.pop(0)
            if error is not None:
                raise error
            answer = text_answer("".join(pieces))
        return Generated(answer, USAGE, self.charge, candidates[0], "vendor")

    async def stream(
        self, question: Question, chat: Chat, candidates: Sequence[str], *, hedge: bool = False
    ) -> AsyncGenerator[StreamStarted | Delta | StreamFinished, None]:
        self.hedge = hedge
        self.chats.append(chat)
        self.candidates = candidates
        self.calls += 1
        try:
            if self.error is not None and self.cut_after is None:
                raise self.error
            yield StreamStarted(candidates[0], "vendor")
            pieces, cut = self.script.pop(0) if self.script else (("Ye", "s."), None)
            for number, piece in enumerate(pieces):
                if self.cut_after == number:
                    if self.error is not None:
                        raise self.error
                    return
                yield TextDelta(piece)
                if self.hangs:
                    await self.hang.wait()
            if cut is not None:
                raise cut
            yield StreamFinished(self.answer.finish_reason, USAGE, self.charge)
        finally:
            self.closed = True


class FakeBudgets(FakePort):
    """Has room for everything, but what is named in `overdrawn` has none."""

    def __init__(self) -> None:
        super().__init__()
        self.overdrawn: set[str] = set()
        self.reserved: dict[str, int] = {}
        self.released: list[str] = []
        self.settled: dict[str, int] = {}
        self.release_error: MeshError | None = None

    async def reserve(
        self,
        tenant: str,
        windows: Sequence[Window],
        amount: int,
        reservation_id: str,
        *,
        past_soft: bool = False,
        for_s: float = RESERVATION_S,
    ) -> tuple[Window, ...]:
        self.called()
        overdrawn = tuple(window for window in windows if window.budget.name in self.overdrawn)
        if not overdrawn or past_soft:
            self.reserved[reservation_id] = amount
            return ()
        return overdrawn

    async def release(self, tenant: str, windows: Sequence[str], reservation_id: str) -> None:
        if self.release_error:
            raise self.release_error
        self.released.append(reservation_id)

    def settle(self, tenant: str, windows: Sequence[str], reservation_id: str, actual: int) -> None:
        self.settled[reservation_id] = actual


class FakeSpool:
    def __init__(self) -> None:
        self.records: list[UsageRecord] = []

    def append(self, record: UsageRecord) -> None:
        self.records.append(record)


class FakeTraffic(FakePort):
    """What is kept, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[Pair] = []
        self.served_entries: list[tuple[str, str]] = []
        self.judgements: list[tuple[str, bool]] = []
        self.free = asyncio.Event()
        self.free.set()

    async def keep(self, pair: Pair, limits: Recording) -> None:
        await self.free.wait()
        self.called()
        self.pairs.append(pair)

    async def served(self, question: Question, entry_id: str, limits: Recording) -> None:
        self.called()
        self.served_entries.append((question.request_id, entry_id))

    async def judged(self, tenant: str, namespace: str, request_id: str, right: bool, limits: Recording) -> None:
        self.called()
        self.judgements.append((request_id, right))


HARD = Budget("all", 1_000_000_000, Period.DAY)
SOFT = Budget("team", 500_000_000, Period.MONTH, Mode.SOFT, degrade_to="simple")


class World:
    """A walk and all that surrounds it. `budgeted`: a hard budget holds, unless `budgets` says which."""

    def __init__(
        self,
        *,
        leases: "FakeLeases | None" = None,
        cache: FakeCache | None = None,
        budgeted: bool = False,
        budgets: Sequence[Budget] = (),
        **rules,
    ) -> None:
        self.embedder = FakeEmbedder()
        self.cache = FakeCache() if cache is None else cache
        self.router = FakeRouter()
        self.compressor = FakeCompressor()
        self.provider = FakeProvider()
        self.budgets = FakeBudgets()
        self.book = BudgetBook(tuple(budgets) or ((HARD,) if budgeted else ()))
        self.spool = FakeSpool()
        self.traffic = FakeTraffic()
        self.degraded: list[tuple[str, str]] = []
        self.leases = FakeLeases() if leases is None else leases
        self.chance = 0.5
        self.checks: list[str] = []
        note = lambda service, error: self.degraded.append((service, error.reason))  # noqa: E731
        steps = Steps(
            Rules(
                {"default": namespace_rules(**rules)},
                TIERS,
                lambda input_tokens: BASELINE,
                lambda model, *, input_tokens=0: BOOK.get(model),
                self.book,
            ),
            self.embedder,
            self.cache,
            self.router,
            self.compressor,
            self.provider,
            self.budgets,
            self.spool,
            Clock(),
            note,
            lambda: self.chance,
            self._check_scope,
            self.traffic,
        )
        self.walk = Walk(steps, self.leases, note)

    @contextmanager
    def _check_scope(self, question: Question, kind: LessonKind) -> Iterator[None]:
        self.checks.append(kind.value)
        yield

    @property
    def record(self) -> UsageRecord:
        """The one record of the one request."""
        (record,) = self.spool.records
        return record

    def down(self, name: str) -> None:
        getattr(self, name).error = NotReady(f"{name} cannot be reached")
