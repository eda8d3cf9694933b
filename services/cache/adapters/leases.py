"""Leases in Redis. Every key begins with the tenant as hash tag, so that each step touches one slot.

{tenant}:l:<key>           the lease: holder, token, lifetime, and "done" for a moment after a stored answer; expires
{tenant}:ls:<key>:<token>  stream of what that holder published; expires
{tenant}:lw:<key>          somebody follows; expires within seconds
{tenant}:lf                the last token given; never expires
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.cache.domain.leases import Lease, LeaseLost, Published, Release
from services.cache.domain.ports import StoreUnavailable

BLOCK_S = 1.0  # how long a follower waits before it looks whether the holder is still there
WATCH_S = 3.0  # how long a follower is remembered
DONE_S = 10.0  # how long who missed a stored answer is led to it: longer than any lookup takes
STREAM_S = 60.0  # pieces outlive the last sign of their holder by as much
FOLLOWERS = 256  # connections that wait for pieces; further followers are refused and generate for themselves

# KEYS: lease, last token, follower's mark, entry. ARGV: holder, lifetime in ms, "1" to take none.
# Tokens come from the clock, so that they rise even when Redis lost its memory, and from the last one, should the clock go back.
_ACQUIRE = """
local lease = redis.call('HMGET', KEYS[1], 'holder', 'token', 'done')
local followed = redis.call('EXISTS', KEYS[3])
if lease[1] == ARGV[1] and not lease[3] then
  redis.call('HSET', KEYS[1], 'ttl', ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {1, lease[1], lease[2], followed}
end
if ARGV[3] == '1' or (lease[1] and not (lease[3] and redis.call('EXISTS', KEYS[4]) == 0)) then
  return {0, lease[1] or '', lease[2] or '0', followed}
end
local time = redis.call('TIME')
local token = time[1] * 1000000 + time[2]
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if token <= last then token = last + 1 end
token = string.format('%.0f', token)
redis.call('SET', KEYS[2], token)
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'token', token, 'ttl', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return {1, ARGV[1], token, followed}
"""

# KEYS: lease, stream. ARGV: token, payload, release, lifetime of the stream in ms, of a stored answer's lease in ms.
_PUBLISH = """
local lease = redis.call('HMGET', KEYS[1], 'token', 'ttl', 'done')
if lease[1] ~= ARGV[1] or lease[3] then return 0 end
if ARGV[2] ~= '' then redis.call('XADD', KEYS[2], '*', 'p', ARGV[2]) end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
if ARGV[3] == '' then
  redis.call('PEXPIRE', KEYS[1], lease[2])
elseif ARGV[3] == 'stored' then
  redis.call('HSET', KEYS[1], 'done', '1')
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
else
  redis.call('DEL', KEYS[1])
end
return 1
"""


class RedisLeases:
    """Leases, and the pieces of their holders."""

    def __init__(self, redis: Redis, waiting: Redis) -> None:
        """`waiting` has connections of its own, since each follower keeps one."""
        self._redis = redis
        self._waiting = waiting
        self._acquire = redis.register_script(_ACQUIRE)
        self._publish = redis.register_script(_PUBLISH)

    async def acquire(self, tenant: str, key: bytes, holder: str, ttl_s: float, *, keep_only: bool) -> Lease:
        keys = [_key(tenant, "l", key), f"{{{tenant}}}:lf", _key(tenant, "lw", key), _key(tenant, "e", key)]
        try:
            reply = await self._acquire(keys=keys, args=[holder, int(ttl_s * 1000), int(keep_only)])
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        acquired, current, token, followed = cast(tuple[int, bytes, bytes, int], reply)
        return Lease(bool(acquired), current.decode(), int(token), bool(followed))

    async def publish(self, tenant: str, key: bytes, token: int, payload: bytes, release: Release) -> None:
        keys = [_key(tenant, "l", key), _stream_key(tenant, key, token)]
        stream_s = DONE_S + WATCH_S if release else STREAM_S
        args: list[str | int | bytes] = [token, payload, release.value, int(stream_s * 1000), int(DONE_S * 1000)]
        try:
            current = await self._publish(keys=keys, args=args)
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        if not current:
            raise LeaseLost

    async def follow(self, tenant: str, key: bytes) -> AsyncGenerator[Published]:
        token = await self._token(tenant, key)
        if not token:
            yield Published(None, 0)
            return
        stream = _stream_key(tenant, key, token)
        last = b"0"
        while True:
            await self._mark(tenant, key)
            entries = await self._read(stream, last, BLOCK_S)
            if not entries and await self._token(tenant, key) != token:
                # Its last words may have come just before.
                entries = await self._read(stream, last, None)
                if not entries:
                    yield Published(None, token)
                    return
            for _, payload in entries:
                yield Published(payload, token)
            if entries:
                last = entries[-1][0]

    async def _token(self, tenant: str, key: bytes) -> int:
        """The holder's token; 0 without a holder."""
        try:
            token = await cast("asyncio.Future[bytes | None]", self._redis.hget(_key(tenant, "l", key), "token"))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        return int(token or 0)

    async def _mark(self, tenant: str, key: bytes) -> None:
        try:
            await self._redis.set(_key(tenant, "lw", key), 1, px=int(WATCH_S * 1000))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error

    async def _read(self, stream: str, last: bytes, block_s: float | None) -> list[tuple[bytes, bytes]]:
        block = None if block_s is None else int(block_s * 1000)
        try:
            reply = await self._waiting.xread({stream: last}, block=block)
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        streams = cast("list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]", reply)
        return [(number, fields[b"p"]) for _, entries in streams for number, fields in entries]


@asynccontextmanager
async def open_leases(url: str, *, timeout: float, connections: int) -> AsyncIterator[RedisLeases]:
    """Leases over connections that are made when first needed and again after a fault."""
    # Calls are quick, and many at once take turns.
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=connections,
        timeout=timeout,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 1),  # a kept connection may have died unseen
    )
    redis = Redis.from_pool(pool)
    waiting = Redis.from_url(
        url,
        max_connections=FOLLOWERS,
        socket_timeout=BLOCK_S + timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 1),
    )
    try:
        yield RedisLeases(redis, waiting)
    finally:
        await waiting.aclose()
        await redis.aclose()


def _key(tenant: str, kind: str, key: bytes) -> str:
    return f"{{{tenant}}}:{kind}:{key.hex()}"


def _stream_key(tenant: str, key: bytes, token: int) -> str:
    return f"{_key(tenant, 'ls', key)}:{token}"
