"""A replica that asks as fast as it can until the minute is used up; prints how often it was let in."""

import asyncio
import sys

from services.common.clock import SystemClock
from services.common.errors import RateLimited
from services.edge.adapters.redis import open_redis
from services.edge.adapters.redis_rate_limits import RedisRateLimits
from services.edge.domain.keys import Key


async def main(url: str, limit: int) -> None:
    redis = open_redis(url)
    limits, key, passed = RedisRateLimits(redis, 4, SystemClock()), Key("k", "acme", requests_per_minute=limit), 0

    async def ask() -> None:
        nonlocal passed
        while True:
            await limits.admit(key)
            passed += 1
            await asyncio.sleep(0)

    sys.stdin.readline()  # all begin together
    ended = await asyncio.gather(*(ask() for _ in range(5)), return_exceptions=True)
    await redis.aclose()
    assert all(isinstance(end, RateLimited) for end in ended)
    print(passed)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
