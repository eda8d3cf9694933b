"""What each namespace has learned about its own hits, and how surely it must therefore know.

Lookups read a snapshot in memory and never wait: what they count and learn is written in the background, and what other replicas
wrote is read a few seconds later.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.cache.domain.budget import CAUTIOUS, LEAST_WRONG, TIGHT, Record, highest_risk, next_state, risk_bin
from services.cache.domain.calibration import Calibration, Label, adapted
from services.common.clock import Clock

REFRESH_S = 5.0
LABELS_KEPT = 600
"""The newest labels of a namespace; the fit needs no more, and old ones speak of old traffic."""
HEARSAY_KEPT = 60
"""How many of them may be somebody's word (weight below 1) and no comparison of answers: a flood of words must not drive out what
was found out, nor outweigh it.
"""
REFIT_EVERY = 10
REMEMBERED = 10_000
"""Namespaces kept in memory; one that was dropped starts from what is stored."""
LABELS = "labels"
"""The counter of all labels ever appended, by which a replica sees that there are new ones."""

Key = tuple[str, str]


class QualityStore(Protocol):
    """Where counters and labels outlive the process. Every method raises StoreUnavailable when it cannot be asked."""

    async def counts(self, tenant: str, namespace: str) -> dict[str, float]:
        """Counters by name."""
        ...

    async def labels(self, tenant: str, namespace: str) -> list[Label]:
        """The newest labels, oldest first."""
        ...

    async def add(
        self, tenant: str, namespace: str, counts: Mapping[str, float], labels: Sequence[Label], kept: int
    ) -> None:
        """Adds to the counters and appends labels, of which the newest `kept` stay, in one atomic step."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """How a namespace of a tenant stands: its error budget, and the greatest P(wrong) that it may serve under it now."""

    tenant: str
    namespace: str
    record: Record
    delta: float
    limit: float


@dataclass(slots=True)
class _Namespace:
    labels: list[Label] = field(default_factory=list)
    labels_stored: float = 0.0
    unsent: dict[str, float] = field(default_factory=dict)
    unsent_labels: list[Label] = field(default_factory=list)
    record: Record = field(default_factory=Record)
    calibration: Calibration | None = None
    fitted: int = 0
    loaded_at: float | None = None
    used: bool = True
    delta: float = 0.0
    limit: float = 0.0
    limit_for: tuple[float, ...] = ()


class Quality:
    """Records, calibrations and thresholds by tenant and namespace."""

    def __init__(
        self,
        prior: Calibration,
        clock: Clock,
        changed: Callable[[str, str, str, Record], None] | None = None,
        counted: Callable[[str, Mapping[str, float]], None] | None = None,
    ) -> None:
        """`changed` hears of each change of state: tenant, namespace, the state before, the record after. `counted` hears of
        what this process counts: namespace, counts.
        """
        self._prior = prior
        self._clock = clock
        self._changed = changed
        self._counted = counted
        self._namespaces: dict[Key, _Namespace] = {}

    @property
    def model_id(self) -> str:
        """The embedding model whose similarities the calibration knows."""
        return self._prior.model_id

    def record(self, tenant: str, namespace: str) -> Record:
        """The namespace's record as far as this process knows it."""
        return self._of((tenant, namespace)).record

    def calibration(self, tenant: str, namespace: str) -> Calibration:
        """The namespace's calibration: the shipped one, moved by its labels."""
        return self._of((tenant, namespace)).calibration or self._prior

    def highest_risk(self, tenant: str, namespace: str, delta: float) -> float:
        """The greatest P(wrong) that may be served now under the error budget `delta`."""
        known = self._of((tenant, namespace))
        record = known.record
        # A lookup more moves the limit by next to nothing; a check or a second may.
        asked = (delta, record.checked, record.wrong, float(int(self._clock.now())))
        if asked != known.limit_for:
            before, record.state = record.state, next_state(record, delta)
            if record.state != before and self._changed is not None:
                self._changed(tenant, namespace, before, record)
            known.limit = highest_risk(record, self._prior.risks, self._prior.first_risk(delta), delta)
            known.limit_for, known.delta = asked, delta
        return known.limit

    def count(self, tenant: str, namespace: str, **counts: float) -> None:
        """Adds to counters, named as the fields of Record."""
        known = self._of((tenant, namespace))
        for name, count in counts.items():
            known.unsent[name] = known.unsent.get(name, 0.0) + count
            setattr(known.record, name, getattr(known.record, name) + count)
        if self._counted is not None:
            self._counted(namespace, counts)

    def saw(self, tenant: str, namespace: str, risk: float) -> None:
        """Counts a lookup by the P(wrong) of its best candidate; 1 where there was none."""
        known = self._of((tenant, namespace))
        index = risk_bin(risk)
        known.record.risks[index] += 1
        name = f"risk:{index}"
        known.unsent[name] = known.unsent.get(name, 0.0) + 1
        self.count(tenant, namespace, lookups=1)

    def learn(self, tenant: str, namespace: str, label: Label) -> None:
        """Takes a label in; a word (weight below 1) only while there are not too many of them."""
        known = self._of((tenant, namespace))
        if label.weight < 1.0 and sum(kept.weight < 1.0 for kept in known.labels) >= HEARSAY_KEPT:
            return
        known.unsent_labels.append(label)
        known.labels = [*known.labels[1 - LABELS_KEPT :], label]
        known.fitted += 1
        if known.fitted >= REFIT_EVERY or len(known.labels) == 1:
            self._fit(known)

    def standings(self) -> list[Standing]:
        """Of the namespaces that were asked for their limit. May be called by any thread."""
        return [
            Standing(*key, known.record, known.delta, known.limit)
            for key, known in list(self._namespaces.items())
            if known.delta
        ]

    async def sync(self, store: QualityStore) -> None:
        """Writes what was counted and reads what others did. Raises StoreUnavailable; what was not written stays."""
        now = self._clock.now()
        for key, known in list(self._namespaces.items()):
            unread = known.used and (known.loaded_at is None or abs(now - known.loaded_at) > REFRESH_S)
            if unread or known.unsent or known.unsent_labels:
                await self._sync(key, known, store)

    async def refresh(self, tenant: str, namespace: str, store: QualityStore) -> None:
        """The same for one namespace, at once."""
        key = (tenant, namespace)
        await self._sync(key, self._of(key), store)

    async def _sync(self, key: Key, known: _Namespace, store: QualityStore) -> None:
        counts, known.unsent = known.unsent, {}
        labels, known.unsent_labels = known.unsent_labels, []
        known.used = False
        written = False
        try:
            if counts or labels:
                await store.add(*key, {**counts, LABELS: len(labels)} if labels else counts, labels, LABELS_KEPT)
            written = True
            stored = await store.counts(*key)
            appended = stored.pop(LABELS, 0.0)
            if appended != known.labels_stored:
                kept = await store.labels(*key)
                known.labels = [*kept, *known.unsent_labels][-LABELS_KEPT:]
                known.labels_stored = appended
                self._fit(known)
        finally:
            if not written:
                known.unsent = {n: counts.get(n, 0.0) + known.unsent.get(n, 0.0) for n in {*counts, *known.unsent}}
                known.unsent_labels = [*labels, *known.unsent_labels][-LABELS_KEPT:]
        # Counted again from the store, plus what arrived while it was read.
        state = known.record.state
        known.record = _record(stored, known.unsent, state)
        if known.loaded_at is None and state == CAUTIOUS and known.record.wrong >= LEAST_WRONG:
            known.record.state = TIGHT  # it may have been: what it has to show decides whether it stays so
        known.limit_for = ()
        known.loaded_at = self._clock.now()

    def _of(self, key: Key) -> _Namespace:
        known = self._namespaces.get(key)
        if known is None:
            if len(self._namespaces) >= REMEMBERED:
                idle = next((k for k, n in self._namespaces.items() if not n.unsent and not n.unsent_labels), None)
                if idle is not None:
                    del self._namespaces[idle]
            known = self._namespaces[key] = _Namespace()
        known.used = True
        return known

    def _fit(self, known: _Namespace) -> None:
        known.calibration = adapted(self._prior, known.labels)
        known.fitted = 0


def _record(stored: Mapping[str, float], unsent: Mapping[str, float], state: str) -> Record:
    """The record; a counter that this version does not know is left to those who do."""
    record = Record(state=state)
    for counts in (stored, unsent):
        for name, count in counts.items():
            kind, _, index = name.partition(":")
            if kind == "risk" and index.isdigit() and int(index) < len(record.risks):
                record.risks[int(index)] += count
            elif isinstance(getattr(record, name, None), float | int):
                setattr(record, name, getattr(record, name) + count)
    return record
