"""Lookups from a process of its own, which nothing but the store can stall: until its input ends, then it tells how long."""

import argparse
import asyncio
import itertools
import json
import random
import sys

from benchmarks.scale import lookups, population
from benchmarks.scale.latency import latency
from services.cache.adapters.qdrant import open_qdrant

PAUSE_S = 0.005
VARIETY = 200
TIMEOUT_S = 120.0


async def probe(address: str, entries: int, tenants: int) -> list[float]:
    """Seconds of each lookup in scopes of typical size, all tenants alike."""
    chance = random.Random(1)
    drawn = chance.choices(population.tenants(entries, tenants), k=VARIETY)
    asked = [(t, next(lookups.questions(t, whole=False, count=1, seed=i))) for i, t in enumerate(drawn)]
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    taken: list[float] = []
    async with open_qdrant(address, api_key=None, tls=False, prefix=lookups.PREFIX, timeout=TIMEOUT_S) as store:
        for tenant, question in itertools.cycle(asked):
            took, _ = await lookups.ask(store, tenant, question)
            taken.append(took)
            if ended.done():
                return taken
            await asyncio.sleep(PAUSE_S)
    return taken


def main() -> None:
    """Reads the command line, asks, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("entries", type=int)
    parser.add_argument("tenants", type=int)
    options = parser.parse_args()
    taken = asyncio.run(probe(options.address, options.entries, options.tenants))
    print(json.dumps(latency(taken[1:] or taken)))  # the first one opens the connection


if __name__ == "__main__":
    main()
