"""Whose the dollars are: every request's cost is claimed at most once, in one order, in whole nano-USD. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from services.cache.domain.budget import Z95, wilson


class Waste(StrEnum):
    """Why money was spent that need not be, in the order in which it is claimed."""

    RETRIES = "retries"
    REPEATED = "repeated"
    NEAR_REPEATED = "near_repeated"
    ROUTING = "routing"
    COMPRESSION = "compression"
    PROMPT_CACHE = "prompt_cache"


COUNTED = (Waste.RETRIES, Waste.REPEATED)
"""Decided for every request."""
SAMPLED = (Waste.NEAR_REPEATED, Waste.ROUTING, Waste.COMPRESSION, Waste.PROMPT_CACHE)
"""Decided for a sample, and estimated for the others."""


class Claims:
    """The claims on one request's cost."""

    __slots__ = ("_left", "by")

    def __init__(self, cost: int) -> None:
        """`cost` in nano-USD, at least 0."""
        self._left = cost
        self.by: dict[Waste, int] = {}

    @property
    def left(self) -> int:
        """What nobody has claimed yet."""
        return self._left

    def claim(self, waste: Waste, amount: int) -> int:
        """Claims up to `amount`; returns how much it got. An amount below 0 gets nothing."""
        got = min(max(amount, 0), self._left)
        if got:
            self.by[waste] = self.by.get(waste, 0) + got
            self._left -= got
        return got


@dataclass(frozen=True, slots=True)
class Judged:
    """A sampled request: what of its cost was unclaimed (above 0), and the claims on that; `block` is where it was drawn."""

    block: int
    cost: int
    by: Mapping[Waste, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Saving:
    """What a class of waste costs, in nano-USD, with its 95% interval; `requests` are those that it was found in.

    `estimated`: found in a sample, of which `requests` are extrapolated.
    """

    waste: Waste
    requests: int
    nanousd: int
    low: int
    high: int
    estimated: bool


@dataclass(frozen=True, slots=True)
class Waterfall:
    """Spend less all savings is `remaining`; the interval is that of the savings' sum."""

    spend: int
    savings: tuple[Saving, ...]
    low: int
    high: int

    @property
    def avoidable(self) -> int:
        """The sum of the savings."""
        return sum(saving.nanousd for saving in self.savings)

    @property
    def remaining(self) -> int:
        """What is left to pay."""
        return self.spend - self.avoidable


def waterfall(
    spend: int,
    counted: Mapping[Waste, tuple[int, int]],
    judged: Sequence[Judged],
    blocks: int,
    unclaimed: int,
) -> Waterfall:
    """The waterfall of a log.

    `counted` has (requests, nano-USD) of the classes that were decided for every request; the rest of `spend` is what the sample
    speaks for. `unclaimed` requests have a cost that none of these claimed, in `blocks` blocks; where `judged` covers all of the
    blocks, nothing is estimated. The sample's share of each class in its own money is that of all (a ratio estimate, so that the
    classes never claim more than there is); intervals are those between blocks, of Student's t.
    """
    known = [
        Saving(waste, *counted.get(waste, (0, 0)), counted.get(waste, (0, 0))[1], counted.get(waste, (0, 0))[1], False)
        for waste in COUNTED
    ]
    rest = spend - sum(saving.nanousd for saving in known)
    sample = _Sample(judged, blocks, rest, unclaimed)
    found = [sample.saving(waste) for waste in SAMPLED]
    sure = spend - rest
    total = sum(saving.nanousd for saving in found)
    low, high = sample.interval(total, SAMPLED)
    return Waterfall(spend, (*known, *found), sure + low, sure + high)


class _Sample:
    """What the judged requests say of all unclaimed money."""

    def __init__(self, judged: Sequence[Judged], blocks: int, rest: int, unclaimed: int) -> None:
        self._judged = judged
        self._blocks = blocks
        self._rest = rest
        self._unclaimed = unclaimed
        self._cost = sum(one.cost for one in judged)
        self._drawn = sorted({one.block for one in judged})

    @property
    def _census(self) -> bool:
        return len(self._judged) >= self._unclaimed

    def saving(self, waste: Waste) -> Saving:
        with_it = sum(waste in one.by for one in self._judged)
        claimed = sum(one.by.get(waste, 0) for one in self._judged)
        amount = self._rest * claimed // self._cost if self._cost else 0
        requests = round(with_it * self._unclaimed / len(self._judged)) if self._judged else 0
        low, high = self.interval(amount, (waste,))
        if waste is Waste.NEAR_REPEATED and amount and not self._census:
            # The verdict's own doubt: the interval of a share (Wilson) where that is wider than what lies between blocks.
            share = with_it / len(self._judged)
            least, most = wilson(with_it, len(self._judged))
            low, high = min(low, int(amount * least / share)), max(high, min(self._rest, int(amount * most / share)))
        return Saving(waste, requests, amount, low, high, not self._census)

    def interval(self, amount: int, wastes: Sequence[Waste]) -> tuple[int, int]:
        """95% interval of what these classes cost together."""
        if self._census or not self._cost or len(self._drawn) < 2:
            return (amount, amount) if self._census or not self._cost else (0, self._rest)
        count = len(self._drawn)
        costs = dict.fromkeys(self._drawn, 0)
        claims = dict.fromkeys(self._drawn, 0)
        for one in self._judged:
            costs[one.block] += one.cost
            claims[one.block] += sum(one.by.get(waste, 0) for waste in wastes)
        share = sum(claims.values()) / self._cost
        squares = sum((claims[block] - share * costs[block]) ** 2 for block in self._drawn)
        unseen = max(0.0, 1 - count / self._blocks)
        error = math.sqrt(count / (count - 1) * squares * unseen) / self._cost
        half = int(student(count - 1) * error * self._rest)
        return max(0, amount - half), min(self._rest, amount + half)


def student(freedom: int) -> float:
    """The 97.5% quantile of Student's t (Cornish and Fisher's expansion; within 2% from three degrees of freedom on)."""
    z = Z95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
