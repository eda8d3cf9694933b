"""Vendors' limits in Redis, shared by all replicas. Keys carry the vendor as hash tag, so that each step touches one slot.

{vendor}:limit:<model>:<requests|tokens>  hash: second on Redis's clock → what was taken in it; expires after the window
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.provider.domain.limits import WINDOW_S, LocalLimits, Quota, Ticket

log = structlog.get_logger()

_CONNECTIONS = 64
_TIMEOUT_S = 0.25
_ASK_AGAIN_S = 1.0  # so that an outage costs one caller a second the timeout, and not each of them

# KEYS: a hash for each quota. ARGV: seconds of the window, then limit and amount of each quota in turn.
# Returns {1, the second} when all quotas have room, else {0, seconds until they may have}.
_TAKE = """
local time = redis.call('TIME')
local second, now = tonumber(time[1]), time[1] + time[2] / 1000000
local window, wait = tonumber(ARGV[1]), 0
for i = 1, #KEYS do
  local over = ARGV[2 * i + 1] - ARGV[2 * i]
  local seconds, amounts = {}, {}
  local all = redis.call('HGETALL', KEYS[i])
  for j = 1, #all, 2 do
    local at = tonumber(all[j])
    if at + 1 + window <= now then redis.call('HDEL', KEYS[i], all[j])
    else
      seconds[#seconds + 1], amounts[at] = at, tonumber(all[j + 1])
      over = over + amounts[at]
    end
  end
  if over > 0 then
    table.sort(seconds)
    for _, at in ipairs(seconds) do
      over = over - amounts[at]
      if over <= 0 then
        wait = math.max(wait, at + 1 + window - now)
        break
      end
    end
  end
end
if wait > 0 then return {0, string.format('%.6f', wait)} end
for i = 1, #KEYS do
  redis.call('HINCRBY', KEYS[i], second, ARGV[2 * i + 1])
  redis.call('EXPIRE', KEYS[i], window + 2)
end
return {1, second}
"""

# KEYS: a hash for each quota. ARGV: the second, then what is to be added for each. What counts no more stays forgotten.
_CORRECT = """
for i = 1, #KEYS do
  if redis.call('HEXISTS', KEYS[i], ARGV[1]) == 1 then redis.call('HINCRBY', KEYS[i], ARGV[1], ARGV[i + 1]) end
end
return 0
"""


class RedisLimits:
    """Counts over all replicas. While Redis is down this process counts for itself and keeps to its share."""

    def __init__(self, redis: Redis, local: LocalLimits, monotonic: Callable[[], float]) -> None:
        self._redis = redis
        self._local = local
        self._monotonic = monotonic
        self._take = redis.register_script(_TAKE)
        self._correct = redis.register_script(_CORRECT)
        self._down = False
        self._ask_at = 0.0
        self._settling: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits until all is settled, and closes the connections."""
        await asyncio.gather(*self._settling)
        await self._redis.aclose()

    async def take(self, quotas: Sequence[Quota], tokens: int) -> Ticket | float:
        if self._monotonic() < self._ask_at:
            return await self._local.take(quotas, tokens)
        amounts = tuple(quota.amount(tokens, quota.limit) for quota in quotas)
        args: list[int] = [WINDOW_S]
        for quota, amount in zip(quotas, amounts, strict=True):
            args += [quota.limit, amount]
        reply = await self._asked(self._take(keys=[_key(quota) for quota in quotas], args=args))
        if reply is None:
            return await self._local.take(quotas, tokens)
        taken, told = cast("tuple[int, int | bytes]", reply)
        return Ticket(tuple(quotas), amounts, int(told), shared=True) if taken else float(told)

    def settle(self, ticket: Ticket, tokens: int) -> None:
        if not ticket.shared:
            self._local.settle(ticket, tokens)
        elif corrections := ticket.corrections(tokens):
            # Nobody waits for it: who is cancelled settles, too.
            task = asyncio.create_task(self._settle(ticket.second, corrections))
            self._settling.add(task)
            task.add_done_callback(self._settling.discard)

    async def _settle(self, second: int, corrections: Sequence[tuple[Quota, int]]) -> None:
        keys, amounts = [_key(quota) for quota, _ in corrections], [amount for _, amount in corrections]
        await self._asked(self._correct(keys=keys, args=[second, *amounts]))

    async def _asked(self, call: Awaitable[object]) -> object | None:
        """The reply; None while Redis is down."""
        try:
            reply = await call
        except (RedisError, OSError, TimeoutError) as error:
            self._ask_at = self._monotonic() + _ASK_AGAIN_S
            if not self._down:
                self._down = True
                log.warning("limits_not_shared", error=f"redis: {type(error).__name__}")
            return None
        if self._down:
            self._down = False
            log.info("limits_shared_again")
        return reply


def open_limits(url: str, local: LocalLimits, monotonic: Callable[[], float]) -> RedisLimits:
    """Limits over connections that are made when first needed and again after a fault."""
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=_TIMEOUT_S,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 1),  # a kept connection may have died unseen
    )
    return RedisLimits(Redis.from_pool(pool), local, monotonic)


def _key(quota: Quota) -> str:
    return f"{{{quota.vendor}}}:limit:{quota.model}:{quota.unit}"
