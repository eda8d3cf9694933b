"""The processes: Redis, a slow vendor, and the provider and the edge with their event loops watched."""

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

WATCHED = ("provider", "edge")
MODEL = "gpt-4o-mini"


@dataclass(frozen=True)
class Running:
    """The edge's address, process ids, and the key of the one tenant."""

    edge: str
    pids: Mapping[str, int]
    key: str


def lag_file(folder: Path, service: str) -> Path:
    """Where a watched service writes how late its loop was."""
    return folder / f"{service}.lag.json"


@asynccontextmanager
async def start(folder: Path, streams: int, delay_ms: float, pace_ms: float) -> AsyncIterator[Running]:
    """Starts everything with its files in `folder`; the vendor takes so many calls at once. Raises StartError."""
    names = ("redis", "vendor", *WATCHED)
    address = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
    port = {name: value.rsplit(":", 1)[1] for name, value in address.items()}
    key = f"lm-{secrets.token_urlsafe(24)}"
    (folder / "keys.json").write_text(json.dumps({hash_key(key): {"tenant": "bench"}}), encoding="utf-8")
    vendor = {
        "name": "slow",
        "kind": "openai",
        "base_url": f"http://{address['vendor']}/v1",
        "models": {MODEL: MODEL},
        "max_concurrency": streams,
    }
    (folder / "vendors.yaml").write_text(json.dumps({"vendors": [vendor]}), encoding="utf-8")  # JSON is YAML
    for name in ("redis", "spool"):
        (folder / name).mkdir()
    redis_url = f"redis://{address['redis']}/0"
    own = {
        "provider": {"VENDORS_FILE": str(folder / "vendors.yaml"), "REDIS_URL": redis_url},
        "edge": {
            "PROVIDER": address["provider"],
            "REDIS_URL": redis_url,
            "KEYS_FILE": str(folder / "keys.json"),
            "SPOOL_DIR": str(folder / "spool"),
        },
    }
    slow = ["--port", port["vendor"], "--delay-ms", str(delay_ms), "--pace-ms", str(pace_ms)]
    specs = [
        Spec(
            "redis",
            redis_command(folder / "redis", int(port["redis"]), append_only=True),
            address["redis"],
            port_probe(address["redis"]),
        ),
        Spec(
            "vendor",
            [sys.executable, "-m", "tests.vendors.openai_like", *slow],
            address["vendor"],
            port_probe(address["vendor"]),
        ),
    ]
    for name in WATCHED:
        settings = {**own[name], "PORT": port[name]}
        command = [sys.executable, "-m", "benchmarks.streams.serve", name, "--lag", str(lag_file(folder, name))]
        env = {f"LLMMESH_{name.upper()}_{setting}": value for setting, value in settings.items()}
        specs.append(Spec(name, command, address[name], health_probe(address[name]), env))
    async with started(specs, folder) as pids:
        yield Running(address["edge"], pids, key)
