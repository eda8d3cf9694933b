"""Budgets: which windows a request counts against, when they end, and what a soft one does to the walk."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import BudgetExceeded
from services.common.money import usd
from services.edge.convert import receipt_to_pb
from services.edge.domain.budgets import (
    Budget,
    BudgetBook,
    Mode,
    Period,
    degraded,
    end_of,
    exceeded,
    notice,
    status_of,
)
from services.edge.domain.ports import Question, Route
from tests.unit.edge.fakes import HARD, SOFT, Clock, World, chat, hit, question
from tests.unit.edge.test_edge_walk import both, completed

NOW = datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC).timestamp()
values = st.sampled_from(("", "a", "b", "a:b", "a%3Ab", "ä/ö", "*", "2028-02"))
wanted = st.sampled_from((None, "*", "a", "a:b"))
times = st.integers(0, 4_102_444_800_000).map(lambda ms: ms / 1000)
budgets = st.builds(
    Budget,
    st.sampled_from(("x", "y")),
    st.integers(1, 10**12),
    st.sampled_from(Period),
    st.sampled_from(Mode),
    st.sampled_from(("*", "acme", "volta")),
    wanted,
    wanted,
    wanted,
)
questions = st.builds(
    lambda tenant, endpoint, user, namespace: Question(
        tenant, "r", chat(), endpoint=endpoint, user=user, namespace=namespace
    ),
    st.sampled_from(("acme", "volta")),
    values,
    values,
    values,
)


@given(times, st.sampled_from(Period))
def test_every_moment_lies_in_the_period_that_its_label_names(now, period):
    label = period.label(now)
    end = end_of(label)
    begun = datetime.fromtimestamp(end, UTC) - timedelta(microseconds=1)
    assert now < end
    assert period.label(begun.timestamp()) == label
    assert period.label(end) != label
    assert end_of(period.label(end)) > end
    assert end - now <= (1 if period is Period.DAY else 31) * 86_400


@pytest.mark.parametrize(
    ("label", "end"),
    [
        ("2028-02-29", (2028, 3, 1)),
        ("2028-02", (2028, 3, 1)),
        ("2027-02-28", (2027, 3, 1)),
        ("2027-02", (2027, 3, 1)),
        ("2026-12-31", (2027, 1, 1)),
        ("2026-12", (2027, 1, 1)),
        ("per-user:ann:2026-01", (2026, 2, 1)),
    ],
)
def test_periods_end_where_the_calendar_says(label, end):
    assert end_of(label) == datetime(*end, tzinfo=UTC).timestamp()


@pytest.mark.parametrize("label", ["", "x:2027-02-29", "x:2027-13", "x:today"])
def test_what_is_no_period_has_no_end(label):
    with pytest.raises(ValueError, match=r"."):
        end_of(label)


@given(budgets, questions, times)
def test_a_window_is_known_by_its_name(budget, asked, now):
    book = BudgetBook((budget,))
    for window in book.windows(asked, now):
        assert book.window(asked.tenant, window.name) == window
        assert end_of(window.name) == window.resets_at > now
        assert window.name.isascii()
        status = status_of(window, asked.tenant, 3, 4)
        for want, is_for, value in zip(
            budget.dimensions,
            (status.endpoint, status.user, status.namespace),
            (asked.endpoint, asked.user, asked.namespace),
            strict=True,
        ):
            assert is_for == ("" if want is None else value)
        assert status.period == budget.period.label(now)


@given(budgets, questions, questions, times)
def test_two_requests_share_a_window_exactly_when_the_budget_tells_them_apart_nowhere(budget, one, other, now):
    mine, theirs = (BudgetBook((budget,)).windows(asked, now) for asked in (one, other))
    if mine and theirs:
        same = all(
            want != "*" or getattr(one, name) == getattr(other, name)
            for want, name in zip(budget.dimensions, ("endpoint", "user", "namespace"), strict=True)
        )
        assert (mine == theirs) == same


@given(st.lists(budgets, max_size=3), questions, times)
def test_a_request_counts_against_every_budget_that_fits_it(found, asked, now):
    windows = BudgetBook(tuple(found)).windows(asked, now)
    fits = [
        budget
        for budget in found
        if budget.tenant in ("*", asked.tenant)
        and budget.endpoint in (None, "*", asked.endpoint)
        and budget.user in (None, "*", asked.user)
        and budget.namespace in (None, "*", asked.namespace)
    ]
    assert [window.budget for window in windows] == fits


def test_windows_of_budgets_that_are_gone_or_changed_are_not_known():
    book = BudgetBook((Budget("x", 1, Period.DAY, user="*"), Budget("y", 1, Period.MONTH, tenant="acme")))
    assert book.window("acme", "x:2028-02-29") is None
    assert book.window("acme", "x:ann:2028-02") is None
    assert book.window("acme", "z:2028-02") is None
    assert book.window("volta", "y:2028-02") is None
    assert book.window("acme", "y:2028-02") is not None
    assert [window.name for window in book.shared("acme", NOW)] == ["y:2028-02"]
    assert book.tenants == {"acme"}


PRICES = {"tiny": 1, "mini": 10, "big": 100, "huge": 1000}
routes = st.builds(
    Route,
    st.lists(st.sampled_from((*PRICES, "unpriced")), min_size=1, max_size=3, unique=True).map(tuple),
    st.sampled_from(("", "low", "high")),
    st.just("why"),
)


@given(routes, st.lists(st.sampled_from((*PRICES, "unpriced")), min_size=1, max_size=3, unique=True))
def test_a_degraded_route_has_no_model_dearer_than_the_one_that_was_preferred(route, candidates):
    gets = degraded(route, "low", tuple(candidates), PRICES.get)
    assert gets.candidates
    if gets is route:
        return
    assert gets != route
    most = PRICES.get(route.candidates[0])
    for model in gets.candidates:
        assert model == route.candidates[0] or (model in PRICES and (most is None or PRICES[model] <= most))
    assert set(gets.candidates) <= {*candidates, *route.candidates}


def test_a_route_that_is_cheap_already_stays():
    low = Route(("tiny", "mini"), "low", "why")
    assert degraded(low, "low", ("tiny", "mini"), PRICES.get) is low
    named = Route(("tiny",), "", "pinned")
    assert degraded(named, "low", ("tiny", "mini"), PRICES.get) is named
    assert degraded(Route(("big", "huge"), "high", ""), "low", ("tiny", "mini"), PRICES.get).candidates == (
        "tiny",
        "mini",
    )
    trimmed = degraded(Route(("mini", "big", "tiny"), "high", ""), "low", ("huge",), PRICES.get)
    assert (trimmed.candidates, trimmed.tier) == (("mini", "tiny"), "high")


def test_a_refusal_says_which_budget_and_when_it_resets():
    (window,) = BudgetBook((Budget("per-user", 2_000_000_000, Period.DAY, user="*"),)).windows(
        question(user="ann"), NOW
    )
    error = exceeded("acme", window, 1_900_000_000, 60_000_000, 50_000_000, NOW)
    assert error.retry_after_s == 1.0
    assert error.metadata["budget"] == "per-user"
    assert error.metadata["resets_at"] == "2028-03-01T00:00:00+00:00"
    assert error.message == (
        "the budget per-user of $2.0000 a day is used up: $1.9000 spent, $0.0600 reserved, and this request may cost "
        "$0.0500; it resets at 2028-03-01 00:00 UTC"
    )


def test_the_notice_says_what_came_in_place_of_what():
    windows = BudgetBook((SOFT, Budget("faq", 10**9, Period.DAY, Mode.SOFT))).windows(question(), NOW)
    asked, gets = Route(("big",), "", ""), Route(("tiny",), "low", "")
    assert notice(windows, asked, gets) == (
        "the budget team of $0.5000 a month is used up until 2028-03-01 00:00 UTC and the budget faq of $1.0000 a day is "
        "used up until 2028-03-01 00:00 UTC: tier low in place of big"
    )
    assert notice(windows[:1], gets, gets).endswith("this request is as cheap as it gets")


# The walk.


@both
async def test_a_record_names_the_windows_in_which_its_cost_was_reserved(streaming):
    world = World(budgets=(HARD, SOFT, Budget("each", 10**9, Period.DAY, user="*")))
    await completed(world, question(user="ann"), streaming)
    assert world.record.budgets == ("all:2023-11-14", "team:2023-11", "each:ann:2023-11-14")
    assert world.record.reservation_id == world.record.record_id
    (bound,) = world.budgets.reserved.values()
    assert world.record.bill.actual < bound


async def test_where_two_models_may_be_asked_both_are_reserved_for():
    one, two = World(budgeted=True), World(budgeted=True, hedge=True)
    for world in (one, two):
        await world.walk.complete(question())
    (bound,), (double,) = one.budgets.reserved.values(), two.budgets.reserved.values()
    spent_before = sum(item.cost for item in one.record.bill.items if item.overhead)
    assert double - spent_before == 2 * (bound - spent_before)


async def test_what_a_hit_cost_counts_against_the_budgets_of_now():
    world = World(budgeted=True)
    world.cache.semantic = hit(semantic=True)
    await world.walk.complete(question())
    assert world.record.bill.actual > 0
    assert (world.record.budgets, world.record.reservation_id) == (("all:2023-11-14",), "")
    assert not world.budgets.reserved


async def test_what_cost_nothing_counts_against_nothing():
    world = World(budgeted=True)
    world.cache.exact = hit()
    await world.walk.complete(question())
    assert (world.record.bill.actual, world.record.budgets) == (0, ())


@both
async def test_a_soft_budget_that_is_used_up_sends_the_request_to_the_cheaper_tier_and_says_so(streaming):
    world = World(budgets=(HARD, SOFT))
    world.budgets.overdrawn = {"team"}
    done = await completed(world, question(), streaming)
    assert world.provider.candidates == ("small",)
    assert (done.receipt.model, done.receipt.tier) == ("small", "simple")
    assert "the budget team of" in done.receipt.budget_notice
    assert "until 2023-12-01 00:00 UTC: tier simple in place of tier medium" in done.receipt.budget_notice
    assert receipt_to_pb(done.receipt).budget_notice == done.receipt.budget_notice
    assert done.receipt.degraded == ()
    assert world.degraded == [("budget", "BUDGET_EXCEEDED")]
    # It is settled in all windows; the answer is nobody else's.
    assert world.record.budgets == ("all:2023-11-14", "team:2023-11")
    assert world.record.tier == "simple"
    assert world.cache.stored == []


async def test_after_the_reset_the_right_tier_answers_again_and_is_stored():
    world = World(budgets=(SOFT,))
    world.budgets.overdrawn = {"team"}
    await world.walk.complete(question())
    world.budgets.overdrawn = set()
    done = await world.walk.complete(question())
    assert (done.receipt.tier, done.receipt.budget_notice) == ("medium", "")
    assert len(world.cache.stored) == 1


async def test_a_named_model_is_degraded_as_well():
    world = World(budgets=(SOFT,))
    world.budgets.overdrawn = {"team"}
    world.down("router")
    done = await world.walk.complete(question(model="gpt-4o"))
    assert world.provider.candidates == ("small",)
    assert done.receipt.budget_notice.endswith("tier simple in place of gpt-4o")


async def test_a_request_that_is_as_cheap_as_it_gets_goes_on_as_it_is():
    world = World(budgets=(SOFT,))
    world.budgets.overdrawn = {"team"}
    world.router.route = lambda question, vector: _simple()  # type: ignore[method-assign,assignment]
    done = await world.walk.complete(question())
    assert done.receipt.budget_notice.endswith("as cheap as it gets")
    assert len(world.cache.stored) == 1


async def _simple() -> Route:
    return Route(("small",), "simple", "short")


async def test_of_two_soft_budgets_the_cheaper_tier_counts():
    world = World(budgets=(Budget("m", 10**9, Period.DAY, Mode.SOFT, degrade_to="medium"), SOFT))
    world.budgets.overdrawn = {"m", "team"}
    world.down("router")
    await world.walk.complete(question(model="reasoning"))
    assert world.provider.candidates == ("small",)


async def test_a_hard_budget_holds_for_the_cheaper_tier_too():
    world = World(budgets=(HARD, SOFT))
    world.budgets.overdrawn = {"team"}
    bounds = []
    reserve = world.budgets.reserve

    async def refuse(tenant, windows, amount, reservation_id, *, past_soft=False):
        bounds.append(amount)
        if past_soft:
            raise BudgetExceeded("spent")
        return await reserve(tenant, windows, amount, reservation_id)

    world.budgets.reserve = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(BudgetExceeded):
        await world.walk.complete(question())
    assert bounds[0] > bounds[1]
    assert world.provider.calls == 0
    assert world.record.reservation_id == ""


async def test_a_hit_is_served_whatever_is_used_up():
    world = World(budgets=(HARD, SOFT))
    world.budgets.overdrawn = {"team"}
    world.cache.exact = hit()
    done = await world.walk.complete(question())
    assert (done.receipt.outcome, done.receipt.budget_notice) == ("exact_hit", "")


def test_the_clock_of_these_tests_is_in_november():
    assert Period.MONTH.label(Clock().now()) == "2023-11"
    assert usd(SOFT.limit) == "$0.5000"
