import asyncio
import contextlib
import os
import signal
import sys
import uuid
from array import array
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from qdrant_client import grpc as pb

from services.cli.embedded import qdrant_store
from services.cli.embedded.qdrant_engine import LENGTHS
from services.cli.embedded.qdrant_store import Collection, Collections, Engine, EngineGone, Kind, Rejected
from tests.waiting import PATIENCE_S

SIZE = 8
KIND = Kind(SIZE, "cosine")
TENANT = {"must": [{"key": "tenant", "value": "a"}]}


def name(number: int) -> str:
    return str(uuid.UUID(int=number))


def points(numbers, version: int = 0):
    return [(name(n), {"tenant": "a", "version": version}) for n in numbers]


def vectors(numbers) -> bytes:
    rows = [np.random.default_rng(n).normal(size=SIZE).astype("<f4") for n in numbers]
    return np.concatenate(rows).tobytes() if rows else b""


async def write(collection: Collection, numbers, version: int = 0) -> None:
    await collection.upsert(points(numbers, version), vectors(numbers))


async def versions(collection: Collection) -> dict[str, int]:
    scroll = {"op": "scroll", "offset": None, "limit": 10_000, "filter": None, "payload": True, "vectors": False}
    (records, _), _ = await collection.engine.call(scroll)
    return {identifier: payload["version"] for identifier, payload in records}


@contextlib.asynccontextmanager
async def created(folder):
    collection = await Collection.create(folder, KIND)
    try:
        yield collection
    finally:
        await collection.engine.kill()


async def nearest(collection: Collection, number: int) -> str:
    query = {"op": "query", "limit": 1, "offset": 0, "filter": TENANT, "score_threshold": None, "payload": False}
    found, _ = await collection.engine.call(query, vectors([number]), urgent=True)
    return found[0][0]


async def test_a_rebuild_keeps_every_change_that_was_made_meanwhile(tmp_path):
    async with created(tmp_path / "c") as collection:
        await collection.index("tenant", "keyword", tenant=True)
        await write(collection, range(400))
        await collection.delete([name(n) for n in range(0, 400, 4)])
        before = collection.engine.pid
        rebuild = asyncio.create_task(collection.rebuild())
        expected = {name(n): 0 for n in range(400) if n % 4}
        number, asked = 400, 0
        while not rebuild.done():
            await write(collection, [number, 1], version=number)
            await collection.delete([name(2), name(number - 7)])
            expected |= {name(number): number, name(1): number}
            expected.pop(name(2), None)
            expected.pop(name(number - 7), None)
            assert await nearest(collection, 3) == name(3)
            number, asked = number + 1, asked + 1
        await rebuild
        assert collection.engine.pid != before
        assert asked > 1
        assert await versions(collection) == expected
        await collection.close()
        again = await Collection.load(tmp_path / "c")
        assert await versions(again) == expected
        assert await nearest(again, 3) == name(3)
        assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["2", "2.lock", "generation.json"]
        await again.close()


async def test_an_index_made_during_a_rebuild_is_there_afterwards(tmp_path):
    async with created(tmp_path / "c") as collection:
        await write(collection, range(200))
        rebuild = asyncio.create_task(collection.rebuild())
        await collection.index("tenant", "keyword", tenant=True)
        await rebuild
        await collection.close()
        again = await Collection.load(tmp_path / "c")
        assert await nearest(again, 3) == name(3)
        await again.close()


async def test_a_rebuild_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch):
    async with created(tmp_path / "c") as collection:
        await write(collection, range(100))
        start = Engine.start

        async def dies(shard, kind, *, background=False):
            engine = await start(shard, kind, background=background)
            os.kill(engine.pid, signal.SIGKILL)
            return engine

        monkeypatch.setattr(Engine, "start", dies)
        with pytest.raises(EngineGone):
            await collection.rebuild()
        assert len(await versions(collection)) == 100
        await write(collection, [100])
        assert [path.name for path in (tmp_path / "c").iterdir() if path.is_dir()] == ["1"]


async def test_a_rebuild_is_due_when_enough_of_the_points_have_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(qdrant_store, "REBUILD_AFTER", 50)
    monkeypatch.setattr(qdrant_store, "REBUILD_SHARE", 2)
    async with created(tmp_path / "c") as collection:
        await write(collection, range(49))
        assert not await collection.rebuild_if_due()
        await write(collection, [49])
        assert await collection.rebuild_if_due()
        await write(collection, range(50, 200))
        assert await collection.rebuild_if_due()
        await write(collection, range(60))
        assert not await collection.rebuild_if_due()


async def test_what_matches_a_filter_is_deleted_in_steps(tmp_path):
    async with created(tmp_path / "c") as collection:
        await write(collection, range(100))
        await write(collection, range(10), version=1)
        await collection.delete_where({"must": [{"key": "version", "range": {"lte": 0}}]})
        assert await versions(collection) == {name(n): 1 for n in range(10)}


async def test_what_the_engine_refuses_does_not_end_it(tmp_path):
    async with created(tmp_path / "c") as collection:
        with pytest.raises(Rejected):
            await collection.engine.call({"op": "query"})
        await write(collection, [1])
        assert await versions(collection) == {name(1): 0}


@pytest.mark.parametrize("kind", [Kind(SIZE, "cosine", "float16"), Kind(SIZE, "cosine", int8=True)])
async def test_vectors_can_be_stored_in_less(tmp_path, kind):
    collection = await Collection.create(tmp_path / "c", kind)
    await write(collection, range(50))
    await collection.rebuild()
    assert await nearest(collection, 7) == name(7)
    await collection.close()


async def test_an_unfinished_collection_is_made_anew(tmp_path):
    (tmp_path / "c" / "1").mkdir(parents=True)
    (tmp_path / "c" / "1" / "half").write_text("")
    collections = Collections(tmp_path)
    await collections.start()
    assert collections.names() == []
    assert await collections.create("c", KIND)
    assert not await collections.create("c", KIND)
    assert await collections.delete("c")
    assert not (tmp_path / "c").exists()
    await collections.close()


class Written:
    def __init__(self):
        self.frames = []

    def write(self, message: bytes) -> None:
        self.frames.append(message)


async def test_a_search_overtakes_changes_that_wait():
    asked, answered = Written(), asyncio.StreamReader()
    engine = Engine(None, asked, answered)  # type: ignore[arg-type]
    calls = [asyncio.create_task(engine.call({"op": f"change {n}"})) for n in range(3)]
    await asyncio.sleep(0)
    calls.append(asyncio.create_task(engine.call({"op": "search"}, urgent=True)))
    await asyncio.sleep(0)
    done = b'{"result":null}'
    for _ in range(4):
        answered.feed_data(LENGTHS.pack(len(done), 0) + done)
    await asyncio.gather(*calls)
    order = [
        next(op for op in ("change 0", "change 1", "change 2", "search") if op.encode() in f) for f in asked.frames
    ]
    assert order == ["change 0", "search", "change 1", "change 2"]
    answered.feed_eof()


SERVER = """
from services.cli.embedded import qdrant_server, qdrant_store
qdrant_store.REBUILD_AFTER, qdrant_store.REBUILD_SHARE, qdrant_store.CHECK_INTERVAL_S = 40, 1_000, 0.02
qdrant_server.main()
"""


@contextlib.asynccontextmanager
async def served(folder):
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER, "--path", str(folder), "--port", "0"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    address = (await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)).decode().split()[-1]
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield process, pb.CollectionsStub(channel), pb.PointsStub(channel)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def upsert(number: int):
    vector = pb.Vector(dense=pb.DenseVector(data=array("f", vectors([number]))))
    point = pb.PointStruct(id=pb.PointId(num=number), vectors=pb.Vectors(vector=vector))
    return pb.UpsertPoints(collection_name="c", points=[point], wait=True)


def delete(number: int):
    ids = pb.PointsIdsList(ids=[pb.PointId(num=number)])
    return pb.DeletePoints(collection_name="c", points=pb.PointsSelector(points=ids))


async def stored(stub) -> set[int]:
    answer = await stub.Scroll(pb.ScrollPoints(collection_name="c", limit=100_000))
    return {point.id.num for point in answer.result}


async def asking_on(stub) -> None:
    while True:
        await stored(stub)


async def test_a_server_killed_at_any_time_loses_nothing_that_it_acknowledged(tmp_path):
    expected: set[int] = set()
    number = 0
    for round_number in range(4):
        async with served(tmp_path / "q") as (process, collections, stub):
            if round_number == 0:
                params = pb.VectorParams(size=SIZE, distance=pb.Distance.Cosine)
                await collections.Create(
                    pb.CreateCollection(collection_name="c", vectors_config=pb.VectorsConfig(params=params))
                )
            assert await stored(stub) == expected
            for _ in range(60 + 47 * round_number):  # rebuilds begin and end on the way
                await stub.Upsert(upsert(number))
                expected.add(number)
                if number % 3 == 0:
                    await stub.Delete(delete(number // 2))
                    expected.discard(number // 2)
                number += 1
            process.kill()
    async with served(tmp_path / "q") as (_, _, stub):
        assert await stored(stub) == expected


async def test_a_server_whose_engine_died_ends_with_an_error_and_loses_nothing(tmp_path):
    async with served(tmp_path / "q") as (process, collections, stub):
        params = pb.VectorParams(size=SIZE, distance=pb.Distance.Cosine)
        await collections.Create(
            pb.CreateCollection(collection_name="c", vectors_config=pb.VectorsConfig(params=params))
        )
        await stub.Upsert(upsert(1))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asking_on(stub)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 1
    async with served(tmp_path / "q") as (_, _, stub):
        assert await stored(stub) == {1}
