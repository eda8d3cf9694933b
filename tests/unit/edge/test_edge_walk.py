"""The walk: the order of its steps, every row of the fault table, and what is written down in each case."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from services.common.chat import FinishReason, TextDelta
from services.common.errors import (
    AllCandidatesFailed,
    BudgetExceeded,
    DeadlineExceeded,
    InvalidInput,
    NotReady,
    StreamCut,
    UnknownModel,
    Violation,
)
from services.common.money import Rates, Usage, price
from services.common.tokens import estimate_chat_tokens, estimate_tokens
from services.edge.domain.budgets import Window
from services.edge.domain.ports import CacheControl, Charge, Embedded, Found, Question, Route, Vector
from services.edge.domain.trip import Began, Completed, Ended
from services.edge.domain.walk import Walk
from tests.unit.edge.fakes import (
    BASELINE,
    CHEAP,
    COMPRESS_COST,
    EMBED_COST,
    ROUTE_COST,
    USAGE,
    VECTOR,
    VERIFIER_COST,
    World,
    hit,
    question,
    text_answer,
)
from tests.waiting import until


async def collect(walk: Walk, asked) -> list:
    async with aclosing(walk.stream(asked)) as events:
        return [event async for event in events]


async def completed(world: World, asked, streaming: bool) -> Completed:
    """The same answer by either method."""
    if not streaming:
        return await world.walk.complete(asked)
    events = await collect(world.walk, asked)
    assert isinstance(events[0], Began)
    assert isinstance(events[-1], Ended)
    text = "".join(event.text for event in events[1:-1])
    return Completed(text_answer(text, events[-1].finish_reason), events[-1].usage, events[-1].receipt)


both = pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])


@both
async def test_an_exact_hit_asks_nobody_but_the_cache(streaming):
    world = World()
    world.cache.exact = hit()
    done = await completed(world, question(), streaming)
    assert done.answer.message.text == "Yes."
    assert done.receipt.outcome == "exact_hit"
    assert (world.cache.calls, world.embedder.calls, world.router.calls, world.provider.calls) == (1, 0, 0, 0)
    assert world.budgets.calls == 0
    assert world.record.bill == done.receipt.bill
    assert world.record.bill.actual == 0
    assert world.record.bill.savings.cache == price(BASELINE, USAGE)
    assert (world.record.model, world.record.tier, world.record.outcome) == ("gpt-4o-mini", "medium", "exact_hit")


@both
async def test_a_semantic_hit_costs_its_embedding_and_its_verdict(streaming):
    world = World()
    world.cache.semantic = hit(semantic=True, input_token_delta=-4)
    done = await completed(world, question(), streaming)
    assert done.receipt.outcome == "semantic_hit"
    assert done.receipt.similarity == 0.93
    assert done.receipt.entry_id == "e1"
    assert done.usage == Usage(996, 100, estimated=True)
    assert done.receipt.bill.actual == done.receipt.bill.overhead == EMBED_COST + VERIFIER_COST
    assert done.receipt.bill.identity_holds
    assert world.embedder.calls == 1
    assert world.provider.calls == world.budgets.calls == 0


@both
async def test_a_miss_is_routed_generated_stored_and_recorded(streaming):
    world = World(budgeted=True)
    done = await completed(world, question(endpoint="faq", user="u1"), streaming)
    assert done.answer == text_answer()
    assert done.receipt.outcome == "miss"
    assert done.receipt.entry_id == "new-entry"
    assert (done.receipt.model, done.receipt.tier, done.receipt.degraded) == ("gpt-4o-mini", "medium", ())
    assert done.receipt.cache_reason == "no_candidate"
    assert done.receipt.route_reason == "short question"
    bill = done.receipt.bill
    assert bill.identity_holds
    assert bill.actual == price(CHEAP, USAGE) + EMBED_COST + VERIFIER_COST + ROUTE_COST
    assert bill.baseline == price(BASELINE, USAGE)
    ((_, vector, answer, usage, model, tier),) = world.cache.stored
    assert (vector, answer, usage, model, tier) == (VECTOR, text_answer(), USAGE, "gpt-4o-mini", "medium")
    assert world.router.vector == VECTOR
    assert world.embedder.calls == 1
    record = world.record
    assert record.bill == bill
    assert (record.tenant, record.endpoint, record.user, record.request_id) == ("acme", "faq", "u1", "r-1")
    assert record.reservation_id == record.record_id
    assert record.record_id in world.budgets.reserved
    assert world.budgets.released == []


@both
@pytest.mark.parametrize("hedge", [False, True])
async def test_a_second_model_beside_a_slow_one_is_the_policys_choice(streaming, hedge):
    world = World(hedge=hedge)
    await completed(world, question(), streaming)
    assert world.provider.hedge is hedge


async def test_the_reservation_covers_the_dearest_candidate_and_the_longest_answer():
    world = World(budgeted=True)
    await world.walk.complete(question())
    (reserved,) = world.budgets.reserved.values()
    assert reserved >= price(BASELINE, Usage(1, 4096))
    # The bound is one because the model is held to it.
    assert world.provider.chats[0].sampling.max_output_tokens == 4096


async def test_a_started_stream_knows_the_model_and_not_yet_the_bill():
    world = World()
    began, *_, ended = await collect(world.walk, question())
    assert (began.receipt.model, began.receipt.outcome, began.receipt.bill) == ("gpt-4o-mini", "miss", None)
    assert ended.receipt.bill is not None
    assert ended.finish_reason is FinishReason.STOP


@both
async def test_without_the_embedder_there_is_no_semantic_lookup(streaming):
    world = World()
    world.down("embedder")
    done = await completed(world, question(), streaming)
    assert done.receipt.degraded == ("embedder",)
    assert world.cache.calls == 1
    assert world.router.vector is None
    ((_, vector, *_),) = world.cache.stored
    assert vector is None
    assert world.degraded == [("embedder", "NOT_READY")]


@both
async def test_without_the_cache_it_goes_on_as_a_miss(streaming):
    world = World()
    world.down("cache")
    done = await completed(world, question(), streaming)
    assert done.receipt.outcome == "miss"
    assert done.receipt.degraded == ("cache",)
    assert world.cache.calls == 1
    assert world.embedder.calls == 0
    assert world.cache.stored == []
    assert done.receipt.bill.identity_holds


async def test_a_cache_that_dies_between_lookup_and_store_costs_the_entry_only():
    world = World()
    world.cache.store_error = NotReady("gone")
    done = await world.walk.complete(question())
    assert done.answer == text_answer()
    assert done.receipt.degraded == ("cache",)
    assert done.receipt.entry_id == ""
    assert world.record.outcome == "miss"


async def test_an_answer_that_the_cache_refuses_is_given_all_the_same():
    world = World()
    world.cache.store_error = InvalidInput(violations=[Violation("answer", "is odd")])
    done = await world.walk.complete(question())
    assert done.answer == text_answer()
    assert done.receipt.entry_id == ""
    assert done.receipt.degraded == ("cache",)


async def test_without_vectors_in_the_cache_it_says_so():
    world = World()
    world.cache.semantic = Found(semantic_unavailable=True)
    done = await world.walk.complete(question())
    assert done.receipt.degraded == ("qdrant",)


@both
async def test_without_the_router_the_policys_default_tier_answers(streaming):
    world = World()
    world.down("router")
    done = await completed(world, question(), streaming)
    assert done.receipt.degraded == ("router",)
    assert done.receipt.tier == "medium"
    assert world.provider.candidates == ("gpt-4o-mini",)


@pytest.mark.parametrize(("named", "expected"), [("gpt-4o:floor", ("gpt-4o",)), ("auto", ("gpt-4o-mini",))])
async def test_without_the_router_a_model_that_was_named_is_taken_at_its_word(named, expected):
    world = World()
    world.down("router")
    await world.walk.complete(question(model=named))
    assert tuple(world.provider.candidates) == expected


@both
async def test_without_the_compressor_the_prompt_goes_as_it_is(streaming):
    world = World(compress=True)
    world.down("compressor")
    asked = question()
    done = await completed(world, asked, streaming)
    assert done.receipt.degraded == ("compressor",)
    assert world.provider.chats == [asked.chat]
    assert done.receipt.bill.savings.compression == 0


@both
async def test_compression_is_credited_with_what_it_removed(streaming):
    world = World(compress=True)
    done = await completed(world, question(), streaming)
    assert world.provider.chats[0].last_user_text == "order?"
    bill = done.receipt.bill
    assert bill.identity_holds
    assert bill.savings.compression == price(CHEAP, Usage(1250, 100)) - price(CHEAP, USAGE)
    assert sum(i.cost for i in bill.items if i.component == "compressor") == COMPRESS_COST
    # A later hit is worth the whole prompt.
    ((_, _, _, usage, _, _),) = world.cache.stored
    assert usage.input_tokens == 1250
    assert usage.estimated


async def test_compression_that_was_not_worth_it_changes_nothing():
    world = World(compress=True)
    world.compressor.applied = False
    asked = question()
    done = await world.walk.complete(asked)
    assert world.provider.chats == [asked.chat]
    assert done.receipt.bill.savings.compression == 0


@pytest.mark.parametrize("name", ["embedder", "cache", "router", "compressor"])
@both
async def test_everything_but_the_provider_may_be_down_at_once(streaming, name):
    world = World(compress=True)
    for other in ("embedder", "cache", "router", "compressor"):
        if other != name:
            world.down(other)
    done = await completed(world, question(), streaming)
    assert done.answer == text_answer()
    assert name not in done.receipt.degraded
    assert len(done.receipt.degraded) >= 2
    assert done.receipt.bill.identity_holds


@both
async def test_when_no_candidate_answers_the_reservation_returns_and_nothing_is_stored(streaming):
    world = World(budgeted=True)
    world.provider.error = AllCandidatesFailed("tried gpt-4o-mini")
    with pytest.raises(AllCandidatesFailed):
        await completed(world, question(), streaming)
    assert world.cache.stored == []
    record = world.record
    assert (record.outcome, record.error) == ("error", "ALL_CANDIDATES_FAILED")
    assert record.bill.actual == record.bill.overhead == EMBED_COST + VERIFIER_COST + ROUTE_COST
    assert record.bill.identity_holds
    assert record.usage == Usage()
    # The overhead is settled with the record, which carries the reservation.
    assert record.reservation_id == record.record_id


@both
async def test_a_failure_that_cost_nothing_releases_its_reservation_at_once(streaming):
    world = World(exact=False, semantic=False, budgeted=True)
    world.down("router")
    world.provider.error = AllCandidatesFailed("nobody")
    with pytest.raises(AllCandidatesFailed):
        await completed(world, question(), streaming)
    assert world.budgets.released == [world.record.record_id]


async def test_a_release_that_fails_leaves_the_real_error():
    world = World(exact=False, semantic=False, budgeted=True)
    world.budgets.release_error = NotReady("redis")
    world.down("router")
    world.provider.error = AllCandidatesFailed("nobody")
    with pytest.raises(AllCandidatesFailed):
        await world.walk.complete(question())


@both
async def test_what_failed_attempts_cost_is_on_record(streaming):
    world = World()
    world.provider.error = AllCandidatesFailed("both timed out", metadata={"wasted_nanousd": "1234"})
    with pytest.raises(AllCandidatesFailed):
        await completed(world, question(), streaming)
    bill = world.record.bill
    assert sum(i.cost for i in bill.items if i.component == "provider") == 1234
    assert bill.identity_holds


@pytest.mark.parametrize("nonsense", ["", "-5", "1e9", "²", "many"])
async def test_a_wasted_cost_that_is_no_number_is_not_believed(nonsense):
    world = World()
    world.provider.error = AllCandidatesFailed("x", metadata={"wasted_nanousd": nonsense})
    with pytest.raises(AllCandidatesFailed):
        await world.walk.complete(question())
    assert all(item.component != "provider" for item in world.record.bill.items)


@both
async def test_a_spent_budget_ends_the_walk_before_a_model_is_asked(streaming):
    world = World(budgeted=True)
    world.budgets.error = BudgetExceeded("spent")
    with pytest.raises(BudgetExceeded):
        await completed(world, question(), streaming)
    assert world.provider.calls == 0
    assert world.record.error == "BUDGET_EXCEEDED"
    assert world.record.reservation_id == ""


async def test_a_spent_budget_still_serves_hits():
    world = World(budgeted=True)
    world.budgets.error = BudgetExceeded("spent")
    world.cache.exact = hit()
    assert (await world.walk.complete(question())).receipt.outcome == "exact_hit"


@both
@pytest.mark.parametrize("control", [CacheControl(bypass=True)])
async def test_bypass_looks_nothing_up(streaming, control):
    world = World()
    world.cache.exact = hit()
    done = await completed(world, question(control=control), streaming)
    assert done.receipt.outcome == "bypass"
    assert world.cache.calls == world.embedder.calls == 0
    assert world.provider.calls == 1


@both
async def test_no_store_stores_nothing(streaming):
    world = World()
    done = await completed(world, question(control=CacheControl(no_store=True)), streaming)
    assert done.receipt.outcome == "miss"
    assert done.receipt.entry_id == ""
    assert world.cache.stored == []


@both
async def test_a_temperature_above_the_policys_is_not_looked_up(streaming):
    world = World(max_temperature=0.7)
    world.cache.exact = hit()
    done = await completed(world, question(temperature=0.8), streaming)
    assert (done.receipt.outcome, done.receipt.cache_reason) == ("bypass", "temperature")
    assert world.cache.calls == 0
    assert world.cache.stored == []


async def test_a_temperature_at_the_policys_limit_is_looked_up():
    world = World(max_temperature=0.7)
    world.cache.exact = hit()
    assert (await world.walk.complete(question(temperature=0.7))).receipt.outcome == "exact_hit"


async def test_a_namespace_without_a_cache_bypasses_and_stores_nothing():
    world = World(exact=False, semantic=False)
    assert (await world.walk.complete(question())).receipt.outcome == "bypass"
    assert world.cache.calls == 0
    assert world.cache.stored == []


async def test_a_namespace_without_exact_answers_still_finds_paraphrases():
    world = World(exact=False)
    world.cache.semantic = hit(semantic=True)
    assert (await world.walk.complete(question())).receipt.outcome == "semantic_hit"
    assert world.cache.calls == 1


async def test_a_namespace_without_paraphrases_never_embeds():
    world = World(semantic=False)
    await world.walk.complete(question())
    assert world.embedder.calls == 0
    ((_, vector, *_),) = world.cache.stored
    assert vector is None


async def test_a_text_too_long_for_the_embedder_is_answered_without_it():
    world = World()
    done = await world.walk.complete(question("ñ" * 40_000))
    assert world.embedder.calls == 0
    assert done.receipt.degraded == ()
    assert done.receipt.outcome == "miss"


async def test_a_namespace_that_the_policy_lacks_is_bad_input():
    world = World()
    with pytest.raises(InvalidInput) as caught:
        await world.walk.complete(question(namespace="nowhere"))
    assert [v.field for v in caught.value.violations] == ["namespace"]
    assert world.spool.records == []


@both
async def test_an_unknown_model_is_the_callers_error_and_on_record(streaming):
    world = World()
    world.router.error = UnknownModel("no model is named x")
    with pytest.raises(UnknownModel):
        await completed(world, question(model="x"), streaming)
    assert world.record.error == "UNKNOWN_MODEL"
    assert world.provider.calls == 0


@both
async def test_an_empty_answer_is_an_answer(streaming):
    world = World()
    world.provider.answer = text_answer("")
    if streaming:
        world.provider.cut_after = None
    done = await world.walk.complete(question())
    assert done.answer.message.text == ""
    assert done.receipt.bill is not None


async def test_an_unpriced_answer_is_flagged_and_saves_nothing():
    world = World()
    world.provider.charge = Charge(0, Rates(), unpriced=True)
    done = await world.walk.complete(question())
    assert done.receipt.bill.unpriced
    assert done.receipt.bill.savings.total == 0
    assert world.record.bill.unpriced


@pytest.mark.parametrize("error", [StreamCut("gone"), None], ids=["error", "silent end"])
async def test_a_cut_stream_is_never_finished_or_stored_and_its_cost_is_estimated(error):
    world = World(budgeted=True)
    world.provider.error, world.provider.cut_after = error, 1
    seen = []
    asked = question()

    async def read() -> None:
        async with aclosing(world.walk.stream(asked)) as events:
            async for event in events:
                seen.append(event)

    with pytest.raises(StreamCut):
        await read()
    assert [type(e) for e in seen] == [Began, TextDelta]
    assert world.cache.stored == []
    record = world.record
    streamed = Usage(estimate_chat_tokens(asked.chat), estimate_tokens("Ye"))
    assert sum(i.cost for i in record.bill.items if i.component == "provider") == price(CHEAP, streamed) > 0
    assert (record.outcome, record.error, record.model) == ("error", "STREAM_CUT", "gpt-4o-mini")
    assert record.bill.identity_holds
    assert record.reservation_id


@pytest.mark.parametrize("kind", [StreamCut, DeadlineExceeded])
async def test_a_cut_that_the_provider_priced_is_counted_once(kind):
    world = World()
    world.provider.error, world.provider.cut_after = kind("x", metadata={"wasted_nanousd": "555"}), 1
    with pytest.raises(kind):
        await collect(world.walk, question())
    assert sum(i.cost for i in world.record.bill.items if i.component == "provider") == 555


async def test_a_caller_who_leaves_between_two_pieces_pays_for_what_was_streamed():
    world = World(budgeted=True)
    events = world.walk.stream(question())
    assert isinstance(await anext(events), Began)
    assert await anext(events) == TextDelta("Ye")
    await events.aclose()
    assert world.provider.closed
    record = world.record
    assert (record.outcome, record.error, record.model) == ("error", "CANCELLED", "gpt-4o-mini")
    assert sum(i.cost for i in record.bill.items if i.component == "provider") > 0
    assert record.bill.identity_holds
    assert world.cache.stored == []


async def test_a_caller_who_leaves_while_the_model_thinks_pays_for_what_was_streamed():
    world = World()
    world.provider.hangs = True
    got_piece = asyncio.Event()

    async def read():
        async with aclosing(world.walk.stream(question())) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    got_piece.set()

    task = asyncio.create_task(read())
    await got_piece.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.provider.closed
    assert world.record.error == "CANCELLED"
    assert sum(i.cost for i in world.record.bill.items if i.component == "provider") > 0
    assert world.cache.stored == []


async def test_a_cancelled_answer_pays_for_its_prompt_and_settles_its_reservation():
    world = World(exact=False, semantic=False, budgeted=True)
    world.provider.hangs = True
    task = asyncio.create_task(world.walk.complete(question()))
    await until(lambda: bool(world.provider.calls))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    record = world.record
    assert record.error == "CANCELLED"
    assert record.reservation_id == record.record_id
    assert [item.cost for item in record.bill.items if item.component == "provider"] > [0]
    assert world.budgets.settled == {record.record_id: record.bill.actual}
    assert world.cache.stored == []


async def test_who_leaves_while_money_is_reserved_gets_the_reservation_back():
    world = World(exact=False, semantic=False, budgeted=True)
    world.down("router")
    reserving = asyncio.Event()

    async def reserve(tenant: str, windows: Sequence[Window], amount: int, reservation_id: str) -> None:
        reserving.set()
        await asyncio.Event().wait()

    world.budgets.reserve = reserve  # type: ignore[method-assign]
    task = asyncio.create_task(world.walk.complete(question()))
    await reserving.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.budgets.released == [world.record.record_id]


async def test_a_cancelled_answer_of_a_model_without_a_price_is_flagged():
    world = World(exact=False, semantic=False)
    world.provider.hangs = True

    async def route(question: Question, vector: Vector | None) -> Route:
        return Route(("brand-new",), "", "pinned")

    world.router.route = route  # type: ignore[method-assign]
    task = asyncio.create_task(world.walk.complete(question()))
    await until(lambda: bool(world.provider.calls))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.record.bill.unpriced


@pytest.mark.parametrize(
    ("model", "candidates"),
    [
        ("auto", ("gpt-4o-mini",)),
        ("", ("gpt-4o-mini",)),
        ("reasoning", ("gpt-4o",)),
        ("simple:floor", ("small",)),
        ("gpt-4o:nitro", ("gpt-4o",)),
    ],
)
async def test_without_the_router_a_pin_is_kept_and_nothing_is_stored(model, candidates):
    world = World()
    world.down("router")
    await world.walk.complete(question(model=model))
    assert world.provider.candidates == candidates
    assert world.cache.stored == []


@pytest.mark.parametrize("model", ["gpt-99", "llama3:8b", "reasoning:fast"])
async def test_without_the_router_an_unknown_model_is_still_an_error(model):
    world = World()
    world.down("router")
    with pytest.raises(UnknownModel):
        await world.walk.complete(question(model=model))
    assert world.provider.calls == 0


async def test_a_text_that_was_embedded_in_part_is_neither_compared_nor_stored_with_its_vector():
    world = World()

    async def embed(text: str) -> Embedded:
        return Embedded(VECTOR, EMBED_COST, truncated=True)

    world.embedder.embed = embed  # type: ignore[method-assign]
    done = await world.walk.complete(question())
    assert done.receipt.cache_reason == "too_long_to_compare"
    assert world.cache.calls == 1
    (stored,) = world.cache.stored
    assert stored[1] is None


async def test_an_answer_is_stored_for_the_namespaces_version_at_its_lookup():
    world = World()
    world.cache.exact = Found(namespace_version=7)
    world.cache.semantic = Found(namespace_version=7)
    await world.walk.complete(question())
    assert world.cache.version == 7


async def test_an_unexpected_error_is_on_record_as_internal():
    world = World()
    world.provider.error = RuntimeError("bug")  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        await world.walk.complete(question())
    assert world.record.error == "INTERNAL"


async def test_a_repeated_request_id_makes_a_record_each_time():
    world = World()
    for _ in range(3):
        await world.walk.complete(question())
    assert {record.request_id for record in world.spool.records} == {"r-1"}
    assert len({record.record_id for record in world.spool.records}) == 3
