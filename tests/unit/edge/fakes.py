"""The walk's surroundings, in memory: each can be told to fail, and remembers what it was asked."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from services.common.chat import Answer, Chat, Delta, FinishReason, Message, Role, Sampling, TextDelta, TextPart
from services.common.errors import MeshError, NotReady
from services.common.money import Rates, Usage, price
from services.edge.domain.ledger import UsageRecord
from services.edge.domain.ports import (
    Charge,
    Compressed,
    Embedded,
    Found,
    Generated,
    Question,
    Route,
    StreamFinished,
    StreamStarted,
    Vector,
)
from services.edge.domain.walk import NamespaceRules, Rules, Walk

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
        "compress": False,
        "compression_rate": 0.5,
        "min_block_tokens": 10,
        "default_tier": "medium",
        "budgeted": False,
    }
    return NamespaceRules(**(defaults | fields))


class Clock:
    def now(self) -> float:
        return 1_700_000_000.0


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
    """Answers "Yes." in two pieces; `cut_after` ends a stream with `error` after so many; `hang` stops there for ever."""

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

    async def generate(self, question: Question, chat: Chat, candidates: Sequence[str]) -> Generated:
        self.chats.append(chat)
        self.candidates = candidates
        self.called()
        if self.hangs:
            await self.hang.wait()
        return Generated(self.answer, USAGE, self.charge, candidates[0], "vendor")

    async def stream(
        self, question: Question, chat: Chat, candidates: Sequence[str]
    ) -> AsyncGenerator[StreamStarted | Delta | StreamFinished, None]:
        self.chats.append(chat)
        self.candidates = candidates
        self.calls += 1
        try:
            if self.error is not None and self.cut_after is None:
                raise self.error
            yield StreamStarted(candidates[0], "vendor")
            for number, piece in enumerate(("Ye", "s.")):
                if self.cut_after == number:
                    if self.error is not None:
                        raise self.error
                    return
                yield TextDelta(piece)
                if self.hangs:
                    await self.hang.wait()
            yield StreamFinished(self.answer.finish_reason, USAGE, self.charge)
        finally:
            self.closed = True


class FakeBudgets(FakePort):
    def __init__(self) -> None:
        super().__init__()
        self.reserved: dict[str, int] = {}
        self.released: list[str] = []
        self.settled: dict[str, int] = {}
        self.release_error: MeshError | None = None

    async def reserve(self, tenant: str, namespace: str, amount: int, reservation_id: str) -> None:
        self.called()
        self.reserved[reservation_id] = amount

    async def release(self, tenant: str, namespace: str, reservation_id: str) -> None:
        if self.release_error:
            raise self.release_error
        self.released.append(reservation_id)

    def settle(self, tenant: str, namespace: str, reservation_id: str, actual: int) -> None:
        self.settled[reservation_id] = actual


class FakeSpool:
    def __init__(self) -> None:
        self.records: list[UsageRecord] = []

    def append(self, record: UsageRecord) -> None:
        self.records.append(record)


class World:
    """A walk and all that surrounds it."""

    def __init__(self, **rules) -> None:
        self.embedder = FakeEmbedder()
        self.cache = FakeCache()
        self.router = FakeRouter()
        self.compressor = FakeCompressor()
        self.provider = FakeProvider()
        self.budgets = FakeBudgets()
        self.spool = FakeSpool()
        self.degraded: list[tuple[str, str]] = []
        self.walk = Walk(
            Rules({"default": namespace_rules(**rules)}, TIERS, lambda: BASELINE, BOOK.get),
            self.embedder,
            self.cache,
            self.router,
            self.compressor,
            self.provider,
            self.budgets,
            self.spool,
            Clock(),
            lambda service, error: self.degraded.append((service, error.reason)),
        )

    @property
    def record(self) -> UsageRecord:
        """The one record of the one request."""
        (record,) = self.spool.records
        return record

    def down(self, name: str) -> None:
        getattr(self, name).error = NotReady(f"{name} cannot be reached")
