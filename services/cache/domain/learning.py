"""What the cache finds out about its own hits: from fresh answers, from callers' words, and the sum of it."""

from collections.abc import Callable
from dataclasses import dataclass

from services.cache.domain.answers import Comparison, compare
from services.cache.domain.budget import Record, wilson, wrong_share
from services.cache.domain.calibration import Label
from services.cache.domain.lesson import Lesson, unpack
from services.cache.domain.paraphrases import HEARSAY
from services.cache.domain.ports import (
    AnswerText,
    Bodies,
    Body,
    CacheRules,
    Embedder,
    EmbedderUnavailable,
)
from services.cache.domain.quality import Quality, QualityStore
from services.cache.domain.reviews import Reviews, Standing
from services.cache.domain.signals import hinted

STALE_ALARM = 0.05
"""A share of stale answers that is surely exceeded (lower end of the 95% interval) raises the alarm."""
MISS, SHADOW, STALENESS = "miss", "shadow", "staleness"
_STANDINGS = {
    Comparison.SAME: Standing.RIGHT,
    Comparison.DIFFERENT: Standing.WRONG,
    Comparison.DOUBT: Standing.DOUBTFUL,
}


@dataclass(frozen=True, slots=True)
class Measured:
    """A namespace's record; the wrong hits' share of lookups lies in `wrong_low` to `wrong_high`, at 95%.

    `threshold` is the probability that is required now.
    """

    record: Record
    wrong_low: float
    wrong_high: float
    error_budget: float
    threshold: float


class Learning:
    """Labels and counts for the namespaces' calibrations and budgets."""

    def __init__(
        self,
        bodies: Bodies,
        quality: Quality,
        store: QualityStore,
        *,
        answer_text: AnswerText,
        stale: Callable[[str, str, float], None],
        reviews: Reviews,
        embedder: Embedder | None = None,
    ) -> None:
        """`stale` hears of a namespace whose answers have become stale: tenant, namespace, the least share it may be."""
        self._bodies = bodies
        self._quality = quality
        self._store = store
        self._answer_text = answer_text
        self._stale = stale
        self._reviews = reviews
        self._embedder = embedder
        self._alarmed: set[tuple[str, str]] = set()

    async def learn(
        self, tenant: str, namespace: str, rules: CacheRules, lesson: bytes, fresh: str, kind: str
    ) -> Comparison | None:
        """Compares a fresh answer with the stored one of a lesson; None where there is nothing to compare.

        `kind` is MISS, SHADOW or STALENESS. Raises StoreUnavailable.
        """
        known = unpack(lesson)
        if known is None or known.semantic == (kind == STALENESS):
            return None
        _, (body,) = await self._bodies.fetch(tenant, namespace, [known.entry_id])
        if not isinstance(body, Body) or body.created_at != known.born:
            return None
        header = self._bodies.header(body)
        if header.namespace != namespace:
            return None
        stored = self._answer_text(body.payload)
        found = compare(stored, fresh, await self._similarity(stored, fresh))
        if kind == MISS and found is Comparison.SAME and known.features and hinted(known.features):
            # Look-alikes with one answer: as likely a model that did not see the difference as one that makes none.
            found = Comparison.DOUBT
        if known.semantic:
            self._settle(tenant, namespace, known, _STANDINGS[found])
        if found is Comparison.DOUBT:
            self._quality.count(tenant, namespace, doubtful=1)
        elif kind == STALENESS:
            self._aged(tenant, namespace, found is Comparison.DIFFERENT)
        else:
            await self._compared(tenant, namespace, rules, known, kind, found is Comparison.SAME)
            if kind == MISS and found is Comparison.SAME:
                # The fresh answer was stored under the asked question's key.
                await self._bodies.join(tenant, known.asked, known.entry_id, header.answer or known.entry_id)
        return found

    async def feedback(self, tenant: str, request_id: str, right: bool) -> bool:
        """Takes a caller's word on the answer to a request; False where it was not answered by the cache, or was judged before.

        "Right" is counted and does nothing else. Raises StoreUnavailable.
        """
        note = await self._bodies.answered(tenant, request_id)
        lesson = None if note is None else unpack(note.lesson)
        if note is None or lesson is None or not await self._bodies.first_word(tenant, request_id):
            return False
        if lesson.semantic:
            self._settle(tenant, note.namespace, lesson, Standing.RIGHT if right else Standing.WRONG)
        if right:
            self._quality.count(tenant, note.namespace, feedback_right=1)
            return True
        self._quality.count(tenant, note.namespace, feedback_wrong=1)
        if lesson.semantic:
            self._quality.count(tenant, note.namespace, checked=1, wrong=1)
            if lesson.features is not None:
                self._quality.learn(tenant, note.namespace, Label(lesson.features, same=False, weight=HEARSAY))
            await self._bodies.mark(tenant, lesson.asked, lesson.entry_id, right=False)
        return True

    async def measure(self, tenant: str, namespace: str, rules: CacheRules) -> Measured:
        """The namespace's record, over all replicas. Raises StoreUnavailable."""
        await self._quality.refresh(tenant, namespace, self._store)
        risk = self._quality.highest_risk(tenant, namespace, rules.error_budget)
        record = self._quality.record(tenant, namespace)
        low, high = wrong_share(record)
        return Measured(record, low, high, rules.error_budget, 1.0 - risk)

    async def _compared(
        self, tenant: str, namespace: str, rules: CacheRules, lesson: Lesson, kind: str, same: bool
    ) -> None:
        if kind == SHADOW:
            self._quality.count(tenant, namespace, checked=1, wrong=float(not same))
        else:
            self._quality.count(tenant, namespace, learned=1)
        if rules.learn and lesson.features is not None:
            self._quality.learn(tenant, namespace, Label(lesson.features, same))
        if kind == SHADOW:
            await self._bodies.mark(tenant, lesson.asked, lesson.entry_id, right=same)

    def _settle(self, tenant: str, namespace: str, lesson: Lesson, standing: Standing) -> None:
        self._reviews.settle(tenant, namespace, lesson.asked, lesson.entry_id, lesson.born, standing)

    def _aged(self, tenant: str, namespace: str, stale: bool) -> None:
        self._quality.count(tenant, namespace, stale_checked=1, stale=float(stale))
        record = self._quality.record(tenant, namespace)
        low, _ = wilson(record.stale, record.stale_checked)
        key = (tenant, namespace)
        if low <= STALE_ALARM:
            self._alarmed.discard(key)
        elif key not in self._alarmed:
            self._alarmed.add(key)
            self._stale(tenant, namespace, low)

    async def _similarity(self, stored: str, fresh: str) -> float | None:
        """Cosine of the two answers, -1 to 1; None where it cannot be had."""
        if self._embedder is None or not stored.strip() or not fresh.strip():
            return None
        try:
            one, other = await self._embedder.embed([stored, fresh])
        except EmbedderUnavailable:
            return None
        return float(one @ other)
