"""Requests per minute of keys, over all replicas.

{tenant}:rate:<key id>   hash: the minute on Redis's clock, and how many of its requests were leased; expires after it
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import cast

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.clock import Clock
from services.common.errors import RateLimited
from services.edge.adapters.redis import tenant_key
from services.edge.domain.keys import Key
from services.edge.domain.rate_limits import MOST_AT_ONCE, SHARE, WINDOW_S, Allowance, Lease

log = structlog.get_logger()

TIMEOUT_S = 0.25
ASK_AGAIN_S = 1.0  # so that an outage costs one caller a second the timeout, and not each of them

# KEYS: the key's minute. ARGV: limit, how many are wanted, how many passed unshared and in which minute, seconds of a minute,
# the part of what is left that one lease may be, the most of one lease. Returns {minute, milliseconds until its end, granted}.
_LEASE = """
local time = redis.call('TIME')
local length = tonumber(ARGV[5])
local minute = math.floor(tonumber(time[1]) / length)
local ends = (minute + 1) * length * 1000 - tonumber(time[1]) * 1000 - math.floor(tonumber(time[2]) / 1000)
local held = redis.call('HMGET', KEYS[1], 'minute', 'leased')
local leased = held[1] and tonumber(held[1]) == minute and tonumber(held[2]) or 0
if tonumber(ARGV[4]) == minute then leased = leased + tonumber(ARGV[3]) end
local left, granted = tonumber(ARGV[1]) - leased, 0
if left > 0 then
  granted = math.max(1, math.min(tonumber(ARGV[2]), math.floor(left / tonumber(ARGV[6])), tonumber(ARGV[7])))
end
redis.call('HSET', KEYS[1], 'minute', minute, 'leased', leased + granted)
redis.call('EXPIRE', KEYS[1], 2 * length)
return {minute, ends, granted}
"""


@dataclass(slots=True)
class _Held:
    allowance: Allowance = field(default_factory=Allowance)
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class RedisRateLimits:
    """Leases requests from Redis. While Redis is down a replica keeps to its share of each limit, at least 1."""

    def __init__(
        self, redis: Redis, replicas: int, clock: Clock, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._lease_script = redis.register_script(_LEASE)
        self._replicas = replicas
        self._clock = clock
        self._monotonic = monotonic
        self._held: dict[str, _Held] = {}
        self._ask_at = 0.0
        self._down = False

    async def admit(self, key: Key) -> None:
        limit = key.requests_per_minute
        if limit is None:
            return
        held = self._held.get(key.id)
        if held is None:
            held = self._held[key.id] = _Held()
        if self._passes(held.allowance, limit):
            return
        held.waiting += 1
        try:
            async with held.asking:
                # While it waited another may have leased enough for both.
                while not self._passes(held.allowance, limit):
                    lease = await self._lease(key, limit, held)
                    if lease is None:
                        self._alone(held.allowance, limit)
                        return
                    held.allowance.leased(lease)
        finally:
            held.waiting -= 1

    def _passes(self, allowance: Allowance, limit: int) -> bool:
        now = self._monotonic()
        if allowance.take(now):
            return True
        wait_s = allowance.wait_s(now)
        if wait_s > 0:
            raise _limited(limit, wait_s)
        return False

    async def _lease(self, key: Key, limit: int, held: _Held) -> Lease | None:
        """A lease; None while Redis is down."""
        asked_at = self._monotonic()
        if asked_at < self._ask_at:
            return None
        allowance = held.allowance
        args = [limit, allowance.wanted(held.waiting), allowance.unshared, allowance.minute]
        args += [WINDOW_S, SHARE, MOST_AT_ONCE]
        try:
            async with asyncio.timeout(TIMEOUT_S):
                script = self._lease_script(keys=[tenant_key(key.tenant, "rate", key.id)], args=args)
                minute, ends_ms, granted = cast(tuple[int, int, int], await cast(Awaitable[object], script))
        except (RedisError, OSError, TimeoutError) as error:
            self._ask_at = self._monotonic() + ASK_AGAIN_S
            if not self._down:
                log.warning("rate_limits_not_shared", error=f"redis: {type(error).__name__}")
            self._down = True
            return None
        if self._down:
            log.info("rate_limits_shared_again")
        self._down = False
        # Counted from before the question: the lease never outlives the minute on Redis's clock.
        return Lease(minute, asked_at + ends_ms / 1000, granted)

    def _alone(self, allowance: Allowance, limit: int) -> None:
        now = self._clock.now()
        minute = int(now // WINDOW_S)
        left_s = (minute + 1) * WINDOW_S - now
        share = max(limit // self._replicas, 1)
        if not allowance.take_alone(share, minute, self._monotonic() + left_s):
            raise _limited(limit, left_s)


def _limited(limit: int, wait_s: float) -> RateLimited:
    return RateLimited(f"the key's limit of {limit} requests per minute is used up", retry_after_s=wait_s)
