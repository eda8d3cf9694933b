"""Batches at the edge: every item ends with one result and one record, whatever happens on the way."""

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import BudgetExceeded, NotReady
from services.common.money import Usage, price
from services.edge.domain.batch import (
    MAX_SUBMISSION_BYTES,
    WINDOW_S,
    BatchModel,
    BatchStatus,
    Mode,
    Plan,
    VendorState,
    choose,
    groups,
)
from tests.unit.edge.batch_world import START, BatchWorld, Behaviour, Life
from tests.unit.edge.fakes import CHEAP, EMBED_COST, HARD, ROUTE_COST, SOFT, USAGE, VERIFIER_COST, hit

FATES = ("answer", "twice", "error", "busy", "missing", "undone", "untold")
OVERHEAD = EMBED_COST + ROUTE_COST + VERIFIER_COST


def reasons(world: BatchWorld, ref) -> list[str]:
    return [outcome.error[0] for _, outcome in sorted(world.store.outcomes[ref].items())]


async def test_misses_go_to_the_vendor_together_and_end_with_answers():
    world = BatchWorld()
    ref = await world.create(3)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert batch.status is BatchStatus.COMPLETED
    assert (batch.tally.answered, batch.tally.cached) == (3, 0)
    (submitted,) = world.vendor.batches
    assert submitted.items == [0, 1, 2]
    outcome = world.store.outcomes[ref][1]
    assert outcome.answer is not None
    assert outcome.answer.message.text == "0: 1"
    assert outcome.receipt.request_id == "b-1-1"


async def test_the_discount_is_a_layer_of_its_own_in_the_waterfall():
    world = BatchWorld()
    ref = await world.create(1)
    await world.to_its_end(ref)
    bill = world.store.outcomes[ref][0].record.bill
    whole = price(CHEAP, USAGE)
    assert bill.savings.batch == whole - whole // 2
    assert bill.savings.routing == bill.baseline - whole
    assert bill.actual == whole // 2 + OVERHEAD
    assert bill.overhead == OVERHEAD
    assert bill.identity_holds


async def test_the_cache_answers_what_it_can_before_anything_is_sent():
    world = BatchWorld()
    world.around.cache.exact = hit()
    ref = await world.create(2)
    batch = await world.to_its_end(ref)
    assert (batch.tally.answered, batch.tally.cached, batch.tally.actual) == (2, 2, 0)
    assert not world.vendor.batches
    assert len(world.ledger.records) == 2


async def test_a_semantic_hit_pays_for_finding_it_alone():
    world = BatchWorld()
    world.around.cache.semantic = hit(semantic=True)
    ref = await world.create(1)
    batch = await world.to_its_end(ref)
    assert batch.tally.cached == 1
    assert batch.tally.actual == EMBED_COST + VERIFIER_COST


async def test_answers_are_stored_in_the_cache_with_what_was_known_of_the_question():
    world = BatchWorld()
    ref = await world.create(2)
    await world.to_its_end(ref)
    stored = world.around.cache.stored
    assert [question.chat.last_user_text for question, *_ in stored] == ["question 0", "question 1"]
    assert all(vector is not None for _, vector, *_ in stored)
    assert world.store.outcomes[ref][0].receipt.entry_id == "new-entry"


async def test_items_are_routed_as_batches():
    world = BatchWorld()
    seen = []
    route = world.around.router.route

    async def spy(question, vector):
        seen.append(question.batch)
        return await route(question, vector)

    world.around.router.route = spy
    await world.to_its_end(await world.create(1))
    assert seen == [True]


async def test_a_batch_waits_for_the_cache_rather_than_paying_for_what_it_has():
    world = BatchWorld()
    world.around.down("cache")
    ref = await world.create(1)
    worker = world.worker(Life())
    await worker.look_after(ref)
    assert ("cache", "NOT_READY") in world.degraded
    assert not world.vendor.batches
    world.around.cache.error = None
    world.around.cache.exact = hit()
    batch = await world.to_its_end(ref)
    assert batch.tally.cached == 1


async def test_patience_with_the_cache_has_an_end():
    world = BatchWorld()
    world.around.down("cache")
    ref = await world.create(1)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert batch.tally.answered == 1
    assert world.clock.at >= START + world.pace.patient_s
    assert world.store.outcomes[ref][0].receipt.degraded == ("cache",)


async def test_an_item_without_a_result_is_sent_once_more_and_then_ends_as_an_error():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour({0: "missing", 1: "missing", 2: "error"}), Behaviour({0: "missing"})]
    ref = await world.create(4)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert [b.items for b in world.vendor.batches] == [[0, 1, 2, 3], [0, 1]]
    assert reasons(world, ref) == ["UPSTREAM_UNAVAILABLE", "", "UPSTREAM_REJECTED", ""]
    assert (batch.status, batch.tally.failed) == (BatchStatus.COMPLETED, 2)


async def test_what_an_expired_batch_left_is_sent_once_more():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour({1: "undone"}, ends=VendorState.EXPIRED), Behaviour()]
    ref = await world.create(2)
    await world.to_its_end(ref)
    world.check(ref)
    assert [b.items for b in world.vendor.batches] == [[0, 1], [1]]


async def test_a_batch_that_the_vendor_lost_is_sent_once_more():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour(ends=VendorState.GONE), Behaviour(ends=VendorState.GONE)]
    ref = await world.create(1)
    await world.to_its_end(ref)
    world.check(ref)
    assert len(world.vendor.batches) == 2
    assert reasons(world, ref) == ["UPSTREAM_UNAVAILABLE"]


async def test_what_was_spent_in_vain_is_on_the_items_record():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour({0: "busy"}), Behaviour({0: "busy"})]
    ref = await world.create(1)
    await world.to_its_end(ref)
    world.check(ref)
    bill = world.store.outcomes[ref][0].record.bill
    assert bill.actual == OVERHEAD + 2 * 5
    assert bill.savings.total == 0


async def test_of_two_results_the_first_answer_counts():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour({0: "twice"})]
    ref = await world.create(1)
    await world.to_its_end(ref)
    world.check(ref)
    answer = world.store.outcomes[ref][0].answer
    assert answer is not None
    assert answer.message.text == "0: 0"


async def test_a_limit_is_waited_for():
    world = BatchWorld()
    world.vendor.submits = ["limited", "limited"]
    ref = await world.create(1)
    await world.to_its_end(ref)
    world.check(ref)
    assert world.clock.at >= START + 14
    assert len(world.vendor.batches) == 1


@pytest.mark.parametrize("trouble", ["lost", "down"])
async def test_a_submission_of_unknown_fate_is_looked_for_before_it_is_sent_again(trouble):
    world = BatchWorld()
    world.vendor.submits = [trouble]
    ref = await world.create(2)
    await world.to_its_end(ref)
    world.check(ref)
    assert len(world.vendor.batches) == 1
    assert world.clock.at >= START + world.pace.send_s + world.pace.settle_s


async def test_polls_that_fail_are_repeated_with_growing_pauses():
    world = BatchWorld()
    world.vendor.polls = ["down"] * 5
    ref = await world.create(1)
    await world.to_its_end(ref)
    world.check(ref)
    assert world.clock.at >= START + 4 + 8 + 16 + 32


async def test_cancel_keeps_what_is_finished():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour({1: "undone"}, steps=100)]
    ref = await world.create(2)
    worker = world.worker(Life())
    await worker.look_after(ref)
    assert len(world.vendor.batches) == 1
    await world.store.cancel(ref)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert batch.status is BatchStatus.CANCELLED
    assert (batch.tally.answered, batch.tally.cancelled) == (1, 1)
    assert reasons(world, ref) == ["", "CANCELLED"]


async def test_cancel_before_anything_was_sent_sends_nothing():
    world = BatchWorld()
    ref = await world.create(3)
    await world.store.cancel(ref)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert batch.tally.cancelled == 3
    assert batch.tally.actual == 0
    assert not world.vendor.batches


async def test_cancel_of_a_submission_of_unknown_fate_waits_for_what_the_vendor_says():
    world = BatchWorld()
    world.vendor.submits = ["lost"]
    world.vendor.behaviours = [Behaviour({1: "undone"}, steps=100)]
    ref = await world.create(2)
    await world.worker(Life()).look_after(ref)
    await world.store.cancel(ref)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert (batch.tally.answered, batch.tally.cancelled) == (1, 1)


async def test_a_window_that_closes_ends_what_has_no_answer():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour({1: "undone"}, steps=100_000)]
    ref = await world.create(2)
    life = Life()
    worker = world.worker(life)
    await worker.look_after(ref)
    world.clock.at = START + WINDOW_S
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert batch.status is BatchStatus.EXPIRED
    assert reasons(world, ref) == ["", "DEADLINE_EXCEEDED"]


async def test_a_vendor_that_never_ends_is_not_waited_for_for_ever():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour(steps=10**9)]

    async def deaf(submission) -> None:
        return None

    world.vendor.cancel = deaf
    ref = await world.create(1)
    await world.worker(Life()).look_after(ref)
    world.clock.at = START + WINDOW_S
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert batch.status is BatchStatus.EXPIRED
    assert world.clock.at <= START + WINDOW_S + world.pace.overtime_s + 3600


async def test_a_model_that_nobody_serves_is_an_error_of_its_items():
    world = BatchWorld()

    async def none():
        return []

    world.vendor.models = none
    ref = await world.create(2)
    await world.to_its_end(ref)
    world.check(ref)
    assert reasons(world, ref) == ["UNKNOWN_MODEL", "UNKNOWN_MODEL"]


async def test_a_spent_budget_ends_the_items():
    world = BatchWorld(budgeted=True)
    world.around.budgets.error = BudgetExceeded("spent")
    ref = await world.create(2)
    await world.to_its_end(ref)
    world.check(ref)
    assert reasons(world, ref) == ["BUDGET_EXCEEDED", "BUDGET_EXCEEDED"]
    assert not world.vendor.batches


async def test_a_budget_is_reserved_once_for_many_items_and_given_back():
    world = BatchWorld(budgeted=True)
    ref = await world.create(3)
    await world.to_its_end(ref)
    world.check(ref)
    assert list(world.around.budgets.reserved) == world.around.budgets.released
    assert len(world.around.budgets.released) == 1
    assert sum(world.around.budgets.reserved.values()) > 3 * price(CHEAP, Usage(0, 4096))


async def test_items_are_settled_in_the_windows_in_which_their_submission_reserved():
    world = BatchWorld(budgets=(HARD, SOFT))
    world.clock.at = (START // 86_400 + 1) * 86_400 - 1.0  # a second before midnight
    before = HARD.period.label(world.clock.at)
    ref = await world.create(2)
    await world.to_its_end(ref)
    world.check(ref)
    assert HARD.period.label(world.clock.at) != before
    for record in world.ledger.records.values():
        assert record.budgets == (f"all:{before}", f"team:{before[:7]}")
        assert record.reservation_id == ""


async def test_a_soft_budget_sends_items_to_the_cheaper_tier_and_says_so():
    world = BatchWorld(budgets=(SOFT,))
    world.around.budgets.overdrawn = {SOFT.name}
    ref = await world.create(3)
    await world.to_its_end(ref)
    (submitted,) = world.vendor.batches
    assert submitted.items == [0, 1, 2]
    for outcome in world.store.outcomes[ref].values():
        assert outcome.receipt.tier == outcome.record.tier == "simple"
        assert "tier simple in place of tier medium" in outcome.receipt.budget_notice
    assert world.around.cache.stored == []
    assert ("budget", "BUDGET_EXCEEDED") in world.degraded
    assert list(world.around.budgets.reserved) == world.around.budgets.released


async def test_items_of_a_vendor_without_a_batch_api_are_run():
    world = BatchWorld(Mode.RUN)
    world.vendor.behaviours = [Behaviour({1: "error", 2: "busy", 3: "missing"}), Behaviour()]
    ref = await world.create(20)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert (batch.tally.answered, batch.tally.failed) == (19, 1)
    assert sorted(world.vendor.ran) == sorted([*range(20), 2, 3])
    assert world.store.outcomes[ref][1].record.bill.actual == OVERHEAD + 3
    assert world.store.outcomes[ref][2].record.bill.overhead == OVERHEAD + 5


async def test_an_engine_that_is_down_is_tried_again_until_the_window_closes():
    world = BatchWorld(Mode.RUN)
    world.vendor.behaviours = [Behaviour({0: "busy"})]
    ref = await world.create(1)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert batch.status is BatchStatus.EXPIRED
    assert len(world.vendor.ran) > 100


async def test_a_batch_in_other_hands_is_left_alone():
    world = BatchWorld()
    ref = await world.create(1)
    other = await world.store.hold(ref, "other", 30.0, world.clock.at)
    assert other is not None
    await world.worker(Life()).look_after(ref)
    assert not world.store.planned[ref]
    world.clock.at += 31
    await world.to_its_end(ref)


async def test_who_was_thought_dead_changes_nothing_any_more():
    world = BatchWorld()
    ref = await world.create(2)
    worker = world.worker(Life())
    models = world.vendor.models

    async def overtaken():
        world.clock.at += world.pace.hold_s + 1
        world.vendor.models = models
        assert await world.live(ref, Life())
        return await models()

    world.vendor.models = overtaken
    await worker.look_after(ref)
    world.check(ref)
    assert len(world.vendor.batches) == 1
    assert len(world.store.submissions[ref]) == 1


async def test_a_namespace_that_is_gone_ends_what_is_under_way_without_storing_it():
    world = BatchWorld()
    ref = await world.create(1, namespace="gone")
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert reasons(world, ref) == ["INVALID_INPUT"]
    assert batch.tally.failed == 1


async def test_checks_of_hits_have_their_records_in_the_spool():
    world = BatchWorld(shadow_share=1.0)
    world.around.cache.semantic = hit(semantic=True, lesson=b"lesson")
    ref = await world.create(1)
    await world.to_its_end(ref)
    assert len(world.ledger.records) == 1


def plan(candidates: tuple[str, ...], size: int) -> Plan:
    return Plan("miss", candidates, "medium", "", 1, 1, size)


def test_items_are_grouped_by_their_candidates_and_cut_to_fit_messages():
    third = MAX_SUBMISSION_BYTES // 3 + 1
    plans = {i: plan(("a",), third) for i in range(5)} | {5: plan(("b",), 1)}
    assert groups(list(plans), plans) == [
        (("a",), (0, 1)),
        (("a",), (2, 3)),
        (("a",), (4,)),
        (("b",), (5,)),
    ]


def test_a_vendor_with_a_batch_api_goes_before_one_without():
    models = [BatchModel("a", "engine", Mode.RUN), BatchModel("a", "vendor", Mode.VENDOR)]
    assert choose(("x", "a"), models) == models[1]
    assert choose(("a",), models[:1]) == models[0]
    assert choose(("x",), models) is None


async def test_an_answer_that_is_twice_in_a_batch_of_many_is_one():
    world = BatchWorld()
    world.vendor.behaviours = [Behaviour(dict.fromkeys(range(0, 100, 3), "twice"))]
    ref = await world.create(100)
    batch = await world.to_its_end(ref)
    world.check(ref)
    assert batch.tally.answered == 100


@settings(max_examples=300, deadline=None)
@given(
    mode=st.sampled_from(Mode),
    size=st.integers(1, 5),
    fates=st.lists(st.dictionaries(st.integers(0, 4), st.sampled_from(FATES)), min_size=1, max_size=3),
    ends=st.sampled_from((VendorState.COMPLETED, VendorState.EXPIRED, VendorState.GONE)),
    steps=st.integers(0, 3),
    submits=st.lists(st.sampled_from(("", "lost", "down", "limited", "refused")), max_size=4),
    polls=st.lists(st.sampled_from(("", "down")), max_size=4),
    deaths=st.lists(st.tuples(st.integers(1, 40), st.sampled_from(("before", "after"))), max_size=6),
    cancel_at=st.none() | st.integers(0, 6),
    hits=st.booleans(),
)
async def test_any_interleaving_gives_each_item_one_result_and_one_record(
    mode, size, fates, ends, steps, submits, polls, deaths, cancel_at, hits
):
    world = BatchWorld(mode)
    world.vendor.behaviours = [Behaviour(fate, steps, ends) for fate in fates]
    world.vendor.submits, world.vendor.polls = list(submits), list(polls)
    if hits:
        lookup = world.around.cache.lookup

        async def some(question, vector):
            return hit() if question.chat.last_user_text == "question 1" else await lookup(question, vector)

        world.around.cache.lookup = some
    ref = await world.create(size)
    for number, (call, when) in enumerate(deaths):
        if number == cancel_at:
            await world.store.cancel(ref)
        life = Life()
        life.ends = {call: when}
        await world.live(ref, life)
    if cancel_at is not None:
        await world.store.cancel(ref)
    batch = await world.to_its_end(ref)
    if not hits or size == 1:
        world.check(ref)
    assert sorted(world.store.outcomes[ref]) == list(range(size))
    assert len(world.ledger.records) == size
    assert sum(record.bill.actual for record in world.ledger.records.values()) == batch.tally.actual
    assert all(record.bill.identity_holds for record in world.ledger.records.values())


async def test_a_store_that_goes_away_is_met_again_later():
    world = BatchWorld()
    ref = await world.create(1)
    work = world.store.work

    async def away(held):
        world.store.work = work
        raise NotReady("redis: ConnectionError")

    world.store.work = away
    await world.to_its_end(ref)
    world.check(ref)
    assert ("batches", "NOT_READY") in world.degraded


async def test_a_cancellation_that_a_store_swallows_ends_the_work_nevertheless():
    world = BatchWorld()
    due, swallowed = world.store.due, asyncio.Event()

    async def swallows(now, at_most):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.set()
        return await due(now, at_most)

    world.store.due = swallows
    task = asyncio.create_task(world.worker(Life()).run())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait_for(task, 5.0)
    assert swallowed.is_set()


async def test_a_worker_that_stops_frees_what_it_holds_at_once():
    world = BatchWorld()
    ref = await world.create(1)
    asked = asyncio.Event()

    async def never():
        asked.set()
        for _ in range(2):  # swallows the first cancellation
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        raise asyncio.CancelledError

    models, world.vendor.models = world.vendor.models, never
    task = asyncio.create_task(world.worker(Life()).run())
    await asked.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    assert world.store.holders[ref][0] == ""
    world.vendor.models = models
    await world.to_its_end(ref)
    world.check(ref)
