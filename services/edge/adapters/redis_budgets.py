"""Budgets in Redis: what is spent and reserved, exact over replicas. The ledger settles reservations (`adapters/redis.py`)."""

from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import cast

from redis.asyncio import Redis

from services.common.clock import Clock
from services.common.errors import BudgetExceeded, NotReady
from services.edge.adapters.metrics import BudgetUse
from services.edge.adapters.redis import guard, tenant_key, windows_key
from services.edge.domain.budgets import (
    RESERVATION_S,
    BudgetBook,
    BudgetStatus,
    Mode,
    Window,
    exceeded,
    status_of,
)

KEPT_S = 8 * 86_400.0  # from a window's end to its removal
MAX_LISTED = 1000  # budgets in one answer
_MAX_SEEN = 10_000
_CHUNK = 500

# Sums a window up and drops what has expired in it; the reservation `mine` does not count.
_SUM = """
local function sum(key, mine, now)
  local all, spent, reserved = redis.call('HGETALL', key), 0, 0
  for i = 1, #all, 2 do
    if all[i] == 'spent' then spent = tonumber(all[i + 1])
    elseif all[i] ~= 'r:' .. mine then
      local amount, expiry = string.match(all[i + 1], '^(%d+):(%d+)$')
      if tonumber(expiry) <= now then redis.call('HDEL', key, all[i])
      else reserved = reserved + tonumber(amount) end
    end
  end
  return spent, reserved
end
"""

# In all windows or in none. KEYS: index of the tenant's windows, then windows, of all of which the name follows a prefix.
# ARGV: reservation id, amount, now, expiry, the time before which ended windows go, prefix, then for each window its name, limit
# (-1 for none) and end. Returns {taken, spent, reserved, spent, reserved, ...}.
# Windows that ended long ago go here, twice as many as may come, so that nobody else needs to look after them.
_RESERVE = (
    _SUM
    + """
local amount, now, told = tonumber(ARGV[2]), tonumber(ARGV[3]), {1}
for w = 2, #KEYS do
  local limit = tonumber(ARGV[3 * w + 2])
  local spent, reserved = sum(KEYS[w], ARGV[1], now)
  if limit >= 0 and spent + reserved + amount > limit then told[1] = 0 end
  told[#told + 1], told[#told + 2] = spent, reserved
end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[5], 'LIMIT', 0, 2 * #KEYS)) do
  redis.call('UNLINK', ARGV[6] .. old)
  redis.call('ZREM', KEYS[1], old)
end
if told[1] == 0 then return told end
for w = 2, #KEYS do
  redis.call('ZADD', KEYS[1], ARGV[3 * w + 3], ARGV[3 * w + 1])
  redis.call('HSET', KEYS[w], 'r:' .. ARGV[1], ARGV[2] .. ':' .. ARGV[4])
end
return told
"""
)

# KEYS: windows. ARGV: now. Returns {spent, reserved, ...}.
_STAND = (
    _SUM
    + """
local told = {}
for w = 1, #KEYS do
  told[#told + 1], told[#told + 2] = sum(KEYS[w], '', tonumber(ARGV[1]))
end
return told
"""
)


@dataclass(slots=True)
class _Seen:
    """The share of what a window had left when Redis was last asked."""

    left: int
    reserved: dict[str, int] = field(default_factory=dict)


class RedisBudgets:
    """Limits within a tenant, exact over replicas; while Redis is down, a share of what was left."""

    def __init__(self, redis: Redis, book: BudgetBook, replicas: int, clock: Clock) -> None:
        self._redis = redis
        self._book = book
        self._replicas = replicas
        self._clock = clock
        self._seen: OrderedDict[tuple[str, str], _Seen] = OrderedDict()
        self._use = BudgetUse(clock)

    async def reserve(
        self,
        tenant: str,
        windows: Sequence[Window],
        amount: int,
        reservation_id: str,
        *,
        past_soft: bool = False,
        for_s: float = RESERVATION_S,
    ) -> tuple[Window, ...]:
        now = self._clock.now()
        args: list[str | int] = [
            reservation_id,
            amount,
            int(now),
            int(now + for_s),
            int(now - KEPT_S),
            tenant_key(tenant, "budget", ""),
        ]
        for window in windows:
            boundless = past_soft and window.budget.mode is Mode.SOFT
            args += [window.name, -1 if boundless else window.budget.limit, int(window.resets_at)]
        keys = [windows_key(tenant), *(tenant_key(tenant, "budget", window.name) for window in windows)]
        try:
            taken, *sums = await self._eval(_RESERVE, keys, args)
        except NotReady:
            return self._reserve_share(tenant, windows, amount, reservation_id, past_soft=past_soft)
        stands = list(zip(windows, sums[::2], sums[1::2], strict=True))
        for window, spent, reserved in stands:
            left = window.budget.limit - spent - reserved - (amount if taken else 0)
            self._see(tenant, window, max(left, 0))
            self._use.saw(tenant, window, window.budget.limit - left)
        if taken:
            return ()
        full = [stand for stand in stands if sum(stand[1:]) + amount > stand[0].budget.limit]
        soft = tuple(window for window, _, _ in full if window.budget.mode is Mode.SOFT)
        if soft and not past_soft:
            return soft
        # Before the last of them resets, another try is in vain.
        last = max((stand for stand in full if stand[0].budget.mode is Mode.HARD), key=lambda stand: stand[0].resets_at)
        raise exceeded(tenant, *last, amount, now)

    def _see(self, tenant: str, window: Window, left: int) -> _Seen:
        key = tenant, window.name
        seen = self._seen[key] = _Seen(left // self._replicas)
        self._seen.move_to_end(key)
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        return seen

    def _reserve_share(
        self, tenant: str, windows: Sequence[Window], amount: int, reservation_id: str, *, past_soft: bool
    ) -> tuple[Window, ...]:
        shares = [self._seen.get((tenant, w.name)) or self._see(tenant, w, w.budget.limit) for w in windows]
        full = [
            window
            for window, seen in zip(windows, shares, strict=True)
            if amount > seen.left + seen.reserved.get(reservation_id, 0)
        ]
        soft = tuple(window for window in full if window.budget.mode is Mode.SOFT)
        if soft and not past_soft:
            return soft
        hard = [window for window in full if window.budget.mode is Mode.HARD]
        if hard:
            raise BudgetExceeded(
                f"the budgets' store is down and this replica's share of the budget {hard[0].budget.name} is used up",
                metadata={"tenant": tenant, "budget": hard[0].budget.name},
            )
        for seen in shares:
            seen.left += seen.reserved.pop(reservation_id, 0) - amount
            seen.reserved[reservation_id] = amount
        return ()

    def settle(self, tenant: str, windows: Sequence[str], reservation_id: str, actual: int) -> None:
        for name in windows:
            seen = self._seen.get((tenant, name))
            if seen is not None:
                seen.left += seen.reserved.pop(reservation_id, actual) - actual

    async def release(self, tenant: str, windows: Sequence[str], reservation_id: str) -> None:
        self.settle(tenant, windows, reservation_id, 0)
        pipe = self._redis.pipeline(transaction=False)
        for name in windows:
            pipe.hdel(tenant_key(tenant, "budget", name), f"r:{reservation_id}")
        await guard(pipe.execute())

    async def status(self, tenant: str | None) -> list[BudgetStatus]:
        """The budgets that hold for a tenant, None for every tenant, the fullest first, at most MAX_LISTED. Raises NotReady."""
        tenants = {tenant} if tenant is not None else await self._tenants()
        found: list[BudgetStatus] = []
        for name in sorted(tenants):
            found += await self._status_of(name)
        return _fullest(found)

    async def _tenants(self) -> set[str]:
        """Those that budgets name, and those that spent something."""
        pattern = tenant_key("*", "budgets")
        found, cursor = set(self._book.tenants), 0
        while True:
            call = self._redis.scan(cursor, match=pattern, count=1000)
            cursor, keys = await guard(cast(Awaitable[tuple[int, list[bytes]]], call))
            found |= {key.decode()[1:].rpartition("}")[0] for key in keys}
            if not cursor:
                return found

    async def _status_of(self, tenant: str) -> list[BudgetStatus]:
        now = self._clock.now()
        windows = {window.name: window for window in self._book.shared(tenant, now)}
        names = await guard(
            cast(Awaitable[list[bytes]], self._redis.zrangebyscore(windows_key(tenant), f"({int(now)}", "+inf"))
        )
        for raw in names:
            window = self._book.window(tenant, raw.decode())
            if window is not None:
                windows[window.name] = window
        found: list[BudgetStatus] = []
        rest = list(windows.values())
        while some := rest[:_CHUNK]:
            del rest[:_CHUNK]
            keys = [tenant_key(tenant, "budget", window.name) for window in some]
            sums = await self._eval(_STAND, keys, [int(now)])
            found += [status_of(w, tenant, *pair) for w, *pair in zip(some, sums[::2], sums[1::2], strict=True)]
            found = _fullest(found)
        return found

    async def _eval(self, script: str, keys: Sequence[str], args: Sequence[str | int]) -> list[int]:
        call = self._redis.eval(script, len(keys), *keys, *map(str, args))
        return cast(list[int], await guard(cast(Awaitable[object], call)))


def _fullest(found: list[BudgetStatus]) -> list[BudgetStatus]:
    return sorted(found, key=lambda s: (-(s.spent + s.reserved) / s.limit, s.tenant, s.name, s.endpoint, s.user))[
        :MAX_LISTED
    ]
