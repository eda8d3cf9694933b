"""One replica's part of a key's minute."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import RateLimited
from services.edge.adapters.redis_rate_limits import TIMEOUT_S, RedisRateLimits
from services.edge.domain.keys import Key
from services.edge.domain.rate_limits import WINDOW_S, Allowance, Lease


class Clock:
    def __init__(self, at: float = 0.0) -> None:
        self.at = at

    def now(self) -> float:
        return self.at


def test_a_lease_is_good_for_its_requests_and_its_minute():
    allowance = Allowance()
    assert not allowance.take(0.0)
    allowance.leased(Lease(1, 60.0, 2))
    assert allowance.take(0.0)
    assert allowance.take(59.9)
    assert not allowance.take(59.9)
    allowance.leased(Lease(1, 60.0, 1))
    assert not allowance.take(60.0)


def test_a_refusal_holds_until_the_minute_is_over():
    allowance = Allowance()
    allowance.leased(Lease(1, 60.0, 0))
    assert allowance.wait_s(20.0) == 40.0
    assert allowance.wait_s(60.0) == 0.0
    allowance.leased(Lease(2, 120.0, 1))
    assert allowance.wait_s(61.0) == 0.0


def test_more_is_asked_for_as_more_is_used():
    allowance = Allowance()
    assert allowance.wanted(waiting=1) == 1
    assert allowance.wanted(waiting=7) == 7
    allowance.leased(Lease(1, 60.0, 5))
    for _ in range(5):
        allowance.take(1.0)
    assert allowance.wanted(waiting=1) == 6


def test_alone_it_keeps_to_its_share_of_which_leases_are_a_part():
    allowance = Allowance()
    allowance.leased(Lease(1, 60.0, 2))
    allowance.take(1.0)
    allowance.take(1.0)
    assert [allowance.take_alone(3, 1, 60.0) for _ in range(3)] == [True, False, False]
    assert allowance.unshared == 1
    assert allowance.take_alone(3, 2, 120.0)
    allowance.leased(Lease(2, 120.0, 1))
    assert allowance.unshared == 0


@given(st.integers(1, 50), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200))
def test_whatever_replicas_do_in_a_minute_leases_bound_what_passes(limit, steps):
    """A store that grants what is left, replicas that come and go: the rule that the script in Redis follows."""
    replicas, granted, passed = [Allowance() for _ in range(4)], 0, 0
    for index, ask in steps:
        replica = replicas[index]
        if replica.take(1.0):
            passed += 1
        elif ask:
            grant = min(replica.wanted(1), limit - granted)
            granted += grant
            replica.leased(Lease(0, 60.0, grant))
    assert passed <= granted <= limit


class Redis:
    """A Redis whose script answers, hangs or fails."""

    def __init__(self) -> None:
        self.calls = 0
        self.error: Exception | None = None
        self.hangs = False
        self.grant = 1
        self.args: list[int] = []

    def register_script(self, script):
        return self._leases

    async def _leases(self, keys, args):
        self.calls += 1
        self.args = args
        if self.hangs:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        return [0, 60_000, self.grant]


@pytest.fixture
def redis() -> Redis:
    return Redis()


@pytest.fixture
def ticks() -> Clock:
    return Clock()


@pytest.fixture
def limits(redis, ticks) -> RedisRateLimits:
    return RedisRateLimits(redis, 2, Clock(), ticks.now)


LIMITED = Key("k", "acme", requests_per_minute=4)


async def test_a_key_without_a_limit_asks_nobody(limits, redis):
    redis.error = ConnectionError()
    for _ in range(10):
        await limits.admit(Key("free", "acme"))
    assert redis.calls == 0


async def test_a_lease_spares_questions_and_a_refusal_too(limits, redis, ticks):
    redis.grant = 3
    for _ in range(3):
        await limits.admit(LIMITED)
    assert redis.calls == 1
    redis.grant = 0
    ticks.at = 10.0
    for _ in range(5):
        with pytest.raises(RateLimited) as caught:
            await limits.admit(LIMITED)
        assert 0 < caught.value.retry_after_s <= WINDOW_S
    assert redis.calls == 2


async def test_who_waits_together_is_asked_for_together(limits, redis):
    redis.grant = 8
    await asyncio.gather(*(limits.admit(LIMITED) for _ in range(8)))
    assert redis.calls == 1


@pytest.mark.parametrize("how", ["refused", "silent"])
async def test_without_redis_a_replica_has_its_share_and_asks_once_a_second(limits, redis, ticks, how):
    if how == "refused":
        redis.error = ConnectionError()
    else:
        redis.hangs = True
    await limits.admit(LIMITED)
    await limits.admit(LIMITED)
    with pytest.raises(RateLimited):
        await limits.admit(LIMITED)
    assert redis.calls == 1
    ticks.at = 2.0 + TIMEOUT_S
    with pytest.raises(RateLimited):
        await limits.admit(LIMITED)
    assert redis.calls == 2


async def test_what_passed_in_an_outage_is_told_when_it_is_over(limits, redis, ticks):
    redis.error = ConnectionError()
    await limits.admit(LIMITED)
    await limits.admit(LIMITED)
    redis.error, ticks.at = None, 2.0
    await limits.admit(LIMITED)
    assert redis.args[:4] == [4, 3, 2, 0]
    await limits.admit(LIMITED)
    assert redis.args[2] == 0


async def test_the_smallest_limit_still_lets_something_pass_alone(redis, ticks):
    redis.error = ConnectionError()
    limits = RedisRateLimits(redis, 5, Clock(), ticks.now)
    await limits.admit(Key("k", "acme", requests_per_minute=2))
