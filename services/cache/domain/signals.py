"""What differs between two questions, as numbers for the calibration; and the few differences that are certain enough to refuse.

The guards' vetoes are meant to stand alone: any difference refuses. Beside a verifier most of them are only hints, since it reads
synonyms and rewordings better than word lists do; they go to the calibration, which has learned what each is worth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from services.cache.domain.guards import Quantity, Reading, Veto, antonyms, direction, names

FEATURES = (
    "verifier",
    "similarity",
    "margin",
    "numbers",
    "names",
    "negation",
    "antonyms",
    "question_type",
    "tense",
    "word_order",
    "unshared",
    "shared",
    "length",
    "same_words",
    "unknown_language",
    "record",
    "lead",
    "alone",
    "support",
)
"""What the calibration weighs, in this order. `verifier` is its log-odds, `similarity` the cosine, `margin` how far the cosine is
behind the best candidate's. `lead`, `alone` and `support` tell of the other candidates (`Standing`). `same_words` is 1 where
only words without content differ. The rest are 0 where nothing speaks against one answer.
"""

_HINTS = tuple(FEATURES.index(name) for name in ("numbers", "names", "negation", "antonyms", "tense", "word_order"))
_LOGIT_LIMIT = 8.0


@dataclass(frozen=True, slots=True)
class Standing:
    """A candidate among the others of its lookup.

    `margin`: how far its cosine is behind the best. `lead`: how far the best cosine of its answer, which other stored questions
    may share, is ahead of any other answer's, in steps of LEAD_STEP, -4 to 4. `alone`: no other answer is near, so a lead would
    mean nothing. `support`: the other candidates with its answer, as log(1 + count).
    """

    margin: float = 0.0
    lead: float = 0.0
    alone: bool = True
    support: float = 0.0


LEAD_STEP = 0.05
MAX_LEAD = 4.0


@dataclass(frozen=True, slots=True)
class Signals:
    """What differs: `values` by feature (those that need no neighbour and no model), `notes` for people."""

    values: dict[str, float]
    notes: dict[str, str]


def certain(asked: Reading, stored: Reading, *, cross_language: bool = False) -> Veto | None:
    """A difference that no verifier may overrule: another language, other amounts of one unit, another identifier."""
    if asked.language and stored.language and asked.language != stored.language and not cross_language:
        return Veto("language", f"{asked.language} / {stored.language}")
    if _conflict(asked.quantities, stored.quantities):
        return Veto("numbers", f"{_list(asked.quantities)} / {_list(stored.quantities)}")
    mine, theirs = _codes(asked) - stored.words, _codes(stored) - asked.words
    if mine and theirs:
        return Veto("entities", f"{', '.join(sorted(mine))} / {', '.join(sorted(theirs))}")
    if asked.rest != stored.rest:
        return Veto("long_text", "they differ beyond what is read in detail")
    return None


def compare(asked: Reading, stored: Reading) -> Signals:
    """Symmetric in its arguments."""
    values = dict.fromkeys(FEATURES, 0.0)
    notes: dict[str, str] = {}
    if asked.quantities != stored.quantities:
        values["numbers"] = 1.0
        notes["numbers"] = f"{_list(asked.quantities)} / {_list(stored.quantities)}"
    unmatched = names(asked, stored)
    if unmatched is not None:
        both = bool(asked.names - stored.words) and bool(stored.names - asked.words)
        values["names"] = 1.0 if both else 0.5
        notes["entities"] = unmatched.detail
    if asked.negated != stored.negated:
        values["negation"] = 1.0
        notes["negation"] = "only one of them is negated"
    opposite = antonyms(asked, stored)
    if opposite is not None:
        values["antonyms"] = 1.0
        notes["antonyms"] = opposite.detail
    if asked.kinds and stored.kinds and asked.kinds != stored.kinds:
        values["question_type"] = 1.0 if not asked.kinds & stored.kinds else 0.5
        notes["question_type"] = f"{', '.join(sorted(asked.kinds))} / {', '.join(sorted(stored.kinds))}"
    if {asked.tense, stored.tense} == {"past", "future"}:
        values["tense"] = 1.0
        notes["tense"] = "one asks about the past, the other about the future"
    turned = direction(asked, stored)
    if turned is not None:
        values["word_order"] = 1.0
        notes[turned.reason] = turned.detail
    mine, theirs = asked.content.keys(), stored.content.keys()
    values["unshared"] = math.log1p(min(len(mine - theirs), len(theirs - mine)))
    values["shared"] = len(mine & theirs) / max(1, min(len(mine), len(theirs)))
    values["length"] = abs(math.log((1 + len(asked.words)) / (1 + len(stored.words))))
    values["same_words"] = float(not notes and list(mine) == list(theirs))
    values["unknown_language"] = float(not asked.language or not stored.language)
    return Signals(values, notes)


def vector(
    signals: Signals, *, verifier: float, similarity: float, standing: Standing, record: float
) -> tuple[float, ...]:
    """All features in the order of FEATURES. `verifier` is a probability, 0 to 1."""
    kept = min(max(verifier, 1e-9), 1 - 1e-9)
    odds = math.log(kept / (1 - kept))
    values = signals.values | {
        "verifier": min(max(odds, -_LOGIT_LIMIT), _LOGIT_LIMIT),
        "similarity": similarity,
        "margin": standing.margin,
        "record": record,
        "lead": standing.lead,
        "alone": float(standing.alone),
        "support": standing.support,
    }
    return tuple(values[name] for name in FEATURES)


def hinted(features: Sequence[float]) -> bool:
    """Whether something explainable speaks against one answer for both questions."""
    return any(features[i] for i in _HINTS)


def _conflict(asked: tuple[Quantity, ...], stored: tuple[Quantity, ...]) -> bool:
    """Whether both name amounts of one unit and neither list holds the other's."""
    for unit in {q.unit for q in asked} & {q.unit for q in stored}:
        mine = {q.value for q in asked if q.unit == unit}
        theirs = {q.value for q in stored if q.unit == unit}
        if not mine <= theirs and not theirs <= mine:
            return True
    return False


def _codes(reading: Reading) -> frozenset[str]:
    """Identifiers with a digit, such as error and order numbers: two of them are never the same thing."""
    return frozenset(name for name in reading.names if any(char.isdigit() for char in name))


def _list(quantities: tuple[Quantity, ...]) -> str:
    return ", ".join(map(str, quantities)) or "none"
