"""The verdict: whether a stored answer may serve a question that is worded differently."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.cache.domain import guards

SERVED = "served"
NO_CANDIDATE = "no_candidate"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a namespace demands. Similarities are cosines, -1 to 1.

    `threshold` is None where the policy names none for the embedding model: then nothing is served. `oldest` is the
    earliest time of writing that is accepted, in Unix seconds.
    """

    floor: float
    threshold: float | None
    oldest: float
    cross_language: bool


@dataclass(frozen=True, slots=True)
class Suspect:
    """A stored question that resembles the asked one; `question` is None when its answer is gone."""

    entry_id: str
    similarity: float
    question: str | None
    created_at: float
    pinned: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate and what was thought of it."""

    entry_id: str
    similarity: float
    reason: str
    detail: str
    question: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`served` is the entry to serve, or None; `reason` is "served" or why the best candidate was refused."""

    served: str | None
    reason: str
    judged: tuple[Judged, ...]
    threshold: float


def decide(question: str, suspects: Sequence[Suspect], rules: Rules) -> Verdict:
    """Judges every suspect, curated answers first and then by similarity, and serves the first that nothing speaks against."""
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
    if suspect.question is None:
        return "gone", ""
    if suspect.similarity < rules.floor:
        return "below_floor", ""
    if rules.threshold is None:
        return "no_threshold", ""
    if suspect.created_at < rules.oldest:
        return "too_old", ""
    veto = guards.veto(asked, guards.read(suspect.question), cross_language=rules.cross_language)
    if veto is not None:
        return f"veto_{veto.reason}", veto.detail
    if suspect.similarity < rules.threshold:
        return "below_threshold", ""
    return None, ""
