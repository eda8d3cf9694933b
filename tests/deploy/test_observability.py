"""Prometheus and Grafana: their files are valid, their alerts fire when they should, and a real service answers a scrape."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.waiting import until

FOLDER = "deploy/observability"


@pytest.fixture(scope="module")
def promtool(root: Path):
    """Runs promtool in the folder of the rules; LLMMESH_PROMTOOL names it where it is not on the path."""
    path = os.environ.get("LLMMESH_PROMTOOL") or shutil.which("promtool")
    if path is None:
        pytest.skip("no promtool: it comes with Prometheus (apt-get install prometheus), or LLMMESH_PROMTOOL names it")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [path, *arguments], cwd=root / FOLDER, capture_output=True, text=True, timeout=170, check=False
        )

    return run


@pytest.fixture(scope="module")
def compose(root):
    return yaml.safe_load((root / "deploy/compose/compose.yaml").read_text())


def alerts(root: Path) -> list[str]:
    groups = yaml.safe_load((root / FOLDER / "rules.yaml").read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


def test_prometheus_takes_the_rules(promtool):
    done = promtool("check", "rules", "rules.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_its_configuration(promtool, root, tmp_path):
    text = (root / FOLDER / "prometheus.yaml").read_text()
    shutil.copy(root / FOLDER / "rules.yaml", tmp_path)
    config = tmp_path / "prometheus.yaml"
    config.write_text(text.replace("/etc/prometheus/", f"{tmp_path}/"))
    done = promtool("check", "config", str(config))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["rules_test.yaml", "rules_history_test.yaml"])
def test_alerts_fire_when_they_should_and_only_then(promtool, name):
    done = promtool("test", "rules", name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_to_fire_and_to_be_silent_and_is_explained(root):
    fired, silent = set(), set()
    for name in ("rules_test.yaml", "rules_history_test.yaml"):
        for test in yaml.safe_load((root / FOLDER / name).read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (fired if case["exp_alerts"] else silent).add(case["alertname"])
    page = (root / "docs/observability.md").read_text()
    for alert in alerts(root):
        assert alert in fired, alert
        assert alert in silent, alert
        assert f"`{alert}`" in page, alert


def test_prometheus_asks_every_service_where_it_answers(root, compose):
    (job,) = yaml.safe_load((root / FOLDER / "prometheus.yaml").read_text())["scrape_configs"]
    (targets,) = job["dns_sd_configs"]
    ours = {
        name: service["environment"][f"LLMMESH_{name.upper()}_METRICS_PORT"]
        for name, service in compose["services"].items()
        if service.get("image", "").startswith("llmmesh/")
    }
    assert set(targets["names"]) == set(ours)
    assert set(ours.values()) == {str(targets["port"])}
    for name in ours:
        networks = compose["services"][name].get("networks", ["mesh"])
        assert set(networks) & set(compose["services"]["prometheus"]["networks"]), name


def test_grafana_finds_its_source_and_its_dashboards(root, compose):
    source = yaml.safe_load((root / FOLDER / "grafana/datasources.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((root / FOLDER / "grafana/dashboards.yaml").read_text())["providers"]
    grafana = compose["services"]["grafana"]
    mounts = dict(mount.removesuffix(":ro").split(":") for mount in grafana["volumes"])
    folder = next(host for host, inside in mounts.items() if inside == provider["options"]["path"])
    pages = sorted((root / "deploy/compose" / folder).glob("*.json"))
    assert [page.stem for page in pages] == ["cache", "engine", "money", "overview", "providers"]
    for host in mounts:
        assert (root / "deploy/compose" / host).exists(), host
    for page in pages:
        for panel in json.loads(page.read_text())["panels"]:
            assert panel["datasource"]["uid"] == source["uid"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/overview.json"


def test_the_password_of_grafana_is_made_and_stands_in_no_file_of_ours(secrets: Path):
    assert re.fullmatch(r"GF_SECURITY_ADMIN_PASSWORD=[0-9a-f]{48}\n", (secrets / "grafana.env").read_text())


def test_a_service_of_its_own_answers_a_scrape(root, tmp_path, unused_tcp_port):
    env = {**os.environ, "LLMMESH_COMPRESSOR_METRICS_PORT": str(unused_tcp_port)}

    def scrape() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/metrics", timeout=20) as response:
                return response.read().decode()
        except OSError:
            return ""

    command = [sys.executable, "-m", "services.compressor"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, cwd=root, env=env, stderr=log) as service:
        try:
            asyncio.run(until(lambda: "llmmesh_ready{" in scrape()))
            families = {family.name: family for family in text_string_to_metric_families(scrape())}
            (ready,) = families["llmmesh_ready"].samples
            assert ready.labels == {"grpc_service": "llmmesh.compressor.v1.CompressorService"}
            assert ready.value == 1
        finally:
            service.terminate()
    assert service.returncode == 0
