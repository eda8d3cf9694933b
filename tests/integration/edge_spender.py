"""A process that reserves and settles as fast as it can until the budget refuses; prints how often it was allowed to."""

import asyncio
import sys

from services.common.clock import SystemClock
from services.common.errors import BudgetExceeded
from services.edge.adapters.redis import RedisBudgets, RedisLedger, open_redis
from tests.integration.test_edge_redis import LIMIT_USD, record


async def main(url: str, name: str, amount: int) -> None:
    redis = open_redis(url)
    budgets, ledger = RedisBudgets(redis, {"default": LIMIT_USD}, 1, SystemClock()), RedisLedger(redis)
    spent = 0
    sys.stdin.readline()  # all begin together
    while True:
        reservation = f"{name}-{spent}"
        try:
            await budgets.reserve("acme", "default", amount, reservation)
        except BudgetExceeded:
            break
        spent += 1
        await ledger.write([record(reservation, amount, reservation, at=SystemClock().now())])
    await redis.aclose()
    print(spent)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
