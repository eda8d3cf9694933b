"""From what is known about two questions to the probability that one answer serves both.

A logistic regression over the features of `signals.FEATURES`. Every namespace starts from the shipped weights, which were fitted
on questions that trained no verifier, and moves away from them only as far as its own labels carry: the shipped weights are the
prior of a Bayesian fit (MacKay, "The evidence framework applied to classification networks", 1992).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.cache.domain.signals import FEATURES, hinted

SHIPPED = Path(__file__).parents[1] / "data" / "calibration.json"
NEWTON_STEPS = 8


@dataclass(frozen=True, slots=True)
class Label:
    """A pair that was found out: its features, whether one answer served both, and how much the finding counts, 0 to 1."""

    features: tuple[float, ...]
    same: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """Weights of the features and a bias; `spread` is how far a namespace's own weights may move, one standard deviation each.

    `first_risks` are pairs of an error budget and the greatest P(wrong) at which a namespace without history may serve under it,
    found where half of all lookups are traps; `risks` is the P(wrong) of the best candidate of typical lookups: what such a
    namespace is taken to be like. `ranking` are the weights that order candidates before the verifier is asked; `prior` is
    what a namespace's own calibration started from.
    """

    weights: tuple[float, ...]
    bias: float
    spread: tuple[float, ...]
    ranking: tuple[float, ...]
    first_risks: tuple[tuple[float, float], ...]
    risks: tuple[float, ...]
    model_id: str
    prior: "Calibration | None" = None

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "Calibration":
        """Reads a calibration file. Raises ValueError for one with other features than this version's."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if tuple(data["features"]) != FEATURES:
            raise ValueError(f"{path}: made for other features")
        return cls(
            weights=tuple(data["weights"]),
            bias=float(data["bias"]),
            spread=tuple(data["spread"]),
            ranking=tuple(data["ranking"]),
            first_risks=tuple((float(delta), float(risk)) for delta, risk in data["first_risks"]),
            risks=tuple(data["risks"]),
            model_id=str(data["model_id"]),
        )

    def probability(self, features: Sequence[float]) -> float:
        """P(one answer serves both), 0 to 1.

        Where a hint speaks against it, a namespace's labels may lower it and never raise it: none that could came from
        such pairs.
        """
        total = self.bias + sum(w * x for w, x in zip(self.weights, features, strict=True))
        found = 1.0 / (1.0 + math.exp(-min(max(total, -40.0), 40.0)))
        return min(found, self.prior.probability(features)) if self.prior is not None and hinted(features) else found

    def first_risk(self, delta: float) -> float:
        """The greatest P(wrong) that may be served under the error budget `delta` without any history."""
        budgets, risks = zip(*self.first_risks, strict=True)
        return math.exp(float(np.interp(math.log(delta), np.log(budgets), np.log(risks))))

    @property
    def strictest_risk(self) -> float:
        """The greatest P(wrong) that may be served where a hint speaks against it, whatever the error budget."""
        return min((risk for _, risk in self.first_risks), default=0.0)

    def rank(self, features: Sequence[float]) -> float:
        """How promising a candidate is before the verifier is asked: higher is better."""
        return sum(w * x for w, x in zip(self.ranking, features, strict=True))


def adapted(prior: Calibration, labels: Sequence[Label]) -> Calibration:
    """`prior` moved by a namespace's labels: the most probable weights, found by Newton's method."""
    if not labels:
        return prior
    weights, bias = fit(
        np.array([label.features for label in labels]),
        np.array([label.same for label in labels], dtype=float),
        np.array([label.weight for label in labels]),
        centre=np.array([*prior.weights, prior.bias]),
        spread=np.array(prior.spread),
    )
    return replace(prior, weights=tuple(weights), bias=bias, prior=prior)


def fit(
    features: NDArray[np.float64],
    same: NDArray[np.float64],
    counts: NDArray[np.float64],
    *,
    centre: NDArray[np.float64],
    spread: NDArray[np.float64],
) -> tuple[list[float], float]:
    """Weights and bias of a logistic regression with a Gaussian prior.

    `features` is (n, f), `same` and `counts` (n,), `centre` and `spread` (f + 1,) with the bias last.
    """
    table = np.hstack([features, np.ones((len(features), 1))])
    precision = 1.0 / np.square(spread)
    weights = centre.astype(float).copy()

    def loss(at: NDArray[np.float64]) -> float:
        odds = table @ at
        return float(counts @ (np.logaddexp(0, odds) - same * odds) + 0.5 * precision @ np.square(at - centre))

    current = loss(weights)
    for _ in range(NEWTON_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(table @ weights, -40, 40)))
        gradient = table.T @ (counts * (chance - same)) + precision * (weights - centre)
        curvature = (table * (counts * chance * (1 - chance))[:, None]).T @ table + np.diag(precision)
        step = np.linalg.solve(curvature, gradient)
        scale = 1.0
        while scale > 1e-3 and (after := loss(weights - scale * step)) > current:
            scale /= 2
        if scale <= 1e-3 or current - after < 1e-9:
            break
        weights, current = weights - scale * step, after
    return [float(w) for w in weights[:-1]], float(weights[-1])
