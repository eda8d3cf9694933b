"""The verdict: whether a stored answer may serve a question that is worded differently.

With a verifier: certain differences refuse, the rest are ranked, the verifier reads the best few, and the calibrated probability
decides. Without one, `decide` stands alone: any difference that the guards know refuses, and the similarity must suffice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.cache.domain import guards, signals
from services.cache.domain.calibration import Calibration

SERVED = "served"
NO_CANDIDATE = "no_candidate"
UNSURE = "unsure"
CANDIDATES = 10
"""How many of the nearest stored questions are judged: the right one is often not the nearest."""
PINNED_BONUS = 1.0
"""How much better a curated answer ranks: it is judged first, by the same measure."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a namespace demands. Similarities are cosines, -1 to 1.

    `threshold` is None where the policy names none for the embedding model: then nothing is served without a verifier. `oldest`
    is the earliest time of writing that is accepted, in Unix seconds; `highest_risk` the greatest P(wrong) that may be served.
    """

    floor: float
    threshold: float | None
    oldest: float
    cross_language: bool
    highest_risk: float = 0.0


@dataclass(frozen=True, slots=True)
class Suspect:
    """A stored question that resembles the asked one; `question` is None when its answer is gone.

    `record` is the log-odds of its checks: above 0 where its answer was right more often than wrong. `blocked`: it was found
    wrong for this very question. Suspects of one `group` were found to have one answer; "" is a group of its own.
    """

    entry_id: str
    similarity: float
    question: str | None
    created_at: float
    pinned: bool
    record: float = 0.0
    blocked: bool = False
    group: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate and what was thought of it. `probability` is None where floor, vetoes or similarity decided."""

    entry_id: str
    similarity: float
    reason: str
    detail: str
    question: str
    probability: float | None = None
    verifier: float | None = None
    signals: tuple[str, ...] = ()
    features: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`served` is the entry to serve, or None; `reason` is "served" or why the best candidate was refused."""

    served: str | None
    reason: str
    judged: tuple[Judged, ...]
    threshold: float
    alias: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """A candidate that nothing certain speaks against, and what is known of it before the verifier reads it."""

    suspect: Suspect
    differences: signals.Signals
    standing: signals.Standing
    rank: float

    def features(self, verifier: float) -> tuple[float, ...]:
        """All features, once the verifier has scored the pair."""
        return signals.vector(
            self.differences,
            verifier=verifier,
            similarity=self.suspect.similarity,
            standing=self.standing,
            record=self.suspect.record,
        )


@dataclass(frozen=True, slots=True)
class Screened:
    """Candidates that were refused at once, and those for the verifier, the most promising first."""

    refused: tuple[Judged, ...]
    pending: tuple[Pending, ...]


def screen(question: str, suspects: Sequence[Suspect], rules: Rules, calibration: Calibration) -> Screened:
    """Refuses what is certain, and ranks the rest by what is cheap to know."""
    asked = guards.read(question)
    refused: list[Judged] = []
    pending: list[Pending] = []
    standings = _standings(suspects)
    for suspect in suspects:
        reason, detail = _unfit(suspect, rules), ""
        if reason is None and suspect.question is not None:
            stored = guards.read(suspect.question)
            veto = signals.certain(asked, stored, cross_language=rules.cross_language)
            if veto is None:
                differences = signals.compare(asked, stored)
                standing = standings[suspect.entry_id]
                cheap = signals.vector(
                    differences, verifier=0.5, similarity=suspect.similarity, standing=standing, record=suspect.record
                )
                rank = calibration.rank(cheap) + PINNED_BONUS * suspect.pinned
                pending.append(Pending(suspect, differences, standing, rank))
                continue
            reason, detail = f"veto_{veto.reason}", veto.detail
        refused.append(Judged(suspect.entry_id, suspect.similarity, reason or "gone", detail, suspect.question or ""))
    pending.sort(key=lambda p: -p.rank)
    return Screened(tuple(refused), tuple(pending))


def _standings(suspects: Sequence[Suspect]) -> dict[str, signals.Standing]:
    """Where each candidate stands among the others. Near questions that want different answers are the ones that are mixed up."""
    best: dict[str, float] = {}
    count: dict[str, int] = {}
    for suspect in suspects:
        group = suspect.group or suspect.entry_id
        best[group] = max(best.get(group, -1.0), suspect.similarity)
        count[group] = count.get(group, 0) + 1
    nearest = max(best.values(), default=0.0)
    # Answers that are further away than the last candidate were not looked at.
    beyond = min((s.similarity for s in suspects), default=0.0) if len(suspects) >= CANDIDATES else None
    standings: dict[str, signals.Standing] = {}
    for suspect in suspects:
        group = suspect.group or suspect.entry_id
        rival = max((top for other, top in best.items() if other != group), default=beyond)
        steps = 0.0 if rival is None else (best[group] - rival) / signals.LEAD_STEP
        lead = min(max(steps, -signals.MAX_LEAD), signals.MAX_LEAD)
        standings[suspect.entry_id] = signals.Standing(
            nearest - suspect.similarity, lead, rival is None, math.log(count[group])
        )
    return standings


def rule(screened: Screened, scores: Mapping[str, float], rules: Rules, calibration: Calibration) -> Verdict:
    """Serves the candidate that is most probably right, if it is probable enough.

    `scores` are the verifier's, by entry; a candidate without one was not promising enough to be read.
    """
    judged: list[Judged] = []
    for candidate in screened.pending:
        suspect = candidate.suspect
        score = scores.get(suspect.entry_id)
        features = None if score is None else candidate.features(score)
        probability = None if features is None else calibration.probability(features)
        notes = candidate.differences.notes
        judged.append(
            Judged(
                suspect.entry_id,
                suspect.similarity,
                "not_verified" if probability is None else UNSURE,
                "; ".join(f"{name}: {note}" for name, note in notes.items()),
                suspect.question or "",
                probability,
                score,
                tuple(notes),
                features,
            )
        )
    judged.sort(key=lambda j: -(j.probability or 0.0))
    risk = rules.highest_risk
    if judged and judged[0].features is not None and signals.hinted(judged[0].features):
        risk = min(risk, calibration.strictest_risk)
    required = 1.0 - risk
    served = None
    if judged and judged[0].probability is not None and judged[0].probability >= required:
        served = judged[0].entry_id
        judged = [replace(j, reason=SERVED if j.entry_id == served else "not_needed") for j in judged]
    everything = (*judged, *sorted(screened.refused, key=lambda j: -j.similarity))
    reason = everything[0].reason if everything else NO_CANDIDATE
    return Verdict(served, reason, everything, required)


def decide(question: str, suspects: Sequence[Suspect], rules: Rules) -> Verdict:
    """Without a verifier: judges every suspect, curated answers first and then by similarity, and serves the first that nothing
    speaks against.
    """
    threshold = 1.0 if rules.threshold is None else rules.threshold
    judged: list[Judged] = []
    served: str | None = None
    asked = guards.read(question)
    for suspect in sorted(suspects, key=lambda s: (not s.pinned, -s.similarity)):
        reason, detail = _refusal(asked, suspect, rules)
        if reason is None:
            reason = SERVED if served is None else "not_needed"
            served = served or suspect.entry_id
        judged.append(Judged(suspect.entry_id, suspect.similarity, reason, detail, suspect.question or ""))
    judged.sort(key=lambda j: (j.reason != SERVED, -j.similarity))
    return Verdict(served, judged[0].reason if judged else NO_CANDIDATE, tuple(judged), threshold)


def _refusal(asked: guards.Reading, suspect: Suspect, rules: Rules) -> tuple[str | None, str]:
    unfit = _unfit(suspect, rules)
    if unfit is not None or suspect.question is None:
        return unfit or "gone", ""
    if rules.threshold is None:
        return "no_threshold", ""
    veto = guards.veto(asked, guards.read(suspect.question), cross_language=rules.cross_language)
    if veto is not None:
        return f"veto_{veto.reason}", veto.detail
    if suspect.similarity < rules.threshold:
        return "below_threshold", ""
    return None, ""


def _unfit(suspect: Suspect, rules: Rules) -> str | None:
    """Why a suspect is not looked at."""
    if suspect.question is None:
        return "gone"
    if suspect.similarity < rules.floor:
        return "below_floor"
    if suspect.created_at < rules.oldest:
        return "too_old"
    return "found_wrong" if suspect.blocked else None
