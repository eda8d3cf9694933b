"""Shared keys and their limits in a real Redis, with replicas in this process and real edges."""

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
import redis as sync_redis
from structlog.testing import capture_logs

from llmmesh.edge.v1 import costs_pb2, costs_pb2_grpc, keys_pb2, keys_pb2_grpc
from services.cli.embedded.redis_server import redis_command
from services.cli.processes import free_ports
from services.common.channels import open_channel
from services.common.clock import SystemClock
from services.common.errors import NotReady, RateLimited, Unauthenticated, UnknownKey
from services.edge.adapters import redis_rate_limits
from services.edge.adapters.keys import KeyFile, KeyRing, hash_key
from services.edge.adapters.redis import open_redis
from services.edge.adapters.redis_keys import BY_HASH, USED, VERSION, RedisKeys
from services.edge.adapters.redis_rate_limits import RedisRateLimits
from services.edge.domain.keys import SHOWN_S, KeptKey, Key, Scope, Wish, made, revoked, rotated
from tests.waiting import until, until_answer

ROOT = Path(__file__).parents[2]
ADMIN = (("authorization", "Bearer root"),)


class Server:
    """A Redis of our own, which can be stopped and come back with what it had."""

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = folder
        self._command = redis_command(folder, self.port, append_only=True)

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        with self.client() as client:
            client.ping()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def client(self) -> sync_redis.Redis:
        patient = sync_redis.retry.Retry(sync_redis.backoff.ConstantBackoff(0.05), 200)
        return sync_redis.Redis(port=self.port, retry=patient)


def started(
    module: str, *arguments: str, env: dict[str, str] | None = None, log: Path | None = None
) -> subprocess.Popen:
    """A process of ours, that is spoken to over its pipes, or writes to a log."""
    command = [sys.executable, "-m", module, *arguments]
    if log is None:
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with log.open("w") as out:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=out)


async def let_in(limits: RedisRateLimits, key: Key) -> tuple[int, float]:
    """How often the key may ask, one after the other, until it is refused, and for how many seconds it is."""
    passed = 0
    while True:
        try:
            await limits.admit(key)
        except RateLimited as error:
            return passed, error.retry_after_s or 0.0
        passed += 1


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "redis"
    folder.mkdir()
    server = Server(folder)
    server.start()
    yield server
    server.stop()


class Clock:
    """The machine's clock, set ahead."""

    ahead = 0.0

    def now(self) -> float:
        return SystemClock().now() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def replica(url: str, clock: Clock):
    """Keys that follow Redis in the background."""
    redis = open_redis(url)
    keys = RedisKeys(redis, clock)
    task = asyncio.create_task(keys.follow())
    await until(lambda: keys.loaded)
    try:
        yield keys
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await redis.aclose()


@pytest.fixture
async def two(server, clock):
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replica(server.url, clock)) for _ in range(2)]


def wished(secret: str, clock: Clock, **wish) -> KeptKey:
    return made(Wish(**({"tenant": "acme"} | wish)), hash_key(secret), secret[:7], clock.now())


async def test_what_one_replica_changes_the_other_knows_without_asking(two, clock):
    here, there = two
    key = wished("lm-a", clock, name="Shop", scopes=frozenset({Scope.COSTS}), requests_per_minute=9, lifetime_s=3600.0)
    await here.add(key)
    assert here.find(key.digest) == key
    await until(lambda: there.find(key.digest) == key)
    now = clock.now()
    await there.change(key.key.id, lambda kept: rotated(kept, 60, hash_key("lm-b"), "lm-b", now))
    await until(lambda: here.find(hash_key("lm-b")) is not None and here.find(key.digest).expires_at == now + 60)
    await here.change(key.key.id, lambda kept: (revoked(kept, now),))
    await until(lambda: not there.find(key.digest).works(now))
    with pytest.raises(UnknownKey):
        await here.change("key-nobody", lambda kept: (kept,))


async def test_changes_at_the_same_time_are_all_kept(two, clock):
    keys = [wished(f"lm-{n}", clock) for n in range(8)]
    await asyncio.gather(*(two[n % 2].add(key) for n, key in enumerate(keys)))
    assert {kept.digest for kept in await two[0].kept()} == {key.digest for key in keys}
    ends = [clock.now() + n for n in range(4)]
    one = keys[0].key.id
    await asyncio.gather(
        *(two[n % 2].change(one, lambda kept, at=at: (revoked(kept, at),)) for n, at in enumerate(ends))
    )
    first = next(kept for kept in await two[1].kept() if kept.key.id == one)
    assert first.revoked_at in ends


async def test_without_redis_all_stays_as_it_was_and_comes_back(server, two, clock):
    here, there = two
    good, bad = wished("lm-good", clock), wished("lm-bad", clock)
    await here.add(good)
    await here.add(bad)
    await here.change(bad.key.id, lambda kept: (revoked(kept, clock.now()),))
    await until(lambda: there.find(bad.digest) is not None and not there.find(bad.digest).works(clock.now()))
    with capture_logs() as lines:
        server.stop()
        await until(lambda: sum(line["event"] == "keys_not_followed" for line in lines) == 2)
        for one in two:
            assert one.find(good.digest).works(clock.now())
            assert not one.find(bad.digest).works(clock.now())
        with pytest.raises(NotReady):
            await here.change(good.key.id, lambda kept: (revoked(kept, clock.now()),))
        assert here.find(good.digest).works(clock.now())
        server.start()
        await until(lambda: sum(line["event"] == "keys_followed_again" for line in lines) == 2)
    await here.change(good.key.id, lambda kept: (revoked(kept, clock.now()),))
    await until(lambda: not there.find(good.digest).works(clock.now()))


async def test_a_replica_that_starts_without_redis_knows_the_file_alone(server, tmp_path, clock):
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({hash_key("of-the-file"): {"tenant": "acme"}}))
    server.stop()
    redis = open_redis(server.url)
    keys = RedisKeys(redis, clock)
    ring = KeyRing(keys, KeyFile(path), clock)
    with pytest.raises(NotReady):
        await keys.refresh()
    assert ring.identify("Bearer of-the-file", Scope.INFERENCE).tenant == "acme"
    with pytest.raises(NotReady):
        ring.identify("Bearer lm-x", Scope.INFERENCE)
    server.start()
    await keys.refresh()
    with pytest.raises(Unauthenticated):
        ring.identify("Bearer lm-x", Scope.INFERENCE)
    await redis.aclose()


async def test_a_redis_that_went_back_in_time_is_followed(server, two, clock):
    """A failover may lose the newest changes: other changes under the same count must not pass for the ones that are known."""
    here, there = two
    key = wished("lm-a", clock)
    await here.add(key)
    await until(lambda: there.find(key.digest) is not None)
    with server.client() as client:
        before = client.dump(BY_HASH), client.dump(VERSION)
        await here.add(wished("lm-lost", clock))
        await until(lambda: there.find(hash_key("lm-lost")) is not None)
        client.restore(BY_HASH, 0, before[0], replace=True)
        client.restore(VERSION, 0, before[1], replace=True)
    await here.change(key.key.id, lambda kept: (revoked(kept, clock.now()),))
    await until(lambda: not there.find(key.digest).works(clock.now()) and there.find(hash_key("lm-lost")) is None)


async def test_nothing_of_the_keys_can_be_evicted_and_nothing_tells_a_secret(server, two, clock):
    secret = "lm-" + "s" * 43
    await two[0].add(wished(secret, clock))
    two[0].note_use(hash_key(secret))
    await two[0].write_uses()
    with server.client() as client:
        assert {client.ttl(name) for name in (BY_HASH, VERSION, USED)} == {-1}
        held = {**client.hgetall(BY_HASH), **client.hgetall(USED)}
        assert "s" * 8 not in str(held)
        (entry,) = client.hvals(BY_HASH)
    assert json.loads(entry)["hint"] == secret[:7]


async def test_keys_that_ended_long_ago_go_with_the_next_change(server, two, clock):
    old, young = wished("lm-old", clock), wished("lm-young", clock)
    await two[0].add(old)
    two[0].note_use(old.digest)
    await two[0].write_uses()
    await two[0].change(old.key.id, lambda kept: (revoked(kept, clock.now()),))
    clock.ahead = SHOWN_S + 1
    assert await two[0].kept() == []
    await two[0].add(young)
    with server.client() as client:
        assert client.hkeys(BY_HASH) == [young.digest.encode()]
        assert not client.hexists(USED, old.digest)


async def test_what_is_no_key_lets_nobody_in_and_hides_no_other(server, two, clock):
    key = wished("lm-a", clock)
    await two[0].add(key)
    with server.client() as client, capture_logs() as lines:
        for digest, entry in ((hash_key("x"), b"{"), (hash_key("y"), b'{"id": "k"}'), (hash_key("z"), b"[]")):
            client.hset(BY_HASH, digest, entry)
        client.set(VERSION, "other")
        await until(lambda: sum(line["event"] == "key_unreadable" for line in lines) >= 6)
    assert two[0].find(key.digest) == key
    assert two[0].find(hash_key("x")) is None
    assert await two[0].kept() == [key]


async def test_last_uses_are_to_the_minute_and_the_latest_counts(server, two, clock):
    here, there = two
    digest = hash_key("lm-a")
    there.note_use(digest)
    clock.ahead = 120
    here.note_use(digest)
    await here.write_uses()
    await there.write_uses()
    at = (await there.last_uses())[digest]
    assert at % 60 == 0
    assert clock.now() - 120 < at <= clock.now()


# Limits.


@pytest.fixture
async def redis(server):
    client = open_redis(server.url)
    yield client
    await client.aclose()


@pytest.mark.parametrize("limit", [1, 7, 60, 1000])
async def test_four_replicas_together_let_in_what_the_minute_has(server, redis, limit):
    for _ in range(3):  # a minute may end in between
        await redis.flushall()
        replicas = [started("tests.integration.rate_limited", server.url, str(limit)) for _ in range(4)]
        began = (await redis.time())[0] // 60
        for process in replicas:
            process.stdin.write("go\n")
            process.stdin.flush()
        counts = [int((await asyncio.to_thread(process.communicate))[0]) for process in replicas]
        ended = (await redis.time())[0] // 60
        assert sum(counts) <= limit * (ended - began + 1)
        if began == ended:
            # All of them asked until they were refused: nothing lies unused.
            assert sum(counts) == limit
            return
    pytest.fail("no attempt fitted into a minute")


async def test_the_next_window_has_all_again(redis, clock, monkeypatch):
    monkeypatch.setattr(redis_rate_limits, "WINDOW_S", 2)
    limits, key = RedisRateLimits(redis, 1, clock), Key("k", "acme", requests_per_minute=3)
    began, passed = (await redis.time())[0] // 2, 0
    for _ in range(3):
        more, wait_s = await let_in(limits, key)
        assert 0 < wait_s <= 2
        passed += more
        await asyncio.sleep(wait_s)
    windows = (await redis.time())[0] // 2 - began
    assert 9 <= passed <= 3 * (windows + 1)
    assert (await redis.ttl("{acme}:rate:k")) > 0


async def test_what_passed_in_an_outage_counts_when_it_is_over(server, redis, clock, monkeypatch):
    monkeypatch.setattr(redis_rate_limits, "WINDOW_S", 100_000)  # no end of a window in the middle
    ticks = Clock()
    limits, key = RedisRateLimits(redis, 2, clock, ticks.now), Key("k", "acme", requests_per_minute=20)
    await limits.admit(key)
    server.stop()
    assert (await let_in(limits, key))[0] == 9  # its half, of which it had used one
    server.start()
    ticks.ahead = 5.0  # time to ask again
    assert (await let_in(limits, key))[0] == 10


async def test_tenants_and_keys_have_limits_of_their_own(redis, clock):
    limits = RedisRateLimits(redis, 1, clock)
    for key in (Key("a", "acme", requests_per_minute=1), Key("b", "acme", requests_per_minute=1),
                Key("a2", "volta", requests_per_minute=1)):  # fmt: skip
        await limits.admit(key)


# Real edges.


@pytest.fixture
async def edges(server, tmp_path):
    """Channels to two edges, and their logs."""
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({hash_key("root"): {"tenant": "ops", "scopes": ["admin"]}}))
    ports = free_ports(2)
    logs = [tmp_path / f"edge-{port}.log" for port in ports]
    processes = []
    for port, log in zip(ports, logs, strict=True):
        env = {
            **os.environ,
            "LLMMESH_EDGE_PORT": str(port),
            "LLMMESH_EDGE_REDIS_URL": server.url,
            "LLMMESH_EDGE_KEYS_FILE": str(keys),
            "LLMMESH_EDGE_SPOOL_DIR": str(tmp_path / f"spool-{port}"),
            "LLMMESH_EDGE_LOG_LEVEL": "debug",
        }
        processes.append(started("services.edge", env=env, log=log))
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(open_channel(f"127.0.0.1:{port}")) for port in ports]
        for channel in channels:
            await asyncio.wait_for(channel.channel_ready(), 60)
        yield channels, logs
    for process in processes:
        process.terminate()
        process.wait()


async def test_two_edges_follow_each_other_and_the_secret_is_nowhere(edges, server):
    (here, there), logs = edges
    keys, costs = keys_pb2_grpc.KeyServiceStub(here), costs_pb2_grpc.CostServiceStub(there)

    async def code(secret: str) -> grpc.StatusCode:
        try:
            await costs.QueryCosts(costs_pb2.QueryCostsRequest(), metadata=(("authorization", f"Bearer {secret}"),))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    async def lets_in(secret: str) -> bool:
        return await code(secret) is grpc.StatusCode.OK

    async def refuses(secret: str) -> bool:
        return await code(secret) is grpc.StatusCode.UNAUTHENTICATED

    loop = asyncio.get_running_loop()
    old = await keys.CreateKey(keys_pb2.CreateKeyRequest(tenant="acme", name="Shop"), metadata=ADMIN)
    changed = loop.time()
    await until_answer(lambda: lets_in(old.secret))
    took = [loop.time() - changed]
    new = await keys.RotateKey(keys_pb2.RotateKeyRequest(id=old.key.id), metadata=ADMIN)
    await until_answer(lambda: lets_in(new.secret))
    await keys.RevokeKey(keys_pb2.RevokeKeyRequest(id=old.key.id), metadata=ADMIN)
    changed = loop.time()
    await until_answer(lambda: refuses(old.secret))
    took.append(loop.time() - changed)
    print(f"seen after {took} s")
    assert await lets_in(new.secret)
    on_disk = b"".join(path.read_bytes() for path in server.folder.rglob("*") if path.is_file())
    assert old.key.id.encode() in on_disk
    for secret in (old.secret, new.secret):
        for kept in [on_disk.decode("latin-1"), *(log.read_text() for log in logs)]:
            assert secret[7:] not in kept
    assert "key_revoked" in logs[0].read_text()
    assert hashlib.sha256(old.secret.encode()).hexdigest() not in "".join(log.read_text() for log in logs)
