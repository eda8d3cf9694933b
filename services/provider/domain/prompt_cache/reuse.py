"""How soon prefixes come back: the ground on which their lifetime is chosen."""

import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice

_OF_KIND = 48
_OF_PREFIX = 16
_WEIGHT = 4.0
_FURTHER = 3.0
_MAX_KINDS = 2048
_MAX_PREFIXES = 8192


class Kind(StrEnum):
    """What ends where a prefix ends: the tools, the system text, a first question, a later turn."""

    TOOLS = "tools"
    SYSTEM = "system"
    OPENING = "opening"
    TURN = "turn"


# What is believed of a kind before anything was seen: the share of uses that another follows within minutes, and ever.
_PRIOR = {Kind.TOOLS: (0.5, 0.65), Kind.SYSTEM: (0.5, 0.65), Kind.OPENING: (0.15, 0.2), Kind.TURN: (0.6, 0.7)}
_MINUTES_S = 600


@dataclass(slots=True)
class Use:
    """One use of a prefix at a time, and how many seconds later it was used again; infinite while it was not."""

    at: float
    gap: float = math.inf


@dataclass(slots=True)
class _Uses:
    kind: Kind
    last: deque[Use] = field(default_factory=lambda: deque(maxlen=_OF_PREFIX))


class Reuse:
    """Remembers when prefixes were used, by hashes. A scope is a tenant's endpoint. All times are in seconds on one clock."""

    def __init__(self, kinds: int = _MAX_KINDS, prefixes: int = _MAX_PREFIXES) -> None:
        """At most so many kinds of scopes, and so many prefixes, are remembered: the latest ones."""
        self._limits = (kinds, prefixes)
        self._kinds: OrderedDict[tuple[str, str, Kind], deque[Use]] = OrderedDict()
        self._prefixes: OrderedDict[bytes, _Uses] = OrderedDict()

    def note(self, scope: tuple[str, str], kind: Kind, name: bytes, now: float) -> None:
        """A prefix is used."""
        uses = self._prefixes.setdefault(name, _Uses(kind))
        self._prefixes.move_to_end(name)
        if uses.last and math.isinf(uses.last[-1].gap):
            uses.last[-1].gap = now - uses.last[-1].at
        use = Use(now)
        uses.last.append(use)
        key = (*scope, kind)
        self._kinds.setdefault(key, deque(maxlen=_OF_KIND)).append(use)
        self._kinds.move_to_end(key)
        kinds, prefixes = self._limits
        if len(self._kinds) > kinds:
            self._kinds.popitem(last=False)
        if len(self._prefixes) > prefixes:
            self._prefixes.popitem(last=False)

    def returned(self, name: bytes, now: float) -> bool:
        """A conversation went on from this prefix, if it is known; it is not used itself any more."""
        uses = self._prefixes.get(name)
        if uses is None:
            return False
        if uses.last and math.isinf(uses.last[-1].gap):
            uses.last[-1].gap = now - uses.last[-1].at
        return True

    def share(self, scope: tuple[str, str], kind: Kind, name: bytes | None, ttl_s: float, now: float) -> float:
        """The expected share of uses that another one follows within `ttl_s` seconds, between 0 and 1.

        The scope's uses of the kind speak first, then the prefix's own, where `name` is one.
        """
        prior = _PRIOR[kind][ttl_s > _MINUTES_S]
        believed = _share(self._kinds.get((*scope, kind), ()), ttl_s, now, prior)
        uses = self._prefixes.get(name) if name is not None else None
        return _share(uses.last, ttl_s, now, believed) if uses else believed

    def further(self, name: bytes, least: float = 0.0) -> float:
        """How many uses of a prefix are expected from now on: half as many as there were, as far as that is remembered."""
        uses = self._prefixes.get(name)
        return max(_FURTHER, least, len(uses.last) / 2 if uses else 0.0)

    def per_minute(self, name: bytes, now: float) -> float:
        """How often a prefix was used in the last minute, as far as it is remembered."""
        uses = self._prefixes.get(name)
        recent = [use.at for use in uses.last if now - use.at <= 60] if uses else []
        if len(recent) < _OF_PREFIX:
            return float(len(recent))
        return 60 * (len(recent) - 1) / max(now - recent[0], 0.001)


def _share(uses: Iterable[Use], ttl_s: float, now: float, prior: float) -> float:
    again = known = 0
    for use in islice(uses, _OF_KIND):
        if use.gap <= ttl_s:
            again += 1
            known += 1
        elif now - use.at > ttl_s:  # a younger one may come back yet
            known += 1
    return (again + _WEIGHT * prior) / (known + _WEIGHT)
