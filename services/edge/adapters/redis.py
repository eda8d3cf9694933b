"""Ledger and budgets in Redis. Every key carries the tenant as its hash tag, so each step runs on one slot of a cluster."""

import json
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.errors import NotReady
from services.edge.domain.budgets import end_of
from services.edge.domain.ledger import (
    OTHERS,
    SEPARATOR,
    Rows,
    UsageRecord,
    amounts,
    packed,
    row_of,
    row_of_others,
    rows_of,
    with_users,
)

T = TypeVar("T")

MAX_ROWS = 2000  # rows of a roll-up, of about 200 bytes each; what comes later is summed among others
MAX_USER_ROWS = 5000  # the same, of users' rows
_TENANTS = "ledger:tenants"
_HOURS_AT_ONCE = 8
_RECORDS_AT_ONCE = 500
_KEYS_AT_ONCE = 500

# Record, roll-ups and budgets in one atomic step; a record that is there already changes nothing.
# KEYS: records of the hour, its roll-up, its roll-up by users, hours, then budgets. ARGV: record id, record, hour,
# reservation id, actual cost, row, row where there is no room left, user or nothing, packed amounts.
# Sums are exact up to 2^53 nano-USD, nine million dollars in a row.
_WRITE = f"""
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('SADD', KEYS[4], ARGV[3])
local function add(key, row, others, most)
  local had = redis.call('HGET', key, row)
  if not had and redis.call('HLEN', key) >= most then
    row = others
    had = redis.call('HGET', key, row)
  end
  if not had then
    redis.call('HSET', key, row, ARGV[9])
    return row
  end
  local sums, more = {{}}, string.gmatch(ARGV[9], '[^,]+')
  for amount in string.gmatch(had, '[^,]+') do
    local added = more() or '0'
    if added ~= '0' then amount = string.format('%.0f', amount + added) end
    sums[#sums + 1] = amount
  end
  for added in more do sums[#sums + 1] = added end
  redis.call('HSET', key, row, table.concat(sums, ','))
  return row
end
local row = add(KEYS[2], ARGV[6], ARGV[7], {MAX_ROWS}) .. '\\{ord(SEPARATOR)}'
if ARGV[8] ~= '' then add(KEYS[3], row .. ARGV[8], row .. '{OTHERS}', {MAX_USER_ROWS}) end
for k = 5, #KEYS do
  if ARGV[4] ~= '' then redis.call('HDEL', KEYS[k], 'r:' .. ARGV[4]) end
  if tonumber(ARGV[5]) > 0 then redis.call('HINCRBY', KEYS[k], 'spent', ARGV[5]) end
end
return 1
"""

# The roll-ups of an hour as of one moment.
_ROLLUPS = "return {redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', KEYS[2])}"


def open_redis(url: str) -> Redis:
    """A client that fails within a second, so that an outage costs no caller more than that."""
    return Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=0.5, health_check_interval=15)


async def guard(call: Awaitable[T]) -> T:
    """The call's result. Raises NotReady when Redis cannot be reached or refuses."""
    try:
        return await call
    except (RedisError, OSError) as error:
        raise NotReady(f"redis: {type(error).__name__}") from None


def tenant_key(tenant: str, *rest: str) -> str:
    """A key on the tenant's own slot."""
    return ":".join((f"{{{tenant}}}", *rest))


def windows_key(tenant: str) -> str:
    """The index of a tenant's budget windows: a sorted set of their names by their ends."""
    return tenant_key(tenant, "budgets")


class RedisLedger:
    """Records, roll-ups and settlements. Nothing of it has a lifetime, so that none of it is evicted: `sweep` removes it."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._known: dict[str, str] = {}
        self._swept: dict[str, str] = {}

    async def missing(self) -> str | None:
        """What readiness waits for."""
        try:
            await guard(self._redis.ping())
        except NotReady as error:
            return error.message
        return None

    async def write(self, records: list[UsageRecord]) -> None:
        await self._introduce(records)
        pipe = self._redis.pipeline(transaction=False)
        # First where they are found for removal: a window may come to be with what a hit cost.
        windows: dict[str, dict[str, float]] = {}
        for record in records:
            windows.setdefault(record.tenant, {}).update((name, end_of(name)) for name in record.budgets)
        for tenant, ends in windows.items():
            if ends:
                pipe.zadd(windows_key(tenant), ends)
        for record in records:
            hour = record.hour
            budgets = [tenant_key(record.tenant, "budget", name) for name in record.budgets]
            pipe.eval(
                _WRITE,
                4 + len(budgets),
                _records_key(record.tenant, hour),
                *_rollup_keys(record.tenant, hour),
                _hours_key(record.tenant),
                *budgets,
                record.record_id,
                json.dumps(record.to_json(), separators=(",", ":"), ensure_ascii=False),
                hour,
                record.reservation_id,
                str(record.bill.actual),
                row_of(record),
                row_of_others(record),
                record.user,
                packed(amounts(record)),
            )
        await guard(pipe.execute())

    async def _introduce(self, records: Sequence[UsageRecord]) -> None:
        """Names tenants before their first records of an hour, so that whoever asks for all of them misses none."""
        new = {record.tenant: record.hour for record in records if self._known.get(record.tenant) != record.hour}
        if new:
            await guard(self._redis.sadd(_TENANTS, *new))
            self._known |= new

    async def tenants(self) -> list[str]:
        names = await guard(cast(Awaitable[set[bytes]], self._redis.smembers(_TENANTS)))
        return sorted(name.decode() for name in names)

    async def hours(self, tenant: str, first_hour: str, end_hour: str) -> list[str]:
        hours = await guard(cast(Awaitable[set[bytes]], self._redis.smembers(_hours_key(tenant))))
        return sorted(hour for hour in (raw.decode() for raw in hours) if first_hour <= hour < end_hour)

    async def rollups(
        self, tenant: str, first_hour: str, end_hour: str, *, by_user: bool = False
    ) -> AsyncIterator[tuple[str, Rows]]:
        wanted = await self.hours(tenant, first_hour, end_hour)
        while hours := wanted[:_HOURS_AT_ONCE]:
            del wanted[:_HOURS_AT_ONCE]
            pipe = self._redis.pipeline(transaction=False)
            for hour in hours:
                keys = _rollup_keys(tenant, hour)
                if by_user:
                    pipe.eval(_ROLLUPS, 2, *keys)
                else:
                    pipe.hgetall(keys[0])
            found = await guard(pipe.execute())
            for hour, raw in zip(hours, found, strict=True):
                yield hour, _split(raw) if by_user else rows_of(_decoded(raw))

    async def records(self, tenant: str, hour: str) -> AsyncIterator[UsageRecord]:
        cursor = 0
        while True:
            call = self._redis.hscan(_records_key(tenant, hour), cursor, count=_RECORDS_AT_ONCE)
            cursor, found = await guard(cast(Awaitable[tuple[int, dict[bytes, bytes]]], call))
            for raw in found.values():
                yield UsageRecord.from_json(json.loads(raw))
            if not cursor:
                return

    async def sweep(self, records_before: str, rollups_before: str) -> int:
        """Removes the records of hours before one, and all of the hours before another, of all tenants; how many hours.

        It is swept again from the start after the process starts again, and costs little where there is nothing.
        """
        removed = 0
        for tenant in await self.tenants():
            old = await self.hours(tenant, "", max(records_before, rollups_before))
            swept = self._swept.get(tenant, "")
            new = [hour for hour in old if hour < records_before and hour >= swept]
            await self._remove([_records_key(tenant, hour) for hour in new])
            gone = [hour for hour in old if hour < rollups_before]
            await self._remove(
                [key for hour in gone for key in (_records_key(tenant, hour), *_rollup_keys(tenant, hour))]
            )
            if gone:
                await guard(self._redis.srem(_hours_key(tenant), *gone))
            self._swept[tenant] = records_before
            removed += len({*new, *gone})
        return removed

    async def _remove(self, keys: Sequence[str]) -> None:
        for index in range(0, len(keys), _KEYS_AT_ONCE):
            await guard(self._redis.unlink(*keys[index : index + _KEYS_AT_ONCE]))


def _records_key(tenant: str, hour: str) -> str:
    return tenant_key(tenant, "ledger", "records", hour)


def _rollup_keys(tenant: str, hour: str) -> tuple[str, str]:
    return tenant_key(tenant, "ledger", "rollup", hour), tenant_key(tenant, "ledger", "users", hour)


def _hours_key(tenant: str) -> str:
    return tenant_key(tenant, "ledger", "hours")


def _split(raw: tuple[Sequence[bytes], Sequence[bytes]]) -> Rows:
    rows, by_user = (rows_of(_decoded(dict(zip(flat[::2], flat[1::2], strict=True)))) for flat in raw)
    return with_users(rows, by_user)


def _decoded(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
