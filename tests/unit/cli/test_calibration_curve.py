"""Hits against wrong hits over thresholds, and the setting that pairs suggest."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache.domain.budget import HIGHEST_RISK, wilson
from services.cli.cache.curve import Curve, budget_for, least_rows, suggest

PAIRS = st.lists(st.tuples(st.none() | st.floats(0, 1), st.booleans()), max_size=60)


def curve(pairs) -> Curve:
    return Curve([score for score, _ in pairs], [same for _, same in pairs])


def twice(budget: float) -> float:
    """A calibration that serves risks up to twice the budget, and never above 10%."""
    return min(2 * budget, 0.1)


@given(PAIRS)
def test_a_lower_threshold_serves_no_less_and_is_wrong_no_less(pairs):
    points = curve(pairs).points
    for strict, loose in itertools.pairwise(points):
        assert strict.threshold > loose.threshold
        assert strict.hits < loose.hits
        assert strict.wrong <= loose.wrong
        assert strict.interval[1] <= loose.interval[1]


@given(PAIRS, st.floats(0, 1))
def test_a_point_counts_what_is_served_at_its_threshold(pairs, threshold):
    point = curve(pairs).at(threshold)
    served = [same for score, same in pairs if score is not None and score >= threshold]
    assert (point.rows, point.hits, point.wrong) == (len(pairs), len(served), served.count(False))


@given(PAIRS, st.floats(0.001, 0.5))
def test_the_loosest_point_keeps_the_bound_and_no_looser_one_does(pairs, delta):
    found = curve(pairs)
    point = found.loosest(delta, 0.0)

    def kept(p) -> bool:
        return p.interval[1] <= delta and 2 * p.wrong <= p.hits

    if point is None:
        assert not any(kept(p) for p in found.points)
    else:
        assert kept(point)
        assert not any(kept(p) for p in found.points if p.threshold < point.threshold)


def test_pairs_without_a_score_are_never_served():
    assert curve([(None, True), (None, False)]).at(-1.0).hits == 0


def test_the_least_number_of_pairs_is_exact():
    for delta in (0.001, 0.01, 0.05, 0.2):
        rows = least_rows(delta)
        assert wilson(0, rows)[1] <= delta + 1e-12
        assert wilson(0, rows - 1)[1] > delta


def test_too_few_pairs_suggest_nothing_and_say_how_many_it_takes():
    found = suggest(curve([(0.9, True), (0.5, False)] * 50), 0.01, twice)
    assert found.point is None
    assert "too few pairs to say: 100" in found.why
    assert "381" in found.why


@pytest.mark.parametrize("same", [True, False])
def test_pairs_of_one_kind_suggest_nothing(same):
    found = suggest(curve([(0.9, same)] * 1000), 0.01, twice)
    assert found.point is None
    assert f"no pair has same_answer {not same}".lower() in found.why


def test_where_right_and_wrong_lie_apart_the_suggestion_lies_between():
    pairs = [(0.95, True)] * 500 + [(0.9, True)] * 100 + [(0.85, False)] * 400
    found = suggest(curve(pairs), 0.01, twice)
    assert found.point is not None
    assert (found.point.threshold, found.point.wrong) == (0.9, 0)
    assert found.error_budget == pytest.approx(0.05)
    assert found.reached is not None
    assert found.reached.threshold == pytest.approx(0.9)


def test_nothing_is_suggested_below_what_the_service_would_ever_serve():
    pairs = [(0.6, True)] * 999 + [(0.1, False)]
    found = suggest(curve(pairs), 0.01, twice)
    assert found.point is None
    assert 1 - HIGHEST_RISK > 0.6


def test_a_setting_under_which_most_hits_are_wrong_is_none():
    pairs = [(0.9, False)] * 3 + [(0.8, True)] + [(0.1, True)] * 996
    found = suggest(curve(pairs), 0.01, twice)
    assert found.point is None
    assert "no threshold" in found.why


def test_the_budget_is_the_greatest_that_serves_no_more():
    for risk in np.linspace(0.001, 0.099, 30):
        budget = budget_for(float(risk), twice)
        assert budget is not None
        assert twice(budget) <= risk
        assert budget >= 0.88 * risk / 2


def test_where_budgets_make_no_difference_the_least_is_named():
    assert budget_for(0.3, twice) == pytest.approx(0.05)


def test_no_budget_is_strict_enough_for_what_the_calibration_never_reaches():
    assert budget_for(0.001, lambda _: 0.002) is None
