"""What the cache counts, and how its namespaces stand."""

from services.cache.adapters.metrics import count, watch_standings
from services.cache.domain.calibration import Calibration
from services.cache.domain.quality import Quality
from services.common import metrics


class Clock:
    def now(self) -> float:
        return 1_700_000_000.0


def value(name: str, **labels: str) -> float | None:
    metrics.exposition("cache")
    return metrics.registry_of("cache").get_sample_value(name, labels)


def test_what_this_process_counts_is_counted_by_namespace_and_never_by_tenant():
    quality = Quality(Calibration.load(), Clock(), counted=count)
    quality.count("acme", "counted", near_misses=1)
    quality.count("volta", "counted", near_misses=1, semantic_hits=1, alias_hits=0)
    assert value("llmmesh_cache_events_total", namespace="counted", event="near_misses") == 2
    assert value("llmmesh_cache_events_total", namespace="counted", event="semantic_hits") == 1
    assert value("llmmesh_cache_events_total", namespace="counted", event="alias_hits") is None


def test_a_namespace_stands_as_its_worst_tenant_does():
    quality = Quality(Calibration.load(), Clock())
    quality.count("good", "standing", lookups=1000, semantic_hits=500, checked=300)
    quality.count("bad", "standing", lookups=1000, semantic_hits=500, checked=100, wrong=20)
    quality.count("bad", "never-asked", lookups=1)
    limits = [quality.highest_risk(tenant, "standing", 0.01) for tenant in ("good", "bad")]
    watch_standings(quality)
    assert value("llmmesh_cache_error_budget_state", namespace="standing", state="tight") == 1
    assert value("llmmesh_cache_error_budget_state", namespace="standing", state="open") == 0
    assert value("llmmesh_cache_error_budget_ratio", namespace="standing") == 0.01
    assert value("llmmesh_cache_risk_limit_ratio", namespace="standing") == min(limits)
    low, high = (value("llmmesh_cache_wrong_ratio", namespace="standing", bound=bound) for bound in ("low", "high"))
    assert low is not None
    assert high is not None
    assert 0.05 < low < 0.1 < high < 0.2
    assert value("llmmesh_cache_error_budget_ratio", namespace="never-asked") is None
