"""The processes under measurement: the mesh without its engine, a vendor without latency, an OTLP receiver, the bare chain."""

import json
import secrets
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import started
from services.cli.embedded.redis_server import redis_command
from services.cli.processes import Spec, free_ports, health_probe, port_probe
from services.edge.adapters.keys import hash_key

SERVICES = ("embedder", "cache", "router", "compressor", "provider", "edge")
CHAIN = ("echo_front", "echo_back")
# Of the mesh's processes these are no part of the product: their CPU is shown, and left out of the total.
OUTSIDE = ("vendor", "otlp_receiver")
MODELS = ("smollm2-135m-instruct", "gpt-4o-mini", "gpt-4o", "o1", "claude-sonnet")


@dataclass(frozen=True)
class Running:
    """Where the processes listen, their process ids, and the key of the one tenant."""

    address: Mapping[str, str]
    pids: Mapping[str, int]
    key: str


@asynccontextmanager
async def start(folder: Path) -> AsyncIterator[Running]:
    """Starts everything with its files in `folder`, waits until it is ready, and stops it in the end. Raises StartError."""
    names = ("redis", "qdrant", *OUTSIDE, *CHAIN, *SERVICES)
    address = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
    key = f"lm-{secrets.token_urlsafe(24)}"
    (folder / "keys.json").write_text(json.dumps({hash_key(key): {"tenant": "bench"}}), encoding="utf-8")
    vendor = {
        "name": "zero-latency",
        "kind": "openai",
        "base_url": f"http://{address['vendor']}/v1",
        "models": {model: model for model in MODELS},
    }
    (folder / "vendors.yaml").write_text(json.dumps({"vendors": [vendor]}), encoding="utf-8")  # JSON is YAML
    for name in ("redis", "qdrant", "spool"):
        (folder / name).mkdir()
    async with started(_specs(folder, address), folder) as pids:
        yield Running(address, pids, key)


def _specs(folder: Path, address: Mapping[str, str]) -> list[Spec]:
    port = {name: value.rsplit(":", 1)[1] for name, value in address.items()}
    redis_url = f"redis://{address['redis']}/0"
    chain = {"echo_front": ("--next", address["echo_back"]), "echo_back": ()}

    def module(name: str, path: str, *arguments: str) -> Spec:
        command = [sys.executable, "-m", path, "--port", port[name], *arguments]
        return Spec(name, command, address[name], port_probe(address[name]))

    specs = [
        Spec(
            "redis",
            redis_command(folder / "redis", int(port["redis"]), append_only=True),
            address["redis"],
            port_probe(address["redis"]),
        ),
        module("qdrant", "services.cli.embedded.qdrant_server", "--path", str(folder / "qdrant")),
        module("vendor", "benchmarks.hops.vendor"),
        module("otlp_receiver", "benchmarks.hops.otlp_receiver"),
        *(module(name, "benchmarks.hops.echo", *arguments) for name, arguments in chain.items()),
    ]
    own: dict[str, dict[str, str]] = {
        "embedder": {"PRICE_USD_PER_HOUR": "0.10"},
        "cache": {
            "REDIS_URL": redis_url,
            "QDRANT_ADDRESS": address["qdrant"],
            # 32 callers share few cores: what is slow here is not down.
            "REDIS_TIMEOUT_SECONDS": "10",
            "QDRANT_TIMEOUT_SECONDS": "10",
        },
        "router": {},
        "compressor": {},
        "provider": {"VENDORS_FILE": str(folder / "vendors.yaml")},
        "edge": {
            "REDIS_URL": redis_url,
            "KEYS_FILE": str(folder / "keys.json"),
            "SPOOL_DIR": str(folder / "spool"),
            "EMBED_TIMEOUT_SECONDS": "10",
            "CACHE_TIMEOUT_SECONDS": "10",
            "ROUTE_TIMEOUT_SECONDS": "10",
            **{name.upper(): address[name] for name in SERVICES if name != "edge"},
        },
    }
    tracing = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{address['otlp_receiver']}",
        "OTEL_EXPORTER_OTLP_INSECURE": "true",
    }
    for name in SERVICES:
        settings = {**own[name], "PORT": port[name]}
        env = {f"LLMMESH_{name.upper()}_{key}": value for key, value in settings.items()} | tracing
        specs.append(
            Spec(name, [sys.executable, "-m", f"services.{name}"], address[name], health_probe(address[name]), env)
        )
    return specs
