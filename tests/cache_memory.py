"""The cache over stores in memory, with a verifier, judge and embedder that say what they are told."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from services.cache.convert import answer_text
from services.cache.domain import lookup
from services.cache.domain.calibration import Calibration, Label
from services.cache.domain.later import Later
from services.cache.domain.learning import Learning
from services.cache.domain.lookup import SemanticCache
from services.cache.domain.paraphrases import Paraphrases
from services.cache.domain.ports import (
    Alias,
    Body,
    Candidate,
    EmbedderUnavailable,
    Header,
    JudgeUnavailable,
    Neighbour,
    Note,
    Ruling,
    Scores,
    StoreUnavailable,
    Vector,
    VectorsUnavailable,
    VerifierUnavailable,
)
from services.cache.domain.quality import Quality
from services.cache.domain.reviews import RANKS, Review, Reviews, Standing, Waiting
from services.cache.domain.signals import FEATURES
from services.common.money import Rates, Usage, price

VERIFIED_MODEL = "lookalike-test"

CALIBRATION = Calibration(
    weights=tuple(1.0 if name == "verifier" else 0.0 for name in FEATURES),
    bias=0.0,
    spread=(0.3,) * len(FEATURES) + (0.7,),
    ranking=tuple(8.0 if name == "similarity" else 0.0 for name in FEATURES),
    first_risks=((0.001, 0.002), (0.01, 0.02), (0.1, 0.2)),
    risks=tuple(10 ** (-4 + 4 * index / 199) for index in range(200)),
    model_id=VERIFIED_MODEL,
)
"""Takes the verifier at its word."""


class Clock:
    """A clock that is set by hand."""

    time = 1_000_000.0

    def now(self) -> float:
        return self.time


class MemoryBodies:
    """Bodies in dictionaries; counts its round trips. Holds the namespaces' quality, too."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Body | Alias] = {}
        self.headers: dict[bytes, Header] = {}
        self.tags: dict[tuple[str, str, str], list[str]] = {}
        self.requests: dict[tuple[str, str], Note] = {}
        self.words: set[tuple[str, str]] = set()
        self.versions: dict[tuple[str, str], int] = {}
        self.blocked: set[tuple[str, str, str]] = set()
        self.checks: dict[tuple[str, str], list[int]] = {}
        self.groups: dict[tuple[str, str], str] = {}
        self.counters: dict[tuple[str, str], dict[str, float]] = {}
        self.kept_labels: dict[tuple[str, str], list[Label]] = {}
        self.down = False
        self.trips = 0

    def _trip(self) -> None:
        self.trips += 1
        if self.down:
            raise StoreUnavailable

    async def fetch(self, tenant: str, namespace: str, entry_ids: Sequence[str]):
        self._trip()
        return self.versions.get((tenant, namespace), 0), [self.entries.get((tenant, i)) for i in entry_ids]

    async def candidates(self, tenant: str, namespace: str, asked: str, entry_ids: Sequence[str]):
        self._trip()
        found = []
        for entry_id in entry_ids:
            body = self.entries.get((tenant, entry_id))
            right, wrong = self.checks.get((tenant, entry_id), (0, 0))
            blocked = (tenant, asked, entry_id) in self.blocked
            group = self.groups.get((tenant, entry_id), "")
            found.append(Candidate(body if isinstance(body, Body) else None, blocked, right, wrong, group))
        return self.versions.get((tenant, namespace), 0), found

    async def put(self, tenant: str, entry_id: str, body: Body, header: Header) -> None:
        self._trip()
        key = json.dumps([tenant, entry_id]).encode()
        self.headers[key] = header
        self.entries[(tenant, entry_id)] = Body(body.payload, body.created_at, body.expires_at, key)
        for tag in header.tags:
            self.tags.setdefault((tenant, header.namespace, tag), []).append(entry_id)
        self.requests[(tenant, header.request_id)] = Note(entry_id)

    async def put_alias(self, tenant: str, exact_key: str, alias: Alias, expires_at: float) -> None:
        self._trip()
        if not isinstance(self.entries.get((tenant, exact_key)), Body):
            self.entries[(tenant, exact_key)] = alias

    async def drop_alias(self, tenant: str, exact_key: str) -> None:
        self._trip()
        if isinstance(self.entries.get((tenant, exact_key)), Alias):
            del self.entries[(tenant, exact_key)]

    async def join(self, tenant: str, entry_id: str, known_id: str, group: str) -> None:
        self._trip()
        self.groups[(tenant, entry_id)] = self.groups.get((tenant, known_id), group)

    async def mark(self, tenant: str, asked: str, entry_id: str, *, right: bool) -> None:
        self._trip()
        self.checks.setdefault((tenant, entry_id), [0, 0])[not right] += 1
        if not right:
            self.blocked.add((tenant, asked, entry_id))

    def header(self, body: Body) -> Header:
        return self.headers[body.header_bytes]

    async def remove(self, tenant: str, namespace: str, entry_ids: Sequence[str], tag: str | None = None) -> int:
        self._trip()
        assert len(entry_ids) <= lookup.REMOVED_TOGETHER
        for entry_id in entry_ids if tag is not None else ():
            self.tags[(tenant, namespace, tag)].remove(entry_id)
        return sum(self.entries.pop((tenant, i), None) is not None for i in entry_ids)

    async def tagged(self, tenant: str, namespace: str, tag: str) -> list[str]:
        self._trip()
        return list(self.tags.get((tenant, namespace, tag), []))

    async def answered(self, tenant: str, request_id: str) -> Note | None:
        self._trip()
        return self.requests.get((tenant, request_id))

    def note_answer(self, tenant: str, request_id: str, note: Note) -> None:
        self.requests[(tenant, request_id)] = note

    async def first_word(self, tenant: str, request_id: str) -> bool:
        self._trip()
        key = (tenant, request_id)
        first = key not in self.words
        self.words.add(key)
        return first

    async def bump(self, tenant: str, namespace: str) -> int:
        self._trip()
        self.versions[(tenant, namespace)] = self.versions.get((tenant, namespace), 0) + 1
        return self.versions[(tenant, namespace)]

    async def version(self, tenant: str, namespace: str) -> int:
        self._trip()
        return self.versions.get((tenant, namespace), 0)

    async def counts(self, tenant: str, namespace: str) -> dict[str, float]:
        self._trip()
        return dict(self.counters.get((tenant, namespace), {}))

    async def labels(self, tenant: str, namespace: str) -> list[Label]:
        self._trip()
        return list(self.kept_labels.get((tenant, namespace), []))

    async def add(
        self, tenant: str, namespace: str, counts: Mapping[str, float], labels: Sequence[Label], kept: int
    ) -> None:
        self._trip()
        counters = self.counters.setdefault((tenant, namespace), {})
        for name, count in counts.items():
            counters[name] = counters.get(name, 0.0) + count
        if labels:
            self.kept_labels[(tenant, namespace)] = [*self.kept_labels.get((tenant, namespace), []), *labels][-kept:]


class MemoryReviews:
    """Reviews in dictionaries."""

    def __init__(self) -> None:
        self.pairs: dict[tuple[str, str], dict[str, Review]] = {}
        self.standings: dict[str, Standing] = {}
        self.tenants: dict[str, set[str]] = {}
        self.down = False

    def _trip(self) -> None:
        if self.down:
            raise StoreUnavailable

    async def put(self, tenant: str, namespace: str, waiting: Waiting, now: float) -> None:
        self._trip()
        kept = self.pairs.setdefault((tenant, namespace), {})
        kept.update(waiting.reviews)
        for pair, standing in waiting.standings.items():
            if pair in kept:
                known = self.standings.get(pair, Standing.UNCHECKED)
                self.standings[pair] = max(known, standing, key=RANKS.index)

    async def all(self, tenant: str, namespace: str) -> list[tuple[str, Review]]:
        self._trip()
        kept = self.pairs.get((tenant, namespace), {})
        return [(i, replace(r, standing=self.standings.get(i, Standing.UNCHECKED))) for i, r in kept.items()]

    async def visit(self, tenant: str, namespaces: Sequence[str]) -> None:
        self._trip()
        self.tenants.setdefault(tenant, set()).update(namespaces)

    async def visited(self, tenant: str) -> list[str]:
        self._trip()
        return list(self.tenants.get(tenant, ()))


class MemoryVectors:
    """Vectors in a list; `during_search` is called once while the next search is under way."""

    def __init__(self) -> None:
        self.points: dict[str, tuple[Vector, str, tuple[bytes, ...], str, float]] = {}
        self.down = False
        self.during_search = lambda: None

    def _trip(self) -> None:
        if self.down:
            raise VectorsUnavailable

    async def search(self, vector, tenant, scopes, *, language, now, floor, limit):
        self._trip()
        self.during_search()
        found = [
            Neighbour(entry_id, float(stored.values @ vector.values))
            for entry_id, (stored, owner, within, written_in, expires) in self.points.items()
            if owner == tenant
            and set(within) & set(scopes)
            and expires > now
            and stored.model_id == vector.model_id
            and (not language or written_in in ("", language))
        ]
        return sorted((n for n in found if n.similarity >= floor), key=lambda n: -n.similarity)[:limit]

    async def put(self, entry_id, vector, tenant, scopes, *, language, expires_at):
        self._trip()
        ends = float("inf") if expires_at is None else expires_at
        self.points[entry_id] = (vector, tenant, tuple(scopes), language, ends)

    async def remove(self, model_id, dimensions, entry_ids):
        self._trip()
        for entry_id in entry_ids:
            self.points.pop(entry_id, None)


class ScriptedVerifier:
    """Scores by the stored question, 0.5 where nothing is set; keeps what it was asked."""

    def __init__(self) -> None:
        self.chances: dict[str, float] = {}
        self.asked: list[list[tuple[str, str]]] = []
        self.failures: list[bool] = []
        self.down = False

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        if self.down or (self.failures and self.failures.pop(0)):
            raise VerifierUnavailable
        self.asked.append(list(pairs))
        return Scores(tuple(self.chances.get(stored, 0.5) for stored, _ in pairs), cost=10 * len(pairs))


class ScriptedJudge:
    """Says `answer`; None is no answer that can be used."""

    def __init__(self) -> None:
        self.answer: bool | None = True
        self.asked: list[tuple[str, str, float]] = []

    async def ask(self, question, model, chat, timeout):
        self.asked.append((model, chat.last_user_text, timeout))
        if self.answer is None:
            raise JudgeUnavailable(cost=3)
        return Ruling(self.answer, cost=7)


class ScriptedEmbedder:
    """Every two texts have the cosine `similarity`."""

    def __init__(self) -> None:
        self.similarity: float | None = 0.5

    async def embed(self, texts: Sequence[str]):
        if self.similarity is None:
            raise EmbedderUnavailable
        other = float(np.sqrt(1 - self.similarity**2))
        return np.array([[1.0, 0.0], [self.similarity, other]], dtype=np.float32)


def priced(model: str, usage: Usage) -> int | None:
    """Prices of "big" and, a hundred times cheaper, "small"."""
    rates = {"big": Rates(input=10**9, output=10**9), "small": Rates(input=10**7, output=10**7)}.get(model)
    return None if rates is None else price(rates, usage)


@dataclass
class World:
    """A cache and everything around it."""

    bodies: MemoryBodies = field(default_factory=MemoryBodies)
    vectors: MemoryVectors = field(default_factory=MemoryVectors)
    review_store: MemoryReviews = field(default_factory=MemoryReviews)
    clock: Clock = field(default_factory=Clock)
    verifier: ScriptedVerifier | None = None
    judge: ScriptedJudge | None = None
    embedder: ScriptedEmbedder | None = None
    calibration: Calibration = CALIBRATION
    states: list[tuple[str, str, str, str]] = field(default_factory=list)
    stale: list[tuple[str, str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.quality = Quality(
            self.calibration,
            self.clock,
            lambda tenant, namespace, before, record: self.states.append((tenant, namespace, before, record.state)),
        )
        self.reviews = Reviews(self.bodies, self.review_store, self.clock, answer_text)
        later = Later()
        paraphrases = Paraphrases(
            self.bodies,
            self.vectors,
            self.quality,
            self.clock,
            later,
            prices=priced,
            answer_text=answer_text,
            reviews=self.reviews,
            verifier=self.verifier,
            judge=self.judge,
        )
        self.cache = SemanticCache(
            self.bodies, self.vectors, paraphrases, self.quality, self.clock, later, priced, self.reviews
        )
        self.learning = Learning(
            self.bodies,
            self.quality,
            self.bodies,
            answer_text=answer_text,
            stale=lambda *heard: self.stale.append(heard),
            reviews=self.reviews,
            embedder=self.embedder,
        )
