"""The figures by which a verifier is judged."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from training.quality import quality

SCORES = st.lists(st.floats(-10, 10), min_size=2, max_size=60)


def test_a_perfect_verifier_serves_everything() -> None:
    scores = quality(np.array([0.9, 0.8, 0.1, 0.2]), np.array([True, True, False, False]))
    assert (scores.auc, scores.served_at_1, scores.served_at_5) == (1.0, 1.0, 1.0)


def test_a_trap_above_everything_leaves_nothing_to_serve() -> None:
    scores = quality(np.array([0.9, 0.8, 0.95, 0.2]), np.array([True, True, False, False]))
    assert (scores.auc, scores.served_at_1) == (0.5, 0.0)


@given(SCORES, SCORES)
def test_figures_are_shares_and_five_percent_serve_no_less_than_one(good: list[float], bad: list[float]) -> None:
    scores = quality(np.array(good + bad), np.array([True] * len(good) + [False] * len(bad)))
    assert 0 <= scores.served_at_1 <= scores.served_at_5 <= 1
    assert 0 <= scores.auc <= 1


@given(SCORES, SCORES)
def test_turning_the_scores_round_turns_the_area_round(good: list[float], bad: list[float]) -> None:
    same = np.array([True] * len(good) + [False] * len(bad))
    values = np.array(good + bad)
    assert np.isclose(quality(values, same).auc + quality(-values, same).auc, 1.0)
