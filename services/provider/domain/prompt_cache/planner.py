"""Which prefixes are worth keeping, and for how long: the write's premium against the reads to expect, at the book's rates."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from services.common.money import Rates
from services.provider.domain.prompt_cache import LONG_TTL_S, SHORT_TTL_S


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens between two places where a breakpoint may stand, or not where `markable` is false.

    `short` and `long` are the shares of uses of the prefix up to here that another use follows within the vendor's lifetimes;
    `long` is None: there is no longer one. `warm`: the vendor has the prefix now. `further` uses are expected after this one.
    """

    tokens: int
    markable: bool
    short: float
    long: float | None
    warm: bool
    further: float


def cheapest_marks(segments: Sequence[Segment], rates: Rates) -> tuple[int | None, ...]:
    """For each segment the lifetime with which its end is marked, or None: what costs least per request if traffic goes on as it
    did. Longer lifetimes come first, as vendors demand. Marks that cost nothing are set: one day only a later part may change.
    """
    options = [_options(segment) for segment in segments]
    choices = (choice for choice in product(*options) if _in_order(choice))
    best = min(choices, key=lambda choice: (expected_cost(segments, choice, rates), _effort(choice)))
    none = (None,) * len(segments)
    return best if expected_cost(segments, best, rates) < expected_cost(segments, none, rates) else none


def expected_cost(segments: Sequence[Segment], choice: Sequence[int | None], rates: Rates) -> float:
    """What the segments cost on average of this request and the further ones, in nano-USD times a million."""
    cost = 0.0
    rate = float(rates.input)
    for segment, ttl in zip(reversed(segments), reversed(choice), strict=True):
        if ttl is not None:
            rate = _rate(segment, ttl, rates)
        cost += segment.tokens * rate
    return cost


def _rate(segment: Segment, ttl: int, rates: Rates) -> float:
    long = ttl == LONG_TTL_S
    write = rates.cache_write_long if long else rates.cache_write
    share = segment.long if long and segment.long is not None else segment.short
    now = rates.cache_read if segment.warm else write
    later = share * rates.cache_read + (1 - share) * write
    return (now + segment.further * later) / (1 + segment.further)


def _options(segment: Segment) -> tuple[int | None, ...]:
    if not segment.markable or not segment.tokens:
        return (None,)
    return (None, SHORT_TTL_S) if segment.long is None else (None, SHORT_TTL_S, LONG_TTL_S)


def _in_order(choice: Sequence[int | None]) -> bool:
    marked = [ttl for ttl in choice if ttl is not None]
    return all(a >= b for a, b in pairwise(marked))


def _effort(choice: Sequence[int | None]) -> tuple[int, int]:
    marked = [ttl for ttl in choice if ttl is not None]
    return -len(marked), sum(marked)
