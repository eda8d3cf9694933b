import numpy as np
import pytest

from benchmarks.scale import __main__ as scale
from benchmarks.scale import lookups, population
from benchmarks.scale.latency import latency
from services.cache.domain.ports import Neighbour


@pytest.mark.parametrize(("entries", "count"), [(1_000_000, 1_000), (20_000, 1_000), (10, 3), (2_500, 625)])
def test_one_tenant_has_half_and_one_a_single_entry(entries, count):
    made = population.tenants(entries, count)
    sizes = [tenant.entries for tenant in made]
    assert (len(made), sum(sizes), max(sizes), sizes[-1]) == (count, entries, entries // 2, 1)
    assert min(sizes) >= 1
    assert [t.first for t in made] == [sum(sizes[:i]) for i in range(count)]


def test_too_few_entries_are_refused():
    with pytest.raises(ValueError, match="too few"):
        population.tenants(10, 9)


def test_a_vector_is_the_same_in_whatever_block_it_is_made():
    block = population.vectors(3, 4)
    assert np.array_equal(population.vectors(5, 1)[0], block[2])
    assert np.allclose(np.linalg.norm(block, axis=1), 1)


def test_a_paraphrase_is_near_what_it_was_made_of():
    vector = population.vectors(0, 1)[0]
    near = population.nearby(vector, 1)
    assert near @ vector == pytest.approx(1 / np.sqrt(1 + 0.35**2), abs=0.03)
    assert not np.array_equal(near, population.nearby(vector, 2))


def test_blocks_hold_every_entry_once_with_its_tenant():
    whole = population.tenants(500, 10)
    entries = [entry for block in population.blocks(whole, 64) for entry in block]
    assert sorted(entry.number for entry in entries) == list(range(500))
    owner = {number: t.name for t in whole for number in range(t.first, t.first + t.entries)}
    assert all(entry.tenant == owner[entry.number] for entry in entries)


def test_scopes_are_32_bytes_and_apart():
    whole = population.tenants(2_000, 10)
    scopes = {
        scope for t in whole for n in range(t.first, t.first + t.entries) for scope in population.entry(t, n).scopes
    }
    assert {len(scope) for scope in scopes} == {32}
    parts = sum(-(-t.entries // population.SCOPE_ENTRIES) for t in whole)
    assert len(scopes) == parts + len(whole)


def test_latency_in_short():
    assert latency([0.001] * 98 + [0.002, 0.5]) == {"count": 100, "p50_ms": 1.0, "p99_ms": 500.0, "longest_ms": 500.0}


class Found:
    def __init__(self, entry_id):
        self.entry_id = entry_id
        self.scopes = []

    async def search(self, vector, tenant, scopes, *, language, now, floor, limit):
        self.scopes += scopes
        return [Neighbour(self.entry_id, 0.9)]


async def test_recall_counts_lookups_whose_entry_came_first():
    tenant = population.tenants(100, 5)[-1]
    asked = list(lookups.questions(tenant, whole=False, count=3, seed=1))
    right = Found(population.entry(tenant, tenant.first).entry_id)
    assert (await lookups.ask_all(right, tenant, asked))[1] == 1.0
    assert (await lookups.ask_all(Found("0" * 64), tenant, asked))[1] == 0.0
    assert set(right.scopes) == {population.entry(tenant, tenant.first).scopes[0]}


def test_tables_have_a_line_for_each_lookup_and_each_store():
    at = latency([0.001])
    found = {"tenant_entries": 1, "scope_entries": 1, "latency": at, "recall": 1.0}
    run = {
        "vectors": "float32",
        "entries": 10,
        "tenants": 3,
        "entries_per_s": 1.0,
        "rebuild_s": 0.0,
        "resident_bytes": 1.0,
        "anonymous_bytes": 1.0,
        "disk_bytes": 1.0,
        "while_loading": at,
        "while_rebuilding": at,
        "lookups": [found, found],
    }
    searches, stores = scale.tables({"machine": {}, "runs": [run]})
    assert (searches.row_count, stores.row_count) == (2, 1)
