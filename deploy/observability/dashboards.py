"""The Grafana dashboards: `python deploy/observability/dashboards.py` writes them to grafana/dashboards.

Grafana provisions those files; what is changed in its editor is gone with the next start, so change it here. Every query is
tested against services/common/metrics.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "grafana" / "dashboards"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, COLUMNS = 12, 8, 24

Json = dict[str, object]


@dataclass(frozen=True)
class Query:
    """A line, or a family of them, and what it is called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture. `kind` is Grafana's: timeseries, stat, bargauge, table. `unit` is one of Grafana's units."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    about: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    stacked: bool = False


@dataclass(frozen=True)
class Dashboard:
    """A page."""

    name: str
    title: str
    panels: tuple[Panel, ...]


def one(title: str, expr: str, unit: str, about: str = "") -> Panel:
    """One number, of the time that is shown."""
    return Panel(title, (Query(expr),), unit, "stat", about, width=6, height=4)


def lines(title: str, unit: str, *queries: tuple[str, str], about: str = "", stacked: bool = False) -> Panel:
    """Lines over time."""
    return Panel(title, tuple(Query(*query) for query in queries), unit, about=about, stacked=stacked)


def bars(title: str, unit: str, expr: str, legend: str, about: str = "") -> Panel:
    """The greatest of many, as bars."""
    return Panel(title, (Query(expr, legend),), unit, "bargauge", about)


HITS = 'semantic_cache_requests_total{result=~"exact_hit|semantic_hit|coalesced"}'
ASKED = 'semantic_cache_requests_total{result=~"exact_hit|semantic_hit|coalesced|miss"}'
FOUND_OUT = "checked|wrong|learned|doubtful|judged|stale_checked|stale|feedback_right|feedback_wrong"
SAVED = "(sum(increase(llm_savings_dollars_total[$__range])) - (sum(increase(llm_losses_dollars_total[$__range])) or vector(0)))"


def quantile(q: float, metric: str, by: str, where: str = "") -> str:
    """A quantile of a histogram, by some labels."""
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{where}[$__rate_interval])))"


def rate(metric: str, by: str) -> str:
    """How fast a counter grows, by some labels."""
    return f"sum by ({by}) (rate({metric}[$__rate_interval]))"


def ratio(part: str, whole: str, by: str) -> str:
    """How fast one counter grows as a share of another one, by the same labels."""
    return f"{rate(part, by)} / {rate(whole, by)}"


OVERVIEW = Dashboard(
    "overview",
    "llmmesh: overview",
    (
        one("Requests", "sum(increase(llm_requests_total[$__range]))", "short"),
        one(
            "Answered from the cache",
            f"sum(increase({HITS}[$__range])) / sum(increase({ASKED}[$__range]))",
            "percentunit",
            "Of the requests that asked the cache; bypass and canary did not.",
        ),
        one("Spent", "sum(increase(llm_cost_dollars_total[$__range]))", "currencyUSD"),
        one("Saved", SAVED, "currencyUSD", "Against the baseline model; before the mesh's own overhead."),
        lines(
            "Requests by outcome",
            "reqps",
            (rate("llm_requests_total", "outcome"), "{{outcome}}"),
            stacked=True,
        ),
        lines("Latency p95 by outcome", "s", (quantile(0.95, "llm_request_latency_seconds", "outcome"), "{{outcome}}")),
        lines("Latency p50 by outcome", "s", (quantile(0.5, "llm_request_latency_seconds", "outcome"), "{{outcome}}")),
        lines(
            "Time to the first token, p95",
            "s",
            (quantile(0.95, "llm_time_to_first_token_seconds", "outcome"), "{{outcome}}"),
        ),
        lines(
            "Requests without an answer",
            "reqps",
            (rate("llm_request_errors_total", "reason"), "{{reason}}"),
        ),
        lines(
            "Requests that went on without a service",
            "reqps",
            (rate("llmmesh_degraded_total", "service"), "{{service}}"),
        ),
        lines("RPCs p95 by method", "s", (quantile(0.95, "llmmesh_rpc_seconds", "method"), "{{method}}")),
        lines(
            "RPCs that failed",
            "reqps",
            (
                'sum by (method, code) (rate(llmmesh_rpc_seconds_count{code!="OK"}[$__rate_interval]))',
                "{{method}} {{code}}",
            ),
        ),
        lines("Ready", "short", ("min by (grpc_service) (llmmesh_ready)", "{{grpc_service}}"), about="1 is ready."),
        lines(
            "CPU",
            "short",
            (rate("process_cpu_seconds_total", "job"), "{{job}}"),
            about="Cores.",
        ),
        lines("Memory", "bytes", ("sum by (job) (process_resident_memory_bytes)", "{{job}}")),
        lines(
            "Embedder",
            "s",
            (quantile(0.95, "llmmesh_embedder_seconds", "work"), "{{work}} p95"),
            (
                ratio("llmmesh_embedder_batch_texts_sum", "llmmesh_embedder_batch_texts_count", "model"),
                "texts a batch: {{model}}",
            ),
        ),
    ),
)

MONEY = Dashboard(
    "money",
    "llmmesh: money",
    (
        one("Spent", "sum(increase(llm_cost_dollars_total[$__range]))", "currencyUSD"),
        one(
            "Baseline",
            "sum(increase(llm_baseline_dollars_total[$__range]))",
            "currencyUSD",
            "What the baseline model would have cost.",
        ),
        one(
            "Saved", f"{SAVED} / sum(increase(llm_baseline_dollars_total[$__range]))", "percentunit", "Of the baseline."
        ),
        one(
            "Overhead",
            "sum(increase(llm_overhead_dollars_total[$__range]))",
            "currencyUSD",
            "What the mesh itself spent on the way.",
        ),
        lines(
            "Cost per hour by model",
            "currencyUSD",
            ("sum by (model) (rate(llm_cost_dollars_total[1h])) * 3600", "{{model}}"),
            stacked=True,
        ),
        lines(
            "Cost per hour by endpoint",
            "currencyUSD",
            ("sum by (endpoint) (rate(llm_cost_dollars_total[1h])) * 3600", "{{endpoint}}"),
            stacked=True,
        ),
        bars(
            "Dearest endpoints",
            "currencyUSD",
            "topk(10, sum by (endpoint) (increase(llm_cost_dollars_total[$__range])))",
            "{{endpoint}}",
        ),
        bars(
            "Saved by layer",
            "currencyUSD",
            "sum by (layer) (increase(llm_savings_dollars_total[$__range]))"
            " - sum by (layer) (increase(llm_losses_dollars_total[$__range]))",
            "{{layer}}",
            "Less what the layer lost where it made a request dearer.",
        ),
        lines(
            "Saved and spent per hour",
            "currencyUSD",
            ("sum(rate(llm_baseline_dollars_total[1h])) * 3600", "baseline"),
            ("sum(rate(llm_cost_dollars_total[1h])) * 3600", "spent"),
            ("sum by (component) (rate(llm_component_cost_dollars_total[1h])) * 3600", "{{component}}"),
        ),
        lines(
            "Tokens a second",
            "short",
            (rate("llm_tokens_total", "type"), "{{type}}"),
            (rate("llm_tokens_spared_total", "type"), "{{type}}, spared"),
        ),
        lines(
            "Input tokens a query by endpoint",
            "short",
            (
                ratio("llm_query_input_tokens_total", 'llm_requests_total{outcome!="error"}', "endpoint"),
                "{{endpoint}}",
            ),
            about="Context that grows shows here first.",
        ),
        lines(
            "Answers by tier",
            "reqps",
            (rate("llm_routed_requests_total", "tier"), "{{tier}}"),
            stacked=True,
        ),
        lines(
            "Budgets, the fullest of each",
            "percentunit",
            ("max by (budget, period) (llm_budget_used_ratio)", "{{budget}} a {{period}}"),
        ),
        lines(
            "Usage records on their way to the ledger",
            "short",
            ("sum by (instance) (llmmesh_spool_records)", "{{instance}}"),
            ("max by (instance) (llmmesh_spool_oldest_seconds)", "{{instance}}, seconds old"),
        ),
        lines(
            "Records without a price",
            "short",
            ("sum by (model) (increase(llm_unpriced_records_total[1h]))", "{{model}}"),
        ),
        bars(
            "Dearest tenants",
            "currencyUSD",
            "topk(10, sum by (tenant) (increase(llm_tenant_cost_dollars_total[$__range])))",
            "{{tenant}}",
            "Only where LLMMESH_EDGE_METRICS_TENANTS is on.",
        ),
    ),
)

CACHE = Dashboard(
    "cache",
    "llmmesh: cache quality",
    (
        one("Exact hits", 'sum(increase(semantic_cache_requests_total{result="exact_hit"}[$__range]))', "short"),
        one("Semantic hits", 'sum(increase(semantic_cache_requests_total{result="semantic_hit"}[$__range]))', "short"),
        one(
            "Of these by alias",
            "sum(increase(llm_alias_hits_total[$__range]))",
            "short",
            "Words that were served that answer before.",
        ),
        one(
            "Coalesced",
            'sum(increase(semantic_cache_requests_total{result="coalesced"}[$__range]))',
            "short",
            "Got another request's answer as it was made.",
        ),
        lines(
            "Hit rate by namespace",
            "percentunit",
            (
                ratio(
                    'llm_requests_total{outcome=~"exact_hit|semantic_hit|coalesced"}',
                    'llm_requests_total{outcome=~"exact_hit|semantic_hit|coalesced|miss"}',
                    "namespace",
                ),
                "{{namespace}}",
            ),
        ),
        lines(
            "Wrong answers against the budget",
            "percentunit",
            ('max by (namespace) (llmmesh_cache_wrong_ratio{bound="low"})', "{{namespace}}, at least"),
            ('max by (namespace) (llmmesh_cache_wrong_ratio{bound="high"})', "{{namespace}}, at most"),
            ("max by (namespace) (llmmesh_cache_error_budget_ratio)", "{{namespace}}, budget"),
            about="95% interval of wrong hits as a share of lookups, out of shadow checks and feedback.",
        ),
        lines(
            "Tight namespaces",
            "short",
            ('max by (namespace) (llmmesh_cache_error_budget_state{state="tight"})', "{{namespace}}"),
            about="1: overspent its budget and serves only what is nearly certain.",
        ),
        lines(
            "The greatest risk that a hit may have",
            "percentunit",
            ("min by (namespace) (llmmesh_cache_risk_limit_ratio)", "{{namespace}}"),
        ),
        lines(
            "Near misses",
            "reqps",
            (
                'sum by (namespace) (rate(llmmesh_cache_events_total{event="near_misses"}[$__rate_interval]))',
                "{{namespace}}",
            ),
            about="Candidates that were nearly sure enough: a larger budget would serve some of them.",
        ),
        lines(
            "Checks and labels",
            "short",
            (
                f'sum by (event) (increase(llmmesh_cache_events_total{{event=~"{FOUND_OUT}"}}[1h]))',
                "{{event}}",
            ),
            about="An hour. Wrong: shadow checks and callers who said so.",
        ),
        lines(
            "Latency of lookups, p95",
            "s",
            (
                quantile(0.95, "llmmesh_rpc_seconds", "method", '{method=~"llmmesh.cache.*"}'),
                "{{method}}",
            ),
        ),
    ),
)

PROVIDERS = Dashboard(
    "providers",
    "llmmesh: providers",
    (
        lines(
            "Calls by vendor and outcome",
            "reqps",
            (
                rate("llmmesh_provider_attempts_total", "vendor, outcome"),
                "{{vendor}} {{outcome}}",
            ),
            stacked=True,
        ),
        lines(
            "Share of calls that failed",
            "percentunit",
            (
                ratio(
                    'llmmesh_provider_attempts_total{outcome!~"ok|CANCELLED|HEDGED_LOST"}',
                    "llmmesh_provider_attempts_total",
                    "vendor, model",
                ),
                "{{model}} at {{vendor}}",
            ),
        ),
        lines(
            "Open breakers",
            "short",
            ("max by (vendor, model) (llmmesh_provider_breaker_open)", "{{model}} at {{vendor}}"),
        ),
        lines(
            "Calls after the first of their request",
            "reqps",
            (rate("llmmesh_provider_retries_total", "vendor"), "{{vendor}}"),
        ),
        lines(
            "Answers p95",
            "s",
            (quantile(0.95, "llmmesh_provider_attempt_seconds", "vendor, model"), "{{model}} at {{vendor}}"),
        ),
        lines(
            "First token p95",
            "s",
            (quantile(0.95, "llmmesh_provider_first_token_seconds", "vendor, model"), "{{model}} at {{vendor}}"),
        ),
        lines(
            "Passed over",
            "reqps",
            (rate("llmmesh_provider_limit_waits_total", "vendor, why"), "{{vendor}} {{why}}"),
            (
                rate("llmmesh_provider_limit_wait_seconds_total", "vendor"),
                "{{vendor}}, seconds asked for",
            ),
        ),
        lines(
            "Prompt cache: requests",
            "reqps",
            (rate("llmmesh_prompt_cache_requests_total", "outcome"), "{{outcome}}"),
            stacked=True,
        ),
        lines(
            "Prompt cache: tokens",
            "short",
            (
                rate("llmmesh_prompt_cache_tokens_total", "vendor, type"),
                "{{vendor}} {{type}}",
            ),
        ),
        lines(
            "Prompt cache: tokens missed, by why",
            "short",
            (rate("llmmesh_prompt_cache_missed_tokens_total", "reason"), "{{reason}}"),
            stacked=True,
        ),
    ),
)

ENGINE = Dashboard(
    "engine",
    "llmmesh: engine",
    (
        one(
            "Busy",
            'sum(increase(llmmesh_engine_device_seconds_total{state="busy"}[$__range]))'
            ' / sum(increase(llmmesh_engine_device_seconds_total{state=~"busy|idle"}[$__range]))',
            "percentunit",
            "Of the device time that is paid for.",
        ),
        one("Answers", "sum(increase(llmmesh_engine_answers_total[$__range]))", "short"),
        one(
            "Prompt tokens out of the prefix cache",
            'sum(increase(llmmesh_engine_tokens_total{type="cached"}[$__range]))'
            ' / sum(increase(llmmesh_engine_tokens_total{type="input"}[$__range]))',
            "percentunit",
        ),
        one(
            "Device time without an answer",
            'sum(increase(llmmesh_engine_device_seconds_total{state="unbilled"}[$__range]))'
            ' / sum(increase(llmmesh_engine_device_seconds_total{state="busy"}[$__range]))',
            "percentunit",
            "Cancelled, refused or cut.",
        ),
        lines(
            "Requests",
            "short",
            ("sum by (state) (llmmesh_engine_requests)", "{{state}}"),
            ("sum(llmmesh_engine_slots)", "slots"),
        ),
        lines("KV cache", "percentunit", ("max by (instance) (llmmesh_engine_kv_cache_ratio)", "{{instance}}")),
        lines(
            "Device time",
            "percentunit",
            (
                rate("llmmesh_engine_device_seconds_total", "instance, state"),
                "{{instance}} {{state}}",
            ),
        ),
        lines(
            "Tokens a second",
            "short",
            (rate("llmmesh_engine_tokens_total", "type"), "{{type}}"),
        ),
    ),
)

DASHBOARDS = (OVERVIEW, MONEY, CACHE, PROVIDERS, ENGINE)


def _panel(number: int, panel: Panel, x: int, y: int) -> Json:
    custom: Json = {"fillOpacity": 15 if panel.stacked else 0, "showPoints": "never"}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal"}
    instant = panel.kind in ("stat", "bargauge")
    return {
        "id": number,
        "title": panel.title,
        "description": panel.about,
        "type": panel.kind,
        "datasource": SOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {
            "defaults": {"unit": panel.unit} if instant else {"unit": panel.unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "orientation": "horizontal"} if instant else {},
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
                "instant": instant,
                "range": not instant,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _laid_out(panels: Sequence[Panel]) -> list[Json]:
    """Panels from left to right, row below row."""
    made: list[Json] = []
    x = y = row = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > COLUMNS:
            x, y, row = 0, y + row, 0
        made.append(_panel(number, panel, x, y))
        x, row = x + panel.width, max(row, panel.height)
    return made


def rendered(dashboard: Dashboard) -> str:
    """The file's text."""
    page: Json = {
        "uid": f"llmmesh-{dashboard.name}",
        "title": dashboard.title,
        "tags": ["llmmesh"],
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "links": [{"type": "dashboards", "tags": ["llmmesh"], "title": "llmmesh", "asDropdown": False}],
        "panels": _laid_out(dashboard.panels),
    }
    return json.dumps(page, indent=1) + "\n"


def main() -> None:
    """Writes the files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        (FOLDER / f"{dashboard.name}.json").write_text(rendered(dashboard), encoding="utf-8")


if __name__ == "__main__":
    main()
