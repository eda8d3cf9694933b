"""Reviews in Redis. Every key begins with the tenant as hash tag, so that each step touches one slot.

{tenant}:w:<namespace>   hash of the pairs: the pair by its id, and "v:<id>" what was found out about it; expires
{tenant}:wt:<namespace>  sorted set of the pairs' ids by when they were last asked; expires
{tenant}:n               set of the namespaces in which the tenant looked something up; never expires
"""

from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.cache.domain.ports import StoreUnavailable
from services.cache.domain.reviews import KEPT, KEPT_S, RANKS, Review, Waiting, pack, unpack

CONNECTIONS = 8  # one writes every second; the others are for people who look

# KEYS: pairs, times. ARGV: how many are kept, the oldest time, lifetime in s, how many pairs follow, (id, time, pair)…,
# (id, rank)….
_PUT = """
local at = 5
for _ = 1, tonumber(ARGV[4]) do
  redis.call('ZADD', KEYS[2], 'GT', ARGV[at + 1], ARGV[at])
  redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 2])
  at = at + 3
end
while at < #ARGV do
  local field = 'v:' .. ARGV[at]
  if redis.call('ZSCORE', KEYS[2], ARGV[at]) then
    local known = tonumber(redis.call('HGET', KEYS[1], field) or '0')
    if known < tonumber(ARGV[at + 1]) then redis.call('HSET', KEYS[1], field, ARGV[at + 1]) end
  end
  at = at + 2
end
for _, gone in ipairs({
  redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. ARGV[2]),
  redis.call('ZRANGE', KEYS[2], 0, -1 - tonumber(ARGV[1]))
}) do
  for _, id in ipairs(gone) do
    redis.call('ZREM', KEYS[2], id)
    redis.call('HDEL', KEYS[1], id, 'v:' .. id)
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return 0
"""


class RedisReviews:
    """Pairs to look through, by tenant and namespace."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def put(self, tenant: str, namespace: str, waiting: Waiting, now: float) -> None:
        arguments: list[str] = [str(KEPT), f"{now - KEPT_S:.3f}", str(int(KEPT_S)), str(len(waiting.reviews))]
        for pair, review in waiting.reviews.items():
            arguments += (pair, f"{review.at:.3f}", pack(review))
        for pair, standing in waiting.standings.items():
            arguments += (pair, str(RANKS.index(standing)))
        try:
            await cast(
                "Awaitable[object]",
                self._redis.eval(_PUT, 2, _pairs_key(tenant, namespace), _times_key(tenant, namespace), *arguments),
            )
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error

    async def all(self, tenant: str, namespace: str) -> list[tuple[str, Review]]:
        try:
            fields = await cast("Awaitable[dict[bytes, bytes]]", self._redis.hgetall(_pairs_key(tenant, namespace)))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        found = []
        for name, value in fields.items():
            if name.startswith(b"v:"):
                continue
            review = unpack(value, RANKS[min(int(fields.get(b"v:" + name, b"0")), len(RANKS) - 1)])
            if review is not None:
                found.append((name.decode(), review))
        return found

    async def visit(self, tenant: str, namespaces: Sequence[str]) -> None:
        try:
            await self._redis.sadd(_visited_key(tenant), *namespaces)
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error

    async def visited(self, tenant: str) -> list[str]:
        try:
            found = await cast("Awaitable[set[bytes]]", self._redis.smembers(_visited_key(tenant)))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        return [name.decode() for name in found]


@asynccontextmanager
async def open_reviews(url: str, *, timeout: float) -> AsyncIterator[RedisReviews]:
    """Reviews over connections that are made when first needed and again after a fault."""
    redis: Redis = Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        max_connections=CONNECTIONS,
        retry=Retry(NoBackoff(), 1),  # a kept connection may have died unseen
    )
    try:
        yield RedisReviews(redis)
    finally:
        await redis.aclose()


def _pairs_key(tenant: str, namespace: str) -> str:
    return f"{{{tenant}}}:w:{namespace}"


def _times_key(tenant: str, namespace: str) -> str:
    return f"{{{tenant}}}:wt:{namespace}"


def _visited_key(tenant: str) -> str:
    return f"{{{tenant}}}:n"
