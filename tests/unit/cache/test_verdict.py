"""Where a candidate stands among the others, and that nothing is served unread."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache.domain import cascade, verdict
from services.cache.domain.answers import digest
from services.cache.domain.calibration import Calibration
from services.cache.domain.ports import Scores
from services.cache.domain.signals import MAX_LEAD
from services.cache.domain.verdict import CANDIDATES, Rules, Suspect

RULES = Rules(floor=0.3, threshold=0.8, oldest=0.0, cross_language=False, highest_risk=0.05)


def suspect(entry: str, similarity: float, group: str = "", question: str = "How do I reset my password?") -> Suspect:
    return Suspect(entry, similarity, question, 1.0, pinned=False, group=group)


def standings(*suspects: Suspect):
    pending = verdict.screen("How can I reset my password?", suspects, RULES, Calibration.load()).pending
    return {p.suspect.entry_id: p.standing for p in pending}


def test_a_single_candidate_is_alone():
    found = standings(suspect("a", 0.9))["a"]
    assert (found.margin, found.lead, found.alone, found.support) == (0.0, 0.0, True, 0.0)


def test_candidates_of_one_answer_support_each_other():
    found = standings(suspect("a", 0.9, "g"), suspect("b", 0.85, "g"), suspect("c", 0.8))
    assert found["a"].support == found["b"].support == math.log(2)
    assert found["c"].support == 0.0
    assert found["a"].lead == found["b"].lead == pytest.approx(2.0)
    assert found["c"].lead == pytest.approx(-2.0)
    assert not found["a"].alone


def test_answers_beyond_the_last_candidate_are_no_nearer_than_it():
    many = [suspect(str(i), 0.9 - i / 100, "g") for i in range(CANDIDATES)]
    assert standings(*many)["0"].lead == pytest.approx(1.8)
    assert not standings(*many)["0"].alone
    assert standings(*many[:-1])["0"].alone


@given(st.lists(st.tuples(st.floats(0.3, 1.0), st.sampled_from(["", "g", "h"])), min_size=1, max_size=CANDIDATES))
def test_leads_are_bounded_and_the_leader_is_never_behind(rows):
    suspects = [suspect(str(i), similarity, group) for i, (similarity, group) in enumerate(rows)]
    found = standings(*suspects)
    assert all(-MAX_LEAD <= s.lead <= MAX_LEAD and 0 <= s.support <= math.log(CANDIDATES) for s in found.values())
    best = max(suspects, key=lambda s: s.similarity)
    assert found[best.entry_id].lead >= 0


class Doubting:
    """A verifier that says no."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str]] = []

    async def score(self, pairs):
        self.read += pairs
        return Scores(tuple(0.02 for _ in pairs))


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("Who painted the portrait in room 4?", "Who is painted in the portrait in room 4?"),
        ("Do we have to clean up after an event we host?", "Do we have to clean up after an event you host?"),
        ("¿Subieron las tarifas del estacionamiento?", "¿Subirán las tarifas del estacionamiento?"),
    ],
)
async def test_no_likeness_is_served_unread(stored: str, asked: str):
    verifier = Doubting()
    decided, _ = await cascade.judge(asked, [suspect("a", 0.98, question=stored)], RULES, Calibration.load(), verifier)
    assert verifier.read == [(stored, asked)]
    assert decided.served is None


def test_answers_of_the_same_words_have_one_digest():
    assert digest("Within 30 days.") == digest("  within 30  DAYS.\n")
    assert digest("Within 30 days.") != digest("Within 31 days.")
    assert digest(" ") == ""
