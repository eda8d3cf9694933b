"""What the walk needs from outside. Every port raises MeshError; the walk knows which of them it can do without."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from services.common.chat import Answer, Chat, Delta, FinishReason
from services.common.money import Rates, Usage


@dataclass(frozen=True, slots=True)
class CacheControl:
    """What the caller asks of the cache; it can only tighten the policy."""

    bypass: bool = False
    no_store: bool = False
    min_similarity: float | None = None
    max_age_s: float | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """One request: who asks, what, and how it may be answered.

    `wire` is the chat in the form in which it came, opaque here: adapters send it on instead of making it anew from `chat`.
    `batch`: the caller can wait for a batch. `kind` is the caller's word for the kind of query, empty where it has none.
    """

    tenant: str
    request_id: str
    chat: Chat
    model: str = "auto"
    namespace: str = "default"
    endpoint: str = ""
    user: str = ""
    control: CacheControl = field(default_factory=CacheControl)
    wire: object = field(default=None, compare=False, repr=False)
    batch: bool = False
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Vector:
    """An embedding as it travels: little-endian float32 bytes."""

    values: bytes
    model_id: str
    dimensions: int


@dataclass(frozen=True, slots=True)
class Embedded:
    """A text's vector and what it cost, in nano-USD. `truncated`: the vector knows only the text's beginning."""

    vector: Vector
    cost: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a lookup. `answer` is None on a miss; `semantic` tells which kind of hit it is.

    `usage` are the stored answer's tokens; `input_token_delta` corrects its prompt for the other wording. `alias`: these very
    words were served that answer before. `exact_key` is the identity of the request. `lesson`, where not empty, is what the
    cache wants back with a fresh answer.
    """

    answer: Answer | None = None
    semantic: bool = False
    entry_id: str = ""
    model: str = ""
    tier: str = ""
    usage: Usage = field(default_factory=Usage)
    similarity: float | None = None
    reason: str = ""
    verifier_cost: int = 0
    input_token_delta: int = 0
    semantic_unavailable: bool = False
    namespace_version: int | None = None
    alias: bool = False
    exact_key: bytes = b""
    lesson: bytes = b""


class LessonKind(StrEnum):
    """Why a fresh answer was made although another was at hand."""

    MISS = "miss"
    SHADOW = "shadow"
    STALENESS = "staleness"


@dataclass(frozen=True, slots=True)
class Route:
    """Models to try in order, at least one, and why; `cost` is that of routing, in nano-USD."""

    candidates: tuple[str, ...]
    tier: str
    reason: str
    cost: int = 0


@dataclass(frozen=True, slots=True)
class Compressed:
    """A shorter chat; the original where nothing was applied. Tokens are estimates."""

    chat: Chat
    original_tokens: int
    kept_tokens: int
    applied: bool
    cost: int = 0


@dataclass(frozen=True, slots=True)
class Charge:
    """What the call that answered cost, at which rates; nano-USD."""

    cost: int
    rates: Rates
    component: str = "provider"
    unpriced: bool = False
    wasted: int = 0
    batch_discount: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """A whole answer and what it took."""

    answer: Answer
    usage: Usage
    charge: Charge
    model: str
    vendor: str


@dataclass(frozen=True, slots=True)
class StreamStarted:
    """A model began to answer; `component` is where its cost arises."""

    model: str
    vendor: str
    component: str = "provider"


@dataclass(frozen=True, slots=True)
class StreamFinished:
    """The model's answer is complete."""

    finish_reason: FinishReason
    usage: Usage
    charge: Charge


class Embedder(Protocol):
    """Text to vector."""

    async def embed(self, text: str) -> Embedded: ...


class Cache(Protocol):
    """Answers given before."""

    async def lookup(self, question: Question, vector: Vector | None) -> Found:
        """Exactly without a vector, semantically with one."""
        ...

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
        """The new entry's id; empty when it was not to be stored, as when the namespace was purged since `namespace_version`."""
        ...

    async def learn(self, question: Question, lesson: bytes, answer: Answer, kind: LessonKind) -> None:
        """Hands in a fresh answer for a lesson of a lookup."""
        ...

    async def feedback(self, tenant: str, namespace: str, request_id: str, right: bool) -> bool:
        """Passes a caller's word on; False when the cache did not answer that request."""
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """Who may generate an answer: the asker where `acquired`, else somebody else. `token` rises with every new holder.

    `followed`: somebody in another process waits for the holder's answer.
    """

    acquired: bool
    token: int
    followed: bool = False


@dataclass(frozen=True, slots=True)
class AnswerEnd:
    """How a shared answer ended. `usage` is what it takes without our tricks; `entry_id` is empty when it was not stored."""

    finish_reason: FinishReason
    usage: Usage
    model: str
    tier: str
    entry_id: str = ""


class Leases(Protocol):
    """The right to generate an answer, over all replicas, and the holder's tokens for the others."""

    async def acquire(self, question: Question, key: bytes, holder: str, *, keep_only: bool = False) -> Lease:
        """Takes the lease of an exact key, or keeps it. `holder` is one per request; `keep_only` never takes it."""
        ...

    async def publish(
        self, question: Question, key: bytes, token: int, batches: AsyncGenerator[tuple[Delta, ...] | AnswerEnd]
    ) -> None:
        """Passes batches on as they come, an empty one to keep the lease; after AnswerEnd or the last one gives it up.

        Raises FailedPrecondition once somebody else holds it.
        """
        ...

    def follow(self, question: Question, key: bytes) -> AsyncGenerator[Delta | AnswerEnd]:
        """The holder's pieces from the first on. Ends without an AnswerEnd when the holder is gone."""
        ...


class Router(Protocol):
    """Which models."""

    async def route(self, question: Question, vector: Vector | None) -> Route: ...


class Compressor(Protocol):
    """Fewer prompt tokens."""

    async def compress(self, chat: Chat, rate: float, min_block_tokens: int) -> Compressed: ...


class Provider(Protocol):
    """The models themselves."""

    async def generate(
        self, question: Question, chat: Chat, candidates: Sequence[str], *, hedge: bool = False
    ) -> Generated:
        """A whole answer. `hedge`: a second model may be asked beside one that is slow."""
        ...

    def stream(
        self, question: Question, chat: Chat, candidates: Sequence[str], *, hedge: bool = False
    ) -> AsyncGenerator[StreamStarted | Delta | StreamFinished, None]: ...
