"""What other programs, packagers and we ourselves rely on."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grpc
import pytest

from services.cli.mesh import SERVICES
from services.common import errors, telemetry
from services.common.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
BINARIES = Path(sys.executable).parent
ENV = {**os.environ, "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}"}
needs_buf = pytest.mark.skipif(shutil.which("buf", path=ENV["PATH"]) is None, reason="buf is not installed")


def run(*command: str) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_buf
def test_generated_files_are_what_their_sources_say():
    run(sys.executable, "-m", "services.cli.generate", "--check")


@needs_buf
@pytest.mark.parametrize("command", [("lint",), ("format", "--diff", "--exit-code")], ids=["lint", "format"])
def test_protos_are_clean(command):
    run("buf", *command)


def test_import_rules_hold():
    run("lint-imports")


def test_every_message_of_an_rpc_is_its_own():
    seen: dict[str, str] = {}
    for path in (ROOT / "protos" / "llmmesh").rglob("*.proto"):
        text = path.read_text(encoding="utf-8")
        for rpc, request, response in re.findall(r"rpc (\w+)\((\w+)\) returns \((?:stream )?(\w+)\)", text):
            for message in (request, response):
                name = f"{path.parent}.{message}"
                assert name not in seen, f"{rpc} and {seen[name]} share {message}"
                seen[name] = rpc


def test_names_that_tools_rely_on():
    def methods(package: str, module: str, service: str) -> set[str]:
        pb2 = importlib.import_module(f"llmmesh.{package}.v1.{module}_pb2")
        assert pb2.DESCRIPTOR.package == f"llmmesh.{package}.v1"
        return {method.name for method in pb2.DESCRIPTOR.services_by_name[service].methods}

    assert methods("edge", "inference", "InferenceService") == {"Complete", "StreamComplete", "GiveFeedback"}
    assert methods("edge", "costs", "CostService") == {"QueryCosts", "ExportRecords", "ListBudgets"}
    batches = {"CreateBatch", "GetBatch", "ListBatches", "StreamBatchResults", "CancelBatch"}
    assert methods("edge", "batch", "BatchService") == batches
    assert methods("embedder", "embedder", "EmbedderService") >= {"Embed", "ScorePairs"}
    assert methods("cache", "cache", "CacheService") >= {"Lookup", "Store", "Invalidate"}
    assert methods("router", "router", "RouterService") >= {"Route"}
    assert methods("compressor", "compressor", "CompressorService") >= {"Compress"}
    assert methods("provider", "provider", "ProviderService") >= {"Generate", "StreamGenerate"}
    assert methods("provider", "batch", "BatchService") >= {"SubmitBatch", "PollBatch", "FetchBatchResults", "RunBatch"}
    assert methods("engine", "engine", "EngineService") >= {"Generate", "StreamGenerate"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_its_extra_its_script_and_its_rooms(name):
    assert name in PROJECT["project"]["optional-dependencies"]
    assert "llmmesh[service]" in PROJECT["project"]["optional-dependencies"][name]
    assert PROJECT["project"]["scripts"][f"llmmesh-{name}"] == f"services.{name}.__main__:main"
    assert name in PROJECT["project"]["optional-dependencies"]["local"][0]
    folder = ROOT / "services" / name
    for room in ("__init__.py", "__main__.py", "app.py", "settings.py", "servicer.py", "convert.py", "README.md"):
        assert (folder / room).is_file(), room
    assert (folder / "domain.py").is_file() or (folder / "domain").is_dir()


@pytest.mark.parametrize("name", SERVICES)
def test_every_setting_is_described_and_belongs_to_one_service(name):
    kind: type[ServiceSettings] = getattr(
        importlib.import_module(f"services.{name}.settings"), f"{name.capitalize()}Settings"
    )
    assert kind.model_config.get("env_prefix") == f"LLMMESH_{name.upper()}_"
    assert kind.model_config.get("frozen")
    assert all(field.description for field in kind.model_fields.values())


def test_the_base_install_is_a_client_and_no_more():
    names = {re.split(r"[<>=\[]", dependency)[0] for dependency in PROJECT["project"]["dependencies"]}
    assert names == {"grpcio", "protobuf"}
    for path in (ROOT / "protos" / "gen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert module.split(".")[0] in ("llmmesh", "google", "grpc", "warnings"), f"{path.name}: {module}"
                assert not module.startswith("google.") or module.startswith("google.protobuf"), path.name


def all_errors() -> list[type[errors.MeshError]]:
    """Every error class of the table's module."""
    return [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.MeshError)]


def test_every_error_has_a_reason_of_its_own():
    kinds = all_errors()
    assert len({kind.reason for kind in kinds}) == len(kinds)
    assert set(errors.table().values()) == set(kinds)
    for kind in kinds:
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", kind.reason)
        assert kind.status is not grpc.StatusCode.OK
        assert kind.__doc__
        assert (kind.status is grpc.StatusCode.INTERNAL) == (kind is errors.MeshError)


def test_an_unavailable_service_is_always_worth_another_try():
    for kind in all_errors():
        if kind.status is grpc.StatusCode.UNAVAILABLE:
            assert kind.retryable, kind
        if kind.status in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED):
            assert not kind.retryable, kind


def test_no_error_class_is_defined_outside_of_the_table():
    for path in (ROOT / "services").rglob("*.py"):
        if path == ROOT / "services/common/errors.py" or path.is_relative_to(ROOT / "services/cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                table = {kind.__name__ for kind in all_errors()}
                assert not bases & table, f"{path}: {node.name}"


def test_telemetry_names_are_ours_or_opentelemetrys():
    standard = {"error.type", "rpc.system", "openinference.span.kind"}
    for name in telemetry.ATTRIBUTES:
        assert name in standard or re.fullmatch(r"(llmmesh|gen_ai|llm)(\.[a-z_]+)+", name), name
    assert set(telemetry.COST_SAVED) == {"cache", "routing", "compression", "prompt_cache", "batch"}


def test_attribute_names_stand_in_one_module_only():
    literal = re.compile(r"[\"'](llmmesh\.(?!v1|[a-z]+\.v1)[a-z_.]+|gen_ai\.[a-z_.]+)[\"']")
    for path in (ROOT / "services").rglob("*.py"):
        if path != ROOT / "services/common/telemetry.py":
            assert not literal.findall(path.read_text(encoding="utf-8")), path
