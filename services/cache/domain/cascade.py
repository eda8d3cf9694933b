"""The verdict from cheap to dear: what is certain refuses, the verifier reads the rest, most often one pair."""

from collections.abc import Sequence

from services.cache.domain import verdict
from services.cache.domain.calibration import Calibration
from services.cache.domain.ports import Verifier, VerifierUnavailable
from services.cache.domain.verdict import Rules, Suspect, Verdict

VERIFIED = 4
"""How many candidates the verifier reads at most: the first alone, and the others together when that one will not do."""


async def judge(
    question: str, suspects: Sequence[Suspect], rules: Rules, calibration: Calibration, verifier: Verifier
) -> tuple[Verdict, int]:
    """The verdict on an asked question, and what the verifier cost in nano-USD.

    No likeness is certain enough to serve unread: a turned order of words or another tense passes every guard. Raises
    VerifierUnavailable when not even the most promising candidate could be read.
    """
    screened = verdict.screen(question, suspects, rules, calibration)
    scores: dict[str, float] = {}
    ruled = verdict.rule(screened, scores, rules, calibration)
    cost = 0
    for some in (screened.pending[:1], screened.pending[1:VERIFIED]):
        if not some or ruled.served is not None:
            break
        try:
            read = await verifier.score([(pending.suspect.question or "", question) for pending in some])
        except VerifierUnavailable:
            if not scores:
                raise
            break  # the first was read and will not do: what is left is unsure
        cost += read.cost
        scores |= {p.suspect.entry_id: chance for p, chance in zip(some, read.probabilities, strict=True)}
        ruled = verdict.rule(screened, scores, rules, calibration)
    return ruled, cost
