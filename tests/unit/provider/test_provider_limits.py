import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.chat import Chat, Message, Role, Sampling, TextPart
from services.common.tokens import estimate_chat_tokens
from services.provider.domain.limits import (
    USUAL_OUTPUT_TOKENS,
    WINDOW_S,
    LocalLimits,
    Quota,
    Ticket,
    Window,
    expected_tokens,
)

REQUESTS = Quota("acme-ai", "", "requests", 3)
TOKENS = Quota("acme-ai", "mini", "tokens", 1000)


class Hand:
    def __init__(self) -> None:
        self.now = 100.5

    def __call__(self) -> float:
        return self.now


async def taken(limits: LocalLimits, tokens: int, *quotas: Quota) -> Ticket:
    ticket = await limits.take(quotas, tokens)
    assert isinstance(ticket, Ticket)
    return ticket


async def test_requests_beyond_the_limit_wait_until_the_first_is_a_minute_old() -> None:
    clock = Hand()
    limits = LocalLimits(clock)
    for _ in range(3):
        await taken(limits, 10, REQUESTS)
        clock.now += 1
    assert await limits.take([REQUESTS], 10) == pytest.approx(161.0 - 103.5)
    clock.now = 161.0
    await taken(limits, 10, REQUESTS)
    assert await limits.take([REQUESTS], 10) == pytest.approx(1.0)


async def test_a_call_takes_from_all_quotas_or_from_none() -> None:
    limits = LocalLimits(Hand())
    await taken(limits, 900, REQUESTS, TOKENS)
    for _ in range(9):
        assert isinstance(await limits.take([REQUESTS, TOKENS], 200), float)
    await taken(limits, 100, REQUESTS, TOKENS)


async def test_the_real_count_takes_the_place_of_the_estimate() -> None:
    limits = LocalLimits(Hand())
    ticket = await taken(limits, 900, TOKENS)
    limits.settle(ticket, 100)
    ticket = await taken(limits, 900, TOKENS)
    limits.settle(ticket, 5000)
    assert isinstance(await limits.take([TOKENS], 1), float)


async def test_what_is_settled_after_a_minute_changes_nothing() -> None:
    clock = Hand()
    limits = LocalLimits(clock)
    ticket = await taken(limits, 500, TOKENS)
    clock.now += 100
    await taken(limits, 1000, TOKENS)
    limits.settle(ticket, 0)
    assert isinstance(await limits.take([TOKENS], 1), float)


async def test_a_call_larger_than_the_limit_goes_when_nothing_else_does() -> None:
    limits = LocalLimits(Hand())
    await taken(limits, 5000, TOKENS)
    assert isinstance(await limits.take([TOKENS], 1), float)


async def test_a_replica_keeps_to_its_share() -> None:
    limits = LocalLimits(Hand(), replicas=2)
    await taken(limits, 500, TOKENS)
    assert isinstance(await limits.take([TOKENS], 1), float)
    await taken(limits, 1, REQUESTS)
    assert isinstance(await limits.take([REQUESTS], 1), float)


def test_the_answers_limit_is_set_aside_where_the_request_has_one() -> None:
    messages = (Message(Role.USER, (TextPart("Where is my order?"),)),)
    prompt = estimate_chat_tokens(Chat(messages))
    assert expected_tokens(Chat(messages)) == prompt + USUAL_OUTPUT_TOKENS
    assert expected_tokens(Chat(messages, sampling=Sampling(max_output_tokens=9))) == prompt + 9


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 10)), max_size=60))
def test_no_minute_ever_holds_more_than_the_limit(calls: list[tuple[float, int]]) -> None:
    window, now, let = Window(), 0.0, []
    for pause, amount in calls:
        now += pause
        wait = window.wait_s(amount, 10, now)
        if not wait:
            window.add(int(now), amount)
            let.append((now, amount))
        else:
            assert 0 < wait <= WINDOW_S + 1
            assert window.wait_s(amount, 10, now + wait) == 0
            window.add(int(now + wait), amount)
            now += wait
            let.append((now, amount))
    for begin, _ in let:
        assert sum(amount for at, amount in let if begin <= at < begin + WINDOW_S) <= 10


def test_several_processes_have_their_own_windows() -> None:
    async def run() -> None:
        clock = Hand()
        one, other = LocalLimits(clock), LocalLimits(clock)
        await taken(one, 1000, TOKENS)
        await taken(other, 1000, TOKENS)

    asyncio.run(run())
