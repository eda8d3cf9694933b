"""The cache over the real embedded stores: a redis-server and Qdrant's engine, each a process that can be killed."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest
import redis.asyncio

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import caller_pb2, chat_pb2, vector_pb2
from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from services.cache.adapters.redis_reviews import open_reviews
from services.cache.app import build
from services.cache.domain.calibration import Calibration
from services.cache.domain.reviews import Kind, Review, Standing, Waiting
from services.cache.settings import CacheSettings
from services.cli.embedded.redis_server import redis_command
from services.common.runtime import Service, make_server
from services.common.settings import ServiceSettings
from services.common.testing import serve

pytest.importorskip("qdrant_edge", reason="the embedded Qdrant needs qdrant-edge-py")

PATIENCE_S = 30.0
MODEL = "all-MiniLM-L6-v2"
COLLECTION = "llmmesh-all-MiniLM-L6-v2-384"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A process on a fixed port that can be killed and started again."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.command, self.port, self.log = command, port, log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log)
        end = time.monotonic() + PATIENCE_S
        while True:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < end, "the server did not open its port"
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(PATIENCE_S)
            self.process = None


@pytest.fixture
def redis_server(tmp_path):
    folder = tmp_path / "redis"
    folder.mkdir()
    port = free_port()
    server = Server(redis_command(folder, port), port, tmp_path / "redis.log")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def qdrant_server(tmp_path):
    port = free_port()
    module = "services.cli.embedded.qdrant_server"
    command = [sys.executable, "-m", module, "--path", str(tmp_path / "qdrant"), "--port", str(port)]
    server = Server(command, port, tmp_path / "qdrant.log")
    server.start()
    yield server
    server.stop()


class Cache:
    """The cache under test and short ways to call it."""

    def __init__(self, stub: cache_pb2_grpc.CacheServiceStub, missing: Callable[[], object], port: int) -> None:
        self.stub, self.missing, self.redis_port = stub, missing, port

    async def lookup(self, text: str = "How do I reset my password?", **more):
        return await self.stub.Lookup(cache_pb2.LookupRequest(**request(text, **more)))

    async def store(self, text: str = "How do I reset my password?", **more):
        answer = chat_pb2.Answer(
            message=message(f"answer to {text}", chat_pb2.ROLE_ASSISTANT), finish_reason=chat_pb2.FINISH_REASON_STOP
        )
        fields = request(text, **more)
        return await self.stub.Store(cache_pb2.StoreRequest(**fields, answer=answer, model="m", tier="simple"))

    async def outcome(self, *args, **more) -> str:
        return cache_pb2.Outcome.Name((await self.lookup(*args, **more)).outcome).removeprefix("OUTCOME_")

    async def eventually(self, condition) -> None:
        """Waits until an awaited condition holds; a server that is not reachable yet counts as not yet."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                if await condition():
                    return
            assert time.monotonic() < end, "it did not happen"
            await asyncio.sleep(0.05)

    def redis(self) -> "redis.asyncio.Redis[bytes]":
        return redis.asyncio.Redis(port=self.redis_port)


def request(
    text: str, *, chat=None, at: float | None = None, tenant="acme", request_id="", user="", model_id=MODEL, **more
):
    chat = chat or chat_pb2.Chat(messages=[message("You help.", chat_pb2.ROLE_SYSTEM), message(text)])
    caller = caller_pb2.Caller(tenant=tenant, request_id=request_id, user=user)
    fields = {"caller": caller, "chat": chat, "requested_model": "auto", **more}
    if at is not None:
        values = np.zeros(384, dtype="<f4")
        values[0], values[1] = np.cos(at), np.sin(at)
        fields["vector"] = vector_pb2.Vector(values=values.tobytes(), model_id=model_id, dimensions=384)
    return fields


def message(text: str, role: int = chat_pb2.ROLE_USER) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=text)])


@contextlib.asynccontextmanager
async def running(redis_port: int, qdrant_port: int, **settings):
    configured = CacheSettings(
        redis_url=f"redis://127.0.0.1:{redis_port}/0",
        qdrant_address=f"127.0.0.1:{qdrant_port}",
        redis_timeout_seconds=5,
        qdrant_timeout_seconds=5,
        **settings,
    )
    async with contextlib.AsyncExitStack() as stack:
        services = await build(configured, stack)
        async with serve(services) as channel:
            yield Cache(cache_pb2_grpc.CacheServiceStub(channel), services[0].missing, redis_port)


@pytest.fixture
async def cache(redis_server, qdrant_server):
    async with running(redis_server.port, qdrant_server.port) as cache:
        yield cache


async def test_exact_and_semantic_hits_and_the_must_miss_pair(cache):
    assert await cache.outcome(at=0.0) == "MISS"
    stored = await cache.store(at=0.0)
    assert (stored.stored, stored.semantic_unavailable) == (True, False)
    assert await cache.outcome(at=0.0) == "EXACT_HIT"
    found = await cache.lookup("how can i reset my password please", at=0.1)
    assert found.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT
    assert found.entry.answer.message.parts[0].text == "answer to How do I reset my password?"
    await cache.store("How do I cancel my order?", at=1.0)
    assert (await cache.lookup("Can I cancel after 48 hours?", at=1.0)).verdict.reason == "veto_numbers"


async def test_another_tenant_system_history_tools_or_format_never_hits(cache):
    text = "How do I reset my password?"
    await cache.store(text, at=0.0)
    system, question = message("You help.", chat_pb2.ROLE_SYSTEM), message(text)
    json_object = chat_pb2.ResponseFormat(kind=chat_pb2.ResponseFormat.KIND_JSON_OBJECT)
    turns = [message("hi"), message("Hello!", chat_pb2.ROLE_ASSISTANT)]
    changes = {
        "tenant": {"tenant": "other"},
        "system": {"chat": chat_pb2.Chat(messages=[message("You sell.", chat_pb2.ROLE_SYSTEM), question])},
        "history": {"chat": chat_pb2.Chat(messages=[system, *turns, question])},
        "tools": {"chat": chat_pb2.Chat(messages=[system, question], tools=[chat_pb2.Tool(name="pay")])},
        "format": {"chat": chat_pb2.Chat(messages=[system, question], response_format=json_object)},
    }
    for name, change in changes.items():
        found = await cache.lookup(text, at=0.0, **change)
        assert (name, found.outcome, found.verdict.reason) == (name, cache_pb2.OUTCOME_MISS, "no_candidate")


async def test_every_key_begins_with_the_tenant_and_entries_expire_on_their_own(cache):
    stored = await cache.store(at=0.0, tags=["prices"], request_id="r1", ttl_class=cache_pb2.TTL_CLASS_REALTIME)
    entry = f"{{acme}}:e:{stored.entry_id}"
    async with cache.redis() as client:
        # Counted and kept for review, once a second.
        later = {"{acme}:q:default", "{acme}:n", "{acme}:w:default", "{acme}:wt:default"}
        keys = {key.decode() for key in await client.keys("*")} - later
        assert keys == {entry, "{acme}:t:default:prices", "{acme}:r:r1"}
        expires = await client.pexpiretime(entry)
        for _ in range(3):
            assert await cache.outcome(at=0.0) == "EXACT_HIT"
            assert await cache.outcome("how can i reset my password", at=0.0) == "SEMANTIC_HIT"
        assert await client.pexpiretime(entry) == expires
        assert 0 < await client.ttl(entry) <= 45
        assert await client.ttl("{acme}:t:default:prices") == -1
        assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "volatile-lru"


async def test_an_evicted_body_is_a_miss_and_its_vector_goes(cache):
    stored = await cache.store(at=0.0)
    async with cache.redis() as client:
        assert await client.delete(f"{{acme}}:e:{stored.entry_id}") == 1
    assert (await cache.lookup("how can i reset my password", at=0.0)).verdict.reason == "gone"

    async def no_candidate() -> bool:
        return (await cache.lookup("how can i reset my password", at=0.0)).verdict.reason == "no_candidate"

    await cache.eventually(no_candidate)


async def test_vectors_of_expired_answers_are_swept_up(redis_server, qdrant_server):
    from qdrant_client import AsyncQdrantClient, models

    async with running(redis_server.port, qdrant_server.port, sweep_seconds=0.1) as cache:
        await cache.store(at=0.0)
        client = AsyncQdrantClient(
            host="127.0.0.1", grpc_port=qdrant_server.port, prefer_grpc=True, check_compatibility=False
        )
        assert (await client.count(COLLECTION)).count == 1
        (points, _) = await client.scroll(COLLECTION)
        payload = {**points[0].payload, "expires_at": 1.0}
        ended = models.PointStruct(id=points[0].id, vector=[1.0] + [0.0] * 383, payload=payload)
        await client.upsert(COLLECTION, [ended])

        async def swept() -> bool:
            return (await client.count(COLLECTION)).count == 0

        await cache.eventually(swept)
        await client.close()


async def test_redis_killed_is_unavailable_and_recovers(cache, redis_server):
    await cache.store(at=0.0)
    redis_server.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cache.lookup(at=0.0)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "redis at 127.0.0.1" in (await cache.missing() or "")
    redis_server.start()

    async def answers() -> bool:
        return await cache.outcome(at=0.0) == "MISS"

    await cache.eventually(answers)
    await cache.store(at=0.0)
    assert await cache.outcome(at=0.0) == "EXACT_HIT"
    assert await cache.missing() is None


async def test_qdrant_killed_leaves_exact_hits_and_recovers_with_its_points(cache, qdrant_server):
    await cache.store(at=0.0)
    qdrant_server.stop()
    assert await cache.outcome(at=0.0) == "EXACT_HIT"
    found = await cache.lookup("how can i reset my password", at=0.0)
    assert (found.outcome, found.semantic_unavailable) == (cache_pb2.OUTCOME_MISS, True)
    stored = await cache.store("Where is my order?", at=1.0)
    assert (stored.stored, stored.semantic_unavailable) == (True, True)
    assert "qdrant at 127.0.0.1" in (await cache.missing() or "")
    qdrant_server.start()

    async def hits() -> bool:
        return await cache.outcome("how can i reset my password", at=0.0) == "SEMANTIC_HIT"

    await cache.eventually(hits)
    assert await cache.missing() is None


async def test_a_qdrant_that_lost_everything_is_filled_again(cache, qdrant_server):
    from qdrant_client import AsyncQdrantClient

    await cache.store(at=0.0)
    client = AsyncQdrantClient(
        host="127.0.0.1", grpc_port=qdrant_server.port, prefer_grpc=True, check_compatibility=False
    )
    assert await client.collection_exists(COLLECTION)
    await client.delete_collection(COLLECTION)
    await client.close()
    assert await cache.outcome("how can i reset my password", at=0.0) == "MISS"
    assert not (await cache.store(at=0.0)).semantic_unavailable
    assert await cache.outcome("how can i reset my password", at=0.0) == "SEMANTIC_HIT"


async def test_a_version_raised_by_another_replica_hides_everything_at_once(cache, redis_server, qdrant_server):
    await cache.store(at=0.0)
    async with running(redis_server.port, qdrant_server.port) as other:
        assert await other.outcome(at=0.0) == "EXACT_HIT"
        caller = caller_pb2.Caller(tenant="acme")
        bumped = await other.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, whole_namespace=True))
        assert (bumped.removed, bumped.namespace_version) == (-1, 1)
        found = await cache.lookup(at=0.0)
        assert (found.outcome, found.namespace_version) == (cache_pb2.OUTCOME_MISS, 1)
        assert (await cache.store(at=0.0, namespace_version=0)).reason == "purged"
        assert (await other.store(at=0.0, namespace_version=1)).stored
    assert await cache.outcome(at=0.0) == "EXACT_HIT"


@pytest.mark.parametrize("kind", ["tag", "entry_id", "request_id"])
async def test_entries_are_purged_by_tag_id_and_answered_request(cache, kind):
    stored = await cache.store(at=0.0, tags=["prices", "all"])
    await cache.store("Where is my order?", at=1.0, tags=["all"])
    await cache.lookup("how can i reset my password", at=0.0, request_id="r7")
    value = {"tag": "prices", "entry_id": stored.entry_id, "request_id": "r7"}[kind]
    for tenant, count in (("other", 0), ("acme", 1), ("acme", 0)):
        caller = caller_pb2.Caller(tenant=tenant)
        purged = await cache.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, **{kind: value}))
        assert (tenant, purged.removed) == (tenant, count)
    assert await cache.outcome(at=0.0) == "MISS"
    assert await cache.outcome("Where is my order?", at=1.0) == "EXACT_HIT"


async def test_a_tag_can_be_purged_again_after_its_entry_is_stored_again(cache):
    caller = caller_pb2.Caller(tenant="acme")
    for _ in range(2):
        await cache.store(at=0.0, tags=["prices"])
        purged = await cache.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, tag="prices"))
        assert purged.removed == 1
        async with cache.redis() as client:
            assert await client.keys("*:t:*") == []


async def test_many_callers_at_once_all_get_their_answer(cache):
    await asyncio.gather(*(cache.store(f"question {i}", at=i / 50) for i in range(40)))
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(5):
            outcomes = await asyncio.gather(
                *(cache.outcome(f"question {i}", at=i / 50, skip_exact=i % 2 == 0) for i in range(40))
            )
            assert "MISS" not in outcomes


async def test_the_cache_starts_without_its_stores_and_becomes_ready_when_they_appear(redis_server, qdrant_server):
    redis_server.stop()
    qdrant_server.stop()
    async with running(redis_server.port, qdrant_server.port) as cache:
        assert await cache.missing() == (
            f"redis at 127.0.0.1:{redis_server.port}/0 and qdrant at 127.0.0.1:{qdrant_server.port}"
        )
        redis_server.start()
        qdrant_server.start()

        async def ready() -> bool:
            return await cache.missing() is None

        await cache.eventually(ready)
        await cache.store(at=0.0)
        assert await cache.outcome("how can i reset my password", at=0.0) == "SEMANTIC_HIT"


class Verifier(embedder_pb2_grpc.EmbedderServiceServicer):
    """Vouches for every pair."""

    async def ScorePairs(self, request, context):
        return embedder_pb2.ScorePairsResponse(probabilities=[0.99999] * len(request.pairs), cost_nanousd=3)


async def test_the_verifier_of_the_embedder_is_asked_and_similarity_decides_without_it(redis_server, qdrant_server):
    calibrated = Calibration.load().model_id
    paraphrase = "my password is forgotten, what do i do to get a new one"
    service = Service(
        "llmmesh.embedder.v1.EmbedderService", Verifier(), embedder_pb2_grpc.add_EmbedderServiceServicer_to_server
    )
    server, _ = make_server([service], ServiceSettings())
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with running(redis_server.port, qdrant_server.port, embedder=f"127.0.0.1:{port}") as cache:
        await cache.store(at=0.0, model_id=calibrated)
        found = await cache.lookup(paraphrase, at=0.1, model_id=calibrated)
        assert (found.outcome, found.verifier_cost_nanousd) == (cache_pb2.OUTCOME_SEMANTIC_HIT, 3)
        assert found.verdict.candidates[0].verifier > 0.99
        await server.stop(None)
        found = await cache.lookup(paraphrase, at=0.1, model_id=calibrated, skip_exact=True)
        assert not found.verdict.candidates[0].HasField("verifier")
        assert found.outcome == cache_pb2.OUTCOME_MISS


async def test_counts_outlive_the_replica_that_made_them(redis_server, qdrant_server):
    async with running(redis_server.port, qdrant_server.port, quality_seconds=60) as cache:
        await cache.store(at=0.0)
        assert await cache.outcome() == "EXACT_HIT"
        assert await cache.outcome("how can i reset my password", at=0.1) == "SEMANTIC_HIT"
    async with running(redis_server.port, qdrant_server.port) as cache:
        caller = caller_pb2.Caller(tenant="acme")
        measured = await cache.stub.Measure(cache_pb2.MeasureRequest(caller=caller))
        assert (measured.exact_hits, measured.semantic_hits, measured.lookups) == (1, 1, 1)


async def test_odd_text_is_stored_and_found(cache):
    for text in ("nul \x00 inside", "\u202eright to left", "🙂" * 100, "e\u0301", "a" * 100_000):
        await cache.store(text, at=0.0)
        assert await cache.outcome(text, at=0.0) == "EXACT_HIT"


async def reviews_of(cache, tenant: str = "acme", **more) -> list[cache_pb2.Review]:
    request = cache_pb2.ListReviewsRequest(caller=caller_pb2.Caller(tenant=tenant), **more)
    return list((await cache.stub.ListReviews(request)).reviews)


async def test_reviews_are_written_beside_the_calls_expire_and_outlive_the_replica(redis_server, qdrant_server):
    async with running(redis_server.port, qdrant_server.port, quality_seconds=60) as cache:
        await cache.store(at=0.0)
        await cache.lookup("how can i reset my password", at=0.1, request_id="r1")
        async with cache.redis() as client:
            assert await client.exists("{acme}:w:default") == 0
    async with running(redis_server.port, qdrant_server.port) as cache:
        (review,) = await reviews_of(cache)
        assert (review.asked, review.request_id) == ("how can i reset my password", "r1")
        assert review.answer == "answer to How do I reset my password?"
        assert await reviews_of(cache, "other") == []
        word = cache_pb2.FeedbackRequest(caller=caller_pb2.Caller(tenant="acme"), request_id="r1", right=False)
        assert (await cache.stub.Feedback(word)).counted
        (review,) = await reviews_of(cache, unsettled_only=True)
        assert review.verdict == cache_pb2.REVIEW_VERDICT_WRONG
        async with cache.redis() as client:
            for key in ("{acme}:w:default", "{acme}:wt:default"):
                assert 0 < await client.ttl(key) <= 7 * 86_400
            assert await client.smembers("{acme}:n") == {b"default"}
            assert await client.ttl("{acme}:n") == -1


async def test_the_newest_five_hundred_reviews_of_seven_days_are_kept(redis_server):
    day = 86_400.0
    pairs = {
        f"p{i}": Review(Kind.HIT, i * 60.0, 1.0, f"r{i}", "e", "asked", "stored", 0.9, None, "served")
        for i in range(600)
    }
    settled = dict.fromkeys(["p0", "p599", "gone"], Standing.WRONG)
    async with open_reviews(f"redis://127.0.0.1:{redis_server.port}/0", timeout=5) as store:
        await store.put("acme", "default", Waiting(pairs, settled), now=6 * day)
        kept = dict(await store.all("acme", "default"))
        assert set(kept) == {f"p{i}" for i in range(100, 600)}
        assert {pair for pair, review in kept.items() if review.standing is Standing.WRONG} == {"p599"}
        await store.put("acme", "default", Waiting({}, {"p599": Standing.RIGHT}), now=7 * day + 590 * 60)
        kept = dict(await store.all("acme", "default"))
        assert set(kept) == {f"p{i}" for i in range(590, 600)}
        assert kept["p599"].standing is Standing.WRONG
        async with redis.asyncio.Redis(port=redis_server.port) as client:
            assert await client.hlen("{acme}:w:default") == 11
