"""Dockerfile, YAML files and the collector's configuration hold to their rules."""

import re

import pytest
import yaml

SERVICES = ("embedder", "cache", "router", "compressor", "provider", "engine", "edge")


@pytest.fixture(scope="module")
def dockerfile(root):
    return (root / "deploy/docker/Dockerfile").read_text()


def test_hadolint_has_nothing_to_say(tool):
    done = tool("hadolint", "--no-color", "deploy/docker/Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_yamllint_has_nothing_to_say(tool):
    done = tool("yamllint", "--strict", "-c", "deploy/.yamllint.yaml", "deploy", "services/common/data")
    assert (done.returncode, done.stdout) == (0, "")


def test_images_run_without_root(dockerfile):
    base = re.search(r"^FROM \S+ AS base$(.*?)^FROM ", dockerfile, re.MULTILINE | re.DOTALL)
    assert base
    assert re.search(r"^USER 10001:10001$", base[1], re.MULTILINE)
    assert dockerfile.count("USER ") == 1


def test_every_service_is_a_target_and_nothing_else_is(dockerfile):
    assert tuple(re.findall(r"^FROM base AS (\S+)$", dockerfile, re.MULTILINE)) == SERVICES
    assert tuple(re.findall(r"^FROM build AS build-(\S+)$", dockerfile, re.MULTILINE)) == SERVICES
    assert re.findall(r'^CMD \["llmmesh-(\w+)"\]$', dockerfile, re.MULTILINE) == list(SERVICES)


def test_no_two_services_listen_on_one_port(dockerfile):
    ports = re.findall(r"_PORT=(\d+)$", dockerfile, re.MULTILINE)
    assert len(ports) == len(set(ports)) == len(SERVICES)
    assert re.findall(r"^EXPOSE (\d+)$", dockerfile, re.MULTILINE) == ports


def test_what_the_dockerfile_copies_exists_and_reaches_the_builder(dockerfile, root):
    allowed = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for arguments in re.findall(r"^COPY (?!--from)(.+)$", dockerfile, re.MULTILINE):
        copied.update(arguments.split()[:-1])
    assert copied == allowed
    missing = [path for path in copied if not (root / path).exists()]
    assert not missing


def test_the_builder_gets_no_secret_and_no_history(root):
    assert (root / ".dockerignore").read_text().splitlines()[1] == "*"
    assert "/secrets/" in (root / "deploy/compose/.gitignore").read_text().splitlines()


def test_the_collectors_pipelines_use_what_is_configured(root):
    config = yaml.safe_load((root / "deploy/observability/collector.yaml").read_text())
    for pipeline in config["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline[kind]) <= set(config[kind])
    endpoint = config["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
    compose = yaml.safe_load((root / "deploy/compose/compose.yaml").read_text())
    assert compose["x-tracing"]["OTEL_EXPORTER_OTLP_ENDPOINT"].rpartition(":")[2] == endpoint.rpartition(":")[2]
