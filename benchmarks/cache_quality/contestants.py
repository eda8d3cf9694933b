"""Who competes: the cache's own verdict, the same with a part taken away, and what others decide by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from services.cache.domain.calibration import Calibration
from services.cache.domain.ports import CacheRules
from services.cache.domain.signals import FEATURES
from services.cache.domain.verdict import Suspect, Verdict
from services.cli.evaluate.cache import CacheTrial, Trial
from services.embedder.domain import TextModel

OURS = "ours"
FIRST_ONLY, NO_LEARNING, VERIFIER_ONLY, NO_VERIFIER, HINDSIGHT = (
    "ours, nearest candidate only",
    "ours, no learning",
    "ours, verifier only",
    "ours, no verifier",
    "ours, best cosine in hindsight",
)
DELTAS = (0.01, 0.05)
THRESHOLDS = (0.70, 0.79, 0.85, 0.90, 0.95)
PEERS = {"GPTCache's rule": 0.60, "RedisVL's rule": 0.90}
"""What peers serve at out of the box, as a cosine. GPTCache's SearchDistanceEvaluation serves at 0.8 of a range of 4 that is
the squared Euclidean distance: 2 - 2 cos <= 0.8. RedisVL's SemanticCache has a distance_threshold of 0.1: 1 - cos <= 0.1. The
weights of their own encoders are in no package, so the rules run on an encoder that is there.
"""
PEERS_ENCODER = "all-MiniLM-L6-v2"


@dataclass(frozen=True, slots=True)
class Contestant:
    """`trial` makes one for a namespace without a history. `whole`: with all its parts, it runs on every set. `of_streams`: in a
    pair by itself, its part has nothing to do.
    """

    name: str
    delta: float
    trial: Callable[[], Trial]
    whole: bool = False
    of_streams: bool = False


class _FirstOnly:
    """A cache that looks at the nearest neighbour alone."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    async def judge(self, question: str, suspects: Sequence[Suspect]) -> Verdict:
        return await self._trial.judge(question, suspects[:1])

    def learn(self, decided: Verdict, same: bool) -> None:
        self._trial.learn(decided, same)


def ours(encoder: TextModel, rules: CacheRules, calibration: Calibration) -> list[Contestant]:
    """The cache at each error budget, then, at the first of them, without one part each."""
    delta = DELTAS[0]
    shipped = partial(CacheTrial, encoder, rules, delta, calibration)
    bare, blind = verifier_alone(calibration), replace(rules, verifier=False)
    return [
        *(Contestant(OURS, at, partial(CacheTrial, encoder, rules, at, calibration), whole=True) for at in DELTAS),
        Contestant(FIRST_ONLY, delta, lambda: _FirstOnly(shipped()), of_streams=True),
        Contestant(NO_LEARNING, delta, partial(shipped, learns=False), of_streams=True),
        Contestant(VERIFIER_ONLY, delta, partial(CacheTrial, encoder, rules, delta, bare)),
        Contestant(NO_VERIFIER, delta, partial(CacheTrial, encoder, blind, delta, calibration)),
    ]


def verifier_alone(calibration: Calibration) -> Calibration:
    """The verifier's word as it is: no other feature counts, and labels move nothing."""
    return replace(
        calibration,
        weights=tuple(1.0 if name == "verifier" else 0.0 for name in FEATURES),
        bias=0.0,
        spread=(1e-6,) * len(calibration.spread),
    )
