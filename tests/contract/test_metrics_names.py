"""Every query of the alerts and dashboards asks for what the services really export, by labels that are there."""

import json
import re
import runpy
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from services.common import metrics, telemetry

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/observability"
SERVICES = ("edge", "embedder", "cache", "router", "compressor", "provider", "engine")
TARGET = {"job", "instance"}
WORDS = {
    *(
        "sum",
        "max",
        "min",
        "avg",
        "rate",
        "increase",
        "deriv",
        "by",
        "and",
        "or",
        "unless",
        "on",
        "offset",
        "topk",
        "vector",
    ),
    *("histogram_quantile", "quantile_over_time", "avg_over_time", "max_over_time", "count_over_time"),
}
_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_RANGE = re.compile(r"\[[^\]]*\]")
_GROUPS = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
_SELECTOR = re.compile(r"([a-zA-Z_][a-zA-Z0-9_:]*)\s*(?:\{([^}]*)\})?")
_LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)")


def exported() -> dict[str, set[str]]:
    """Samples that are exported and their labels: names out of the expositions, labels out of the families."""
    found: dict[str, set[str]] = {"up": set()}
    names: set[str] = set()
    for service in SERVICES:
        for family in text_string_to_metric_families(metrics.exposition(service).decode()):
            names.add(f"{family.name}_total" if family.type == "counter" else family.name)
            if family.type in ("counter", "gauge") and family.name.startswith(("process_", "python_")):
                found.update({sample.name: set(sample.labels) for sample in family.samples})
    for family in metrics.FAMILIES:
        assert family.name in names, family.name
        for series in family.series:
            found[series] = set(family.labels) | ({"le"} if series.endswith("_bucket") else set())
    return found


def rules() -> list[dict[str, str]]:
    """All rules."""
    return [rule for group in yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"] for rule in group["rules"]]


def dashboards() -> list[Path]:
    return sorted((FOLDER / "grafana/dashboards").glob("*.json"))


def groups_of(expr: str) -> set[str]:
    """Labels that it groups by."""
    return {label.strip() for found in _GROUPS.findall(expr) for label in found.split(",")}


def check(expr: str, known: dict[str, set[str]]) -> set[str]:
    """The labels of what the expression names. Fails for a name or a label that nobody exports."""
    labels: set[str] = set()
    plain = _GROUPS.sub(" ", _RANGE.sub(" ", expr))
    # Label values are no names.
    for name, matchers in _SELECTOR.findall(_STRING.sub('""', plain)):
        if name in WORDS or re.fullmatch(r"[smhdw]", name):
            continue
        assert name in known, f"{name} is exported by nobody: {expr}"
        asked = set(_LABEL.findall(matchers))
        assert asked <= known[name] | TARGET, f"{name} has no label {asked - known[name]}: {expr}"
        labels |= known[name]
    assert groups_of(expr) <= labels | TARGET, f"groups by {groups_of(expr) - labels}: {expr}"
    return labels


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """What is exported, and what the rules record out of it."""
    found = exported()
    for rule in rules():
        if "record" in rule:
            found[rule["record"]] = groups_of(rule["expr"])
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_is_exported(rule, known):
    labels = check(rule["expr"], known)
    told = " ".join([*rule.get("annotations", {}).values()])
    assert set(re.findall(r"\$labels\.(\w+)", told)) <= labels | TARGET
    if "alert" in rule:
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert rule["annotations"]["summary"]


@pytest.mark.parametrize("path", dashboards(), ids=lambda path: path.stem)
def test_a_dashboard_asks_for_what_is_exported(path, known):
    page = json.loads(path.read_text())
    titles = [panel["title"] for panel in page["panels"]]
    assert len(set(titles)) == len(titles)
    for panel in page["panels"]:
        assert panel["targets"]
        for target in panel["targets"]:
            check(target["expr"], known)
            legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert legend <= groups_of(target["expr"]), f"{panel['title']}: {legend}"


def test_a_name_or_a_label_that_nobody_exports_is_found(known):
    for expr in (
        "sum(rate(llm_cost_dolars_total[5m]))",
        'sum(rate(llm_cost_dollars_total{tenant="a"}[5m]))',
        "sum by (user) (llm_cost_dollars_total)",
        "llm_request_latency_seconds",
    ):
        with pytest.raises(AssertionError):
            check(expr, known)


def test_what_no_alert_and_no_dashboard_shows_is_not_collected():
    shown = "".join(path.read_text() for path in [*dashboards(), FOLDER / "rules.yaml"])
    unseen = {family.name for family in metrics.FAMILIES if family.name not in shown}
    assert unseen == {"llm_tenant_requests_total"}  # beside the tenants' cost, for those who want it


def test_dashboards_are_those_of_the_code():
    code = runpy.run_path(str(FOLDER / "dashboards.py"))
    assert {path.stem for path in dashboards()} == {dashboard.name for dashboard in code["DASHBOARDS"]}
    for dashboard in code["DASHBOARDS"]:
        committed = (FOLDER / "grafana/dashboards" / f"{dashboard.name}.json").read_text()
        assert committed == code["rendered"](dashboard), "run: python deploy/observability/dashboards.py"


def test_panels_lie_side_by_side_and_never_over_each_other():
    for path in dashboards():
        taken: set[tuple[int, int]] = set()
        for panel in json.loads(path.read_text())["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken, panel["title"]
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_domains_do_not_know_prometheus():
    for path in (ROOT / "services").glob("*/domain/**/*.py"):
        text = path.read_text(encoding="utf-8")
        assert "prometheus" not in text, path
        assert not re.search(r"import metrics|common\.metrics", text), path


def test_metric_names_stand_in_one_module_only():
    names = re.compile(r"[\"'](?:llm|llmmesh|semantic_cache)_[a-z_]+_(?:total|seconds|ratio)[\"']")
    for path in (ROOT / "services").rglob("*.py"):
        if path != ROOT / "services/common/metrics.py":
            assert not names.findall(path.read_text(encoding="utf-8")), path


def test_the_page_lists_every_metric():
    table = runpy.run_path(str(FOLDER / "table.py"))
    page = table["PAGE"].read_text(encoding="utf-8")
    assert page == table["filled"](page), "run: python deploy/observability/table.py"


def test_the_searches_of_the_page_use_names_that_spans_have():
    page = (ROOT / "docs/observability.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\b(llmmesh\.(?!v1|\w+\.v1)[a-z_.]*[a-z]|gen_ai\.[a-z_.]+[a-z]|error\.type)", page))
    assert used
    assert used <= telemetry.ATTRIBUTES
