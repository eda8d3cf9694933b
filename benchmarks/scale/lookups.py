"""Lookups through the cache's own adapter."""

import random
import time
from collections.abc import Iterator, Sequence

from benchmarks.scale import population
from benchmarks.scale.population import DIMENSIONS, SCOPE_ENTRIES, Tenant
from services.cache.adapters.qdrant import QdrantVectors
from services.cache.domain.ports import Vector

PREFIX = "scale-"
MODEL = "bench"
COLLECTION = f"{PREFIX}{MODEL}-{DIMENSIONS}"
LANGUAGE = "en"
FLOOR = 0.5
CANDIDATES = 10
NOW = 1.0
"""The time of all lookups, in Unix seconds: nothing has expired."""

Asked = tuple[int, Vector, bytes]


def questions(tenant: Tenant, *, whole: bool, count: int, seed: int) -> Iterator[Asked]:
    """Paraphrases of stored questions: the entry that is meant, the vector, and the scope, the entry's or the `whole` one."""
    chance = random.Random(seed)
    for number in range(count):
        wanted = tenant.first + chance.randrange(tenant.entries)
        small, large = population.entry(tenant, wanted).scopes
        vector = population.nearby(population.vectors(wanted, 1)[0], number)
        yield wanted, Vector(vector, MODEL), large if whole else small


def scope_entries(tenant: Tenant, *, whole: bool) -> int:
    """How many entries such a scope holds."""
    return tenant.entries if whole else min(tenant.entries, SCOPE_ENTRIES)


async def ask(store: QdrantVectors, tenant: Tenant, asked: Asked) -> tuple[float, bool]:
    """One lookup: seconds, and whether the entry that is meant came first."""
    wanted, vector, scope = asked
    started = time.perf_counter()
    found = await store.search(vector, tenant.name, [scope], language=LANGUAGE, now=NOW, floor=FLOOR, limit=CANDIDATES)
    took = time.perf_counter() - started
    return took, bool(found) and found[0].entry_id == population.entry(tenant, wanted).entry_id


async def ask_all(store: QdrantVectors, tenant: Tenant, some: Sequence[Asked]) -> tuple[list[float], float]:
    """All of them, one after the other: seconds each, and the share whose entry came first."""
    answered = [await ask(store, tenant, asked) for asked in some]
    return [took for took, _ in answered], sum(right for _, right in answered) / len(answered)
