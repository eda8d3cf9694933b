"""Which prefixes are kept where, as far as this process has seen it, and what the last requests looked like. Hashes only."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.provider.domain.prompt_cache.prefix import Prefix, common

CandidateId = tuple[str, str]
"""Vendor and model."""

_MAX_PREFIXES = 16_384
_MAX_TRAILS = 1024
_TRAILS_EACH = 8
_MAX_PARTS = 256


@dataclass(frozen=True, slots=True)
class Kept:
    """The first `end` parts of a request are kept until `until`, in seconds on the clock."""

    end: int
    until: float


class Warmth:
    """Remembers the latest prefixes."""

    def __init__(self, prefixes: int = _MAX_PREFIXES, trails: int = _MAX_TRAILS) -> None:
        self._limits = (prefixes, trails)
        self._kept: OrderedDict[bytes, dict[CandidateId, float]] = OrderedDict()
        self._trails: OrderedDict[tuple[str, str, CandidateId], deque[tuple[bytes, ...]]] = OrderedDict()

    def keep(self, candidate: CandidateId, name: bytes, until: float) -> None:
        """The candidate keeps a prefix, or has read it again."""
        places = self._kept.setdefault(name, {})
        places[candidate] = max(until, places.get(candidate, until))
        self._kept.move_to_end(name)
        if len(self._kept) > self._limits[0]:
            self._kept.popitem(last=False)

    def kept(self, candidate: CandidateId, prefix: Prefix, now: float | None = None) -> Kept | None:
        """The longest part of a prefix that the candidate keeps; without `now` also what it kept once."""
        for end, places in self._places(prefix):
            if (until := places.get(candidate)) is not None and (now is None or until > now):
                return Kept(end, until)
        return None

    def kept_elsewhere(self, candidate: CandidateId, prefix: Prefix) -> bool:
        """Whether another candidate has kept a part of the prefix."""
        return any(candidate not in places or len(places) > 1 for _, places in self._places(prefix))

    def remember(self, scope: tuple[str, str], candidate: CandidateId, prefix: Prefix) -> None:
        """The request's parts, to compare later ones with. The turns of one conversation are one memory."""
        key = (*scope, candidate)
        trails = self._trails.setdefault(key, deque(maxlen=_TRAILS_EACH))
        self._trails.move_to_end(key)
        digests = prefix.digests[: min(prefix.newest, _MAX_PARTS)]
        for trail in list(trails):
            if common(trail, digests) == len(trail):
                trails.remove(trail)
        trails.append(digests)
        if len(self._trails) > self._limits[1]:
            self._trails.popitem(last=False)

    def most_like(self, scope: tuple[str, str], candidate: CandidateId, prefix: Prefix) -> Sequence[bytes] | None:
        """The remembered request that has most in common with this one, the latest among equals; None without any."""
        trails: Iterable[tuple[bytes, ...]] = self._trails.get((*scope, candidate), ())
        return max(reversed(list(trails)), key=lambda trail: common(trail, prefix.digests), default=None)

    def _places(self, prefix: Prefix) -> Iterator[tuple[int, dict[CandidateId, float]]]:
        for end in range(prefix.newest, 0, -1):
            if (places := self._kept.get(prefix.name(end))) is not None:
                yield end, places
