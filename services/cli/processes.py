"""Child processes of a local mesh: start, watch, restart, stop."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_CHILD = (sys.executable, "-I", "-S", str(Path(__file__).with_name("child.py")))
QUICK_DEATH_S = 20.0
MAX_QUICK_DEATHS = 5


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now. They are held together, so that none is given twice."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


Probe = Callable[[], Awaitable[bool]]


def port_probe(address: str) -> Probe:
    """Ready is who takes connections."""
    host, port = address.rsplit(":", 1)

    async def ready() -> bool:
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            return False
        writer.close()
        return True

    return ready


def redis_probe(address: str) -> Probe:
    """Ready is a Redis that is done loading its data."""
    host, port = address.rsplit(":", 1)

    async def ready() -> bool:
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"PING\r\n")
            answer = await asyncio.wait_for(reader.readline(), 1)
            writer.close()
        except (OSError, TimeoutError):
            return False
        return answer.startswith(b"+PONG")

    return ready


def health_probe(address: str) -> Probe:
    """Ready is who says so by grpc.health.v1."""

    async def ready() -> bool:
        async with grpc.aio.insecure_channel(address) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    return ready


@dataclass(frozen=True)
class Spec:
    """What a process is: command, environment beside ours, and how to ask whether it is ready.

    `nice` above 0 lets the others have the processor first: models compute, services answer.
    """

    name: str
    argv: Sequence[str]
    address: str
    ready: Probe
    env: Mapping[str, str] = field(default_factory=dict)
    nice: int = 0


@dataclass
class Events:
    """What the supervisor tells whoever watches."""

    ready: Callable[[str, str, float], None]
    died: Callable[[str, str, bool], None]
    changed: Callable[[], None]


class Child:
    """One process that is kept alive until `stop`."""

    def __init__(self, spec: Spec, log_file: Path, events: Events) -> None:
        self.spec = spec
        self.log_file = log_file
        self.pid: int | None = None
        self.is_ready = asyncio.Event()
        self.failed = asyncio.Event()
        self._events = events
        self._process: asyncio.subprocess.Process | None = None
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Starts the process, and starts it again whenever it ends, until it ends quickly too often."""
        quick = 0
        while not self._stop.is_set():
            started = time.monotonic()
            with self.log_file.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *_CHILD,
                    str(self.spec.nice),
                    *self.spec.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **self.spec.env},
                    # Ctrl-C in the terminal is for the supervisor, which then stops its children in order.
                    start_new_session=True,
                )
            self.pid = self._process.pid
            self._events.changed()
            probe = asyncio.create_task(self._probe(started))
            code = await self._process.wait()
            probe.cancel()
            self.is_ready.clear()
            if self._stop.is_set():
                return
            quick = quick + 1 if time.monotonic() - started < QUICK_DEATH_S else 0
            again = quick < MAX_QUICK_DEATHS and code != 2  # 2: its configuration is wrong, and will be next time
            self._events.died(self.spec.name, _how(code), again)
            if not again:
                self.failed.set()
                return
            await asyncio.sleep(min(0.1 * 2**quick, 3.0))

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after the grace."""
        self._stop.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), grace_s)
            except TimeoutError:
                process.kill()
                await process.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        return ""

    async def _probe(self, started: float) -> None:
        while not await self.spec.ready():  # noqa: ASYNC110 - it asks another process
            await asyncio.sleep(0.1)
        self.is_ready.set()
        self._events.ready(self.spec.name, self.spec.address, time.monotonic() - started)


def _how(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit status {code}"
