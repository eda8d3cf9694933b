"""Ledger and budgets in Redis. Every key carries the tenant as its hash tag, so each step runs on one slot of a cluster."""

import json
from collections.abc import Awaitable, Mapping
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.errors import NotReady
from services.edge.domain.budgets import end_of
from services.edge.domain.ledger import UsageRecord, increments

T = TypeVar("T")

# Record, roll-up and budget in one atomic step; a record that is there already changes nothing.
# KEYS: records of the hour, roll-up of the hour, hours, then budgets. ARGV: record id, record, hour, reservation id,
# actual cost, then field and amount in turn.
_WRITE = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('SADD', KEYS[3], ARGV[3])
for i = 6, #ARGV, 2 do redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1]) end
for k = 4, #KEYS do
  if ARGV[4] ~= '' then redis.call('HDEL', KEYS[k], 'r:' .. ARGV[4]) end
  if tonumber(ARGV[5]) > 0 then redis.call('HINCRBY', KEYS[k], 'spent', ARGV[5]) end
end
return 1
"""


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
    """Records, roll-ups and settlements."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def missing(self) -> str | None:
        """What readiness waits for."""
        try:
            await guard(self._redis.ping())
        except NotReady as error:
            return error.message
        return None

    async def write(self, records: list[UsageRecord]) -> None:
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
            args: list[str | int] = [
                record.record_id,
                json.dumps(record.to_json(), separators=(",", ":"), ensure_ascii=False),
                hour,
                record.reservation_id,
                record.bill.actual,
            ]
            for name, amount in increments(record).items():
                args += [name, amount]
            budgets = [tenant_key(record.tenant, "budget", name) for name in record.budgets]
            pipe.eval(
                _WRITE,
                3 + len(budgets),
                tenant_key(record.tenant, "ledger", "records", hour),
                tenant_key(record.tenant, "ledger", "rollup", hour),
                tenant_key(record.tenant, "ledger", "hours"),
                *budgets,
                *args,
            )
        await guard(pipe.execute())

    async def rollups(self, tenant: str, first_hour: str, end_hour: str) -> list[tuple[str, dict[str, int]]]:
        hours = cast(
            set[bytes],
            await guard(cast(Awaitable[object], self._redis.smembers(tenant_key(tenant, "ledger", "hours")))),
        )
        wanted = sorted(h for h in (raw.decode() for raw in hours) if first_hour <= h < end_hour)
        pipe = self._redis.pipeline(transaction=False)
        for hour in wanted:
            pipe.hgetall(tenant_key(tenant, "ledger", "rollup", hour))
        rows = cast(list[Mapping[bytes, bytes]], await guard(pipe.execute()))
        return [
            (hour, {field.decode(): int(amount) for field, amount in row.items()})
            for hour, row in zip(wanted, rows, strict=True)
        ]
