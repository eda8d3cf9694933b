"""The use cases of the cache: look up, store, invalidate, explain."""

from collections.abc import Sequence
from dataclasses import replace

from services.cache.domain import guards
from services.cache.domain.answers import digest
from services.cache.domain.identity import Identity, Keys
from services.cache.domain.later import Later
from services.cache.domain.lesson import Lesson
from services.cache.domain.paraphrases import Paraphrases, Query
from services.cache.domain.ports import (
    Alias,
    Bodies,
    Body,
    CacheRules,
    Controls,
    Found,
    Fresh,
    Header,
    Note,
    Prices,
    Question,
    Removed,
    Stored,
    StoreUnavailable,
    Vector,
    Vectors,
    VectorsUnavailable,
)
from services.cache.domain.quality import Quality
from services.cache.domain.reviews import Reviews
from services.cache.domain.standalone import stands_alone
from services.common.chat import Answer, Chat, FinishReason, Role
from services.common.clock import Clock

__all__ = ["SemanticCache", "StoreUnavailable"]

REMOVED_TOGETHER = 100
"""How many entries are read and removed at once when many go: all of a big tag would outlast a store's patience."""
REMEMBERED_VERSIONS = 10_000
"""How many namespaces' versions are kept; one that was dropped costs its next lookup a second round trip."""


class SemanticCache:
    """Exact and semantic answers over a store of bodies and a store of vectors."""

    def __init__(
        self,
        bodies: Bodies,
        vectors: Vectors,
        paraphrases: Paraphrases,
        quality: Quality,
        clock: Clock,
        later: Later,
        prices: Prices,
        reviews: Reviews,
    ) -> None:
        self._bodies = bodies
        self._vectors = vectors
        self._paraphrases = paraphrases
        self._quality = quality
        self._clock = clock
        self._later = later
        self._prices = prices
        self._reviews = reviews
        self._versions: dict[tuple[str, str], int] = {}

    async def lookup(self, question: Question, rules: CacheRules, controls: Controls) -> Found:
        """Looks up exactly, then, with a vector, semantically. Raises StoreUnavailable."""
        self._reviews.visit(question.tenant, question.namespace)
        oldest = -1.0 if controls.max_age is None else self._clock.now() - controls.max_age
        found = await self._find(
            question,
            rules,
            exact=rules.exact and not controls.skip_exact,
            aliases=not controls.exact_only,
            vector=None if controls.exact_only else question.vector,
            min_similarity=controls.min_similarity,
            oldest=oldest,
            silent=False,
        )
        if found.payload is not None:
            if not found.semantic:
                self._quality.count(question.tenant, question.namespace, exact_hits=1)
            if question.request_id:
                note = Note(found.entry_id, question.namespace, found.lesson)
                self._bodies.note_answer(question.tenant, question.request_id, note)
        return found

    async def explain(self, question: Question, rules: CacheRules) -> Found:
        """Like `lookup` without any trace. It looks past aliases at what they rest on, and pays no judge."""
        return await self._find(
            question,
            rules,
            exact=rules.exact,
            aliases=False,
            vector=question.vector,
            min_similarity=-1.0,
            oldest=-1.0,
            silent=True,
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
        exact = identity.keys(version).exact_for(per_user)
        scopes = [keys.scope_for(per_user) for keys in _conversations(identity, question, rules, version)]
        if exact is None:
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
            per_user=per_user,
            cost=self._prices(fresh.model, fresh.usage),
            answer=digest(fresh.answer.message.text),
        )
        body = Body(fresh.payload(entry_id, now, expires_at), now, expires_at, b"")
        await self._bodies.put(question.tenant, entry_id, body, header)
        if vector is None:
            return Stored(entry_id)
        try:
            await self._vectors.put(
                entry_id,
                vector,
                question.tenant,
                [scope for scope in scopes if scope is not None],
                language=guards.read(header.question).language,
                expires_at=expires_at,
            )
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
        note = await self._bodies.answered(tenant, request_id)
        return await self._remove(tenant, namespace, [] if note is None else [note.entry_id])

    async def close(self) -> None:
        """Waits for what runs in the background."""
        await self._later.close()

    async def _remove(self, tenant: str, namespace: str, entry_ids: Sequence[str], tag: str | None = None) -> Removed:
        count = 0
        for start in range(0, len(entry_ids), REMOVED_TOGETHER):
            some = entry_ids[start : start + REMOVED_TOGETHER]
            _, bodies = await self._bodies.fetch(tenant, namespace, some)
            count += await self._bodies.remove(tenant, namespace, some, tag)
            by_collection: dict[tuple[str, int], list[str]] = {}
            for entry_id, body in zip(some, bodies, strict=True):
                header = self._bodies.header(body) if isinstance(body, Body) else None
                if header is not None and header.vector_model:
                    by_collection.setdefault((header.vector_model, header.dimensions), []).append(entry_id)
            for (model_id, dimensions), ids in by_collection.items():
                self._paraphrases.forget(model_id, dimensions, ids)
        return Removed(count, await self._bodies.version(tenant, namespace))

    async def _find(
        self,
        question: Question,
        rules: CacheRules,
        *,
        exact: bool,
        aliases: bool,
        vector: Vector | None,
        min_similarity: float,
        oldest: float,
        silent: bool,
    ) -> Found:
        """Looks exactly where `exact`, then for `aliases`, then semantically where there is a vector."""
        identity = _identity(question)
        per_user = "" in rules.user_classes
        if not _reproducible(question.chat, rules):
            return Found(identity.keys(0), per_user)
        version = self._versions.get((question.tenant, question.namespace), 0)
        while True:
            keys = identity.keys(version)
            ids = _exact_ids(keys, per_user) if exact else []
            current, records = await self._bodies.fetch(question.tenant, question.namespace, [key.hex() for key in ids])
            if current == version:
                break
            version = current  # what was read is of another version: read again
            self._learn(question.tenant, question.namespace, version)
        for key, record in zip(ids, records, strict=True):
            if isinstance(record, Body) and record.created_at >= oldest and self._paraphrases.alive(record):
                entry_id = key.hex()
                lesson = Lesson(entry_id, entry_id, record.created_at, semantic=False).pack()
                return Found(keys, per_user, version, record.payload, entry_id, lesson=lesson)
        miss = Found(keys, per_user, version)
        nobody = per_user and not question.user  # a user's own answers need a user
        if nobody or not _comparable(question, rules):
            return miss
        scopes = tuple(
            scope
            for of in _conversations(identity, question, rules, version)
            for scope in (None if per_user else of.scope, of.user_scope)
            if scope is not None
        )
        query = Query(question, rules, miss, scopes, min_similarity, oldest, silent)
        if aliases:
            for key, record in zip(ids, records, strict=True):
                found = await self._paraphrases.by_alias(query, key, record) if isinstance(record, Alias) else None
                if found is not None:
                    return found
        return miss if vector is None else await self._paraphrases.search(query, vector)

    def _learn(self, tenant: str, namespace: str, version: int) -> None:
        """Remembers a version, so that the next lookup needs one round trip; 0 is what is taken without a memory."""
        self._versions.pop((tenant, namespace), None)
        if version:
            self._versions[(tenant, namespace)] = version
            if len(self._versions) > REMEMBERED_VERSIONS:
                del self._versions[next(iter(self._versions))]


def _identity(question: Question) -> Identity:
    return Identity(question.tenant, question.namespace, question.user, question.requested_model, question.chat)


def _conversations(identity: Identity, question: Question, rules: CacheRules, version: int) -> list[Keys]:
    """The keys of the conversation, and those of a new one where the policy allows and the question needs no history."""
    chat = question.chat
    last = chat.last_user_index
    keys = [identity.keys(version)]
    if not rules.standalone or last is None or last != len(chat.messages) - 1:
        return keys
    standing = tuple(message for message in chat.messages[:last] if message.role is Role.SYSTEM)
    if len(standing) < last and stands_alone(chat.last_user_text):
        alone = replace(chat, messages=(*standing, chat.messages[last]))
        keys.append(_identity(replace(question, chat=alone)).keys(version))
    return keys


def _exact_ids(keys: Keys, per_user: bool) -> list[bytes]:
    """A user's own answer goes before everybody's."""
    return [key for key in (keys.user_exact, None if per_user else keys.exact) if key is not None]


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
