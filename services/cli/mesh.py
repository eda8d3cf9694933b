"""A local mesh: every service as its own process on loopback, with embedded Redis and Qdrant.

`LocalMesh(state_dir)` starts them, keeps them alive and writes `mesh.json`, which tells every tool where things are.
"""

import asyncio
import json
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypedDict

from services.cli.embedded.redis_server import redis_command
from services.cli.processes import (
    Child,
    Events,
    Spec,
    free_ports,
    health_probe,
    port_probe,
    redis_probe,
)
from services.edge.adapters.keys import hash_key
from services.edge.domain.keys import Scope, new_secret

SERVICES = ("embedder", "cache", "router", "compressor", "engine", "provider", "edge")
TENANTS = ("acme-shop", "volta-energy")
ADMIN_TENANT = "admin"
# A common two-core cloud machine; the engine's measured seconds are billed at this price.
ENGINE_USD_PER_HOUR = "0.10"
EMBEDDER_USD_PER_HOUR = "0.10"
START_TIMEOUT_S = 300.0


class ServiceJson(TypedDict):
    """One process of mesh.json."""

    pid: int | None
    address: str


class MeshJson(TypedDict):
    """The file that says where a running mesh is."""

    edge: str
    http: str
    services: dict[str, ServiceJson]
    redis: str
    qdrant: str
    keys: dict[str, str]
    admin_key: str


class MeshError(Exception):
    """The mesh did not start, or is not there; the message says what to do."""


@dataclass(frozen=True)
class Reporter:
    """Who is told what happens."""

    ready: Callable[[str, str, float], None]
    died: Callable[[str, str, bool], None]


def default_state_dir() -> Path:
    """XDG_STATE_HOME/llmmesh or ~/.local/state/llmmesh."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "llmmesh"


def read_mesh_json(state_dir: Path) -> MeshJson:
    """Where a running mesh is. Raises MeshError when none runs there."""
    path = state_dir / "mesh.json"
    try:
        mesh: MeshJson = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MeshError(f"no mesh runs at {state_dir}; start one with `llmmesh up --state {state_dir}`") from None
    return mesh


class LocalMesh:
    """Starts on entry, stops on exit."""

    def __init__(self, state_dir: Path, reporter: Reporter, policy_file: Path | None = None) -> None:
        self._state = state_dir
        self._reporter = reporter
        self._policy_file = policy_file
        self._children: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._complete = False

    async def __aenter__(self) -> Self:
        self._prepare()
        events = Events(self._reporter.ready, self._reporter.died, self._write_mesh_json)
        logs = self._state / "logs"
        self._children = [Child(spec, logs / f"{spec.name}.log", events) for spec in self._specs()]
        self._tasks = [asyncio.create_task(child.run()) for child in self._children]
        try:
            await self._until_ready()
        except BaseException:
            await self.__aexit__()
            raise
        self._complete = True
        self._write_mesh_json()
        return self

    async def __aexit__(self, *_: object) -> None:
        (self._state / "mesh.json").unlink(missing_ok=True)
        self._complete = False
        # Callers first, stores last: the edge still writes its records down.
        for child in reversed(self._children):
            await child.stop(grace_s=15)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def json(self) -> MeshJson:
        """What mesh.json says."""
        pids = {child.spec.name: child for child in self._children}
        return {
            "edge": self._address["edge"],
            "http": f"http://{self._address['http']}",
            "services": {n: {"pid": c.pid, "address": c.spec.address} for n, c in pids.items()},
            "redis": f"redis://{self._address['redis']}/0",
            "qdrant": self._address["qdrant"],
            "keys": self._keys,
            "admin_key": self._admin_key,
        }

    async def _until_ready(self) -> None:
        async def one(child: Child) -> None:
            ready = asyncio.create_task(child.is_ready.wait())
            failed = asyncio.create_task(child.failed.wait())
            try:
                await asyncio.wait((ready, failed), return_when=asyncio.FIRST_COMPLETED, timeout=START_TIMEOUT_S)
            finally:
                ready.cancel()
                failed.cancel()
            if not child.is_ready.is_set():
                raise MeshError(
                    f"{child.spec.name} did not start; its log {child.log_file} ends:\n{child.last_words()}"
                )

        await asyncio.gather(*(one(child) for child in self._children))

    def _prepare(self) -> None:
        self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in ("logs", "redis", "qdrant", "spool"):
            (self._state / folder).mkdir(exist_ok=True, mode=0o700)
        if (self._state / "mesh.json").exists() and _alive(read_mesh_json(self._state)):
            raise MeshError(f"a mesh already runs at {self._state}; stop it or choose another folder with --state")
        self._keys, self._admin_key = self._load_keys()
        names = ("redis", "qdrant", "vendor", "http", *SERVICES)
        self._address = {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}
        self._write_vendors()

    def _load_keys(self) -> tuple[dict[str, str], str]:
        """The tenants' keys and the admin's: made once, kept in files that only the owner can read."""
        plain, admin = self._state / "keys.plain.json", self._state / "admin_key.plain"
        if not plain.exists():
            _write_private(plain, json.dumps({tenant: new_secret() for tenant in TENANTS}))
        if not admin.exists():
            _write_private(admin, new_secret())
        keys: dict[str, str] = json.loads(plain.read_text(encoding="utf-8"))
        admin_key = admin.read_text(encoding="utf-8")
        hashed: dict[str, dict[str, object]] = {hash_key(key): {"tenant": tenant} for tenant, key in keys.items()}
        hashed[hash_key(admin_key)] = {"tenant": ADMIN_TENANT, "scopes": [Scope.ADMIN]}
        _write_private(self._state / "keys.json", json.dumps(hashed))
        return keys, admin_key

    def _write_vendors(self) -> None:
        """All vendor models go to the stand-in vendor; the engine's model to the engine."""
        vendors = [
            {
                "name": "engine",
                "kind": "engine",
                "address": self._address["engine"],
                "models": {"smollm2-135m-instruct": "smollm2-135m-instruct"},
            },
            {
                "name": "stand-in",
                "kind": "openai",
                "base_url": f"http://{self._address['vendor']}/v1",
                "api_key_env": "STANDIN_API_KEY",
                "models": {m: m for m in ("gpt-4o-mini", "gpt-4o", "o1", "claude-sonnet")},
            },
        ]
        # JSON is YAML.
        (self._state / "vendors.yaml").write_text(json.dumps({"vendors": vendors}, indent=1), encoding="utf-8")

    def _specs(self) -> list[Spec]:
        address, state = self._address, self._state
        port = {name: value.rsplit(":", 1)[1] for name, value in address.items()}
        module = (sys.executable, "-m")
        vendor_key = secrets.token_urlsafe(16)
        policy = {"POLICY_FILE": str(self._policy_file)} if self._policy_file else {}
        redis_url = f"redis://{address['redis']}/0"
        vendor = address["vendor"]
        own: dict[str, dict[str, str]] = {
            "embedder": {"PRICE_USD_PER_HOUR": EMBEDDER_USD_PER_HOUR},
            "cache": {
                "REDIS_URL": redis_url,
                "QDRANT_ADDRESS": address["qdrant"],
                "EMBEDDER": address["embedder"],
                "PROVIDER": address["provider"],
                "VERIFIER_TIMEOUT_SECONDS": "2",  # the cores are shared with the models
                **policy,
            },
            "router": policy,
            "compressor": {},
            "engine": {"PRICE_USD_PER_HOUR": ENGINE_USD_PER_HOUR, "THREADS": "1"},
            "provider": {"VENDORS_FILE": str(state / "vendors.yaml"), "REDIS_URL": redis_url},
            "edge": {
                "REDIS_URL": redis_url,
                "KEYS_FILE": str(state / "keys.json"),
                "SPOOL_DIR": str(state / "spool"),
                "HTTP_PORT": port["http"],
                # Two cores are shared with the models: what is slow here is not down.
                "EMBED_TIMEOUT_SECONDS": "5",
                "CACHE_TIMEOUT_SECONDS": "3",
                "ROUTE_TIMEOUT_SECONDS": "3",
                **{name.upper(): address[name] for name in ("embedder", "cache", "router", "compressor", "provider")},
                **policy,
            },
        }
        specs = [
            Spec(
                "redis",
                redis_command(state / "redis", int(port["redis"]), append_only=True),
                address["redis"],
                redis_probe(address["redis"]),
            ),
            Spec(
                "qdrant",
                [
                    *module,
                    "services.cli.embedded.qdrant_server",
                    "--path",
                    str(state / "qdrant"),
                    "--port",
                    port["qdrant"],
                ],
                address["qdrant"],
                port_probe(address["qdrant"]),
            ),
            Spec(
                "vendor",
                [*module, "services.cli.standin", "--port", port["vendor"], "--api-key-env", "STANDIN_API_KEY"],
                vendor,
                port_probe(vendor),
                {"STANDIN_API_KEY": vendor_key},
                nice=5,
            ),
        ]
        for name in SERVICES:
            env = {f"LLMMESH_{name.upper()}_{key}": value for key, value in own[name].items()}
            env[f"LLMMESH_{name.upper()}_PORT"] = port[name]
            if name == "provider":
                env["STANDIN_API_KEY"] = vendor_key
            specs.append(
                Spec(
                    name,
                    [*module, f"services.{name}"],
                    address[name],
                    health_probe(address[name]),
                    env,
                    nice=5 if name == "engine" else 0,
                )
            )
        return specs

    def _write_mesh_json(self) -> None:
        if self._complete:
            _write_private(self._state / "mesh.json", json.dumps(self.json, indent=2))


def _write_private(path: Path, text: str) -> None:
    """Atomically, readable by the owner only."""
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    temporary.replace(path)


def _alive(mesh: MeshJson) -> bool:
    pid = mesh["services"].get("edge", {"pid": None, "address": ""})["pid"]
    return pid is not None and Path(f"/proc/{pid}").exists()
