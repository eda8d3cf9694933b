"""Metrics in Prometheus form: every family of the mesh is declared here, by the service that gives it.

Names of money and requests begin with `llm_`, those of the machinery with `llmmesh_`. Money is in dollars, derived from
the ledger's integers: good to draw and to alert on, while the ledger is what is billed. No label holds a user, a request
id or a text; labels that callers choose are capped (`Capped`); tenants are a label only of `llm_tenant_*`, and only where
a setting wants it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Literal

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    start_http_server,
)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets from an exact hit to a long answer."""
OTHER, NONE = "other", "none"
"""The label of values past the cap; that of a request without an endpoint, of an answer without a model."""
MOST_VALUES = 200
EVERY = "every"
"""In place of a service's name: all of them give this family."""

# Series that tell when a counter was made would double the exposition.
disable_created_metrics()  # type: ignore[no-untyped-call]

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Family:
    """A declared metric: `name` as it is scraped (a counter's ends in _total), its labels, the service that gives it."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    service: str
    metric: Counter | Gauge | Histogram

    @property
    def series(self) -> tuple[str, ...]:
        """The names of its samples."""
        if self.kind != "histogram":
            return (self.name,)
        return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))


FAMILIES: list[Family] = []


def _counter(service: str, name: str, text: str, *labels: str) -> Counter:
    metric = Counter(name, text, labels, registry=None)
    FAMILIES.append(Family(name, "counter", text, labels, service, metric))
    return metric


def _gauge(service: str, name: str, text: str, *labels: str) -> Gauge:
    metric = Gauge(name, text, labels, registry=None)
    FAMILIES.append(Family(name, "gauge", text, labels, service, metric))
    return metric


def _histogram(service: str, name: str, text: str, *labels: str, buckets: Sequence[float] = LATENCY_S) -> Histogram:
    metric = Histogram(name, text, labels, buckets=buckets, registry=None)
    FAMILIES.append(Family(name, "histogram", text, labels, service, metric))
    return metric


# Every service.
RPC_SECONDS = _histogram(
    EVERY, "llmmesh_rpc_seconds", "Time of an RPC at its server; a stream's is the whole of it.", "method", "code"
)
READY = _gauge(
    EVERY, "llmmesh_ready", "1 while the gRPC service can work, 0 while it waits for something.", "grpc_service"
)

# Edge: requests.
CACHE_REQUESTS = _counter(
    "edge",
    "semantic_cache_requests_total",
    "Requests by what the cache did: exact_hit, semantic_hit, miss, bypass, canary or coalesced.",
    "result",
)
REQUESTS = _counter(
    "edge",
    "llm_requests_total",
    "Requests by outcome: exact_hit, semantic_hit, miss, bypass, canary, coalesced or error.",
    "endpoint",
    "namespace",
    "outcome",
)
ERRORS = _counter(
    "edge", "llm_request_errors_total", "Requests without an answer, by the reason of the error table.", "reason"
)
LATENCY = _histogram(
    "edge", "llm_request_latency_seconds", "Time of a request at the edge, to its last byte.", "endpoint", "outcome"
)
FIRST_TOKEN = _histogram(
    "edge", "llm_time_to_first_token_seconds", "Time to the first piece of a streamed answer.", "outcome"
)
ROUTED = _counter("edge", "llm_routed_requests_total", "Answers that a model made, by tier and model.", "tier", "model")
DEGRADED = _counter("edge", "llmmesh_degraded_total", "How often a request went on without a service.", "service")
ALIASES = _counter("edge", "llm_alias_hits_total", "Hits of words that were served that answer before.")

# Edge: tokens and money.
COST = _counter("edge", "llm_cost_dollars_total", "What was spent, overhead included.", "model", "endpoint")
COMPONENT_COST = _counter(
    "edge", "llm_component_cost_dollars_total", "What was spent, by where it was spent.", "component"
)
OVERHEAD = _counter(
    "edge", "llm_overhead_dollars_total", "The part of the cost that did not directly make an answer.", "component"
)
BASELINE = _counter(
    "edge",
    "llm_baseline_dollars_total",
    "What the baseline model would have cost, nothing cached or shortened.",
    "endpoint",
)
SAVINGS = _counter(
    "edge", "llm_savings_dollars_total", "What a layer saved, where it saved: see llm_losses_dollars_total.", "layer"
)
LOSSES = _counter(
    "edge", "llm_losses_dollars_total", "What a layer cost where it made a request dearer than the baseline.", "layer"
)
TOKENS = _counter(
    "edge",
    "llm_tokens_total",
    "Tokens that models read and wrote: input (with cache_read and cache_write), output (with reasoning).",
    "type",
    "model",
)
TOKENS_SPARED = _counter(
    "edge",
    "llm_tokens_spared_total",
    "Tokens of answers out of the cache, which no model read or wrote.",
    "type",
    "model",
)
QUERY_TOKENS = _counter(
    "edge", "llm_query_input_tokens_total", "Input tokens of answered requests, whoever answered.", "endpoint"
)
TENANT_REQUESTS = _counter(
    "edge", "llm_tenant_requests_total", "Requests of a tenant; only with METRICS_TENANTS.", "tenant", "outcome"
)
TENANT_COST = _counter(
    "edge", "llm_tenant_cost_dollars_total", "What a tenant spent; only with METRICS_TENANTS.", "tenant"
)
UNPRICED = _counter(
    "edge", "llm_unpriced_records_total", "Requests whose cost is not known, since a price is missing.", "model"
)
BUDGET_USED = _gauge(
    "edge",
    "llm_budget_used_ratio",
    "Spent and reserved part of a budget, 0 to 1: of the holder who used the most of it.",
    "budget",
    "period",
)
SPOOL_RECORDS = _gauge("edge", "llmmesh_spool_records", "Usage records that the ledger does not have yet.")
SPOOL_AGE = _gauge(
    "edge", "llmmesh_spool_oldest_seconds", "Age of the oldest record that the ledger does not have yet."
)

# Cache.
CACHE_EVENTS = _counter(
    "cache",
    "llmmesh_cache_events_total",
    "What namespaces count: lookups, exact_hits, semantic_hits, alias_hits, near_misses, checked, wrong, learned, ...",
    "namespace",
    "event",
)
CACHE_STATE = _gauge(
    "cache",
    "llmmesh_cache_error_budget_state",
    "1 for the state of the namespace's error budget (cautious, open, tight), else 0; the worst of its tenants'.",
    "namespace",
    "state",
)
CACHE_BUDGET = _gauge(
    "cache",
    "llmmesh_cache_error_budget_ratio",
    "Wrong answers that the policy accepts, as a share of lookups.",
    "namespace",
)
CACHE_WRONG = _gauge(
    "cache",
    "llmmesh_cache_wrong_ratio",
    "Wrong answers as a share of lookups, by checks: bound is low or high (95% interval); the worst tenant's.",
    "namespace",
    "bound",
)
CACHE_LIMIT = _gauge(
    "cache",
    "llmmesh_cache_risk_limit_ratio",
    "The greatest P(wrong) that a hit may have now; the most careful tenant's.",
    "namespace",
)

# Provider.
ATTEMPTS = _counter(
    "provider",
    "llmmesh_provider_attempts_total",
    "Calls of vendors by how they ended: ok, a reason of the error table, CANCELLED or HEDGED_LOST.",
    "vendor",
    "model",
    "outcome",
)
RETRIES = _counter(
    "provider", "llmmesh_provider_retries_total", "Calls after the first one of their request.", "vendor"
)
ATTEMPT_SECONDS = _histogram(
    "provider", "llmmesh_provider_attempt_seconds", "Time of a call that answered.", "vendor", "model"
)
ATTEMPT_FIRST_TOKEN = _histogram(
    "provider", "llmmesh_provider_first_token_seconds", "Time from a call to its first piece.", "vendor", "model"
)
BREAKER_OPEN = _gauge(
    "provider",
    "llmmesh_provider_breaker_open",
    "1 while the breaker keeps calls away from the vendor.",
    "vendor",
    "model",
)
LIMIT_WAITS = _counter(
    "provider",
    "llmmesh_provider_limit_waits_total",
    "How often a vendor was passed over: why is limits (requests or tokens a minute) or slots (concurrent calls).",
    "vendor",
    "why",
)
LIMIT_WAIT_SECONDS = _counter(
    "provider", "llmmesh_provider_limit_wait_seconds_total", "How long its limits asked to wait.", "vendor"
)
PROMPT_CACHE_REQUESTS = _counter(
    "provider",
    "llmmesh_prompt_cache_requests_total",
    "Answers by what became of the prompt's prefix: hit, first, too_short, changed, expired, switched, unreported, off.",
    "vendor",
    "outcome",
)
PROMPT_CACHE_TOKENS = _counter(
    "provider",
    "llmmesh_prompt_cache_tokens_total",
    "Prompt tokens that a vendor read from (read) or wrote to (written) its prompt cache.",
    "vendor",
    "type",
)
PROMPT_CACHE_MISSED = _counter(
    "provider",
    "llmmesh_prompt_cache_missed_tokens_total",
    "Estimated tokens of prefixes that were not read from the vendor's cache, by why.",
    "vendor",
    "reason",
)

# Engine.
ENGINE_SECONDS = _counter(
    "engine", "llmmesh_engine_device_seconds_total", "Device time: busy, idle; unbilled is part of busy.", "state"
)
ENGINE_REQUESTS = _gauge("engine", "llmmesh_engine_requests", "Requests running and waiting for a slot.", "state")
ENGINE_SLOTS = _gauge("engine", "llmmesh_engine_slots", "Most requests that run at once.")
ENGINE_KV_CACHE = _gauge("engine", "llmmesh_engine_kv_cache_ratio", "Used part of the KV cache, 0 to 1.")
ENGINE_TOKENS = _counter(
    "engine", "llmmesh_engine_tokens_total", "Tokens of complete answers: input (with cached), cached, output.", "type"
)
ENGINE_ANSWERS = _counter("engine", "llmmesh_engine_answers_total", "Complete answers.")

# Embedder.
EMBED_BATCH = _histogram(
    "embedder",
    "llmmesh_embedder_batch_texts",
    "Texts that ran together.",
    "model",
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
EMBED_SECONDS = _histogram(
    "embedder", "llmmesh_embedder_seconds", "Time of a call with its wait: work is embed or score.", "work"
)


class Capped:
    """The first 200 different values as they are, all others as "other"; an empty one as "none"."""

    def __init__(self, most: int = MOST_VALUES) -> None:
        self._most = most
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        if value in self._known:
            return value
        if not value:
            return NONE
        if len(self._known) >= self._most:
            return OTHER
        self._known.add(value)
        return value


class Following:
    """Turns a total that somebody else counts into a counter's increments, `unit` of its ones for one of the counter's."""

    def __init__(self, add: Callable[[float], None], unit: int = 1) -> None:
        self._add = add
        self._unit = unit
        self._seen = 0.0

    def __call__(self, total: float) -> None:
        """Adds what came since the last call; a total that fell (its owner began anew) counts from zero."""
        self._add((total - self._seen if total >= self._seen else total) / self._unit)
        self._seen = total


class _BeforeScrapes:
    """Collects nothing, but lets others bring their families up to date first."""

    def __init__(self) -> None:
        self.called: list[Callable[[], None]] = []
        self._lock = Lock()  # two scrapes at once must not add the same increment twice

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            for call in self.called:
                call()
        return iter(())


_before_scrapes = _BeforeScrapes()


def before_scrapes(call: Callable[[], None]) -> None:
    """Has `call` made before each scrape, in the scrape's thread: for what is counted too often to tell each time."""
    _before_scrapes.called.append(call)


_registries: dict[str, CollectorRegistry] = {}


def registry_of(service: str) -> CollectorRegistry:
    """The families of a service, and what is known of its process."""
    if service not in _registries:
        registry = _registries[service] = CollectorRegistry()
        registry.register(_before_scrapes)
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        for family in FAMILIES:
            if family.service in (service, EVERY):
                registry.register(family.metric)
    return _registries[service]


def exposition(service: str = "edge") -> bytes:
    """What a scrape of the service is answered with, as CONTENT_TYPE."""
    return generate_latest(registry_of(service))


def serve(service: str, host: str, port: int) -> Callable[[], None]:
    """Answers scrapes at /metrics in a thread; returns what ends it. Raises OSError when the port cannot be had."""
    server, thread = start_http_server(port, host, registry_of(service))

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close
