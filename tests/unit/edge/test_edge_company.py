"""Identical requests at the same time: one generation, over one edge and over several; leaders that fail, leave or hang."""

import asyncio
from contextlib import aclosing, suppress

import pytest

from services.common.chat import Chat, TextDelta, Tool
from services.common.deadline import remaining, set_remaining
from services.common.errors import (
    AllCandidatesFailed,
    BudgetExceeded,
    DeadlineExceeded,
    MeshError,
    NotReady,
    StreamCut,
    UpstreamRejected,
)
from services.common.money import price
from services.edge.domain import company
from services.edge.domain.budgets import Budget, Period
from services.edge.domain.ports import CacheControl, Found, Question
from services.edge.domain.trip import Began, Completed, Ended
from tests.unit.edge.fakes import (
    BASELINE,
    CHEAP,
    EMBED_COST,
    ROUTE_COST,
    SOFT,
    USAGE,
    VERIFIER_COST,
    FakeCache,
    FakeLeases,
    World,
    chat,
    hit,
    question,
    text_answer,
)
from tests.waiting import until

KEY = b"k" * 32
both = pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])


class Cache(FakeCache):
    """Several worlds may share it; what was stored is found."""

    def __init__(self) -> None:
        super().__init__()
        self.exact = Found(exact_key=KEY, namespace_version=1)

    async def store(self, *args) -> str:
        entry_id = await super().store(*args)
        self.exact = hit(exact_key=KEY)
        return entry_id


def world(**options) -> World:
    return World(**({"cache": Cache()} | options))


async def ask(one: World, asked: Question | None = None, *, streaming: bool = False) -> Completed:
    """The answer by either method; that of a stream put together from what was streamed."""
    asked = asked or question()
    if not streaming:
        return await one.walk.complete(asked)
    text, began, ended = "", 0, None
    async with aclosing(one.walk.stream(asked)) as events:
        async for event in events:
            match event:
                case Began():
                    assert not text
                    began += 1
                case Ended():
                    ended = event
                case TextDelta(piece):
                    text += piece
    assert began == 1
    assert ended is not None
    return Completed(text_answer(text, ended.finish_reason), ended.usage, ended.receipt)


def many(one: World, count: int, *, streaming: bool = False) -> list[asyncio.Task[Completed]]:
    return [asyncio.create_task(ask(one, streaming=streaming)) for _ in range(count)]


async def all_aboard(one: World, lookups: int) -> None:
    """Until so many have looked up and the model is at work."""
    await until(lambda: one.cache.calls >= lookups and bool(one.provider.calls))


def outcomes(one: World) -> dict[str, int]:
    found: dict[str, int] = {}
    for record in one.spool.records:
        found[record.outcome] = found.get(record.outcome, 0) + 1
    return found


def check_bills(one: World) -> None:
    for record in one.spool.records:
        assert record.bill.identity_holds
        if record.outcome == "coalesced":
            assert record.bill.actual == record.bill.overhead
            assert record.bill.savings.cache == record.bill.baseline == price(BASELINE, USAGE)
            assert record.usage == USAGE
            assert (record.model, record.tier) == ("gpt-4o-mini", "medium")


@pytest.mark.parametrize("streams", [0, 500, 1000])
async def test_a_thousand_identical_requests_cost_one_generation(streams):
    one = world(budgeted=True)
    one.provider.hangs = True
    tasks = many(one, 1000 - streams) + many(one, streams, streaming=True)
    await all_aboard(one, 1001)  # and the leader's second
    one.provider.hang.set()
    answers = await asyncio.gather(*tasks)
    assert {answer.answer for answer in answers} == {text_answer()}
    assert one.provider.calls == one.embedder.calls == one.router.calls == len(one.budgets.reserved) == 1
    assert outcomes(one) == {"miss": 1, "coalesced": 999}
    check_bills(one)
    spent = price(CHEAP, USAGE) + EMBED_COST + VERIFIER_COST + ROUTE_COST
    assert sum(record.bill.actual for record in one.spool.records) == spent
    assert sorted(answer.receipt.outcome for answer in answers)[:999] == ["coalesced"] * 999
    assert len(one.cache.stored) == 1


@both
async def test_a_single_miss_costs_one_lease_and_is_what_it_was(streaming):
    one = world()
    done = await ask(one, streaming=streaming)
    assert (done.answer, done.receipt.outcome, done.receipt.entry_id) == (text_answer(), "miss", "new-entry")
    assert one.leases.calls == 1
    await one.walk.close()
    assert not one.leases.held
    assert done.receipt.bill.actual == price(CHEAP, USAGE) + EMBED_COST + VERIFIER_COST + ROUTE_COST


async def test_a_follower_of_a_stream_gets_the_pieces_as_they_come():
    one = world()
    one.provider.hangs = True
    leader, follower = one.walk.stream(question()), one.walk.stream(question())
    for events in (leader, follower):
        assert isinstance(await anext(events), Began)
        assert await anext(events) == TextDelta("Ye")
    one.provider.hang.set()
    for events, outcome in ((leader, "miss"), (follower, "coalesced")):
        assert await anext(events) == TextDelta("s.")
        ended = await anext(events)
        assert isinstance(ended, Ended)
        assert ended.receipt.outcome == outcome
        await events.aclose()


async def test_who_missed_before_the_answer_was_stored_and_arrives_after_shares_it():
    one = world()
    missed, go_on = asyncio.Event(), asyncio.Event()
    lookup = one.cache.lookup

    async def slowly(asked, vector):
        found = await lookup(asked, vector)
        if asked.request_id == "slow":
            missed.set()
            await go_on.wait()
        return found

    one.cache.lookup = slowly  # type: ignore[method-assign]
    slow = asyncio.create_task(one.walk.complete(Question("acme", "slow", chat())))
    await missed.wait()
    await ask(one)
    go_on.set()
    assert (await slow).receipt.outcome == "coalesced"
    assert one.provider.calls == 1


@pytest.mark.parametrize(
    ("asked", "rules"),
    [
        (question(control=CacheControl(bypass=True)), {}),
        (question(control=CacheControl(no_store=True)), {}),
        (question(control=CacheControl(max_age_s=0)), {}),
        (question(temperature=1.5), {}),
        (question(), {"per_user": True}),
        (question(), {"exact": False}),
        (question(), {"canary_share": 1.0}),
    ],
    ids=["bypass", "no store", "no older than now", "too hot", "nobody's own", "no exact answers", "canary"],
)
@both
async def test_what_the_cache_may_not_share_is_not_shared(asked, rules, streaming):
    one = world(**rules)
    one.cache.semantic = Found(exact_key=KEY)
    one.provider.hangs = True
    tasks = [asyncio.create_task(ask(one, asked, streaming=streaming)) for _ in range(3)]
    await until(lambda: one.provider.calls == 3)
    one.provider.hang.set()
    assert "coalesced" not in {done.receipt.outcome for done in await asyncio.gather(*tasks)}
    assert one.leases.calls == 0


async def test_answers_that_may_call_tools_are_shared_where_they_may_be_stored():
    with_tools = Chat(chat().messages, tools=(Tool("find"),))
    for stored, generations in ((False, 2), (True, 1)):
        one = world(store_tool_calls=stored)
        one.provider.hangs = True
        asked = Question("acme", "r-1", with_tools)
        tasks = [asyncio.create_task(ask(one, asked)) for _ in range(2)]
        await until(lambda one=one, n=generations: one.provider.calls == n and one.cache.calls >= 3)
        one.provider.hang.set()
        await asyncio.gather(*tasks)
        assert one.provider.calls == generations


@both
async def test_when_leases_cannot_be_asked_an_edge_still_shares_its_own(streaming):
    one = world()
    one.leases.error = NotReady("redis")
    one.provider.hangs = True
    tasks = many(one, 10, streaming=streaming)
    await all_aboard(one, 11)
    one.provider.hang.set()
    answers = await asyncio.gather(*tasks)
    assert outcomes(one) == {"miss": 1, "coalesced": 9}
    assert all(not answer.receipt.degraded for answer in answers)
    assert one.degraded == [("leases", "NOT_READY")]


@both
async def test_without_the_cache_nothing_is_shared_and_all_are_answered(streaming):
    one = world()
    one.down("cache")
    answers = await asyncio.gather(*many(one, 5, streaming=streaming))
    assert outcomes(one) == {"miss": 5}
    assert {answer.receipt.degraded for answer in answers} == {("cache",)}


# Leaders that fail.


@both
async def test_a_leader_that_fails_before_the_first_token_is_replaced_by_a_follower(streaming):
    one = world(budgeted=True)
    one.provider.hangs = True
    one.provider.script = [((), AllCandidatesFailed("tried", metadata={"wasted_nanousd": "77"})), (("Ye", "s."), None)]
    tasks = many(one, 5, streaming=streaming)
    await until(lambda: one.cache.calls == 6)
    one.provider.hang.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], AllCandidatesFailed)
    assert [r.answer for r in results[1:] if isinstance(r, Completed)] == [text_answer()] * 4
    assert one.provider.calls == 2
    assert one.embedder.calls == 1
    assert outcomes(one) == {"error": 1, "miss": 1, "coalesced": 3}
    check_bills(one)
    assert [r.bill.actual for r in one.spool.records if r.outcome == "error"] == [
        77 + EMBED_COST + VERIFIER_COST + ROUTE_COST
    ]


@both
async def test_when_the_leaders_budget_is_used_up_the_others_ask_on_their_own(streaming):
    one = world(budgets=(Budget("each", 10**9, Period.DAY, user="*"),))
    reserve, aboard = one.budgets.reserve, asyncio.Event()

    async def reserve_or_refuse(tenant, windows, amount, reservation_id):
        await aboard.wait()
        if windows[0].values == ("ann",):
            raise BudgetExceeded("ann's is used up")
        return await reserve(tenant, windows, amount, reservation_id)

    one.budgets.reserve = reserve_or_refuse  # type: ignore[method-assign,assignment]
    users = ("ann", "bob", "ann", "cy")
    tasks = [asyncio.create_task(ask(one, question(user=user), streaming=streaming)) for user in users]
    await until(lambda: one.cache.calls >= 5)
    aboard.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, Completed) for result in results] == [False, True, False, True]
    assert outcomes(one) == {"error": 2, "miss": 2}
    check_bills(one)


@both
async def test_followers_hear_that_a_soft_budget_chose_the_tier(streaming):
    one = world(budgets=(SOFT,))
    one.budgets.overdrawn = {SOFT.name}
    one.provider.hangs = True
    tasks = many(one, 3, streaming=streaming)
    await all_aboard(one, 4)
    one.provider.hang.set()
    answers = await asyncio.gather(*tasks)
    assert outcomes(one) == {"miss": 1, "coalesced": 2}
    assert {answer.receipt.budget_notice for answer in answers} == {answers[0].receipt.budget_notice} != {""}
    assert one.cache.stored == []


@both
async def test_when_the_next_leader_fails_too_everybody_gets_the_error(streaming):
    one = world()
    one.provider.hangs = True
    one.provider.error = AllCandidatesFailed("tried")
    tasks = many(one, 5, streaming=streaming)
    one.provider.hang.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [AllCandidatesFailed] * 5
    assert one.provider.calls == 2
    assert outcomes(one) == {"error": 5}
    assert sum(record.bill.actual > 0 for record in one.spool.records) == 2


@both
async def test_an_error_that_another_attempt_cannot_help_is_everybodys(streaming):
    one = world()
    one.provider.error = error = UpstreamRejected("too odd")
    results = await asyncio.gather(*many(one, 4, streaming=streaming), return_exceptions=True)
    assert [type(result) for result in results] == [type(error)] * 4
    assert one.provider.calls == 1


async def test_a_bug_is_the_leaders_own_and_an_internal_error_for_the_others():
    one = world()
    one.provider.error = RuntimeError("bug")  # type: ignore[assignment]
    results = await asyncio.gather(*many(one, 3), return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError, MeshError, MeshError]
    assert one.provider.calls == 1


@pytest.mark.parametrize(("second", "finished"), [(("Yes.",), True), (("N", "o."), False), (("Y",), False)])
async def test_after_the_first_token_a_follower_goes_on_with_the_same_text_only(second, finished):
    one = world()
    one.provider.hangs = True
    one.provider.script = [(("Ye", "s."), StreamCut("broke off")), (second, None)]
    tasks = many(one, 4, streaming=True)
    whole = asyncio.create_task(ask(one))  # who was given nothing yet minds no other words
    await until(lambda: one.cache.calls == 6)
    one.provider.hang.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], StreamCut)
    for result in results[1:]:
        if finished:
            assert isinstance(result, Completed)
            assert result.answer == text_answer()
        else:
            assert isinstance(result, StreamCut)
    assert (await whole).answer == text_answer("".join(second))
    assert one.provider.calls == 2
    assert not any(record.bill.actual for record in one.spool.records if record.outcome == "coalesced")


# Callers who leave.


@both
async def test_a_leader_whose_caller_leaves_goes_on_for_its_followers(streaming):
    one = world()
    one.provider.hangs = True
    leader, *followers = many(one, 3, streaming=streaming)
    await all_aboard(one, 4)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    one.provider.hang.set()
    for done in await asyncio.gather(*followers):
        assert (done.answer, done.receipt.outcome) == (text_answer(), "coalesced")
    assert one.provider.calls == 1
    # It was made, and is paid for, on the behalf of who asked first.
    assert outcomes(one) == {"miss": 1, "coalesced": 2}


@both
async def test_a_follower_that_leaves_hurts_nobody(streaming):
    one = world()
    one.provider.hangs = True
    leader, follower = many(one, 2, streaming=streaming)
    await all_aboard(one, 3)
    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower
    one.provider.hang.set()
    assert (await leader).receipt.outcome == "miss"
    assert [(r.outcome, r.error, r.bill.actual > 0) for r in one.spool.records] == [
        ("error", "CANCELLED", False), ("miss", "", True),
    ]  # fmt: skip


@both
async def test_when_the_last_one_leaves_the_model_is_stopped_and_what_it_cost_is_on_record(streaming):
    one = world(budgeted=True)
    one.provider.hangs = True
    tasks = many(one, 3, streaming=streaming)
    await all_aboard(one, 4)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await until(lambda: len(one.spool.records) == 3)
    assert outcomes(one) == {"error": 3}
    assert {record.error for record in one.spool.records} == {"CANCELLED"}
    (paid,) = (record for record in one.spool.records if record.bill.actual)
    assert [item.model for item in paid.bill.items if item.component == "provider"] == ["gpt-4o-mini"]
    await until(lambda: not one.leases.held)
    one.provider.hangs = False
    assert (await ask(one)).receipt.outcome == "miss"


@both
async def test_a_deadline_that_passes_ends_the_wait_and_is_named(streaming):
    one = world()
    one.provider.hangs = True

    async def hurried() -> Completed:
        set_remaining(0.2)
        return await ask(one, streaming=streaming)

    with pytest.raises(DeadlineExceeded):
        await asyncio.create_task(hurried())
    await until(lambda: bool(one.spool.records))
    assert (one.record.outcome, one.record.error) == ("error", "DEADLINE_EXCEEDED")
    assert one.record.bill.actual > EMBED_COST + VERIFIER_COST + ROUTE_COST


async def test_a_leaders_deadline_is_not_its_followers():
    one = world()
    one.provider.hangs = True

    async def hurried() -> Completed:
        set_remaining(0.2)
        return await ask(one)

    leader = asyncio.create_task(hurried())
    await until(lambda: one.cache.calls == 2)
    follower = asyncio.create_task(ask(one))
    with pytest.raises(DeadlineExceeded):
        await leader
    one.provider.hang.set()
    assert (await follower).receipt.outcome == "coalesced"


# A stored answer after all.


@both
async def test_when_the_leader_finds_a_paraphrase_the_others_look_for_themselves(streaming):
    one = world()
    searching, found = asyncio.Event(), asyncio.Event()
    lookup = one.cache.lookup

    async def search(asked, vector):
        if vector is None:
            return await lookup(asked, vector)
        searching.set()
        await found.wait()
        one.cache.exact = hit(semantic=True, alias=True, exact_key=KEY)
        return hit(semantic=True, exact_key=KEY)

    one.cache.lookup = search  # type: ignore[method-assign]
    tasks = many(one, 5, streaming=streaming)
    await searching.wait()
    await until(lambda: one.cache.calls == 5)
    found.set()
    answers = await asyncio.gather(*tasks)
    assert [done.receipt.outcome for done in answers] == ["semantic_hit"] * 5
    assert [done.receipt.alias for done in answers] == [False, True, True, True, True]
    assert one.provider.calls == one.leases.calls == 0
    assert one.embedder.calls == 1
    assert outcomes(one) == {"semantic_hit": 5}


# Several edges.


def replicas(count: int, **rules) -> list[World]:
    cache, leases = Cache(), FakeLeases()
    return [world(cache=cache, leases=leases, **rules) for _ in range(count)]


@pytest.mark.parametrize("streams", [0, 50, 100])
async def test_two_hundred_identical_requests_over_two_edges_cost_one_generation(streams):
    edges = replicas(2)
    for edge in edges:
        edge.provider.hangs = True
    tasks = [t for edge in edges for t in many(edge, 100 - streams) + many(edge, streams, streaming=True)]
    await until(lambda: edges[0].cache.calls >= 202 and sum(edge.provider.calls for edge in edges) == 1)
    for edge in edges:
        edge.provider.hang.set()
    answers = await asyncio.gather(*tasks)
    assert {answer.answer for answer in answers} == {text_answer()}
    assert sum(edge.provider.calls for edge in edges) == 1
    counts = sorted((outcomes(edge) for edge in edges), key=len)
    assert counts == [{"coalesced": 100}, {"miss": 1, "coalesced": 99}]
    for edge in edges:
        check_bills(edge)


async def test_a_follower_on_another_edge_gets_the_pieces_as_they_come():
    here, there = replicas(2)
    here.provider.hangs = True
    leader, follower = here.walk.stream(question()), there.walk.stream(question())
    assert isinstance(await anext(leader), Began)
    assert await anext(leader) == TextDelta("Ye")
    assert isinstance(await anext(follower), Began)
    assert await anext(follower) == TextDelta("Ye")
    here.provider.hang.set()
    assert await anext(follower) == TextDelta("s.")
    ended = await anext(follower)
    assert isinstance(ended, Ended)
    assert (ended.receipt.outcome, ended.receipt.model, ended.receipt.tier) == ("coalesced", "gpt-4o-mini", "medium")
    for events in (leader, follower):
        async for _ in events:
            pass
    assert there.provider.calls == 0


async def test_an_answer_that_is_not_stored_ends_all_who_follow_and_nobody_later():
    here, there = replicas(2)
    for edge in (here, there):
        edge.cache.store_error = NotReady("full")
    here.provider.hangs = True
    leader = asyncio.create_task(ask(here, streaming=True))
    await until(lambda: bool(here.provider.calls))
    follower = asyncio.create_task(ask(there, streaming=True))
    await until(lambda: bool(here.leases.followers))
    here.provider.hang.set()
    assert [(await task).receipt.outcome for task in (leader, follower)] == ["miss", "coalesced"]
    assert (await ask(there)).receipt.outcome == "miss"


@pytest.mark.parametrize(("second", "finished"), [(("Y", "es."), True), (("No.",), False)])
async def test_a_leader_that_is_gone_is_replaced_by_another_edge(second, finished):
    here, there = replicas(2)
    here.provider.hangs = there.provider.hangs = True
    there.provider.script = [(second, None)]
    leader = asyncio.create_task(ask(here, streaming=True))
    await until(lambda: bool(here.provider.calls))
    follower = there.walk.stream(question())
    waiting = asyncio.create_task(ask(there))
    assert isinstance(await anext(follower), Began)
    assert await anext(follower) == TextDelta("Ye")
    there.leases.expire(KEY)
    await until(lambda: bool(there.provider.calls))
    there.provider.hang.set()
    if finished:
        rest = [event async for event in follower]
        assert rest[:-1] == [TextDelta("s.")]
        assert rest[-1].receipt.outcome == "miss"
        assert (await waiting).receipt.outcome == "coalesced"
    else:
        with pytest.raises(StreamCut):
            await anext(follower)
        assert (await waiting).answer == text_answer("No.")
    # The slow one was not dead: it ends well, for its own caller, and nobody else got a word of it.
    here.provider.hang.set()
    assert (await leader).answer == text_answer()
    said = [batch for batch in there.leases.published[2] if isinstance(batch, tuple)]
    assert [delta.text for batch in said for delta in batch if isinstance(delta, TextDelta)] == list(second)
    assert (here.provider.calls, there.provider.calls) == (1, 1)


async def test_leaders_that_are_lost_again_and_again_are_not_waited_for_for_ever():
    here, there = replicas(2)
    lost = 0

    async def vanish(asked, key):
        nonlocal lost
        lost += 1
        return
        yield

    await here.leases.acquire(question(), KEY, "somebody")
    there.leases.follow = vanish  # type: ignore[method-assign]
    assert (await ask(there)).receipt.outcome == "miss"
    assert lost == company.LEADERS


async def test_a_leader_without_a_caller_goes_on_while_somebody_follows_elsewhere(monkeypatch):
    monkeypatch.setattr(company, "KEEP_S", 0.01)
    here, there = replicas(2)
    here.provider.hangs = True
    leader = asyncio.create_task(ask(here, streaming=True))
    await until(lambda: bool(here.provider.calls))
    follower = asyncio.create_task(ask(there))
    await until(lambda: bool(there.leases.followers))
    leader.cancel()
    with suppress(asyncio.CancelledError):
        await leader
    await until(lambda: here.leases.calls >= 5)  # it asks from time to time whether anybody follows
    here.provider.hang.set()
    assert (await follower).receipt.outcome == "coalesced"
    assert (here.provider.calls, there.provider.calls) == (1, 0)


async def test_a_leader_without_a_caller_ends_when_nobody_follows_any_more(monkeypatch):
    monkeypatch.setattr(company, "KEEP_S", 0.01)
    here, there = replicas(2)
    here.provider.hangs = True
    leader = asyncio.create_task(ask(here, streaming=True))
    await until(lambda: bool(here.provider.calls))
    follower = asyncio.create_task(ask(there))
    await until(lambda: bool(there.leases.followers))
    for task in (leader, follower):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
    await until(lambda: here.provider.closed and bool(here.spool.records))
    assert here.record.error == "CANCELLED"
    assert here.cache.stored == []


async def test_a_model_has_as_long_as_the_most_patient_who_waits_and_no_longer():
    left: list[float | None] = []
    for patiences in ([20.0], [20.0, 80.0]):
        one = world()
        generate = one.provider.generate

        async def noting(*args, generate=generate, **more):
            left.append(remaining(keep=0))
            return await generate(*args, **more)

        one.provider.generate = noting  # type: ignore[method-assign]
        searching, go_on = asyncio.Event(), asyncio.Event()

        async def search(text, searching=searching, go_on=go_on):
            searching.set()
            await go_on.wait()
            raise NotReady("never mind")

        one.embedder.embed = search  # type: ignore[method-assign]

        async def patient(seconds: float, one: World = one) -> Completed:
            set_remaining(seconds)
            return await ask(one)

        tasks = [asyncio.create_task(patient(seconds)) for seconds in patiences]
        await searching.wait()
        count = len(patiences)
        await until(lambda one=one, count=count: one.cache.calls == count)
        go_on.set()
        await asyncio.gather(*tasks)
    alone, together = left
    assert alone is not None
    assert together is not None
    assert alone <= 20 < together <= 80


async def test_a_leader_whose_time_is_up_goes_on_while_somebody_follows_elsewhere():
    here, there = replicas(2)
    here.provider.hangs = True
    timeouts: list[float | None] = []
    acquire = here.leases.acquire

    async def noting(*args, **more):
        timeouts.append(remaining(keep=0))
        return await acquire(*args, **more)

    async def hurried() -> Completed:
        set_remaining(0.3)
        return await ask(here)

    leader = asyncio.create_task(hurried())
    await until(lambda: bool(here.provider.calls))
    here.leases.acquire = noting  # type: ignore[method-assign]
    follower = asyncio.create_task(ask(there))
    with pytest.raises(DeadlineExceeded):
        await leader
    await until(lambda: None in timeouts[1:])  # it is asked whether anybody follows, however late it is
    here.provider.hang.set()
    assert (await follower).receipt.outcome == "coalesced"
    assert (here.provider.calls, there.provider.calls) == (1, 0)
