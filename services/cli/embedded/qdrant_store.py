"""The collections of the embedded store: which engine serves each, and how it is rebuilt without anybody waiting.

Building a graph and dropping deleted points takes the engine from seconds to minutes in which it answers nothing. So a second
engine does it, on a copy: the points are copied while the first one serves, then those that changed meanwhile, and in the end the
second takes the first one's place. An acknowledged change is in both before that, so that a crash at any time loses none.
"""

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.cli.embedded.qdrant_engine import LENGTHS, Header, Identifier, Record, frame

REBUILD_AFTER = 10_000
"""Changes after which a collection is rebuilt, at the least."""
REBUILD_SHARE = 20
"""And at the least one in so many of its points must have changed: a rebuild costs as much as the collection is large."""
CHECK_INTERVAL_S = 5.0
STEP = 32
"""Points that are written, deleted or copied in one go: a search waits for a few milliseconds at most."""
COPY_SHARE = 3
"""Copying takes one part in so many of the serving engine's time."""
PASSES = 5
"""How often the points that changed meanwhile are copied before changes have to wait for the last of them."""
IN_FLIGHT = 2
"""Searches that an engine is given at a time. Anything else is given to it alone, so that a search waits for one at most."""


class Rejected(Exception):
    """The engine's own refusal of a request."""


class EngineGone(Exception):
    """The engine's process has ended."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a collection's vectors are: their length, distance and datatype as the engine calls them; `int8` for quantised."""

    size: int
    distance: str
    datatype: str = "float32"
    int8: bool = False


class Engine:
    """An engine's process."""

    def __init__(
        self, process: asyncio.subprocess.Process, asked: asyncio.StreamWriter, answered: asyncio.StreamReader
    ) -> None:
        self._process = process
        self._asked = asked
        self._urgent: deque[tuple[bytes, asyncio.Future[tuple[Header, bytes]]]] = deque()
        self._waiting: deque[tuple[bytes, asyncio.Future[tuple[Header, bytes]]]] = deque()
        self._in_flight: deque[asyncio.Future[tuple[Header, bytes]]] = deque()
        self._reading = asyncio.create_task(self._read(answered))

    @classmethod
    async def start(cls, shard: Path, kind: Kind, *, background: bool = False) -> "Engine":
        """Starts one over a folder and waits until it is ready. Raises EngineGone."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.cli.embedded.qdrant_engine", "--shard", str(shard)),
            *("--size", str(kind.size), "--distance", kind.distance, "--datatype", kind.datatype),
            *(("--int8",) if kind.int8 else ()),
            *(("--background",) if background else ()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        if process.stdin is None or process.stdout is None:  # never, with pipes
            raise EngineGone
        engine = cls(process, process.stdin, process.stdout)
        ready: asyncio.Future[tuple[Header, bytes]] = asyncio.get_running_loop().create_future()
        engine._in_flight.append(ready)  # what it says first is that it is ready
        try:
            await ready
        except BaseException:
            await engine.kill()
            raise
        return engine

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    async def call(self, header: Mapping[str, object], tail: bytes = b"", *, urgent: bool = False) -> tuple[Any, bytes]:
        """The result and its vectors. Requests are answered in order, but `urgent` ones first. Raises Rejected, EngineGone."""
        if self.ended:
            raise EngineGone
        answer: asyncio.Future[tuple[Header, bytes]] = asyncio.get_running_loop().create_future()
        (self._urgent if urgent else self._waiting).append((frame(header, tail), answer))
        self._send()
        found, vectors = await answer
        if "error" in found:
            raise Rejected(found["error"])
        return found["result"], vectors

    async def close(self) -> None:
        """Writes everything, lets go and ends; a process that has ended already is fine."""
        with contextlib.suppress(EngineGone):
            await self.call({"op": "close"})
        await self.kill()

    async def drain(self) -> None:
        """Returns once everything that was asked is answered."""
        pending = [*self._in_flight, *(answer for _, answer in (*self._urgent, *self._waiting))]
        if pending:
            await asyncio.wait(pending)

    async def kill(self) -> None:
        """Ends the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        await self._reading

    @property
    def ended(self) -> bool:
        """Whether the process has."""
        return self._reading.done()

    def _send(self) -> None:
        while (self._urgent and len(self._in_flight) < IN_FLIGHT) or (self._waiting and not self._in_flight):
            message, answer = (self._urgent or self._waiting).popleft()
            if not answer.cancelled():  # nobody waits for it any more
                self._in_flight.append(answer)
                self._asked.write(message)

    async def _read(self, answered: asyncio.StreamReader) -> None:
        try:
            while True:
                header_length, tail_length = LENGTHS.unpack(await answered.readexactly(LENGTHS.size))
                header = json.loads(await answered.readexactly(header_length))
                tail = await answered.readexactly(tail_length)
                answer = self._in_flight.popleft()
                if not answer.done():
                    answer.set_result((header, tail))
                self._send()
        except (asyncio.IncompleteReadError, OSError):
            unanswered = [*self._in_flight, *(answer for _, answer in (*self._urgent, *self._waiting))]
            for answer in unanswered:
                if not answer.done():
                    answer.set_exception(EngineGone())


class Collection:
    """One collection: a folder with `generation.json` and the shard of the generation that it names."""

    def __init__(self, folder: Path, known: Header, engine: Engine) -> None:
        self.folder = folder
        self.kind = Kind(**known["kind"])
        self.engine = engine
        self._generation: str = known["generation"]
        self._indexes: dict[str, Header] = known["indexes"]
        self._changed = 0
        self._touched: set[Identifier] | None = None
        self._open = asyncio.Event()
        self._open.set()

    @classmethod
    async def create(cls, folder: Path, kind: Kind) -> "Collection":
        """Makes a new one. What was left of one that was never finished goes away."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        known: Header = {"kind": asdict(kind), "generation": "1", "indexes": {}}
        engine = await Engine.start(folder / "1", kind)
        made = cls(folder, known, engine)
        made._save("1")
        return made

    @classmethod
    async def load(cls, folder: Path) -> "Collection":
        """Opens one that is there, without what a rebuild that was cut off has left."""
        known = json.loads((folder / "generation.json").read_text(encoding="utf-8"))
        for path in folder.iterdir():
            if path.is_dir() and path.name != known["generation"]:
                shutil.rmtree(path)
        engine = await Engine.start(folder / known["generation"], Kind(**known["kind"]))
        opened = cls(folder, known, engine)
        points, _ = await engine.call({"op": "count", "filter": None})
        info, _ = await engine.call({"op": "info"})
        opened._changed = max(0, points - info["indexed"])
        return opened

    async def upsert(self, points: Sequence[Record], vectors: bytes) -> None:
        """Writes points; `vectors` are theirs, 32-bit floats one after the other."""
        length = 4 * self.kind.size
        for start in range(0, len(points), STEP):
            some = points[start : start + STEP]
            header = {"op": "upsert", "points": some}
            await self._change(header, vectors[start * length : (start + STEP) * length], [i for i, _ in some])

    async def delete(self, ids: Sequence[Identifier]) -> None:
        """Deletes points by id."""
        for start in range(0, len(ids), STEP):
            some = ids[start : start + STEP]
            await self._change({"op": "delete", "ids": some}, b"", some)

    async def delete_where(self, condition: Header) -> None:
        """Deletes all that match."""
        scroll = {
            "op": "scroll",
            "offset": None,
            "limit": STEP,
            "filter": condition,
            "payload": False,
            "vectors": False,
        }
        while True:
            (records, _), _ = await self.engine.call(scroll)
            if not records:
                return
            await self.delete([identifier for identifier, _ in records])

    async def index(self, field: str, kind: str, *, tenant: bool) -> None:
        """Makes an index of a payload field; one that is there is left alone."""
        wanted: Header = {"op": "index", "field": field, "kind": kind, "tenant": tenant}
        before = self._indexes.get(field)
        if before == wanted:
            return
        self._indexes[field] = wanted  # at once: a rebuild that ends meanwhile must know of it
        try:
            await self._change(wanted, b"", ())
        except Rejected:
            del self._indexes[field]
            raise
        self._save(self._generation)

    async def _change(self, header: Mapping[str, object], tail: bytes, ids: Sequence[Identifier]) -> None:
        await self._open.wait()
        if self._touched is not None:
            self._touched.update(ids)
        self._changed += len(ids)
        await self.engine.call(header, tail)

    async def rebuild_if_due(self) -> bool:
        """Rebuilds where enough has changed; whether it did. Raises EngineGone, Rejected: then all is as it was."""
        if self._changed < REBUILD_AFTER:
            return False
        points, _ = await self.engine.call({"op": "count", "filter": None}, urgent=True)
        if self._changed * REBUILD_SHARE < points:
            return False
        await self.rebuild()
        return True

    async def rebuild(self) -> None:
        """Puts an engine in place that has graphs of all points and none of the deleted ones."""
        self._changed = 0
        touched = self._touched = set[Identifier]()
        generation = str(int(self._generation) + 1)
        shard = self.folder / generation
        fresh: Engine | None = None
        try:
            shutil.rmtree(shard, ignore_errors=True)
            indexes = dict(self._indexes)
            await self._build(shard, indexes)
            fresh = await Engine.start(shard, self.kind)
            for _ in range(PASSES):
                await self._catch_up(fresh, touched)
                if len(touched) <= STEP:
                    break
            self._open.clear()
            while touched:
                await self._catch_up(fresh, touched)
            for field, wanted in self._indexes.items():
                if indexes.get(field) != wanted:
                    await fresh.call(wanted)
            self._save(generation)
            self.engine, old = fresh, self.engine
        except BaseException:
            if fresh is not None:
                await fresh.kill()
            await asyncio.to_thread(shutil.rmtree, shard, ignore_errors=True)
            raise
        finally:
            self._touched = None
            self._open.set()
        outdated, self._generation = self._generation, generation
        await old.drain()
        await old.kill()
        await asyncio.to_thread(shutil.rmtree, self.folder / outdated)
        (self.folder / f"{outdated}.lock").unlink(missing_ok=True)

    async def _build(self, shard: Path, indexes: Mapping[str, Header]) -> None:
        """Copies all points into a new shard and optimises it."""
        builder = await Engine.start(shard, self.kind, background=True)
        try:
            for index in indexes.values():
                await builder.call(index)
            offset: Identifier | None = None
            while True:
                scroll = {
                    "op": "scroll",
                    "offset": offset,
                    "limit": STEP,
                    "filter": None,
                    "payload": True,
                    "vectors": True,
                }
                started = time.monotonic()
                (records, offset), vectors = await self.engine.call(scroll)
                took = time.monotonic() - started
                if records:
                    await builder.call({"op": "upsert", "points": records}, vectors)
                if offset is None:
                    break
                await asyncio.sleep(took * (COPY_SHARE - 1))
            await builder.call({"op": "optimize"})
            await builder.close()
        except BaseException:
            await builder.kill()
            raise

    async def _catch_up(self, fresh: Engine, touched: set[Identifier]) -> None:
        """Makes these points in the fresh engine what they are in the serving one."""
        pending = list(touched)
        touched.clear()  # one that changes again from here on is touched anew
        for start in range(0, len(pending), STEP):
            some = pending[start : start + STEP]
            records, vectors = await self.engine.call({"op": "retrieve", "ids": some})
            missing = set(some) - {identifier for identifier, _ in records}
            if records:
                await fresh.call({"op": "upsert", "points": records}, vectors)
            if missing:
                await fresh.call({"op": "delete", "ids": list(missing)})

    async def close(self) -> None:
        """Writes everything and lets go."""
        await self.engine.close()

    async def destroy(self) -> None:
        """Ends the engine and removes the folder."""
        await self.engine.drain()
        await self.engine.kill()
        await asyncio.to_thread(shutil.rmtree, self.folder)

    def _save(self, generation: str) -> None:
        """Says in one step which generation counts."""
        known = {"kind": asdict(self.kind), "generation": generation, "indexes": self._indexes}
        new = self.folder / "generation.json.new"
        new.write_text(json.dumps(known), encoding="utf-8")
        new.replace(self.folder / "generation.json")


class Collections:
    """All collections of a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, Collection] = {}
        self._making = asyncio.Lock()
        self._rebuilding: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens what is there, and keeps it in shape from here on."""
        self._root.mkdir(parents=True, exist_ok=True)
        for folder in sorted(self._root.iterdir()):
            if (folder / "generation.json").is_file():
                self._open[folder.name] = await Collection.load(folder)
        self._rebuilding = asyncio.create_task(self._rebuild())

    def names(self) -> list[str]:
        """Their names."""
        return list(self._open)

    def find(self, name: str) -> Collection | None:
        """One, or None."""
        return self._open.get(name)

    def broken(self) -> bool:
        """Whether a serving engine has ended by itself."""
        return any(collection.engine.ended for collection in self._open.values())

    async def create(self, name: str, kind: Kind) -> bool:
        """Makes one; False where there is one of that name, which must be a plain file name."""
        async with self._making:
            if name in self._open:
                return False
            self._open[name] = await Collection.create(self._root / name, kind)
            return True

    async def delete(self, name: str) -> bool:
        """Removes one; False where there was none."""
        async with self._making:
            found = self._open.pop(name, None)
            if found is None:
                return False
            await self._stop_rebuilding()  # it may be this one
            await found.destroy()
            self._rebuilding = asyncio.create_task(self._rebuild())
            return True

    async def close(self) -> None:
        """Closes all."""
        await self._stop_rebuilding()
        await asyncio.gather(*(collection.close() for collection in self._open.values()))

    async def _rebuild(self) -> None:
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            for name, collection in list(self._open.items()):
                try:
                    started = time.monotonic()
                    if await collection.rebuild_if_due():
                        print(f"rebuilt {name} in {time.monotonic() - started:.1f} s", flush=True)
                except (EngineGone, Rejected, OSError) as error:
                    # The collection goes on without; it is tried again after as many changes.
                    print(f"could not rebuild {name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    async def _stop_rebuilding(self) -> None:
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.wait([self._rebuilding])
