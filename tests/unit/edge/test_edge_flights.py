"""Flights: every follower gets exactly the leader's pieces, in order, once; and what happens when an answer is started over."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.chat import AnswerBuilder, Delta, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from services.common.errors import InvalidInput, MeshError, NotReady, RateLimited, StreamCut, Violation
from services.common.money import Usage
from services.edge.domain.flights import Delivered, Flight, Flights, Landing, Seat, StartedOver
from services.edge.domain.trip import Completed, Receipt, Trip
from tests.unit.edge.fakes import namespace_rules, question, text_answer

KEY = b"k" * 32
LANDING = Landing(text_answer(), Usage(1, 1), "m", "t", "e")
OWN = Completed(text_answer(), Usage(1, 1), Receipt("r-1", "miss", "m", "t"))


def trip(key: bytes = KEY) -> Trip:
    return Trip(question(), namespace_rules(), "record", key=key)


def board(flights: Flights, *, streaming: bool = True) -> Seat:
    with flights.ask() as asked_at:
        return flights.board(trip(), asked_at, streaming=streaming)


texts = st.text("ab ", min_size=1, max_size=4)
deltas = st.one_of(
    texts.map(TextDelta),
    texts.map(ReasoningDelta),
    st.builds(ToolCallDelta, st.integers(0, 2), texts, texts, texts),
)


async def read(seat: Seat) -> list[Delta]:
    return [piece async for piece in seat.pieces()]


@given(pieces=st.lists(deltas, max_size=12), joins=st.lists(st.integers(0, 13), max_size=8), data=st.data())
def test_every_follower_gets_exactly_the_leaders_pieces_in_order_once(pieces, joins, data):
    async def fly() -> None:
        flights = Flights()
        with flights.ask() as early:  # somebody whose lookup takes until after the landing
            leader = board(flights)
            readers = []
            for number in range(len(pieces) + 1):
                readers += [asyncio.create_task(read(board(flights))) for join in joins if join == number]
                for _ in range(data.draw(st.integers(0, 2))):
                    await asyncio.sleep(0)
                if number < len(pieces):
                    leader.flight.add(pieces[number])
            flights.land(leader.flight, leader, OWN, LANDING)
            late = flights.board(trip(), early, streaming=True)
            readers.append(asyncio.create_task(read(late)))
        for reader in readers:
            assert await reader == pieces
        assert await late.landing() == LANDING

    asyncio.run(fly())


@given(first=st.text("ab", max_size=6), second=st.text("ab", max_size=6), data=st.data())
def test_an_answer_that_is_started_over_goes_on_where_it_begins_alike_and_is_cut_where_not(first, second, data):
    def cut(text: str) -> list[str]:
        places = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
        return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True) if a < b]

    delivered, got = Delivered(), ""
    for text in cut(first):
        assert delivered.take(TextDelta(text)) == TextDelta(text)
        got += text
    delivered.start_over()
    try:
        for text in cut(second):
            rest = delivered.take(TextDelta(text))
            got += rest.text if isinstance(rest, TextDelta) else ""
        delivered.finish()
    except StreamCut:
        assert not second.startswith(first)
    else:
        assert second.startswith(first)
        assert got == second


@given(pieces=st.lists(deltas, max_size=10), data=st.data())
def test_reasoning_text_and_tool_calls_are_gone_on_with_apart(pieces, data):
    def built(some: list[Delta]) -> object:
        builder = AnswerBuilder()
        for piece in some:
            builder.add(piece)
        return builder.build(FinishReason.STOP)

    given_ = pieces[: data.draw(st.integers(0, len(pieces)))]
    delivered = Delivered()
    got = [delivered.take(piece) for piece in given_]
    delivered.start_over()
    got += [delivered.take(piece) for piece in pieces]
    delivered.finish()
    assert built([piece for piece in got if piece is not None]) == built(pieces)


async def test_a_follower_notices_that_the_answer_is_started_over():
    flights = Flights()
    leader, follower = board(flights), board(flights)
    leader.flight.add(TextDelta("a"))
    pieces = follower.pieces()
    assert await anext(pieces) == TextDelta("a")
    assert leader.flight.pass_on(leader, NotReady("gone")) is follower
    follower.flight.add(TextDelta("b"))
    assert isinstance(await anext(pieces), StartedOver)
    assert await anext(pieces) == TextDelta("b")
    await pieces.aclose()


async def test_a_leader_that_failed_gets_its_own_pieces_and_then_its_error():
    flights = Flights()
    leader, heir = board(flights), board(flights)
    leader.flight.add(TextDelta("a"))
    error = StreamCut("broke off")
    assert leader.flight.pass_on(leader, error) is heir
    heir.flight.add(TextDelta("b"))
    pieces = leader.pieces()
    assert await anext(pieces) == TextDelta("a")
    with pytest.raises(StreamCut) as caught:
        await anext(pieces)
    assert caught.value is error


async def test_only_one_heir_comes_to_lead():
    flights = Flights()
    leader, heir, third = board(flights), board(flights), board(flights)
    assert leader.flight.pass_on(leader, NotReady("gone")) is heir
    assert heir.flight.pass_on(heir, NotReady("gone again")) is None
    flights.fail(heir.flight, heir.error)
    for seat in (leader, heir, third):
        with pytest.raises(NotReady):
            await seat.landing()


@pytest.mark.parametrize(
    "error",
    [
        RateLimited("slow", retry_after_s=2.0, metadata={"wasted_nanousd": "7", "vendor": "x"}),
        InvalidInput(violations=[Violation("model", "is odd")]),
    ],
)
async def test_followers_get_the_leaders_error_without_what_it_cost(error):
    flights = Flights()
    board(flights)
    followers = [board(flights), board(flights)]
    flights.fail(followers[0].flight, error)
    caught = []
    for seat in followers:
        with pytest.raises(type(error)) as got:
            await seat.landing()
        caught.append(got.value)
    assert len({id(one) for one in [error, *caught]}) == 3
    for one in caught:
        assert (one.message, one.violations, one.retry_after_s) == (
            error.message, error.violations, error.retry_after_s,
        )  # fmt: skip
        assert "wasted_nanousd" not in one.metadata


async def test_a_leaders_bug_is_an_internal_error_for_its_followers():
    flights = Flights()
    board(flights)
    follower = board(flights)
    flights.fail(follower.flight, ZeroDivisionError("secret"))
    with pytest.raises(MeshError) as caught:
        await follower.landing()
    assert type(caught.value) is MeshError
    assert "secret" not in caught.value.message


async def test_who_asks_after_the_landing_leads_anew():
    flights = Flights()
    leader = board(flights)
    flights.land(leader.flight, leader, OWN, LANDING)
    assert board(flights).leads


@given(steps=st.lists(st.sampled_from(["ask", "answer", "land"]), max_size=40))
def test_who_asked_before_the_landing_is_served_by_it_and_nobody_else_is(steps):
    async def fly() -> None:
        flights = Flights()
        asking: list[tuple[object, int, int]] = []
        landings = 0
        flight: Flight | None = None
        for step in steps:
            if step == "ask":
                around = flights.ask()
                asking.append((around, around.__enter__(), landings))
            elif step == "answer" and asking:
                around, asked_at, known = asking.pop(0)
                seat = flights.board(trip(), asked_at, streaming=False)
                if landings > known:
                    assert not seat.leads
                    assert await seat.landing() == LANDING
                elif flight is None:
                    assert seat.leads
                    flight, leader = seat.flight, seat
                around.__exit__(None, None, None)
            elif step == "land" and flight is not None:
                flights.land(flight, leader, OWN, LANDING)
                landings, flight = landings + 1, None
        for around, _, _ in asking:
            around.__exit__(None, None, None)
        with flights.ask():
            assert not flights._landed  # nothing is kept for nobody

    asyncio.run(fly())


async def test_a_flight_that_nobody_waits_for_is_joined_by_nobody():
    flights = Flights()
    leader = board(flights)
    leader.flight.leave(leader)
    flights.abandon(leader.flight, asyncio.CancelledError())
    assert board(flights).flight is not leader.flight
