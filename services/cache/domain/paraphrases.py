"""Answers to the same question in other words: candidates, their verdict, and the aliases of those that were served."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.cache.domain import cascade, guards, judge, verdict
from services.cache.domain.budget import TIGHT
from services.cache.domain.calibration import Label
from services.cache.domain.later import Later
from services.cache.domain.lesson import Lesson
from services.cache.domain.ports import (
    Alias,
    AnswerText,
    Bodies,
    Body,
    CacheRules,
    Candidate,
    Found,
    Header,
    Judge,
    JudgeUnavailable,
    Prices,
    Question,
    StoreUnavailable,
    Vector,
    Vectors,
    VectorsUnavailable,
    Verifier,
    VerifierUnavailable,
)
from services.cache.domain.quality import Quality
from services.cache.domain.reviews import TEXT, Kind, Review, Reviews
from services.cache.domain.verdict import CANDIDATES, Judged, Rules, Suspect, Verdict
from services.common.clock import Clock
from services.common.tokens import estimate_tokens

HEARSAY = 0.5
"""What a label counts that rests on somebody's word, and not on a comparison of answers."""
PINNED_ALIAS_CLASS = "archive"
"""The lifetime of an alias of an answer that has no end of its own."""
BY_ALIAS, JUDGED, JUDGE_REFUSED = "alias", "judged", "judge_refused"


@dataclass(frozen=True, slots=True)
class Query:
    """A question that no entry answers exactly.

    `miss` is how its lookup ends unless a paraphrase is found; `scopes` where to look. Nothing below `min_similarity` or written
    before `oldest` (Unix seconds) will do. `silent`: nothing is counted or written, and no judge is paid.
    """

    question: Question
    rules: CacheRules
    miss: Found
    scopes: tuple[bytes, ...]
    min_similarity: float
    oldest: float
    silent: bool

    @property
    def asked(self) -> str:
        """The question's exact key, whoever asks."""
        return self.miss.keys.exact.hex()

    @property
    def text(self) -> str:
        """The question itself."""
        return self.question.chat.last_user_text


@dataclass(frozen=True, slots=True)
class _Known:
    """A candidate that is there."""

    body: Body
    header: Header


class Paraphrases:
    """The semantic half of the cache. Without a verifier, vetoes and similarity decide; without a judge, unsure is a miss."""

    def __init__(
        self,
        bodies: Bodies,
        vectors: Vectors,
        quality: Quality,
        clock: Clock,
        later: Later,
        *,
        prices: Prices,
        answer_text: AnswerText,
        reviews: Reviews,
        verifier: Verifier | None = None,
        judge: Judge | None = None,
    ) -> None:
        self._bodies = bodies
        self._vectors = vectors
        self._quality = quality
        self._clock = clock
        self._later = later
        self._prices = prices
        self._answer_text = answer_text
        self._reviews = reviews
        self._verifier = verifier
        self._judge = judge

    def alive(self, body: Body) -> bool:
        """Whether an entry has not ended."""
        return body.expires_at is None or body.expires_at > self._clock.now()

    async def by_alias(self, query: Query, exact_key: bytes, alias: Alias) -> Found | None:
        """The entry to which an alias under `exact_key` points, if it may still be served. Raises StoreUnavailable."""
        question, miss = query.question, query.miss
        limits = self._limits(query, alias.model_id)
        if not _still_allowed(alias, query.rules, limits):
            return None
        version, (candidate,) = await self._bodies.candidates(
            question.tenant, question.namespace, query.asked, [alias.target]
        )
        body = candidate.body
        if version != miss.version or body is None or not self.alive(body) or body.created_at != alias.born:
            self._later.start(self._drop_alias(question.tenant, exact_key.hex()))
            return None
        header = self._bodies.header(body)
        foreign = header.per_user and exact_key != miss.keys.user_exact
        if foreign or candidate.blocked or body.created_at < query.oldest:
            return None
        languages = {guards.read(text).language for text in (query.text, header.question)} - {""}
        if len(languages) > 1 and not query.rules.cross_language:
            return None  # the policy allowed it once
        tenant, namespace = question.tenant, question.namespace
        if alias.probability is None:
            self._quality.count(tenant, namespace, lookups=1)
        else:
            self._quality.saw(tenant, namespace, 1.0 - alias.probability)
        self._quality.count(tenant, namespace, semantic_hits=1, alias_hits=1)
        known = Judged(
            alias.target,
            alias.similarity,
            BY_ALIAS,
            "",
            header.question,
            alias.probability,
            features=alias.features,
        )
        decision = Verdict(alias.target, BY_ALIAS, (known,), _required(limits, alias.probability), alias=True)
        entry = _Known(body, header)
        self._show(query, Kind.HIT, known, entry)
        return _hit(query, decision, entry)

    async def search(self, query: Query, vector: Vector) -> Found:
        """Looks for a stored question that one answer serves with. Raises StoreUnavailable."""
        question, rules, miss = query.question, query.rules, query.miss
        language = "" if rules.cross_language else guards.read(query.text).language
        try:
            near = await self._vectors.search(
                vector,
                question.tenant,
                query.scopes,
                language=language,
                now=self._clock.now(),
                floor=rules.floor,
                limit=CANDIDATES,
            )
        except VectorsUnavailable:
            return replace(miss, semantic_unavailable=True)
        similarities: dict[str, float] = {}
        for neighbour in near:  # best first, and a vector may be there twice
            similarities.setdefault(neighbour.entry_id, neighbour.similarity)
        candidates: dict[str, Candidate] = {}
        known: dict[str, _Known] = {}
        if similarities:
            version, found = await self._bodies.candidates(
                question.tenant, question.namespace, query.asked, list(similarities)
            )
            for entry_id, candidate in zip(similarities, found, strict=True):
                candidates[entry_id] = candidate
                body = candidate.body
                # A purge since the version was read leaves nothing of what was found.
                if body is not None and self.alive(body) and version == miss.version:
                    known[entry_id] = _Known(body, self._bodies.header(body))
            gone = [entry_id for entry_id in similarities if entry_id not in known]
            if gone:
                self.forget(vector.model_id, len(vector.values), gone)
        suspects = [_suspect(i, s, candidates[i], known.get(i)) for i, s in similarities.items()]
        limits = self._limits(query, vector.model_id)
        decision, cost, verified = await self._decide(query, vector, suspects, limits)
        best = decision.judged[0] if decision.judged else None
        chance = None if best is None else best.probability
        if verified and decision.served is None and best is not None and best.entry_id in known and not query.silent:
            decision, extra = await self._ask_judge(query, decision, known[best.entry_id])
            cost += extra
        if not query.silent:
            nearly = self._count(query, decision, chance, verified)
            if best is not None and best.entry_id in known and (nearly or decision.served is not None):
                kind = Kind.NEAR_MISS if nearly else Kind.HIT
                self._show(query, kind, decision.judged[0], known[best.entry_id])
        if decision.served is None:
            lesson = b""
            if rules.learn and best is not None and best.features is not None and best.entry_id in known:
                lesson = _lesson(query, best, known[best.entry_id].body)
            return replace(miss, verdict=decision, verifier_cost=cost, lesson=lesson)
        served = known[decision.served]
        if not query.silent and rules.exact:
            self._later.start(self._put_alias(query, vector, decision, served))
        return _hit(query, decision, served, cost)

    def forget(self, model_id: str, dimensions: int, entry_ids: Sequence[str]) -> None:
        """Removes vectors, soon."""
        self._later.start(self._remove_vectors(model_id, dimensions, entry_ids))

    def _limits(self, query: Query, model_id: str) -> Rules:
        """What the namespace demands now, of similarities that `model_id` made."""
        question, rules = query.question, query.rules
        risk = self._quality.highest_risk(question.tenant, question.namespace, rules.error_budget)
        threshold = rules.thresholds.get(model_id)
        if threshold is not None:
            if self._quality.record(question.tenant, question.namespace).state == TIGHT:
                threshold = (1.0 + threshold) / 2
            threshold = max(threshold, query.min_similarity)
        return Rules(
            floor=max(rules.floor, query.min_similarity),
            threshold=threshold,
            oldest=query.oldest,
            cross_language=rules.cross_language,
            highest_risk=risk,
        )

    async def _decide(
        self, query: Query, vector: Vector, suspects: Sequence[Suspect], limits: Rules
    ) -> tuple[Verdict, int, bool]:
        """The verdict, its cost, and whether the verifier had a part in it."""
        if self._verifier is not None and query.rules.verifier and vector.model_id == self._quality.model_id:
            calibration = self._quality.calibration(query.question.tenant, query.question.namespace)
            try:
                decision, cost = await cascade.judge(query.text, suspects, limits, calibration, self._verifier)
            except VerifierUnavailable:
                pass
            else:
                return decision, cost, True
        return verdict.decide(query.text, suspects, limits), 0, False

    async def _ask_judge(self, query: Query, decision: Verdict, known: _Known) -> tuple[Verdict, int]:
        """Puts the best candidate to the judge where the policy names one, it may help, and it pays."""
        best, rules, model = decision.judged[0], query.rules, query.rules.judge
        if self._judge is None or model is None or best.probability is None or best.features is None:
            return decision, 0
        if not judge.LEAST_PROBABILITY <= best.probability < decision.threshold:
            return decision, 0
        chat = judge.chat_for(known.header.question, self._answer_text(known.body.payload), query.text)
        price = None if chat is None else self._prices(model, judge.usage_for(chat))
        saved = known.header.cost
        if chat is None or price is None or saved is None or price >= best.probability * saved:
            return decision, 0
        question = query.question
        self._quality.count(question.tenant, question.namespace, judged=1)
        try:
            ruling = await self._judge.ask(question, model, chat, rules.judge_ms / 1000)
        except JudgeUnavailable as error:
            return decision, error.cost
        self._quality.learn(question.tenant, question.namespace, Label(best.features, ruling.same, HEARSAY))
        reason = JUDGED if ruling.same else JUDGE_REFUSED
        judged = (replace(best, reason=reason), *decision.judged[1:])
        return replace(
            decision, served=best.entry_id if ruling.same else None, reason=reason, judged=judged
        ), ruling.cost

    def _show(self, query: Query, kind: Kind, judged: Judged, known: _Known) -> None:
        """Takes a pair in for people to look through, where the policy allows that."""
        if not query.rules.review:
            return
        question = query.question
        review = Review(
            kind,
            self._clock.now(),
            known.body.created_at,
            question.request_id,
            judged.entry_id,
            query.text[:TEXT],
            known.header.question[:TEXT],
            judged.similarity,
            judged.probability,
            judged.reason,
        )
        self._reviews.saw(question.tenant, question.namespace, query.asked, review)

    def _count(self, query: Query, decision: Verdict, chance: float | None, verified: bool) -> bool:
        """Counts a lookup; says whether it was a near miss."""
        tenant, namespace = query.question.tenant, query.question.namespace
        if verified:
            self._quality.saw(tenant, namespace, 1.0 if chance is None else 1.0 - chance)
        else:
            self._quality.count(tenant, namespace, lookups=1)
        if decision.served is not None:
            self._quality.count(tenant, namespace, semantic_hits=1)
        elif chance is not None and chance >= decision.threshold / 2:
            self._quality.count(tenant, namespace, near_misses=1)
            return True
        return False

    async def _put_alias(self, query: Query, vector: Vector, decision: Verdict, known: _Known) -> None:
        keys = query.miss.keys
        key = keys.exact_for(known.header.per_user)
        if key is None:
            return
        served = decision.judged[0]
        alias = Alias(
            served.entry_id,
            known.body.created_at,
            served.similarity,
            vector.model_id,
            served.probability,
            decision.reason == JUDGED,
            served.features,
        )
        expires_at = known.body.expires_at
        if expires_at is None:
            expires_at = self._clock.now() + query.rules.ttl[PINNED_ALIAS_CLASS]
        try:
            await self._bodies.put_alias(query.question.tenant, key.hex(), alias, expires_at)
        except StoreUnavailable:
            return  # the next one who asks like this costs a verdict again

    async def _drop_alias(self, tenant: str, exact_key: str) -> None:
        try:
            await self._bodies.drop_alias(tenant, exact_key)
        except StoreUnavailable:
            return  # it points at nothing, and the next one who meets it tries again

    async def _remove_vectors(self, model_id: str, dimensions: int, entry_ids: Sequence[str]) -> None:
        try:
            await self._vectors.remove(model_id, dimensions, entry_ids)
        except VectorsUnavailable:
            return  # a vector without a body is a miss, and the next one who meets it tries again


def _suspect(entry_id: str, similarity: float, candidate: Candidate, known: _Known | None) -> Suspect:
    if known is None:
        return Suspect(entry_id, similarity, None, 0.0, False)
    return Suspect(
        entry_id,
        similarity,
        known.header.question,
        known.body.created_at,
        known.body.expires_at is None,
        math.log((1 + candidate.right) / (1 + candidate.wrong)),
        candidate.blocked,
        candidate.group or known.header.answer,
    )


def _still_allowed(alias: Alias, rules: CacheRules, limits: Rules) -> bool:
    """Whether what was known when the alias was made would still do."""
    if alias.similarity < limits.floor:
        return False
    if alias.judged:
        return rules.judge is not None
    if alias.probability is None:
        return limits.threshold is not None and alias.similarity >= limits.threshold
    return rules.verifier and alias.probability >= 1.0 - limits.highest_risk


def _required(limits: Rules, probability: float | None) -> float:
    """What was required of a candidate: a similarity, or a probability where it has one."""
    if probability is not None or limits.threshold is None:
        return 1.0 - limits.highest_risk
    return limits.threshold


def _hit(query: Query, decision: Verdict, known: _Known, cost: int = 0) -> Found:
    return replace(
        query.miss,
        payload=known.body.payload,
        entry_id=decision.served or "",
        semantic=True,
        verdict=decision,
        token_delta=estimate_tokens(query.text) - estimate_tokens(known.header.question),
        verifier_cost=cost,
        lesson=_lesson(query, decision.judged[0], known.body),
    )


def _lesson(query: Query, judged: Judged, body: Body) -> bytes:
    return Lesson(query.asked, judged.entry_id, body.created_at, True, judged.features, judged.probability).pack()
