"""The use cases of the cache: look up, store, invalidate, explain."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.cache.domain import verdict
from services.cache.domain.identity import Identity, Keys
from services.cache.domain.verdict import Rules, Suspect, Verdict
from services.common.chat import Answer, Chat, FinishReason
from services.common.clock import Clock
from services.common.tokens import estimate_tokens

CANDIDATES = 10
"""How many neighbours are judged: the right one is often not the nearest."""
REMOVED_TOGETHER = 100
"""How many entries are read and removed at once when many go: all of a big tag would outlast a store's patience."""
REMEMBERED_VERSIONS = 10_000
"""How many namespaces' versions are kept; one that was dropped costs its next lookup a second round trip."""


class StoreUnavailable(Exception):
    """The store of bodies cannot be asked."""


class VectorsUnavailable(Exception):
    """The store of vectors cannot be asked."""


@dataclass(frozen=True, slots=True)
class Vector:
    """A unit vector, float32 of shape (dimensions,), and the model that made it."""

    values: NDArray[np.float32]
    model_id: str


@dataclass(frozen=True, slots=True)
class CacheRules:
    """A namespace's policy for the cache. `thresholds` by embedding model; `ttl` in seconds by class, "" the default."""

    exact: bool
    semantic: bool
    floor: float
    thresholds: dict[str, float]
    ttl: dict[str, float]
    user_classes: frozenset[str]
    max_temperature: float
    cross_language: bool
    store_tool_calls: bool


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
    """What the cache itself needs to know of an entry."""

    question: str
    namespace: str
    vector_model: str
    dimensions: int
    tags: tuple[str, ...]
    request_id: str


@dataclass(frozen=True, slots=True)
class Body:
    """A stored entry. `payload` is opaque here; times are Unix seconds, `expires_at` None for a curated answer."""

    payload: bytes
    created_at: float
    expires_at: float | None
    header_bytes: bytes


@dataclass(frozen=True, slots=True)
class Fresh:
    """An answer to store. `ttl_class` "" means the namespace's; `namespace_version`, where known, is from before it was made."""

    answer: Answer
    payload: "Payload"
    ttl_class: str
    tags: tuple[str, ...]
    pinned: bool
    namespace_version: int | None


class Payload(Protocol):
    """Makes the opaque bytes of an entry once its id and times are known."""

    def __call__(self, entry_id: str, created_at: float, expires_at: float | None) -> bytes:
        """The bytes."""
        ...


class Bodies(Protocol):
    """The store of answers: the truth. Every method raises StoreUnavailable when it cannot be asked."""

    async def fetch(self, tenant: str, namespace: str, entry_ids: Sequence[str]) -> tuple[int, list[Body | None]]:
        """The namespace's version and the entries, None for what is not there, in one round trip."""
        ...

    async def put(self, tenant: str, entry_id: str, body: Body, header: Header) -> None:
        """Writes an entry with its tags and its request, to live until `expires_at`."""
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

    async def answered(self, tenant: str, request_id: str) -> str | None:
        """The entry that answered a request or was written by it."""
        ...

    def note_answer(self, tenant: str, request_id: str, entry_id: str) -> None:
        """Remembers, soon and without waiting, which entry answered a request."""
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
        self, vector: Vector, tenant: str, scopes: Sequence[bytes], *, now: float, floor: float, limit: int
    ) -> list[Neighbour]:
        """The nearest living vectors of a tenant in any of the scopes, best first."""
        ...

    async def put(self, entry_id: str, vector: Vector, tenant: str, scope: bytes, expires_at: float | None) -> None:
        """Writes a vector."""
        ...

    async def remove(self, model_id: str, dimensions: int, entry_ids: Sequence[str]) -> None:
        """Removes vectors."""
        ...


@dataclass(frozen=True, slots=True)
class Found:
    """How a lookup ended. `payload` is the entry on a hit; `verdict` the semantic decision where one was made.

    `version` is the namespace's; 0 where it was not asked for, since nothing of the request may be stored.
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


class SemanticCache:
    """Exact and semantic answers over a store of bodies and a store of vectors."""

    def __init__(self, bodies: Bodies, vectors: Vectors, clock: Clock) -> None:
        self._bodies = bodies
        self._vectors = vectors
        self._clock = clock
        self._versions: dict[tuple[str, str], int] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def lookup(self, question: Question, rules: CacheRules, controls: Controls) -> Found:
        """Looks up exactly, then, with a vector, semantically. Raises StoreUnavailable."""
        oldest = -1.0 if controls.max_age is None else self._clock.now() - controls.max_age
        found = await self._find(
            question,
            rules,
            exact=rules.exact and not controls.skip_exact,
            vector=None if controls.exact_only else question.vector,
            min_similarity=controls.min_similarity,
            oldest=oldest,
        )
        if found.payload is not None and question.request_id:
            self._bodies.note_answer(question.tenant, question.request_id, found.entry_id)
        return found

    async def explain(self, question: Question, rules: CacheRules) -> Found:
        """Like `lookup` without any trace."""
        return await self._find(
            question, rules, exact=rules.exact, vector=question.vector, min_similarity=-1.0, oldest=-1.0
        )

    async def store(self, question: Question, fresh: Fresh, rules: CacheRules) -> Stored:
        """Stores an answer unless it or the policy forbids. Raises StoreUnavailable."""
        per_user = fresh.ttl_class in rules.user_classes
        reason = _unfit(fresh.answer, rules)
        if not reason and not _reproducible(question.chat, rules):
            reason = "temperature"
        if not reason and not (rules.exact or rules.semantic):
            reason = "policy"
        if reason:
            return Stored(reason=reason)
        identity = _identity(question)
        version = await self._bodies.version(question.tenant, question.namespace)
        self._learn(question.tenant, question.namespace, version)
        if fresh.namespace_version not in (None, version):
            return Stored(reason="purged")  # it may be made of what the purge was for
        keys = identity.keys(version)
        exact, scope = keys.exact_for(per_user), keys.scope_for(per_user)
        if exact is None or scope is None:
            return Stored(reason="policy")  # a user's own answer needs a user
        entry_id = exact.hex()
        now = self._clock.now()
        expires_at = None if fresh.pinned else now + rules.ttl[fresh.ttl_class]
        vector = question.vector if _comparable(question, rules) else None
        header = Header(
            question=question.chat.last_user_text,
            namespace=question.namespace,
            vector_model=vector.model_id if vector else "",
            dimensions=len(vector.values) if vector else 0,
            tags=fresh.tags,
            request_id=question.request_id,
        )
        body = Body(fresh.payload(entry_id, now, expires_at), now, expires_at, b"")
        await self._bodies.put(question.tenant, entry_id, body, header)
        if vector is None:
            return Stored(entry_id)
        try:
            await self._vectors.put(entry_id, vector, question.tenant, scope, expires_at)
        except VectorsUnavailable:
            return Stored(entry_id, semantic_unavailable=True)
        return Stored(entry_id)

    async def invalidate_namespace(self, tenant: str, namespace: str) -> Removed:
        """Makes every entry of the namespace unreachable at once; they go as they expire."""
        version = await self._bodies.bump(tenant, namespace)
        self._learn(tenant, namespace, version)
        return Removed(-1, version)

    async def invalidate_tag(self, tenant: str, namespace: str, tag: str) -> Removed:
        """Removes the entries with a tag."""
        return await self._remove(tenant, namespace, await self._bodies.tagged(tenant, namespace, tag), tag)

    async def invalidate_entry(self, tenant: str, namespace: str, entry_id: str) -> Removed:
        """Removes one entry of the tenant."""
        return await self._remove(tenant, namespace, [entry_id])

    async def invalidate_request(self, tenant: str, namespace: str, request_id: str) -> Removed:
        """Removes the entry that answered a request or was written by it."""
        entry_id = await self._bodies.answered(tenant, request_id)
        return await self._remove(tenant, namespace, [entry_id] if entry_id else [])

    async def close(self) -> None:
        """Waits for what runs in the background."""
        if self._background:
            await asyncio.gather(*self._background, return_exceptions=True)

    async def _remove(self, tenant: str, namespace: str, entry_ids: Sequence[str], tag: str | None = None) -> Removed:
        count = 0
        for start in range(0, len(entry_ids), REMOVED_TOGETHER):
            some = entry_ids[start : start + REMOVED_TOGETHER]
            _, bodies = await self._bodies.fetch(tenant, namespace, some)
            count += await self._bodies.remove(tenant, namespace, some, tag)
            by_collection: dict[tuple[str, int], list[str]] = {}
            for entry_id, body in zip(some, bodies, strict=True):
                header = None if body is None else self._bodies.header(body)
                if header is not None and header.vector_model:
                    by_collection.setdefault((header.vector_model, header.dimensions), []).append(entry_id)
            for (model_id, dimensions), ids in by_collection.items():
                self._later_remove(model_id, dimensions, ids)
        return Removed(count, await self._bodies.version(tenant, namespace))

    async def _find(
        self,
        question: Question,
        rules: CacheRules,
        *,
        exact: bool,
        vector: Vector | None,
        min_similarity: float,
        oldest: float,
    ) -> Found:
        """Looks exactly where `exact`, then semantically where there is a vector."""
        identity = _identity(question)
        per_user = "" in rules.user_classes
        if not _reproducible(question.chat, rules):
            return Found(identity.keys(0), per_user)
        version = self._versions.get((question.tenant, question.namespace), 0)
        while True:
            keys = identity.keys(version)
            ids = _exact_ids(keys, per_user) if exact else []
            current, bodies = await self._bodies.fetch(question.tenant, question.namespace, ids)
            if current == version:
                break
            version = current  # what was read is of another version: read again
            self._learn(question.tenant, question.namespace, version)
        for entry_id, body in zip(ids, bodies, strict=True):
            if body is not None and body.created_at >= oldest and self._alive(body):
                return Found(keys, per_user, version, body.payload, entry_id)
        miss = Found(keys, per_user, version)
        nobody = per_user and not question.user  # a user's own answers need a user
        if vector is None or nobody or not _comparable(question, rules):
            return miss
        return await self._semantic(question, vector, miss, rules, min_similarity, oldest)

    async def _semantic(
        self, question: Question, vector: Vector, miss: Found, rules: CacheRules, min_similarity: float, oldest: float
    ) -> Found:
        keys = miss.keys
        text = question.chat.last_user_text
        scopes = [scope for scope in (keys.scope if not miss.per_user else None, keys.user_scope) if scope is not None]
        threshold = rules.thresholds.get(vector.model_id)
        try:
            near = await self._vectors.search(
                vector, question.tenant, scopes, now=self._clock.now(), floor=rules.floor, limit=CANDIDATES
            )
        except VectorsUnavailable:
            return replace(miss, semantic_unavailable=True)
        bodies: dict[str, Body] = {}
        questions: dict[str, str] = {}
        if near:
            ids = [n.entry_id for n in near]
            current, fetched = await self._bodies.fetch(question.tenant, question.namespace, ids)
            for entry_id, body in zip(ids, fetched, strict=True):
                # A purge since the version was read leaves nothing of what was found.
                if body is not None and self._alive(body) and current == miss.version:
                    bodies[entry_id] = body
                    questions[entry_id] = self._bodies.header(body).question
            gone = [entry_id for entry_id in ids if entry_id not in bodies]
            if gone:
                self._later_remove(vector.model_id, len(vector.values), gone)
        suspects = [
            Suspect(
                n.entry_id,
                n.similarity,
                questions.get(n.entry_id),
                bodies[n.entry_id].created_at if n.entry_id in bodies else 0.0,
                n.entry_id in bodies and bodies[n.entry_id].expires_at is None,
            )
            for n in near
        ]
        decision = verdict.decide(
            text,
            suspects,
            Rules(
                floor=max(rules.floor, min_similarity),
                threshold=None if threshold is None else max(threshold, min_similarity),
                oldest=oldest,
                cross_language=rules.cross_language,
            ),
        )
        if decision.served is None:
            return replace(miss, verdict=decision)
        entry_id = decision.served
        return replace(
            miss,
            payload=bodies[entry_id].payload,
            entry_id=entry_id,
            semantic=True,
            verdict=decision,
            token_delta=estimate_tokens(text) - estimate_tokens(questions[entry_id]),
        )

    def _learn(self, tenant: str, namespace: str, version: int) -> None:
        """Remembers a version, so that the next lookup needs one round trip; 0 is what is taken without a memory."""
        self._versions.pop((tenant, namespace), None)
        if version:
            self._versions[(tenant, namespace)] = version
            if len(self._versions) > REMEMBERED_VERSIONS:
                del self._versions[next(iter(self._versions))]

    def _alive(self, body: Body) -> bool:
        return body.expires_at is None or body.expires_at > self._clock.now()

    def _later_remove(self, model_id: str, dimensions: int, entry_ids: Sequence[str]) -> None:
        task = asyncio.create_task(self._remove_vectors(model_id, dimensions, entry_ids))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _remove_vectors(self, model_id: str, dimensions: int, entry_ids: Sequence[str]) -> None:
        try:
            await self._vectors.remove(model_id, dimensions, entry_ids)
        except VectorsUnavailable:
            return  # a vector without a body is a miss, and the next one who meets it tries again


def _identity(question: Question) -> Identity:
    return Identity(question.tenant, question.namespace, question.user, question.requested_model, question.chat)


def _exact_ids(keys: Keys, per_user: bool) -> list[str]:
    """A user's own answer goes before everybody's."""
    ids = [keys.user_exact, None if per_user else keys.exact]
    return [key.hex() for key in ids if key is not None]


def _comparable(question: Question, rules: CacheRules) -> bool:
    """Whether paraphrases may be looked for: the policy allows it and there is a text to compare."""
    return rules.semantic and bool(question.chat.last_user_text.strip())


def _reproducible(chat: Chat, rules: CacheRules) -> bool:
    temperature = chat.sampling.temperature
    return temperature is None or temperature <= rules.max_temperature


def _unfit(answer: Answer, rules: CacheRules) -> str:
    """Why an answer must not be stored; empty when nothing speaks against it."""
    if answer.finish_reason is FinishReason.LENGTH:
        return "truncated"
    if answer.finish_reason is FinishReason.CONTENT_FILTER:
        return "filtered"
    if (answer.message.tool_calls or answer.finish_reason is FinishReason.TOOL_CALLS) and not rules.store_tool_calls:
        return "tool_calls"
    if not answer.message.text.strip() and not answer.message.tool_calls:
        return "empty"
    return ""
