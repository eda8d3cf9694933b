import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

import pytest

from services.common.chat import Delta, TextDelta
from services.common.money import price
from services.provider.domain.dispatch import Started, estimated_usage
from services.provider.domain.hedge import HedgeRules, Pace
from services.provider.domain.limits import LocalLimits, Quota, Ticket
from services.provider.domain.plan import LOST, NoAnswer
from services.provider.domain.slots import Slots
from services.provider.domain.vendor import Call, Completion, Reason, VendorError
from tests.unit.provider.test_provider_dispatch import (
    CHAT,
    OK,
    RATES,
    Bench,
    ScriptedVendor,
    Silent,
    error,
    finished,
    outcomes,
)

PROMPT_ONLY = estimated_usage(CHAT, "")
SOON = HedgeRules(floor_s=0.001)


class Slow:
    """Gives nothing until it is let, then answers or fails; notes whether it was cancelled."""

    def __init__(self, ending: VendorError | None = None) -> None:
        self.let = asyncio.Event()
        self.called = asyncio.Event()
        self.cancelled = False
        self.ending = ending

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        self.called.set()
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if self.ending is not None:
            raise self.ending
        for event in OK:
            yield event


class After(ScriptedVendor):
    """Lets something happen when it is called."""

    def __init__(self, act: Callable[[], None], *scripts) -> None:
        super().__init__(*scripts)
        self.act = act

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        self.act()
        async with aclosing(super().call(call)) as events:
            async for event in events:
                yield event


async def test_the_first_to_give_a_piece_wins_and_the_loser_is_cancelled_and_paid() -> None:
    slow, fast = Slow(), ScriptedVendor(OK)
    bench = Bench({"cheap": slow, "dear": fast}, hedging=SOON)
    events = await bench.events("cheap", "dear", hedge=True)
    assert events[:2] == [Started("dear", "vendor-of-dear"), TextDelta("On its ")]
    done = finished(events)
    assert outcomes(done) == [("cheap", LOST), ("dear", "ok")]
    assert slow.cancelled
    cost = price(RATES["cheap"], PROMPT_ONLY)
    assert done.wasted == done.attempts[0].cost_nanousd == cost > 0
    assert f"lost {cost}" in bench.watch.notes
    assert bench.breaker("cheap").open_for_s == 0


async def test_the_losers_slot_is_free_while_the_winner_still_writes() -> None:
    bench = Bench({"cheap": Slow(), "dear": ScriptedVendor(OK)}, hedging=SOON, slots=Slots(1, 0, 1.0))
    async with aclosing(bench.dispatcher.answer(bench.order("cheap", "dear", hedge=True))) as events:
        assert await anext(events) == Started("dear", "vendor-of-dear")
        assert await bench.slots.acquire()


async def test_a_quick_candidate_is_not_hedged() -> None:
    dear = ScriptedVendor(OK)
    bench = Bench({"cheap": ScriptedVendor(OK), "dear": dear}, hedging=HedgeRules(floor_s=60))
    assert outcomes(finished(await bench.events("cheap", "dear", hedge=True))) == [("cheap", "ok")]
    assert dear.calls == []


async def test_nothing_is_hedged_unless_the_request_allows_it() -> None:
    dear = ScriptedVendor(OK)
    bench = Bench({"cheap": Silent(), "dear": dear}, hedging=SOON, timeout_s=0.05)
    assert outcomes(finished(await bench.events("cheap", "dear")))[0] == ("cheap", "UPSTREAM_UNAVAILABLE")


async def test_the_first_candidate_may_still_win() -> None:
    slow = Slow()
    stuck = Slow()
    bench = Bench({"cheap": slow, "dear": stuck}, hedging=SOON)
    answering = asyncio.create_task(bench.events("cheap", "dear", hedge=True))
    await stuck.called.wait()
    slow.let.set()
    assert outcomes(finished(await answering)) == [("dear", LOST), ("cheap", "ok")]
    assert stuck.cancelled


async def test_when_one_of_both_fails_the_other_answers() -> None:
    slow = Slow(error(Reason.UNAVAILABLE))
    other = Slow()
    bench = Bench({"cheap": slow, "dear": other}, hedging=SOON)
    answering = asyncio.create_task(bench.events("cheap", "dear", hedge=True))
    await other.called.wait()
    slow.let.set()
    await asyncio.sleep(0.01)
    other.let.set()
    assert outcomes(finished(await answering)) == [("cheap", "UPSTREAM_UNAVAILABLE"), ("dear", "ok")]


async def test_when_both_fail_the_plan_goes_on() -> None:
    slow = Slow(error(Reason.REJECTED))
    failing = After(slow.let.set, [error(Reason.REJECTED)])
    bench = Bench({"cheap": slow, "dear": failing, "third": ScriptedVendor(OK)}, hedging=SOON)
    done = finished(await bench.events("cheap", "dear", "third", hedge=True))
    assert sorted(outcomes(done)[:2]) == [("cheap", "UPSTREAM_REJECTED"), ("dear", "UPSTREAM_REJECTED")]
    assert outcomes(done)[2] == ("third", "ok")


@pytest.mark.parametrize(("max_attempts", "dear_calls"), [(1, 0), (2, 1)])
async def test_a_hedge_is_an_attempt_of_the_budget(max_attempts: int, dear_calls: int) -> None:
    slow = Slow(error(Reason.UNAVAILABLE))
    dear = After(slow.let.set, [error(Reason.UNAVAILABLE)])
    bench = Bench({"cheap": slow, "dear": dear}, hedging=SOON, max_attempts=max_attempts)
    asyncio.get_running_loop().call_later(0.05, slow.let.set)
    with pytest.raises(NoAnswer) as caught:
        await bench.events("cheap", "dear", hedge=True)
    assert (len(dear.calls), caught.value.attempts) == (dear_calls, max_attempts)


async def test_a_hedge_waits_for_no_slot_and_no_limit() -> None:
    slow = Slow()
    busy, limited = ScriptedVendor(OK), ScriptedVendor(OK)
    bench = Bench(
        {"dear": slow, "cheap": busy, "third": limited},
        hedging=SOON,
        slots=Slots(1, 8, 60.0),  # of "cheap"
        quotas={"third": (Quota("vendor-of-third", "", "tokens", 5),)},
    )
    assert await bench.slots.acquire()
    await bench.events("third")
    asyncio.get_running_loop().call_later(0.05, slow.let.set)
    assert outcomes(finished(await bench.events("dear", "cheap", "third", hedge=True))) == [("dear", "ok")]
    assert (len(busy.calls), len(limited.calls)) == (0, 1)


async def test_a_first_piece_that_comes_while_limits_are_asked_calls_nobody_else() -> None:
    slow, dear = Slow(), ScriptedVendor(OK)
    quota = Quota("vendor-of-dear", "", "requests", 9)
    bench = Bench({"cheap": slow, "dear": dear}, hedging=SOON, quotas={"dear": (quota,)})
    limits = bench.dispatcher._limits

    class Pondering:
        async def take(self, quotas: Sequence[Quota], tokens: int) -> Ticket | float:
            slow.let.set()
            await asyncio.sleep(0.02)
            return await limits.take(quotas, tokens)

        def settle(self, ticket: Ticket, tokens: int) -> None:
            limits.settle(ticket, tokens)

    bench.dispatcher._limits = Pondering()
    assert outcomes(finished(await bench.events("cheap", "dear", hedge=True))) == [("cheap", "ok")]
    assert dear.calls == []


async def test_a_caller_who_leaves_a_race_cancels_both() -> None:
    one, other = Slow(), Slow()
    bench = Bench({"cheap": one, "dear": other}, hedging=SOON, slots=Slots(1, 0, 1.0))
    answering = asyncio.create_task(bench.events("cheap", "dear", hedge=True))
    await other.called.wait()
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)
    assert (one.cancelled, other.cancelled) == (True, True)
    assert sum(note.startswith("cancelled") for note in bench.watch.notes) == 2
    assert await bench.slots.acquire()


async def test_a_lost_probe_leaves_room_for_another() -> None:
    bench = Bench({"cheap": Slow(), "dear": ScriptedVendor(OK)}, hedging=SOON, faults=1)
    entry = bench.breaker("cheap").enter()
    assert entry is not None
    bench.breaker("cheap").failed(entry)
    bench.time.now += 11
    assert outcomes(finished(await bench.events("cheap", "dear", hedge=True)))[0] == ("cheap", LOST)
    assert bench.breaker("cheap").enter() is not None


def test_the_delay_is_a_quantile_of_recent_calls_and_never_below_the_floor() -> None:
    rules, pace = HedgeRules(quantile=0.9, floor_s=0.5), Pace()
    assert rules.delay_s(pace) == 0.5
    for _ in range(7):
        pace.note(9.0)
    assert rules.delay_s(pace) == 0.5  # too few to say
    for tenth in range(1, 101):
        pace.note(tenth / 10)
    assert rules.delay_s(pace) == pytest.approx(9.4)
    for _ in range(64):
        pace.note(0.1)
    assert rules.delay_s(pace) == 0.5


async def test_a_candidate_that_became_slow_is_not_hedged_for_ever() -> None:
    bench = Bench({"cheap": Slow(), "dear": ScriptedVendor(OK)}, hedging=HedgeRules(floor_s=0.001))
    pace = bench.dispatcher._paces[bench.dispatcher._candidates["cheap"][0], True]
    for _ in range(8):
        await bench.events("cheap", "dear", hedge=True)
    assert pace.quantile(0.5) is not None  # what it lost is known to have taken longer


async def test_limits_of_this_process_hold_for_hedges_as_well() -> None:
    quota = Quota("vendor-of-dear", "", "requests", 1)
    bench = Bench({"cheap": Slow(), "dear": ScriptedVendor(OK)}, hedging=SOON, quotas={"dear": (quota,)})
    await bench.events("cheap", "dear", hedge=True)
    assert isinstance(bench.dispatcher._limits, LocalLimits)
    assert isinstance(await bench.dispatcher._limits.take([quota], 1), float)
