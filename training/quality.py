"""How well scores tell pairs with one answer from look-alikes."""

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Scores:
    """`pairs` counted; area under the ROC curve; share of same-answer pairs served while at most 1% or 5% of the others are."""

    pairs: int
    auc: float
    served_at_1: float
    served_at_5: float

    def rounded(self) -> dict[str, float]:
        """For a report."""
        return {name: round(value, 3) for name, value in asdict(self).items()}


def quality(scores: NDArray[np.floating], same: NDArray[np.bool_]) -> Scores:
    """`scores` and `same`, both (pairs,). Ties count half in the area."""
    good, bad = scores[same], scores[~same]
    if not len(good) or not len(bad):
        return Scores(len(scores), float("nan"), float("nan"), float("nan"))
    order = np.concatenate([good, bad])
    ranks = order.argsort().argsort() + 1.0
    for value in np.unique(order):
        tied = order == value
        if tied.sum() > 1:
            ranks[tied] = ranks[tied].mean()
    auc = (ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad))
    return Scores(len(scores), float(auc), _served(good, bad, 0.01), _served(good, bad, 0.05))


def _served(good: NDArray[np.floating], bad: NDArray[np.floating], allowed: float) -> float:
    """Share of `good` above the lowest threshold that at most `allowed` of `bad` pass."""
    limit = np.sort(bad)[::-1][int(allowed * len(bad))]
    return float((good > limit).mean())
