"""What was seen lately, by 8-byte digests, in bounded memory."""

from collections.abc import Callable
from typing import Generic, TypeVar

V = TypeVar("V")

LIMIT = 500_000


class Lately(Generic[V]):
    """Values by key, forgotten some time after the clock has passed their lifetime, or when there are too many.

    Two generations: when the younger one has lasted a lifetime, or holds `limit` keys, it becomes the older one, and what was
    the older one is forgotten. So a value is known for at least a lifetime, unless more than `limit` others came meanwhile.
    """

    def __init__(self, lifetime_s: float, limit: int = LIMIT) -> None:
        self._lifetime_s = lifetime_s
        self._limit = limit
        self._young: dict[int, V] = {}
        self._old: dict[int, V] = {}
        self._since: float | None = None
        self.overflowed = False

    def get(self, key: int) -> V | None:
        """What was put there last, if it is still known."""
        found = self._young.get(key)
        return self._old.get(key) if found is None else found

    def put(self, key: int, value: V, now: float) -> None:
        """Remembers a value from now on."""
        if self._since is None:
            self._since = now
        full = len(self._young) >= self._limit
        if full or now - self._since > self._lifetime_s:
            self.overflowed |= full and now - self._since <= self._lifetime_s
            self._old, self._young, self._since = self._young, {}, now
        self._young[key] = value

    def pop(self, key: int) -> V | None:
        """Takes a value out."""
        old = self._old.pop(key, None)
        young = self._young.pop(key, None)
        return old if young is None else young


class Top(Generic[V]):
    """The keys with the greatest sums, about (space saving: Metwally et al., 2005): at most `limit` are counted at a time."""

    def __init__(self, limit: int = 2_000) -> None:
        self._limit = limit
        self._kept: dict[int, tuple[int, int, V]] = {}

    def add(self, key: int, amount: int, example: Callable[[], V]) -> None:
        """Counts an amount, at least 0; `example` is called for a new key."""
        count, total, shown = self._kept.get(key) or (0, 0, example())
        self._kept[key] = (count + 1, total + amount, shown)
        if len(self._kept) > 2 * self._limit:
            self._kept = dict(sorted(self._kept.items(), key=lambda item: -item[1][1])[: self._limit])

    def first(self, count: int) -> list[tuple[int, int, V]]:
        """(times, sum, example), the greatest sums first."""
        return sorted(self._kept.values(), key=lambda item: -item[1])[:count]
