"""What the cache's use cases speak of, and what they need from outside."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.cache.domain.identity import Keys
from services.cache.domain.verdict import Verdict
from services.common.chat import Answer, Chat
from services.common.money import Usage


class StoreUnavailable(Exception):
    """The store of bodies cannot be asked."""


class VectorsUnavailable(Exception):
    """The store of vectors cannot be asked."""


class VerifierUnavailable(Exception):
    """No verifier can be asked now."""


class EmbedderUnavailable(Exception):
    """Texts cannot be embedded now, or not whole."""


class JudgeUnavailable(Exception):
    """The judge gave no answer that can be used; `cost` is what it took all the same, in nano-USD."""

    def __init__(self, cost: int = 0) -> None:
        super().__init__()
        self.cost = cost


@dataclass(frozen=True, slots=True)
class Vector:
    """A unit vector, float32 of shape (dimensions,), and the model that made it."""

    values: NDArray[np.float32]
    model_id: str


@dataclass(frozen=True, slots=True)
class CacheRules:
    """A namespace's policy for the cache. `thresholds` by embedding model; `ttl` in seconds by class, "" the default.

    `error_budget` is a share of lookups, 0 to 1; `judge` a model or None; `judge_ms` milliseconds.
    """

    exact: bool
    semantic: bool
    floor: float
    thresholds: dict[str, float]
    ttl: dict[str, float]
    user_classes: frozenset[str]
    max_temperature: float
    cross_language: bool
    store_tool_calls: bool
    error_budget: float = 0.01
    verifier: bool = True
    judge: str | None = None
    judge_ms: float = 1500.0
    learn: bool = True
    standalone: bool = False
    review: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked and on whose behalf."""

    tenant: str
    namespace: str
    user: str
    request_id: str
    requested_model: str
    chat: Chat
    vector: Vector | None


@dataclass(frozen=True, slots=True)
class Controls:
    """What a caller tightens: lowest similarity, greatest age in seconds, exact answers only, no exact lookup."""

    min_similarity: float = -1.0
    max_age: float | None = None
    exact_only: bool = False
    skip_exact: bool = False


@dataclass(frozen=True, slots=True)
class Header:
    """What the cache itself needs to know of an entry.

    `per_user`: it is one user's own. `cost` is the price of generating it in nano-USD, None where no price is known. `answer`
    is a digest of the answer's words: entries with the same one share an answer, however they were asked.
    """

    question: str
    namespace: str
    vector_model: str
    dimensions: int
    tags: tuple[str, ...]
    request_id: str
    per_user: bool = False
    cost: int | None = None
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Body:
    """A stored entry. `payload` is opaque here; times are Unix seconds, `expires_at` None for a curated answer."""

    payload: bytes
    created_at: float
    expires_at: float | None
    header_bytes: bytes


@dataclass(frozen=True, slots=True)
class Alias:
    """Other words that an entry was served for. It stands under their exact key, where an entry of their own would.

    `target` is the entry's id and `born` when that very entry was written: an entry that is written again is another one.
    `model_id` is the embedding model of `similarity`. `probability` is None where vetoes and similarity decided; `judged` says
    that a model was asked. `features` are those of the pair, where a verifier read it.
    """

    target: str
    born: float
    similarity: float
    model_id: str
    probability: float | None = None
    judged: bool = False
    features: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry as a candidate: `body` is None where it is gone.

    `blocked`: it was found wrong for the asked question. `right` and `wrong` count the checks of this entry. Entries of one
    `group` were found to have one answer; "" where nothing was found.
    """

    body: Body | None = None
    blocked: bool = False
    right: int = 0
    wrong: int = 0
    group: str = ""


@dataclass(frozen=True, slots=True)
class Note:
    """Which entry answered a request, and what a word on it can teach. `lesson` is empty for the request that wrote it."""

    entry_id: str
    namespace: str = ""
    lesson: bytes = b""


@dataclass(frozen=True, slots=True)
class Fresh:
    """An answer to store. `ttl_class` "" means the namespace's; `namespace_version`, where known, is from before it was made.

    `model` made it, with the tokens `usage`.
    """

    answer: Answer
    payload: "Payload"
    ttl_class: str
    tags: tuple[str, ...]
    pinned: bool
    namespace_version: int | None
    model: str = ""
    usage: Usage = field(default_factory=Usage)


class Payload(Protocol):
    """Makes the opaque bytes of an entry once its id and times are known."""

    def __call__(self, entry_id: str, created_at: float, expires_at: float | None) -> bytes:
        """The bytes."""
        ...


class Prices(Protocol):
    """What calls of a model cost."""

    def __call__(self, model: str, usage: Usage) -> int | None:
        """Nano-USD; None where no price is known."""
        ...


class AnswerText(Protocol):
    """Reads the answer out of an entry."""

    def __call__(self, payload: bytes) -> str:
        """Its text, with the tools that it calls."""
        ...


class Bodies(Protocol):
    """The store of answers: the truth. Every method but the note's raises StoreUnavailable when it cannot be asked."""

    async def fetch(
        self, tenant: str, namespace: str, entry_ids: Sequence[str]
    ) -> tuple[int, list[Body | Alias | None]]:
        """The namespace's version and what stands under the exact keys, None for nothing, in one round trip."""
        ...

    async def candidates(
        self, tenant: str, namespace: str, asked: str, entry_ids: Sequence[str]
    ) -> tuple[int, list[Candidate]]:
        """The namespace's version and the entries with what is known of them beside the question whose exact key is `asked`."""
        ...

    async def put(self, tenant: str, entry_id: str, body: Body, header: Header) -> None:
        """Writes an entry with its tags and its request, to live until `expires_at`."""
        ...

    async def put_alias(self, tenant: str, exact_key: str, alias: Alias, expires_at: float) -> None:
        """Writes an alias to live until `expires_at`, unless an entry stands there."""
        ...

    async def drop_alias(self, tenant: str, exact_key: str) -> None:
        """Removes an alias; leaves an entry."""
        ...

    async def join(self, tenant: str, entry_id: str, known_id: str, group: str) -> None:
        """Notes that two entries have one answer: the first joins the group of the other, which is `group` unless that one
        joined another. Raises StoreUnavailable.
        """
        ...

    async def mark(self, tenant: str, asked: str, entry_id: str, *, right: bool) -> None:
        """Counts a check of an entry; a wrong one is kept from the question whose exact key is `asked` from now on."""
        ...

    def header(self, body: Body) -> Header:
        """Reads the header."""
        ...

    async def remove(self, tenant: str, namespace: str, entry_ids: Sequence[str], tag: str | None = None) -> int:
        """Removes at least one entry, and takes them off the list of `tag` in the same step; returns how many there were."""
        ...

    async def tagged(self, tenant: str, namespace: str, tag: str) -> list[str]:
        """Ids of the entries with a tag; some may be gone."""
        ...

    async def answered(self, tenant: str, request_id: str) -> Note | None:
        """The entry that answered a request or was written by it."""
        ...

    def note_answer(self, tenant: str, request_id: str, note: Note) -> None:
        """Remembers, soon and without waiting, which entry answered a request."""
        ...

    async def first_word(self, tenant: str, request_id: str) -> bool:
        """Whether this is the first word on a request; from now on it is not."""
        ...

    async def bump(self, tenant: str, namespace: str) -> int:
        """Raises the namespace's version; returns the new one."""
        ...

    async def version(self, tenant: str, namespace: str) -> int:
        """The namespace's version, 0 at first."""
        ...


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A vector near the asked one."""

    entry_id: str
    similarity: float


class Vectors(Protocol):
    """The store of vectors. Every method raises VectorsUnavailable when it cannot be asked."""

    async def search(
        self,
        vector: Vector,
        tenant: str,
        scopes: Sequence[bytes],
        *,
        language: str,
        now: float,
        floor: float,
        limit: int,
    ) -> list[Neighbour]:
        """The nearest living vectors of a tenant in any of the scopes, best first.

        With a language, only those in it and those of which the language is not known.
        """
        ...

    async def put(
        self,
        entry_id: str,
        vector: Vector,
        tenant: str,
        scopes: Sequence[bytes],
        *,
        language: str,
        expires_at: float | None,
    ) -> None:
        """Writes a vector that is found in each of the scopes; `language` is "" where it is not known."""
        ...

    async def remove(self, model_id: str, dimensions: int, entry_ids: Sequence[str]) -> None:
        """Removes vectors."""
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """P(one answer serves both), 0 to 1, one a pair; `cost` in nano-USD."""

    probabilities: tuple[float, ...]
    cost: int = 0


class Verifier(Protocol):
    """Reads two questions together."""

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        """Scores 1 to 64 pairs of a stored and an asked question. Raises VerifierUnavailable."""
        ...


class Embedder(Protocol):
    """Embeds texts."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors, shape (n, dimensions). Raises EmbedderUnavailable, also for a text that the model cannot read whole."""
        ...


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the judge said: `same` is whether the stored answer serves the asked question; `cost` in nano-USD."""

    same: bool
    cost: int


class Judge(Protocol):
    """A model that is asked about uncertain pairs."""

    async def ask(self, question: Question, model: str, chat: Chat, timeout: float) -> Ruling:
        """Puts `chat` to `model` on behalf of who asks `question`, within `timeout` seconds. Raises JudgeUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """How a lookup ended. `payload` is the entry on a hit; `verdict` the semantic decision where one was made.

    `version` is the namespace's; 0 where it was not asked for, since nothing of the request may be stored. `verifier_cost` is
    nano-USD; `lesson` what a fresh answer would teach, empty for nothing.
    """

    keys: Keys
    per_user: bool
    version: int = 0
    payload: bytes | None = None
    entry_id: str = ""
    semantic: bool = False
    verdict: Verdict | None = None
    semantic_unavailable: bool = False
    token_delta: int = 0
    verifier_cost: int = 0
    lesson: bytes = b""

    @property
    def exact_key(self) -> bytes:
        """Identity of the request."""
        return self.keys.exact_for(self.per_user) or self.keys.exact

    @property
    def scope_key(self) -> bytes:
        """Identity of the request without its last user text."""
        return self.keys.scope_for(self.per_user) or self.keys.scope


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of an answer: `reason` says why it was not stored."""

    entry_id: str = ""
    reason: str = ""
    semantic_unavailable: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """How many entries went (-1: a whole namespace), and the namespace's version afterwards."""

    count: int
    version: int
