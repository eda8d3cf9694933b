"""Pairs of questions that people may look through: what was served for other words, and what nearly was.

Lookups only remember; what they saw is written in the background. A pair is kept once, however often it is asked.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from services.cache.domain.ports import AnswerText, Bodies, Body, StoreUnavailable
from services.common.clock import Clock

KEPT = 500
"""Pairs of a namespace; the oldest go."""
KEPT_S = 7 * 86_400.0
WAITING = 500
"""Pairs of a namespace that wait to be written; further ones are left out: nobody looks through so many of one second."""
NAMESPACES_WAITING = 1_000
REMEMBERED = 10_000
"""Namespaces of which this process knows that they are on the list."""
TEXT = 500
"""Most characters of a question."""
ANSWER = 1_000
"""Most characters of an answer."""


class Kind(StrEnum):
    """Why a pair is worth a look."""

    HIT = "hit"
    NEAR_MISS = "near_miss"


class Standing(StrEnum):
    """What is known about a pair. Later in this list goes before earlier: a wrong answer stays wrong."""

    UNCHECKED = "unchecked"
    DOUBTFUL = "doubtful"
    RIGHT = "right"
    WRONG = "wrong"


RANKS = tuple(Standing)


@dataclass(frozen=True, slots=True)
class Review:
    """A pair. `at` is when it was last asked and `born` when the entry was written, in Unix seconds.

    `asked` and `stored` are at most TEXT characters; `similarity` is a cosine; `probability` is None where something else
    decided.
    """

    kind: Kind
    at: float
    born: float
    request_id: str
    entry_id: str
    asked: str
    stored: str
    similarity: float
    probability: float | None
    reason: str
    standing: Standing = Standing.UNCHECKED
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some reviews, and the token of the next page; "" on the last."""

    reviews: tuple[Review, ...]
    next_token: str = ""


@dataclass(slots=True)
class Waiting:
    """What waits to be written for a namespace: reviews and findings by the pair's id."""

    reviews: dict[str, Review]
    standings: dict[str, Standing]


class ReviewStore(Protocol):
    """Where reviews outlive the process. Every method raises StoreUnavailable when it cannot be asked."""

    async def put(self, tenant: str, namespace: str, waiting: Waiting, now: float) -> None:
        """Writes reviews and findings in one atomic step, and removes what is too old or too much.

        A finding replaces only a weaker one; one on a pair that is not kept is dropped.
        """
        ...

    async def all(self, tenant: str, namespace: str) -> list[tuple[str, Review]]:
        """The pairs that are kept, with their ids, in any order."""
        ...

    async def visit(self, tenant: str, namespaces: Sequence[str]) -> None:
        """Puts namespaces on the tenant's list."""
        ...

    async def visited(self, tenant: str) -> list[str]:
        """The tenant's list."""
        ...


class Reviews:
    """Collects pairs and what is found out about them, and shows them."""

    def __init__(self, bodies: Bodies, store: ReviewStore, clock: Clock, answer_text: AnswerText) -> None:
        self._bodies = bodies
        self._store = store
        self._clock = clock
        self._answer_text = answer_text
        self._waiting: dict[tuple[str, str], Waiting] = {}
        self._visited: set[tuple[str, str]] = set()
        self._new: dict[str, list[str]] = {}

    def visit(self, tenant: str, namespace: str) -> None:
        """Remembers that something was looked up there."""
        key = (tenant, namespace)
        if key in self._visited:
            return
        if len(self._visited) >= REMEMBERED:
            self._visited.clear()  # each is written once more
        self._visited.add(key)
        self._new.setdefault(tenant, []).append(namespace)

    def saw(self, tenant: str, namespace: str, asked_key: str, review: Review) -> None:
        """Takes a pair in; `asked_key` is the exact key of the question, in hexadecimal."""
        waiting = self._of(tenant, namespace)
        if waiting is not None and len(waiting.reviews) < WAITING:
            waiting.reviews[pair_id(asked_key, review.entry_id, review.born)] = review

    def settle(
        self, tenant: str, namespace: str, asked_key: str, entry_id: str, born: float, standing: Standing
    ) -> None:
        """Notes what was found out about a pair."""
        waiting = self._of(tenant, namespace)
        if waiting is None or len(waiting.standings) >= WAITING:
            return
        pair = pair_id(asked_key, entry_id, born)
        known = waiting.standings.get(pair, Standing.UNCHECKED)
        waiting.standings[pair] = max(known, standing, key=RANKS.index)

    async def flush(self) -> None:
        """Writes what waits. Raises StoreUnavailable; what was not written waits on, newer things going first."""
        for tenant in list(self._new):
            namespaces = self._new.pop(tenant)
            try:
                await self._store.visit(tenant, namespaces)
            except StoreUnavailable:
                self._new[tenant] = [*namespaces, *self._new.get(tenant, [])]
                raise
        for key in list(self._waiting):
            waiting = self._waiting.pop(key)
            try:
                await self._store.put(*key, waiting, self._clock.now())
            except StoreUnavailable:
                newer = self._waiting.get(key)
                if newer is not None:
                    waiting.reviews.update(newer.reviews)
                    waiting.standings.update(newer.standings)
                self._waiting[key] = waiting
                raise

    async def page(
        self, tenant: str, namespace: str, *, kind: Kind | None, unsettled: bool, size: int, token: str
    ) -> Page:
        """At most `size` pairs after the one that `token` names, the newest first. Raises StoreUnavailable."""
        await self.flush()
        oldest = self._clock.now() - KEPT_S
        found = [
            (_token(pair, review), review)
            for pair, review in await self._store.all(tenant, namespace)
            if review.at >= oldest
            and kind in (None, review.kind)
            and not (unsettled and review.standing not in (Standing.WRONG, Standing.DOUBTFUL))
        ]
        # By the pair's time and name, so that it does not matter whether the one that the token names is still there.
        left = [(mark, review) for mark, review in found if not token or mark < token]
        left.sort(key=lambda item: item[0], reverse=True)
        shown = [review for _, review in left[:size]]
        answers = await self._answers(tenant, namespace, shown)
        return Page(tuple(answers), left[size - 1][0] if len(left) > size else "")

    async def namespaces(self, tenant: str) -> list[str]:
        """Where the tenant ever looked something up, by name. Raises StoreUnavailable."""
        await self.flush()
        return sorted(await self._store.visited(tenant))

    def _of(self, tenant: str, namespace: str) -> Waiting | None:
        key = (tenant, namespace)
        waiting = self._waiting.get(key)
        if waiting is None and len(self._waiting) < NAMESPACES_WAITING:
            waiting = self._waiting[key] = Waiting({}, {})
        return waiting

    async def _answers(self, tenant: str, namespace: str, reviews: Sequence[Review]) -> list[Review]:
        """The same reviews with their answers, where those are still there."""
        ids = list(dict.fromkeys(review.entry_id for review in reviews))
        if not ids:
            return []
        _, found = await self._bodies.fetch(tenant, namespace, ids)
        bodies = dict(zip(ids, found, strict=True))
        return [_with_answer(review, bodies[review.entry_id], self._answer_text) for review in reviews]


def pair_id(asked_key: str, entry_id: str, born: float) -> str:
    """Names a pair: an entry that is written again is another one."""
    return hashlib.sha256(f"{asked_key}{entry_id}{born!r}".encode()).hexdigest()[:24]


def pack(review: Review) -> str:
    """A review as text, without what is found out later."""
    return json.dumps(
        [
            review.kind.value,
            round(review.at, 3),
            review.born,
            review.request_id,
            review.entry_id,
            review.asked,
            review.stored,
            round(review.similarity, 5),
            None if review.probability is None else round(review.probability, 6),
            review.reason,
        ],
        separators=(",", ":"),
    )


def unpack(text: str | bytes, standing: Standing) -> Review | None:
    """The review; None for what another version wrote."""
    try:
        kind, at, born, request_id, entry_id, asked, stored, similarity, probability, reason = json.loads(text)
        return Review(
            Kind(kind),
            at,
            born,
            request_id,
            entry_id,
            asked,
            stored,
            similarity,
            probability,
            reason,
            standing,
        )
    except (ValueError, TypeError):
        return None


def _token(pair: str, review: Review) -> str:
    """Sorts as the pairs do."""
    return f"{int(review.at * 1000):015d}-{pair}"


def _with_answer(review: Review, body: object, answer_text: AnswerText) -> Review:
    if not isinstance(body, Body) or body.created_at != review.born:
        return review
    return replace(review, answer=answer_text(body.payload)[:ANSWER])
