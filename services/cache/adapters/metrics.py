"""What the cache counts, and how its error budgets stand."""

from collections import defaultdict
from collections.abc import Mapping

from services.cache.domain.budget import CAUTIOUS, OPEN, TIGHT, wrong_share
from services.cache.domain.quality import Quality, Standing
from services.common import metrics

_WORST_FIRST = (TIGHT, CAUTIOUS, OPEN)


def count(namespace: str, counts: Mapping[str, float]) -> None:
    """Adds what a namespace counted."""
    for event, number in counts.items():
        if number:
            metrics.CACHE_EVENTS.labels(namespace, event).inc(number)


def watch_standings(quality: Quality) -> None:
    """Tells before each scrape how namespaces stand: each by its worst tenant, as tenants are no label."""

    def tell() -> None:
        by_namespace: defaultdict[str, list[Standing]] = defaultdict(list)
        for standing in quality.standings():
            by_namespace[standing.namespace].append(standing)
        for namespace, tenants in by_namespace.items():
            _tell(namespace, tenants)

    metrics.before_scrapes(tell)


def _tell(namespace: str, tenants: list[Standing]) -> None:
    states = {standing.record.state for standing in tenants}
    worst = next(state for state in _WORST_FIRST if state in states)
    for state in _WORST_FIRST:
        metrics.CACHE_STATE.labels(namespace, state).set(state == worst)
    bounds = [wrong_share(standing.record) for standing in tenants]
    metrics.CACHE_WRONG.labels(namespace, "low").set(max(low for low, _ in bounds))
    metrics.CACHE_WRONG.labels(namespace, "high").set(max(high for _, high in bounds))
    metrics.CACHE_BUDGET.labels(namespace).set(min(standing.delta for standing in tenants))
    metrics.CACHE_LIMIT.labels(namespace).set(min(standing.limit for standing in tenants))
