"""The error budget: how sure a hit must be so that wrong answers stay below a share of all lookups.

Calibrated probabilities say what a hit risks. The threshold is the highest risk at which the hits of lookups like those seen so
far would together stay within the budget. What shadow checks and callers find out then decides how much of the budget may be
used: a namespace that is not known yet is cautious, one whose record bears it out is open, one that overspent is tight.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

PRIOR_LOOKUPS = 150.0
"""As many lookups of its own make a namespace count as much as what is shipped."""
HIGHEST_RISK = 0.25
"""No budget makes a hit that is more likely wrong than this."""
_FIRST, _PER_OCTAVE, _BINS = 1e-5, 4, 68

CAUTIOUS, OPEN, TIGHT = "cautious", "open", "tight"
_SHARE = {CAUTIOUS: 0.6, OPEN: 0.8, TIGHT: 0.1}
"""What part of the budget is planned with. Never all of it: probabilities are estimates."""
REOPEN = 0.5
"""A tight namespace stays so until its wrong share is below this part of the budget."""
LEAST_WRONG = 3
"""Fewer wrong hits than this are no pattern."""
Z95 = 1.959964


@dataclass(slots=True)
class Record:
    """What a namespace has seen. Counters only grow; `risks` counts lookups by the risk of their best candidate.

    `lookups` are those that went as far as a verdict.
    """

    lookups: float = 0
    exact_hits: float = 0
    semantic_hits: float = 0
    alias_hits: float = 0
    near_misses: float = 0
    checked: float = 0
    wrong: float = 0
    learned: float = 0
    doubtful: float = 0
    judged: float = 0
    stale_checked: float = 0
    stale: float = 0
    feedback_right: float = 0
    feedback_wrong: float = 0
    state: str = CAUTIOUS
    risks: list[float] = field(default_factory=lambda: [0.0] * _BINS)


def risk_bin(risk: float) -> int:
    """The bin of a risk, 0 to 1: logarithmic, since 0.1% and 1% are further apart than 50% and 60%."""
    if risk <= _FIRST:
        return 0
    return min(_BINS - 1, 1 + int(math.log2(risk / _FIRST) * _PER_OCTAVE))


def _upper(index: int) -> float:
    return min(1.0, _FIRST * 2 ** (index / _PER_OCTAVE))


def highest_risk(record: Record, typical: Sequence[float], first: float, delta: float) -> float:
    """The highest P(wrong) at which a candidate may be served now.

    `typical` are the risks of the shipped calibration's lookups, `first` the risk allowed without any history.
    """
    planned = delta * _SHARE[record.state]
    own = sum(record.risks)
    scale = PRIOR_LOOKUPS / max(1, len(typical))
    bins = list(record.risks)
    for risk in typical:
        bins[risk_bin(risk)] += scale
    total = own + PRIOR_LOOKUPS
    spent, limit = 0.0, 0.0
    for index, count in enumerate(bins):
        spent += count * _upper(index)
        if spent > planned * total:
            break
        limit = _upper(index)
    # The shipped limit was found where half of all lookups are traps; own lookups have to outweigh it.
    trust = own / (own + PRIOR_LOOKUPS)
    blended = math.exp((1 - trust) * math.log(max(first, _FIRST)) + trust * math.log(max(limit, _FIRST)))
    if record.state == TIGHT:
        blended = min(blended, first * _SHARE[TIGHT], limit)
    return min(blended, HIGHEST_RISK)


def wilson(wrong: float, checked: float) -> tuple[float, float]:
    """95% interval of a share (Wilson, 1927); (0, 1) where nothing was checked."""
    if checked <= 0:
        return 0.0, 1.0
    share = min(1.0, wrong / checked)
    middle = share + Z95**2 / (2 * checked)
    half = Z95 * math.sqrt(share * (1 - share) / checked + Z95**2 / (4 * checked**2))
    scale = 1 + Z95**2 / checked
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def wrong_share(record: Record) -> tuple[float, float]:
    """95% interval of wrong hits as a share of lookups: that of the checked hits, times the share of lookups that hit."""
    low, high = wilson(record.wrong, record.checked)
    hits = record.semantic_hits / record.lookups if record.lookups else 0.0
    return low * min(1.0, hits), high * min(1.0, hits)


def next_state(record: Record, delta: float) -> str:
    """How freely the namespace may serve from now on, with hysteresis: it gets tight above the budget and open again only well
    below it.
    """
    low, high = wrong_share(record)
    share = (record.wrong / record.checked if record.checked else 0.0) * (
        record.semantic_hits / record.lookups if record.lookups else 0.0
    )
    if record.wrong >= LEAST_WRONG and (low > delta or share > 1.5 * delta):
        return TIGHT
    if record.state == TIGHT and share > REOPEN * delta:
        return TIGHT
    # A wrong check alone must not open what an unchecked record left cautious.
    return OPEN if record.checked > record.wrong and high <= delta else CAUTIOUS
