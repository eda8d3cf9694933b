"""What is learned from fresh answers, what is checked, and who bypasses the cache to be compared with."""

import asyncio

import pytest

from services.common.chat import (
    Answer,
    FinishReason,
    Message,
    ReasoningDelta,
    Role,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
)
from services.common.errors import AllCandidatesFailed, BudgetExceeded, InvalidInput, NotReady
from services.common.money import Rates, Usage, price
from services.edge.domain.background import Background
from services.edge.domain.bill import shadow_bill
from services.edge.domain.ledger import UsageRecord, amounts, packed, row_of, rows_of, sum_rollups
from services.edge.domain.ports import Charge, Found
from services.edge.domain.trip import Began, Ended
from tests.unit.edge.fakes import (
    CHEAP,
    EMBED_COST,
    ROUTE_COST,
    SOFT,
    USAGE,
    VECTOR,
    VERIFIER_COST,
    World,
    hit,
    question,
)
from tests.waiting import until

LESSON = b"lesson"


def shadow(world: World) -> UsageRecord:
    (record,) = (record for record in world.spool.records if record.outcome == "shadow")
    return record


async def test_a_miss_that_had_a_candidate_is_a_lesson():
    world = World()
    world.cache.semantic = Found(reason="veto_numbers", lesson=LESSON)
    await world.walk.complete(question())
    await until(lambda: bool(world.cache.learned))
    assert world.cache.learned == [(LESSON, "Yes.", "miss")]


async def test_a_streamed_miss_is_a_lesson_too():
    world = World()
    world.cache.semantic = Found(lesson=LESSON)
    async for _ in world.walk.stream(question()):
        pass
    await until(lambda: world.cache.learned == [(LESSON, "Yes.", "miss")])


@pytest.mark.parametrize("rules", [{"learn": False}, {}], ids=["the policy says no", "nothing to learn"])
async def test_nothing_is_learned_where_there_is_nothing_to_learn(rules):
    world = World(**rules)
    world.cache.semantic = Found(lesson=LESSON if rules else b"")
    await world.walk.complete(question())
    await world.walk.close()
    assert world.cache.learned == []


async def test_what_was_not_worth_storing_is_not_worth_comparing():
    world = World()
    world.cache.semantic = Found(lesson=LESSON)
    world.down("router")  # the answer of a lesser model
    await world.walk.complete(question())
    await world.walk.close()
    assert world.cache.learned == []


async def test_a_lesson_that_fails_hurts_nobody():
    world = World()
    world.cache.semantic = Found(lesson=LESSON)
    world.cache.learn_error = NotReady("full")
    done = await world.walk.complete(question())
    assert done.receipt.degraded == ()
    await until(lambda: world.degraded == [("learning", "NOT_READY")])


@pytest.mark.parametrize(
    ("semantic", "kind", "rules"),
    [(True, "shadow", {"shadow_share": 0.6}), (False, "staleness", {"stale_share": 0.6})],
)
async def test_a_share_of_hits_is_made_again_and_all_of_that_is_overhead(semantic, kind, rules):
    world = World(compress=True, budgeted=True, **rules)
    found = hit(semantic=semantic, lesson=LESSON)
    if semantic:
        world.cache.semantic = found
    else:
        world.cache.exact = found
    done = await world.walk.complete(question())
    assert done.receipt.checked
    await until(lambda: bool(world.cache.learned))
    assert world.cache.learned == [(LESSON, "Yes.", kind)]
    assert world.checks == [kind]
    assert world.compressor.calls == 0
    assert world.router.vector == (VECTOR if semantic else None)
    record = shadow(world)
    assert record.bill.identity_holds
    assert record.bill.baseline == record.bill.savings.total == 0
    assert record.bill.actual == record.bill.overhead == price(CHEAP, USAGE) + ROUTE_COST
    assert record.usage == USAGE
    assert (record.request_id, record.model, record.error) == ("r-1", "gpt-4o-mini", "")
    assert record.record_id in world.budgets.reserved
    # The hit itself cost what it always costs.
    assert done.receipt.bill.actual == (EMBED_COST + VERIFIER_COST if semantic else 0)


async def test_a_hit_that_the_dice_spare_is_not_checked():
    world = World(shadow_share=0.4)
    world.cache.semantic = hit(semantic=True, lesson=LESSON)
    done = await world.walk.complete(question())
    await world.walk.close()
    assert not done.receipt.checked
    assert world.provider.calls == 0


async def test_an_alias_is_a_semantic_hit_and_checked_like_one():
    world = World(shadow_share=1.0)
    world.cache.exact = hit(semantic=True, alias=True, lesson=LESSON)
    done = await world.walk.complete(question())
    assert (done.receipt.outcome, done.receipt.alias) == ("semantic_hit", True)
    assert world.embedder.calls == 0
    await until(lambda: world.cache.learned == [(LESSON, "Yes.", "shadow")])


@pytest.mark.parametrize(
    ("port", "error"), [("provider", AllCandidatesFailed("x")), ("budgets", BudgetExceeded("spent"))]
)
async def test_a_check_that_fails_is_noted_and_teaches_nothing(port, error):
    world = World(shadow_share=1.0, budgeted=True)
    world.cache.semantic = hit(semantic=True, lesson=LESSON)
    getattr(world, port).error = error
    done = await world.walk.complete(question())
    assert done.receipt.outcome == "semantic_hit"
    await until(lambda: world.degraded == [("checking", error.reason)])
    assert world.cache.learned == []
    assert (shadow(world).error, shadow(world).bill.actual) == (error.reason, ROUTE_COST)


async def test_no_check_is_made_by_the_cheaper_tier_of_a_soft_budget():
    world = World(shadow_share=1.0, budgets=(SOFT,))
    world.budgets.overdrawn = {SOFT.name}
    world.cache.semantic = hit(semantic=True, lesson=LESSON)
    await world.walk.complete(question())
    await until(lambda: len(world.degraded) == 2)
    assert world.degraded == [("budget", "BUDGET_EXCEEDED"), ("checking", "BUDGET_EXCEEDED")]
    assert (world.cache.learned, world.provider.calls) == ([], 0)


async def test_a_check_by_a_model_without_a_price_is_flagged():
    world = World(shadow_share=1.0)
    world.cache.semantic = hit(semantic=True, lesson=LESSON)
    world.provider.charge = Charge(0, Rates(), unpriced=True)
    await world.walk.complete(question())
    await until(lambda: bool(world.cache.learned))
    assert shadow(world).bill.unpriced


def test_a_check_costs_and_is_no_request():
    bill = shadow_bill("m", Charge(5, CHEAP), [])
    record = UsageRecord("a", "r", 0.0, "acme", "default", "", "", "m", "t", "shadow", Usage(), bill)
    rows = rows_of({row_of(record): packed(amounts(record))})
    (row,), _ = sum_rollups("acme", [("2026-01-01T00", rows)], ("outcome",))
    assert (row.key, row["actual"], row["overhead"], row["requests"]) == (("shadow",), 5, 5, 0)


async def test_a_canary_bypasses_the_cache_and_leaves_it_untouched():
    world = World(canary_share=0.6)
    world.cache.exact = hit()
    done = await world.walk.complete(question())
    assert (done.receipt.outcome, done.receipt.cache_reason) == ("bypass", "canary")
    assert world.record.outcome == "canary"
    assert (world.cache.calls, world.embedder.calls, world.provider.calls) == (0, 0, 1)
    assert world.cache.stored == []


async def test_who_is_no_canary_gets_what_is_stored():
    world = World(canary_share=0.5)
    world.cache.exact = hit()
    assert (await world.walk.complete(question())).receipt.outcome == "exact_hit"


async def test_a_stored_answer_is_replayed_with_reasoning_and_tool_calls():
    calls = (ToolCall("c1", "find", '{"order": 1}'), ToolCall("c2", "mail", "{}"))
    message = Message(Role.ASSISTANT, (TextPart("One"), TextPart("moment.")), tool_calls=calls, reasoning="Hm.")
    world = World()
    found = hit()
    world.cache.exact = Found(
        Answer(message, FinishReason.TOOL_CALLS), entry_id="e1", model="gpt-4o-mini", tier="medium", usage=found.usage
    )
    began, *pieces, ended = [event async for event in world.walk.stream(question())]
    assert isinstance(began, Began)
    assert pieces == [
        ReasoningDelta("Hm."),
        TextDelta("One\nmoment."),
        ToolCallDelta(0, "c1", "find", '{"order": 1}'),
        ToolCallDelta(1, "c2", "mail", "{}"),
    ]
    assert isinstance(ended, Ended)
    assert ended.finish_reason is FinishReason.TOOL_CALLS
    assert (ended.usage, ended.receipt.bill.actual) == (USAGE, 0)
    assert ended.receipt.bill.savings.cache == ended.receipt.bill.baseline > 0


async def test_a_callers_word_goes_to_the_cache():
    world = World()
    assert await world.walk.feedback("acme", "default", "r-1", right=False)
    assert not await world.walk.feedback("acme", "default", "unknown", right=True)
    assert world.cache.words == [("acme", "default", "r-1", False), ("acme", "default", "unknown", True)]
    with pytest.raises(InvalidInput):
        await world.walk.feedback("acme", "nowhere", "r-1", right=True)


async def test_background_work_is_bounded_and_what_does_not_fit_is_dropped():
    go_on = asyncio.Event()
    done: list[int] = []

    async def work(number: int) -> None:
        await go_on.wait()
        if number == 1:
            raise NotReady("gone")
        done.append(number)

    failures = []
    background = Background(2, 3, failures.append)
    assert [background.offer(lambda n=n: work(n)) for n in range(7)] == [True] * 5 + [False] * 2
    go_on.set()
    await until(lambda: done == [0, 2, 3, 4])
    assert (background.dropped, background.failed, len(failures)) == (2, 1, 1)
    await background.close()


async def test_background_work_that_hangs_is_ended_at_the_close(monkeypatch):
    monkeypatch.setattr("services.edge.domain.background.CLOSE_S", 0.01)
    background = Background(1, 1, lambda error: None)
    ended = asyncio.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    background.offer(hang)
    background.offer(hang)
    await asyncio.sleep(0)
    await background.close()
    assert ended.is_set()
    assert background.dropped == 1
