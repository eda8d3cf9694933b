"""What the edge counts: numbers of the metrics are those of the records."""

import json
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common import metrics
from services.common.errors import NotReady
from services.common.money import NANO, Bill, CostItem, Savings, Usage
from services.edge.adapters.metrics import (
    BudgetUse,
    MeteredSpool,
    MeteredWalk,
    RecordMetrics,
    counted,
    watch_spool,
)
from services.edge.adapters.spool import FileSpool
from services.edge.domain.budgets import Budget, Mode, Period, Window
from services.edge.domain.ledger import UsageRecord
from tests.unit.edge.fakes import World, hit, question

SAVED = Savings(cache=0, routing=700, compression=-40, prompt_cache=100, batch=0)
ITEMS = (CostItem("embedder", "", 30, overhead=True), CostItem("provider", "gpt-4o-mini", 240))
RECORD = UsageRecord(
    "r1",
    "q1",
    1_700_000_000.0,
    "acme",
    "default",
    "search",
    "alice",
    "gpt-4o-mini",
    "medium",
    "miss",
    Usage(1000, 100, cache_read_input_tokens=600, reasoning_output_tokens=20),
    Bill(270, 1000, SAVED, ITEMS),
)


def samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of the edge now."""
    families = text_string_to_metric_families(metrics.exposition("edge").decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


@pytest.fixture
def grown():
    """How much a sample has grown since the test began."""
    before = samples()

    def of(name: str, **labels: str) -> float:
        key = name, tuple(sorted(labels.items()))
        return samples().get(key, 0.0) - before.get(key, 0.0)

    return of


def test_a_record_becomes_requests_tokens_and_money(grown):
    RecordMetrics().count(RECORD)
    assert grown("semantic_cache_requests_total", result="miss") == 1
    assert grown("llm_requests_total", endpoint="search", namespace="default", outcome="miss") == 1
    assert grown("llm_routed_requests_total", tier="medium", model="gpt-4o-mini") == 1
    assert grown("llm_cost_dollars_total", model="gpt-4o-mini", endpoint="search") == pytest.approx(270 / NANO)
    assert grown("llm_component_cost_dollars_total", component="provider") == pytest.approx(240 / NANO)
    assert grown("llm_component_cost_dollars_total", component="embedder") == pytest.approx(30 / NANO)
    assert grown("llm_overhead_dollars_total", component="embedder") == pytest.approx(30 / NANO)
    assert grown("llm_overhead_dollars_total", component="provider") == 0
    assert grown("llm_baseline_dollars_total", endpoint="search") == pytest.approx(1000 / NANO)
    assert grown("llm_tokens_total", type="input", model="gpt-4o-mini") == 1000
    assert grown("llm_tokens_total", type="cache_read", model="gpt-4o-mini") == 600
    assert grown("llm_tokens_total", type="reasoning", model="gpt-4o-mini") == 20
    assert grown("llm_query_input_tokens_total", endpoint="search") == 1000


def test_a_layer_that_lost_is_counted_apart_so_that_counters_only_grow_and_the_identity_holds(grown):
    RecordMetrics().count(RECORD)
    assert grown("llm_savings_dollars_total", layer="routing") == pytest.approx(700 / NANO)
    assert grown("llm_savings_dollars_total", layer="compression") == 0
    assert grown("llm_losses_dollars_total", layer="compression") == pytest.approx(40 / NANO)
    net = sum(
        grown("llm_savings_dollars_total", layer=layer) - grown("llm_losses_dollars_total", layer=layer)
        for layer in ("cache", "routing", "compression", "prompt_cache", "batch")
    )
    overhead = grown("llm_overhead_dollars_total", component="embedder")
    baseline = grown("llm_baseline_dollars_total", endpoint="search")
    assert baseline - net + overhead == pytest.approx(RECORD.bill.actual / NANO)


@pytest.mark.parametrize("outcome", ["exact_hit", "semantic_hit", "coalesced"])
def test_tokens_of_an_answer_that_was_there_are_spared(grown, outcome):
    RecordMetrics().count(replace(RECORD, outcome=outcome, bill=Bill(0, 1000, Savings(cache=1000))))
    assert grown("llm_tokens_spared_total", type="output", model="gpt-4o-mini") == 100
    assert grown("llm_tokens_total", type="output", model="gpt-4o-mini") == 0
    assert grown("semantic_cache_requests_total", result=outcome) == 1
    assert grown("llm_routed_requests_total", tier="medium", model="gpt-4o-mini") == 0


def test_a_shadow_costs_and_is_no_request(grown):
    RecordMetrics().count(replace(RECORD, outcome="shadow"))
    assert grown("llm_cost_dollars_total", model="gpt-4o-mini", endpoint="search") == pytest.approx(270 / NANO)
    assert grown("llm_requests_total", endpoint="search", namespace="default", outcome="shadow") == 0
    assert grown("llm_query_input_tokens_total", endpoint="search") == 0


def test_an_error_is_a_request_that_the_cache_has_nothing_to_do_with(grown):
    failed = replace(RECORD, outcome="error", error="UPSTREAM_UNAVAILABLE", model="", usage=Usage(), bill=Bill(0, 0))
    RecordMetrics().count(failed)
    assert grown("llm_requests_total", endpoint="search", namespace="default", outcome="error") == 1
    assert grown("llm_request_errors_total", reason="UPSTREAM_UNAVAILABLE") == 1
    assert grown("semantic_cache_requests_total", result="error") == 0


def test_an_unpriced_record_is_flagged(grown):
    RecordMetrics().count(replace(RECORD, bill=Bill(0, 0, unpriced=True)))
    assert grown("llm_unpriced_records_total", model="gpt-4o-mini") == 1


def test_tenants_are_counted_only_where_that_is_wanted(grown):
    RecordMetrics().count(RECORD)
    assert grown("llm_tenant_requests_total", tenant="acme", outcome="miss") == 0
    RecordMetrics(tenants=True).count(RECORD)
    assert grown("llm_tenant_requests_total", tenant="acme", outcome="miss") == 1
    assert grown("llm_tenant_cost_dollars_total", tenant="acme") == pytest.approx(270 / NANO)
    assert "alice" not in metrics.exposition("edge").decode()


def test_endpoints_past_the_cap_are_one(grown):
    records = RecordMetrics()
    for number in range(metrics.MOST_VALUES + 50):
        records.count(replace(RECORD, endpoint=f"capped-{number}"))
    assert grown("llm_requests_total", endpoint="other", namespace="default", outcome="miss") == 50


def test_a_metered_spool_writes_before_it_counts(grown):
    class Full:
        def append(self, record: UsageRecord) -> None:
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        MeteredSpool(Full(), RecordMetrics()).append(RECORD)
    assert grown("semantic_cache_requests_total", result="miss") == 0


async def test_time_and_first_token_are_noted_by_outcome(grown):
    world = World()
    walk = MeteredWalk(world.walk._steps, world.leases, lambda service, error: None)
    await walk.complete(question(endpoint="timed"))
    assert grown("llm_request_latency_seconds_count", endpoint="timed", outcome="miss") == 1
    async for _ in walk.stream(question(endpoint="timed")):
        pass
    assert grown("llm_request_latency_seconds_count", endpoint="timed", outcome="miss") == 2
    assert grown("llm_time_to_first_token_seconds_count", outcome="miss") == 1
    world.cache.exact = hit()
    await walk.complete(question(endpoint="timed"))
    assert grown("llm_request_latency_seconds_count", endpoint="timed", outcome="exact_hit") == 1
    await walk.close()


async def test_a_stream_that_its_caller_leaves_is_an_error_at_once(grown):
    world = World()
    walk = MeteredWalk(world.walk._steps, world.leases, lambda service, error: None)
    stream = walk.stream(question(endpoint="left"))
    await anext(stream)
    await stream.aclose()
    assert grown("llm_request_latency_seconds_count", endpoint="left", outcome="error") == 1
    await walk.close()


def test_a_cache_that_never_hit_has_a_hit_rate_of_zero_and_not_an_unknown_one():
    RecordMetrics()
    told = {labels for name, labels in samples() if name == "semantic_cache_requests_total"}
    assert {dict(labels)["result"] for labels in told} == {
        *("exact_hit", "semantic_hit", "miss", "bypass", "canary", "coalesced")
    }


def test_a_skipped_service_is_counted_each_time(grown):
    heard: list[str] = []
    note = counted(lambda service, error: heard.append(service))
    note("embedder", NotReady("down"))
    note("embedder", NotReady("down"))
    assert heard == ["embedder", "embedder"]
    assert grown("llmmesh_degraded_total", service="embedder") == 2


def gauge(name: str, **labels: str) -> float:
    return samples()[name, tuple(sorted(labels.items()))]


async def test_the_spool_tells_its_depth_and_the_age_of_its_oldest_record(tmp_path):
    class Down:
        async def write(self, records: list[UsageRecord]) -> None:
            raise NotReady("down")

    spool = FileSpool(tmp_path, Down(), 60, 60)  # type: ignore[arg-type]
    watch_spool(spool, lambda: RECORD.at + 30)
    assert gauge("llmmesh_spool_records") == 0
    assert gauge("llmmesh_spool_oldest_seconds") == 0
    spool.append(RECORD)
    spool.append(replace(RECORD, at=RECORD.at + 20))
    assert gauge("llmmesh_spool_records") == 2
    assert gauge("llmmesh_spool_oldest_seconds") == 30
    with pytest.raises(NotReady):
        await spool.flush()
    assert gauge("llmmesh_spool_oldest_seconds") == 30
    (tmp_path / "segment-000000000000.jsonl").write_text(json.dumps({"torn": 1})[:-3])
    assert gauge("llmmesh_spool_oldest_seconds") == 0


def test_a_budget_is_as_used_as_by_the_holder_who_used_most_until_it_resets():
    class Moving:
        time = 1_700_000_000.0

        def now(self) -> float:
            return self.time

    clock = Moving()
    use = BudgetUse(clock)
    team = Budget("team-metrics", 1000, Period.DAY, Mode.HARD)
    window = Window("team-metrics:day", team, clock.now() + 100)
    labels = {"budget": "team-metrics", "period": "day"}
    use.saw("acme", window, 300)
    assert gauge("llm_budget_used_ratio", **labels) == 0.3
    use.saw("volta", window, 900)
    use.saw("acme", window, 400)
    assert gauge("llm_budget_used_ratio", **labels) == 0.9
    use.saw("volta", window, 500)
    assert gauge("llm_budget_used_ratio", **labels) == 0.5
    clock.time += 101
    assert gauge("llm_budget_used_ratio", **labels) == 0.0
