"""Fits the calibration that is shipped with the cache: `python -m training.calibrate --model DIR`.

Topics that trained no weight are played through: one wording of every intent is stored, the others are asked, and the cache's own
code collects candidates, vetoes, features and the verifier's scores. A second round takes pairs of look-alikes by themselves,
half of them traps: the hardest that a namespace could meet. Written families stand for freely worded questions, those put
together from parts for plain ones.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.cache.domain import verdict
from services.cache.domain.budget import HIGHEST_RISK
from services.cache.domain.calibration import SHIPPED, Calibration, fit
from services.cache.domain.signals import FEATURES
from services.cache.domain.verdict import CANDIDATES, Rules, Suspect
from services.embedder.adapters.lookalike import MODEL_ID, Lookalike
from training import data, frames
from training.data import Group, Question

FRAMED = 12
"""Groups put together from parts that join, of each held-out domain."""
VERIFIED = 4
PAIRS_PER_FAMILY = 16
TRAPS_SERVED = 1.2
"""How many times the error budget of look-alike traps may pass at the first limit: half of those lookups are traps."""
BUDGETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
FLOOR = 0.3
RULES = Rules(floor=FLOOR, threshold=None, oldest=0.0, cross_language=False, highest_risk=0.0)
STANDING = dict.fromkeys(("lead", "alone", "support"), 0.0)
"""What the other candidates say counts for nothing until a namespace's own labels say what it is worth: here every answer is
stored once, as in no cache that has run for a while, and a look-alike that is stored alone would lead without being right.
"""
WEIGHTS = STANDING | {"verifier": 1.0}
SPREAD = dict.fromkeys(STANDING, 1.0) | {"verifier": 0.15}
"""How far a namespace's own weights may move; 0.3 for the others."""
START = Calibration(
    weights=tuple(WEIGHTS.get(name, 0.0) for name in FEATURES),
    bias=0.0,
    spread=(),
    ranking=tuple(10.0 if name == "similarity" else 0.0 for name in FEATURES),
    first_risks=(),
    risks=(),
    model_id=MODEL_ID,
)


class Examples:
    """Feature rows, whether the pair has one answer, and the lookup each belongs to."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.same: list[bool] = []
        self.lookup: list[int] = []
        self.lookups = 0

    def judge(self, model: Lookalike, asked: Question, stored: Sequence[tuple[Question, float]], verified: int) -> None:
        """Takes in the candidates of one lookup, `stored` with their similarity."""
        suspects = [
            Suspect(str(i), similarity, question.text, 1.0, pinned=False)
            for i, (question, similarity) in enumerate(stored)
        ]
        pending = verdict.screen(asked.text, suspects, RULES, START).pending[:verified]
        if pending:
            scored = model.score([(str(p.suspect.question), asked.text) for p in pending])
            for candidate, score in zip(pending, scored.probabilities, strict=True):
                self.rows.append(candidate.features(score))
                self.same.append(stored[int(candidate.suspect.entry_id)][0].key == asked.key)
                self.lookup.append(self.lookups)
        self.lookups += 1


def vectors(model: Lookalike, questions: Sequence[Question]) -> NDArray[np.float32]:
    """Unit vectors, (questions, dimensions)."""
    return np.concatenate([model.encode([question.text]).vectors for question in questions])


def desks(model: Lookalike, groups: Sequence[Group], chance: random.Random) -> Examples:
    """Each topic as a help desk with one stored wording an intent."""
    found = Examples()
    for topic in sorted({group.topic for group in groups}):
        for language in ("en", "es"):
            by_key: dict[str, list[Question]] = {}
            for group in groups:
                if group.topic == topic:
                    for question in group.questions:
                        if question.language == language:
                            by_key.setdefault(question.key, []).append(question)
            wordings = [chance.sample(some, len(some)) for _, some in sorted(by_key.items()) if len(some) > 1]
            stored = [some[0] for some in wordings]
            asked = [some[1] for some in wordings]
            nearness = vectors(model, asked) @ vectors(model, stored).T
            for question, row in zip(asked, nearness, strict=True):
                best = np.argsort(-row)[:CANDIDATES]
                found.judge(model, question, [(stored[i], float(row[i])) for i in best if row[i] >= FLOOR], VERIFIED)
    return found


def traps(model: Lookalike, groups: Sequence[Group], chance: random.Random) -> Examples:
    """Pairs of a family by themselves, as many with one answer as with two."""
    found = Examples()
    for group in groups:
        alike, unlike = list[tuple[Question, Question]](), list[tuple[Question, Question]]()
        for i, first in enumerate(group.questions):
            for second in group.questions[:i]:
                if first.language == second.language:
                    (alike if first.key == second.key else unlike).append((first, second))
        for some in (alike, unlike):
            for first, second in chance.sample(some, min(PAIRS_PER_FAMILY // 2, len(some))):
                similarity = float(vectors(model, [first])[0] @ vectors(model, [second])[0])
                if similarity >= FLOOR:
                    found.judge(model, first, [(second, similarity)], 1)
                else:
                    found.lookups += 1
    return found


def calibrate(model: Lookalike, seed: int = 1) -> dict[str, object]:
    """The calibration as it is stored."""
    groups = [group for group in data.families() if group.topic in data.DEVELOPMENT_TOPICS]
    groups += frames.groups(frames.DEVELOPMENT_DOMAINS, FRAMED, seed)
    desk, trap = desks(model, groups, random.Random(seed)), traps(model, groups, random.Random(seed))
    rows = np.array([*desk.rows, *trap.rows])
    same = np.array([*desk.same, *trap.same], dtype=float)
    free = np.array([*(2.0 if name == "verifier" else 1e-3 if name in STANDING else 0.6 for name in FEATURES), 3.0])
    weights, bias = fit(rows, same, np.ones(len(rows)), centre=np.array([*START.weights, 0.0]), spread=free)
    cheap = rows.copy()
    cheap[:, FEATURES.index("verifier")] = 0.0
    ranking, _ = fit(cheap, same, np.ones(len(rows)), centre=np.zeros(len(FEATURES) + 1), spread=free * 4)
    fitted = replace(START, weights=tuple(weights), bias=bias)
    risks = np.array([1 - fitted.probability(row) for row in trap.rows])
    wrong = np.sort(risks[~np.array(trap.same)])
    lookups = trap.lookups
    first = []
    for delta in BUDGETS:
        allowed = int(delta * TRAPS_SERVED * lookups / 2)
        first.append((delta, float(np.clip(wrong[allowed] * 0.999, 1e-4, HIGHEST_RISK))))
    best: dict[int, float] = {}
    for row, number in zip(desk.rows, desk.lookup, strict=True):
        best[number] = min(best.get(number, 1.0), 1 - fitted.probability(row))
    typical = [best.get(number, 1.0) for number in range(desk.lookups)]
    served = {delta: float((risks[np.array(trap.same)] <= risk).mean()) for delta, risk in first}
    print(json.dumps({"traps": lookups, "served_by_budget": {str(d): round(s, 3) for d, s in served.items()}}))
    print(json.dumps(dict(zip(FEATURES, [round(w, 3) for w in weights], strict=True)) | {"bias": round(bias, 3)}))
    return {
        "features": FEATURES,
        "weights": [round(w, 4) for w in weights],
        "bias": round(bias, 4),
        "spread": [*(SPREAD.get(name, 0.3) for name in FEATURES), 0.6],
        "ranking": [round(w, 4) for w in ranking],
        "first_risks": [(delta, round(risk, 6)) for delta, risk in first],
        "risks": [round(float(q), 6) for q in np.quantile(typical, np.linspace(0, 1, 200))],
        "model_id": MODEL_ID,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="exported model; the shipped one unless given")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    args = parser.parse_args()
    model = Lookalike(args.model, threads=2) if args.model else Lookalike(threads=2)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(calibrate(model)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
