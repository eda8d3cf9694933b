"""The store under test: its processes, its collection, and how it is filled."""

import asyncio
import contextlib
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
from qdrant_client import grpc as pb

from benchmarks.scale import lookups, population
from benchmarks.scale.lookups import COLLECTION
from benchmarks.scale.population import DIMENSIONS, Entry, Tenant, Vectors
from benchmarks.scale.results import Latency
from services.cache.adapters.qdrant import open_qdrant
from services.cache.domain.ports import Vector

BATCH = 256
WRITERS = 2
SETTLED_CHECKS = 8
"""The store has settled when nothing was being built as often as this, a second apart: it looks every five seconds."""
SERVER = "services.cli.embedded.qdrant_server"
VECTORS = ("float32", "float16", "int8")


class Store:
    """A running store."""

    def __init__(
        self, process: asyncio.subprocess.Process, address: str, channel: grpc.aio.Channel, folder: Path
    ) -> None:
        self.address = address
        self._process = process
        self._points = pb.PointsStub(channel)  # type: ignore[no-untyped-call]
        self._collections = pb.CollectionsStub(channel)  # type: ignore[no-untyped-call]
        self._folder = folder

    async def create(self, vectors: str, first: Entry, vector: Vectors) -> None:
        """Makes the collection, and, through the adapter, its indexes and its first entry."""
        params = pb.VectorParams(
            size=DIMENSIONS,
            distance=pb.Distance.Cosine,
            datatype=pb.Datatype.Float16 if vectors == "float16" else pb.Datatype.Float32,
        )
        request = pb.CreateCollection(collection_name=COLLECTION, vectors_config=pb.VectorsConfig(params=params))
        if vectors == "int8":
            request.quantization_config.scalar.type = pb.QuantizationType.Int8
        await self._collections.Create(request)
        async with open_qdrant(self.address, api_key=None, tls=False, prefix=lookups.PREFIX, timeout=60) as adapter:
            await adapter.put(
                first.entry_id,
                Vector(vector, lookups.MODEL),
                first.tenant,
                first.scopes,
                language=lookups.LANGUAGE,
                expires_at=None,
            )

    async def fill(self, tenants: Sequence[Tenant], progress: Callable[[int], None]) -> float:
        """Writes all entries, and returns the seconds that writing took without making vectors."""
        took = 0.0
        for some in population.blocks(tenants, BATCH * WRITERS):
            requests = [_upsert(some[at : at + BATCH]) for at in range(0, len(some), BATCH)]
            started = time.perf_counter()
            await asyncio.gather(*(self._points.Upsert(request) for request in requests))
            took += time.perf_counter() - started
            progress(len(some))
        return took

    async def settle(self) -> float:
        """Waits until nothing works in the background, and returns how many seconds that took."""
        started = last = time.monotonic()
        idle = 0
        while idle < SETTLED_CHECKS:
            await asyncio.sleep(1.0)
            if len(self.pids()) > 2:  # the server, its engine, and whoever builds
                idle, last = 0, time.monotonic()
            else:
                idle += 1
        return last - started

    def pids(self) -> list[int]:
        """Of the server and its children."""
        pid = self._process.pid
        found = [pid]
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def memory(self) -> tuple[int, int]:
        """Resident and anonymous bytes of all processes together."""
        return _memory(self.pids(), "VmRSS"), _memory(self.pids(), "RssAnon")

    def disk(self) -> int:
        """Bytes that the files take up."""
        return sum(path.stat().st_blocks * 512 for path in self._folder.rglob("*") if path.is_file())


@asynccontextmanager
async def started(folder: Path, server: str = SERVER) -> AsyncIterator[Store]:
    """A new store over an empty folder."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", server, "--path", str(folder), "--port", "0"), stdout=asyncio.subprocess.PIPE
    )
    if process.stdout is None:
        raise RuntimeError("no output")
    address = (await process.stdout.readline()).decode().split()[-1]
    drain = asyncio.create_task(process.stdout.read())
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Store(process, address, channel, folder)
    finally:
        process.terminate()
        await process.wait()
        await drain


@asynccontextmanager
async def probed(store: Store, entries: int, tenants: int) -> AsyncIterator[list[Latency]]:
    """Another process asks all the while; what it saw is in the list afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.scale.probe", store.address, str(entries), str(tenants)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    seen: list[Latency] = []
    try:
        yield seen
    finally:
        told, _ = await process.communicate(b"")  # closes its input
        if told:
            seen.append(json.loads(told))


def _upsert(entries: Sequence[Entry]) -> pb.UpsertPoints:
    """Entries as the adapter writes them, many at once."""
    points = []
    for entry in entries:
        vector = population.vectors(entry.number, 1)[0]
        scopes = [pb.Value(string_value=scope.hex()) for scope in entry.scopes]
        points.append(
            pb.PointStruct(
                id=pb.PointId(uuid=str(uuid.UUID(entry.entry_id[:32]))),
                vectors=pb.Vectors(vector=pb.Vector(dense=pb.DenseVector(data=vector.tolist()))),
                payload={
                    "tenant": pb.Value(string_value=entry.tenant),
                    "scope": pb.Value(list_value=pb.ListValue(values=scopes)),
                    "language": pb.Value(string_value=lookups.LANGUAGE),
                    "entry": pb.Value(string_value=entry.entry_id),
                    "expires_at": pb.Value(double_value=1e12),
                },
            )
        )
    return pb.UpsertPoints(collection_name=COLLECTION, points=points, wait=True)


def _memory(pids: Sequence[int], field: str) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # a process that ended meanwhile
            for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
                if line.startswith(f"{field}:"):
                    total += int(line.split()[1]) * 1024
    return total
