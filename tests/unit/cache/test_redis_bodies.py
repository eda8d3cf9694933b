"""Shared trips to Redis and the notes of who was answered by what, over a Redis that does what it is told."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from services.cache.adapters import redis as adapter
from services.cache.adapters.redis import RedisBodies
from services.cache.domain.ports import Note, StoreUnavailable

NOTE = Note("e" * 64, "default", b"{}")


class ScriptedRedis:
    """Answers nothing to every MGET once `gate` is open; keeps what is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.reads: list[list[str]] = []
        self.values: dict[str, bytes] = {}
        self.failure: Exception | None = None

    async def mget(self, keys: list[str]) -> list[bytes | None]:
        self.reads.append(list(keys))
        await self._pass()
        return [None] * len(keys)

    async def get(self, key: str) -> bytes | None:
        await self._pass()
        return self.values.get(key)

    def pipeline(self, transaction: bool) -> "ScriptedPipeline":
        return ScriptedPipeline(self)

    async def _pass(self) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure


class ScriptedPipeline:
    """Collects SETs; a failing one writes nothing."""

    def __init__(self, redis: ScriptedRedis) -> None:
        self.redis = redis
        self.sets: dict[str, bytes] = {}

    async def __aenter__(self) -> "ScriptedPipeline":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    def set(self, key: str, value: bytes, ex: int) -> None:
        self.sets[key] = value

    async def execute(self) -> list[bool]:
        await self.redis._pass()
        self.redis.values.update(self.sets)
        return [True] * len(self.sets)


@pytest.fixture
def redis():
    return ScriptedRedis()


@pytest.fixture
def bodies(redis):
    return RedisBodies(redis, "test", note_ttl=60)


async def steps(count: int = 5) -> None:
    """Lets everything that is due run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_call_that_comes_as_all_trips_end_is_read_for(redis, bodies):
    async def twice() -> None:
        for _ in range(2):
            await bodies.fetch("acme", "default", ["a"])

    calls = asyncio.gather(twice(), bodies.fetch("acme", "default", ["b"]))
    await steps()
    assert len(redis.reads) == 1, "what starts together shares a trip"
    third = asyncio.create_task(bodies.fetch("acme", "default", ["c"]))
    await steps()
    assert len(redis.reads) == 2
    redis.gate.set()
    async with asyncio.timeout(10):
        await asyncio.gather(calls, third)
    assert bodies._trips == 0


async def test_two_trips_that_end_in_one_step_leave_nobody_waiting(redis, bodies):
    async def twice() -> None:
        for _ in range(2):
            await bodies.fetch("acme", "default", ["a"])

    first = asyncio.create_task(twice())
    await steps()
    second = asyncio.create_task(bodies.fetch("acme", "default", ["b"]))
    await steps()
    assert len(redis.reads) == 2
    redis.gate.set()
    async with asyncio.timeout(10):
        await asyncio.gather(first, second)


async def test_calls_that_gave_up_are_not_read_for(redis, bodies):
    under_way = [asyncio.create_task(bodies.fetch("acme", "default", [name])) for name in ("a",)]
    await steps()
    under_way.append(asyncio.create_task(bodies.fetch("acme", "default", ["b"])))
    await steps()
    gone = asyncio.create_task(bodies.fetch("acme", "default", ["gone"]))
    kept = asyncio.create_task(bodies.fetch("acme", "default", ["kept"]))
    await steps()
    gone.cancel()
    await asyncio.wait([gone])
    redis.gate.set()
    await asyncio.gather(*under_way, kept)
    assert [key for keys in redis.reads for key in keys if ":e:" in key] == [
        f"{{acme}}:e:{n}" for n in ("a", "b", "kept")
    ]


@pytest.mark.parametrize(
    ("failure", "heard"), [(RedisConnectionError("down"), StoreUnavailable), (ValueError("bug"), ValueError)]
)
async def test_a_failed_trip_reaches_all_who_share_it_and_the_next_call_tries_again(redis, bodies, failure, heard):
    redis.failure = failure
    redis.gate.set()
    results = await asyncio.gather(*(bodies.fetch("acme", "n", [str(i)]) for i in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [heard] * 3
    redis.failure = None
    assert await bodies.fetch("acme", "n", ["a"]) == (0, [None])


async def test_a_request_is_found_while_its_note_is_being_written(redis, bodies):
    bodies.note_answer("acme", "r1", NOTE)
    writing = asyncio.create_task(bodies.flush_notes())
    await steps()
    asked = asyncio.create_task(bodies.answered("acme", "r1"))
    await steps()
    redis.gate.set()
    assert await asked == NOTE
    await writing


async def test_notes_that_could_not_be_written_are_kept_up_to_a_limit(redis, bodies, monkeypatch):
    monkeypatch.setattr(adapter, "_MAX_NOTES", 3)
    redis.failure = RedisConnectionError("down")
    redis.gate.set()
    for index in range(3):
        bodies.note_answer("acme", f"r{index}", NOTE)
    redis.gate.clear()
    writing = asyncio.create_task(bodies.flush_notes())
    await steps()
    for index in range(3, 6):
        bodies.note_answer("acme", f"r{index}", NOTE)
    redis.gate.set()
    with pytest.raises(StoreUnavailable):
        await writing
    redis.failure = None
    await bodies.flush_notes()
    assert list(redis.values) == [f"{{acme}}:r:r{index}" for index in (3, 4, 5)]


async def test_a_write_of_notes_that_is_cancelled_loses_none(redis, bodies):
    bodies.note_answer("acme", "r1", NOTE)
    writing = asyncio.create_task(bodies.flush_notes())
    await steps()
    writing.cancel()
    await asyncio.wait([writing])
    redis.gate.set()
    assert await bodies.answered("acme", "r1") == NOTE


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://127.0.0.1:6379/0", "127.0.0.1:6379/0"),
        ("rediss://user:s3cret@redis.example:6380/1", "redis.example:6380/1"),
        ("redis://redis.example/0?password=s3cret", "redis.example/0"),
        ("unix:///run/redis.sock?db=0&password=s3cret", "/run/redis.sock"),
    ],
)
def test_the_address_in_messages_holds_no_secret(url, address):
    assert adapter._address(url) == address
