"""The cache that everybody builds first: the nearest stored question's answer, if it is near enough."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRID = tuple(round(0.4 + 0.01 * step, 2) for step in range(61))
"""Thresholds of a curve, and those that hindsight chooses from."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests, those that were served, and those that were served a wrong answer."""

    rows: int
    served: int
    wrong: int

    @property
    def hit_share(self) -> float:
        """Of all requests."""
        return self.served / self.rows

    @property
    def wrong_share(self) -> float:
        """Of all requests."""
        return self.wrong / self.rows


def on_stream(similarities: NDArray[np.float32], answers: Sequence[str], threshold: float) -> Counts:
    """Requests in order; what is not served is stored. `similarities` is (requests, requests)."""
    stored: list[int] = []
    served = wrong = 0
    for asked, answer in enumerate(answers):
        if stored:
            near = similarities[asked, stored]
            nearest = int(near.argmax())
            if near[nearest] >= threshold:
                served += 1
                wrong += answers[stored[nearest]] != answer
                continue
        stored.append(asked)
    return Counts(len(answers), served, wrong)


def on_pairs(similarities: NDArray[np.floating], same: NDArray[np.bool_], threshold: float) -> Counts:
    """Each pair by itself; both arrays are (pairs,)."""
    passed = similarities >= threshold
    return Counts(len(same), int(passed.sum()), int((passed & ~same).sum()))


def best(counts: Mapping[float, Counts], delta: float) -> float:
    """The threshold that hits most with a wrong share of at most `delta`; 1.01, which serves nothing, where none does."""
    fit = [threshold for threshold, c in counts.items() if c.wrong_share <= delta]
    return max(fit, key=lambda threshold: (counts[threshold].served, threshold), default=1.01)
