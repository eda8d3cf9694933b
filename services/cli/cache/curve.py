"""Hits against wrong hits over all thresholds, on labelled pairs, and the setting that they suggest. Pure."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.cache.domain.budget import HIGHEST_RISK, Z95, wilson


@dataclass(frozen=True, slots=True)
class Point:
    """What is served at a threshold, `score >= threshold`: of `rows` pairs `hits`, of these `wrong` wrongly."""

    threshold: float
    rows: int
    hits: int
    wrong: int

    @property
    def hit_share(self) -> float:
        """Hits as a share of all pairs, 0 to 1."""
        return self.hits / self.rows if self.rows else 0.0

    @property
    def wrong_share(self) -> float:
        """Wrong hits as a share of all pairs, 0 to 1."""
        return self.wrong / self.rows if self.rows else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval (Wilson) of the wrong share."""
        return wilson(self.wrong, self.rows)


class Curve:
    """Hits and wrong hits over all thresholds."""

    def __init__(self, scores: Sequence[float | None], same: Sequence[bool]) -> None:
        """One score and one label per pair; a pair without a score is never served."""
        self.rows = len(same)
        self.wanted = sum(same)
        known = [(score, right) for score, right in zip(scores, same, strict=True) if score is not None]
        known.sort(key=lambda pair: -pair[0])
        self._scores = [-score for score, _ in known]  # ascending, for bisect
        self._wrong = [0, *(int(n) for n in np.cumsum([not right for _, right in known]))]

    def at(self, threshold: float) -> Point:
        """What is served at a threshold."""
        hits = bisect_right(self._scores, -threshold)
        return Point(threshold, self.rows, hits, self._wrong[hits])

    @property
    def points(self) -> list[Point]:
        """A point per score that occurs, from the strictest on."""
        return [self.at(-score) for score in sorted(set(self._scores))]

    def loosest(self, delta: float, lowest: float) -> Point | None:
        """The lowest threshold, `lowest` or more, at which the wrong share's upper bound stays within `delta` and no more hits
        are wrong than right; None where nothing can be served so.
        """
        within = [p for p in self.points if p.threshold >= lowest and p.interval[1] <= delta and 2 * p.wrong <= p.hits]
        return within[-1] if within else None


def least_rows(delta: float) -> int:
    """How many pairs it takes until none wrong among them shows a wrong share within `delta`, at 95%."""
    return math.ceil(Z95**2 * (1 - delta) / delta)


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the pairs say. `point` is None where they say nothing, and `why` says why not.

    `error_budget` is the greatest of the policy's settings under which a namespace without history serves no more than `point`
    does, and `reached` what it serves; both None where no setting is that strict.
    """

    point: Point | None = None
    error_budget: float | None = None
    reached: Point | None = None
    why: str = ""


def suggest(curve: Curve, delta: float, risk_under: Callable[[float], float]) -> Suggestion:
    """The loosest setting within `delta`. `risk_under` is the highest P(wrong) that is served under an error budget."""
    traps = curve.rows - curve.wanted
    if curve.rows < least_rows(delta):
        bound = wilson(0, curve.rows)[1]
        return Suggestion(
            why=f"too few pairs to say: {curve.rows:,} without a single wrong hit would leave up to {bound:.2%} wrong; "
            f"it takes {least_rows(delta):,} to show {delta:.2%}, and more with some wrong"
        )
    if not traps or not curve.wanted:
        kind = "true" if traps else "false"
        return Suggestion(why=f"no pair has same_answer {kind}: how the two kinds lie apart cannot be seen")
    point = curve.loosest(delta, 1.0 - HIGHEST_RISK)
    if point is None:
        return Suggestion(why=f"no threshold serves any of these pairs within {delta:.2%} wrong at 95%")
    budget = budget_for(1.0 - point.threshold, risk_under)
    return Suggestion(point, budget, None if budget is None else curve.at(1.0 - risk_under(budget)))


def budget_for(risk: float, risk_under: Callable[[float], float]) -> float | None:
    """The greatest error budget under which no more than `risk` is served, of those that make a difference, to two digits."""
    budgets = [digits * 10.0**power for power in range(-4, 0) for digits in np.arange(1.0, 10.0, 0.1).round(1)]
    budgets = [float(f"{budget:.2g}") for budget in budgets if budget < 0.5]
    within = [budget for budget in budgets if risk_under(budget) <= risk + 1e-9]  # 1 - 0.9 is not 0.1
    # Past the calibration's last budget a greater one changes nothing here: the least of those with that effect is named.
    return next((budget for budget in within if risk_under(budget) == risk_under(within[-1])), None) if within else None
