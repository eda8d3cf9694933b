"""Ledger and budgets in Redis. Every key carries the tenant as its hash tag, so each step runs on one slot of a cluster."""

import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.common.clock import Clock
from services.common.errors import BudgetExceeded, NotReady
from services.common.money import NANO, usd
from services.edge.domain.ledger import UsageRecord, increments
from services.edge.domain.ports import RESERVATION_S

T = TypeVar("T")

# Record, roll-up and budget in one atomic step; a record that is there already changes nothing.
# KEYS: records of the hour, roll-up of the hour, hours, budget of the day. ARGV: record id, record, hour, reservation id,
# actual cost, then field and amount in turn.
_WRITE = """
if redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('SADD', KEYS[3], ARGV[3])
for i = 6, #ARGV, 2 do redis.call('HINCRBY', KEYS[2], ARGV[i], ARGV[i + 1]) end
if ARGV[4] ~= '' then redis.call('HDEL', KEYS[4], 'r:' .. ARGV[4]) end
if tonumber(ARGV[5]) > 0 then redis.call('HINCRBY', KEYS[4], 'spent', ARGV[5]) end
return 1
"""

# KEYS: budget of the day. ARGV: limit, amount, reservation id, now, expiry. Returns {allowed, spent, reserved}.
_RESERVE = """
local all, spent, reserved = redis.call('HGETALL', KEYS[1]), 0, 0
for i = 1, #all, 2 do
  if all[i] == 'spent' then spent = tonumber(all[i + 1])
  elseif all[i] ~= 'r:' .. ARGV[3] then
    local amount, expiry = string.match(all[i + 1], '^(%d+):(%d+)$')
    if tonumber(expiry) <= tonumber(ARGV[4]) then redis.call('HDEL', KEYS[1], all[i])
    else reserved = reserved + tonumber(amount) end
  end
end
if spent + reserved + tonumber(ARGV[2]) > tonumber(ARGV[1]) then return {0, spent, reserved} end
redis.call('HSET', KEYS[1], 'r:' .. ARGV[3], ARGV[2] .. ':' .. ARGV[5])
return {1, spent, reserved}
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
            pipe.eval(
                _WRITE,
                4,
                tenant_key(record.tenant, "ledger", "records", hour),
                tenant_key(record.tenant, "ledger", "rollup", hour),
                tenant_key(record.tenant, "ledger", "hours"),
                tenant_key(record.tenant, "budget", record.namespace, hour[:10]),
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


@dataclass(slots=True)
class _Seen:
    """What a namespace's budget had left when Redis was last asked."""

    day: str
    left: int
    reserved: dict[str, int] = field(default_factory=dict)


class RedisBudgets:
    """Daily limits per tenant and namespace, exact over replicas; while Redis is down, a share of what was left."""

    def __init__(self, redis: Redis, limits: Mapping[str, float | None], replicas: int, clock: Clock) -> None:
        self._redis = redis
        self._limits = {name: int(limit * NANO) for name, limit in limits.items() if limit is not None}
        self._replicas = replicas
        self._clock = clock
        self._seen: dict[tuple[str, str], _Seen] = {}

    async def reserve(
        self, tenant: str, namespace: str, amount: int, reservation_id: str, for_s: float = RESERVATION_S
    ) -> None:
        limit = self._limits.get(namespace)
        if limit is None:
            return
        now = self._clock.now()
        day = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d")
        key = tenant_key(tenant, "budget", namespace, day)
        try:
            allowed, spent, reserved = cast(
                tuple[int, int, int],
                await guard(
                    cast(
                        Awaitable[object],
                        self._redis.eval(
                            _RESERVE,
                            1,
                            key,
                            str(limit),
                            str(amount),
                            reservation_id,
                            str(int(now)),
                            str(int(now + for_s)),
                        ),
                    )
                ),
            )
        except NotReady:
            self._reserve_share(tenant, namespace, amount, day, limit, reservation_id)
            return
        left = limit - spent - reserved
        self._seen[tenant, namespace] = _Seen(day, max(left - amount, 0) // self._replicas)
        if not allowed:
            raise _exceeded(tenant, limit, spent, reserved, now)

    def _reserve_share(
        self, tenant: str, namespace: str, amount: int, day: str, limit: int, reservation_id: str
    ) -> None:
        seen = self._seen.get((tenant, namespace))
        if seen is None or seen.day != day:
            seen = self._seen[tenant, namespace] = _Seen(day, limit // self._replicas)
        if amount > seen.left:
            raise BudgetExceeded("the budget's store is down and this replica's share of the budget is used up")
        seen.left -= amount
        seen.reserved[reservation_id] = amount

    def settle(self, tenant: str, namespace: str, reservation_id: str, actual: int) -> None:
        seen = self._seen.get((tenant, namespace))
        if seen is not None:
            seen.left += seen.reserved.pop(reservation_id, actual) - actual

    async def release(self, tenant: str, namespace: str, reservation_id: str) -> None:
        day = datetime.fromtimestamp(self._clock.now(), UTC).strftime("%Y-%m-%d")
        key = tenant_key(tenant, "budget", namespace, day)
        await guard(cast(Awaitable[object], self._redis.hdel(key, f"r:{reservation_id}")))


def _exceeded(tenant: str, limit: int, spent: int, reserved: int, now: float) -> BudgetExceeded:
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    resets = today + timedelta(days=1)
    return BudgetExceeded(
        f"the daily budget of {usd(limit)} is used up: {usd(spent)} spent, {usd(reserved)} reserved; it resets at "
        f"{resets:%Y-%m-%d %H:%M} UTC",
        retry_after_s=resets.timestamp() - now,
        metadata={"resets_at": resets.isoformat(), "tenant": tenant},
    )
