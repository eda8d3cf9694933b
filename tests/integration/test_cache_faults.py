"""What goes wrong between Redis, Qdrant, the clock and people, on the real stores: never a wrong answer, at worst a miss."""

import contextlib
import random
import uuid

import numpy as np
import pytest
from qdrant_client import AsyncQdrantClient, models

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import caller_pb2, chat_pb2, vector_pb2
from services.cache.adapters.qdrant import open_qdrant
from services.cache.adapters.redis import open_redis
from services.cache.app import SERVICE
from services.cache.convert import answer_text
from services.cache.domain.calibration import Label
from services.cache.domain.later import Later
from services.cache.domain.learning import Learning
from services.cache.domain.lesson import Lesson
from services.cache.domain.lookup import SemanticCache
from services.cache.domain.paraphrases import Paraphrases
from services.cache.domain.ports import Alias, Body, CacheRules, Header, Note
from services.cache.domain.quality import HEARSAY_KEPT, Quality
from services.cache.domain.reviews import Reviews
from services.cache.domain.signals import FEATURES
from services.cache.servicer import CacheServicer
from services.common.clock import SystemClock
from services.common.runtime import Service
from services.common.testing import serve
from tests.cache_memory import CALIBRATION, VERIFIED_MODEL, MemoryReviews, ScriptedVerifier, priced

pytest.importorskip("qdrant_edge", reason="the embedded Qdrant needs qdrant-edge-py")

from tests.integration.test_cache_stores import message, qdrant_server, redis_server  # noqa: F401

STORED, ASKED = "How do I reset my password?", "I lost my login secret, what now?"
COLLECTION = f"llmmesh-{VERIFIED_MODEL}-8"
HOUR = 3600.0
RULES = CacheRules(
    exact=True,
    semantic=True,
    floor=0.5,
    thresholds={},
    ttl={"": HOUR, "realtime": 45.0, "user": 600.0, "faq": HOUR, "static": 86_400.0, "archive": 14 * 86_400.0},
    user_classes=frozenset({"user"}),
    max_temperature=1.0,
    cross_language=False,
    store_tool_calls=False,
)


class JumpyClock:
    """The machine's clock, moved by `offset` seconds."""

    offset = 0.0

    def now(self) -> float:
        return SystemClock().now() + self.offset


class Cache:
    """A replica of the cache and short ways to call it."""

    def __init__(self, stub, parts: "Parts") -> None:
        self.stub, self.parts = stub, parts

    async def lookup(self, text: str = ASKED, **more):
        found = await self.stub.Lookup(cache_pb2.LookupRequest(**request(text, **more)))
        await self.parts.cache.close()
        return found

    async def outcome(self, text: str = ASKED, **more) -> str:
        return cache_pb2.Outcome.Name((await self.lookup(text, **more)).outcome).removeprefix("OUTCOME_")

    async def store(self, text: str = STORED, **more):
        answer = chat_pb2.Answer(
            message=message(f"answer to {text}", chat_pb2.ROLE_ASSISTANT), finish_reason=chat_pb2.FINISH_REASON_STOP
        )
        more.setdefault("at", 0.0)
        return await self.stub.Store(cache_pb2.StoreRequest(**request(text, **more), answer=answer, model="big"))

    async def feedback(self, request_id: str, right: bool) -> bool:
        caller = caller_pb2.Caller(tenant="acme")
        word = cache_pb2.FeedbackRequest(caller=caller, request_id=request_id, right=right)
        return (await self.stub.Feedback(word)).counted

    async def measure(self) -> cache_pb2.MeasureResponse:
        return await self.stub.Measure(cache_pb2.MeasureRequest(caller=caller_pb2.Caller(tenant="acme")))

    async def purge(self, **selector) -> int:
        caller = caller_pb2.Caller(tenant="acme")
        return (await self.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, **selector))).removed


class Parts:
    """What a replica is made of."""

    def __init__(self, bodies, vectors) -> None:
        self.bodies, self.vectors = bodies, vectors
        self.clock, self.verifier = JumpyClock(), ScriptedVerifier()
        self.verifier.chances[STORED] = 0.999
        self.quality = Quality(CALIBRATION, self.clock)
        self.reviews = Reviews(bodies, MemoryReviews(), self.clock, answer_text)
        later = Later()
        paraphrases = Paraphrases(
            bodies,
            vectors,
            self.quality,
            self.clock,
            later,
            prices=priced,
            answer_text=answer_text,
            reviews=self.reviews,
            verifier=self.verifier,
        )
        self.cache = SemanticCache(bodies, vectors, paraphrases, self.quality, self.clock, later, priced, self.reviews)
        self.learning = Learning(
            bodies, self.quality, bodies, answer_text=answer_text, stale=lambda *heard: None, reviews=self.reviews
        )


def request(text: str, *, at=None, model_id=VERIFIED_MODEL, request_id="", tenant="acme", **more):
    fields = {
        "caller": caller_pb2.Caller(tenant=tenant, request_id=request_id),
        "chat": chat_pb2.Chat(messages=[message(text)]),
        "requested_model": "auto",
        **more,
    }
    if at is not None:
        values = np.zeros(8, dtype="<f4")
        values[0], values[1] = np.cos(at), np.sin(at)
        fields["vector"] = vector_pb2.Vector(values=values.tobytes(), model_id=model_id, dimensions=8)
    return fields


@contextlib.asynccontextmanager
async def replica(redis_port: int, qdrant_port: int):
    async with contextlib.AsyncExitStack() as stack:
        bodies = await stack.enter_async_context(
            open_redis(f"redis://127.0.0.1:{redis_port}/0", timeout=5, connections=8, note_ttl=3600)
        )
        vectors = await stack.enter_async_context(
            open_qdrant(f"127.0.0.1:{qdrant_port}", api_key=None, tls=False, prefix="llmmesh-", timeout=5)
        )
        parts = Parts(bodies, vectors)
        servicer = CacheServicer(parts.cache, parts.learning, parts.reviews, {"default": RULES}, {})
        service = Service(SERVICE, servicer, cache_pb2_grpc.add_CacheServiceServicer_to_server)
        async with serve([service]) as channel:
            yield Cache(cache_pb2_grpc.CacheServiceStub(channel), parts)


@pytest.fixture
async def cache(redis_server, qdrant_server):  # noqa: F811
    async with replica(redis_server.port, qdrant_server.port) as cache:
        yield cache


@pytest.fixture
async def redis(cache):
    return cache.parts.bodies._redis


@pytest.fixture
async def qdrant(qdrant_server):  # noqa: F811
    client = AsyncQdrantClient(
        host="127.0.0.1", grpc_port=qdrant_server.port, prefer_grpc=True, check_compatibility=False
    )
    yield client
    await client.close()


async def test_a_hit_becomes_an_alias_that_ends_with_its_entry(cache, redis):
    stored = await cache.store()
    first = await cache.lookup(at=0.1)
    again = await cache.lookup()
    assert (again.outcome, again.verdict.alias) == (cache_pb2.OUTCOME_SEMANTIC_HIT, True)
    assert again.entry == first.entry
    alias = f"{{acme}}:e:{first.exact_key.hex()}"
    assert await redis.pexpiretime(alias) == await redis.pexpiretime(f"{{acme}}:e:{stored.entry_id}")
    assert await cache.purge(entry_id=stored.entry_id) == 1
    assert await cache.outcome() == "MISS"
    assert await redis.exists(alias) == 0


async def test_redis_evicts_a_body_under_an_alias_and_a_vector(cache, redis, qdrant):
    stored = await cache.store()
    await cache.lookup(at=0.1)
    assert await redis.delete(f"{{acme}}:e:{stored.entry_id}") == 1
    assert await cache.outcome() == "MISS"
    assert (await cache.lookup(at=0.1)).verdict.reason == "gone"
    assert (await cache.lookup(at=0.1)).verdict.reason == "no_candidate"
    assert (await qdrant.count(COLLECTION)).count == 0
    await cache.store()
    assert await cache.outcome(at=0.1) == "SEMANTIC_HIT"


async def test_redis_evicts_everything_that_may_go_and_the_record_stays(cache, redis):
    await cache.store()
    await cache.lookup(at=0.1, request_id="r1")
    assert await cache.feedback("r1", right=False)
    before = await cache.measure()
    async for key in redis.scan_iter("*"):
        if await redis.ttl(key) >= 0:
            await redis.delete(key)
    assert {key.decode() async for key in redis.scan_iter("*")} == {"{acme}:q:default", "{acme}:ql:default"}
    assert await cache.measure() == before
    assert await cache.outcome(at=0.1) == "MISS"


async def test_qdrant_loses_a_vector(cache, qdrant):
    await cache.store()
    (points, _) = await qdrant.scroll(COLLECTION)
    await qdrant.delete(COLLECTION, [point.id for point in points])
    assert await cache.outcome(STORED) == "EXACT_HIT"
    assert (await cache.lookup(at=0.1)).verdict.reason == "no_candidate"
    await cache.store()
    assert await cache.outcome(at=0.1) == "SEMANTIC_HIT"


async def test_qdrant_doubles_a_vector(cache, qdrant):
    await cache.store()
    (points, _) = await qdrant.scroll(COLLECTION)
    twins = [
        models.PointStruct(id=str(uuid.uuid4()), vector=[1.0] + [0.0] * 7, payload=points[0].payload) for _ in range(3)
    ]
    await qdrant.upsert(COLLECTION, twins)
    found = await cache.lookup(at=0.1)
    assert (found.outcome, len(found.verdict.candidates)) == (cache_pb2.OUTCOME_SEMANTIC_HIT, 1)


async def test_a_crash_between_body_and_vector_leaves_an_exact_answer(cache, monkeypatch):
    async def crash(*args, **more):
        raise RuntimeError("the process ends here")

    monkeypatch.setattr(cache.parts.vectors, "put", crash)
    with pytest.raises(RuntimeError, match="ends here"):
        await cache.parts.cache.store(*await domain_store())
    monkeypatch.undo()
    assert await cache.outcome(STORED) == "EXACT_HIT"
    assert await cache.outcome(at=0.1) == "MISS"
    await cache.store()
    assert await cache.outcome(at=0.1) == "SEMANTIC_HIT"


async def domain_store():
    """What the servicer hands to the domain for `Cache.store`."""
    from services.cache import convert

    answer = chat_pb2.Answer(
        message=message("answer", chat_pb2.ROLE_ASSISTANT), finish_reason=chat_pb2.FINISH_REASON_STOP
    )
    pb = cache_pb2.StoreRequest(**request(STORED, at=0.0), answer=answer, model="big")
    question = convert.question_from(pb, convert.caller(pb.caller), {})
    return question, convert.fresh_from(pb), RULES


async def test_the_clock_jumps_both_ways_and_nothing_outlives_its_end(cache, redis):
    clock = cache.parts.clock
    stored = await cache.store()
    await cache.lookup(at=0.1)
    entry = f"{{acme}}:e:{stored.entry_id}"
    ends = await redis.pexpiretime(entry)
    clock.offset = 2 * HOUR
    for outcome in (await cache.outcome(STORED), await cache.outcome(), await cache.outcome(at=0.1)):
        assert outcome == "MISS"
    clock.offset = -365 * 86_400.0
    assert await cache.outcome(STORED) == "EXACT_HIT"
    assert await cache.outcome(at=0.1) == "SEMANTIC_HIT"
    assert await redis.pexpiretime(entry) == ends, "Redis's own clock ends it"
    # What is written with a clock that is far behind has ended before it began.
    late = await cache.store("Where is my order?", at=1.0)
    assert late.stored
    assert await cache.outcome("Where is my order?") == "MISS"
    clock.offset = 0.0
    assert (await cache.measure()).lookups > 0


async def test_another_embedding_model_never_meets_the_old_vectors(cache):
    await cache.store()
    found = await cache.lookup(at=0.0, model_id="lookalike-next")
    assert (found.outcome, found.verdict.reason) == (cache_pb2.OUTCOME_MISS, "no_candidate")
    assert await cache.outcome(STORED, at=0.0, model_id="lookalike-next") == "EXACT_HIT"
    await cache.store(at=0.0, model_id="lookalike-next")
    assert (await cache.lookup(at=0.0, model_id="lookalike-next")).verdict.reason == "no_threshold"


async def test_an_alias_of_a_purged_entry_does_not_come_back_with_its_successor(cache):
    stored = await cache.store(tags=["t"])
    await cache.lookup(at=0.1, request_id="paraphrase")
    assert await cache.purge(request_id="paraphrase") == 1
    again = await cache.store(tags=["t"])
    assert again.entry_id == stored.entry_id
    assert await cache.outcome() == "MISS"
    assert await cache.outcome(at=0.1) == "SEMANTIC_HIT"
    assert await cache.purge(tag="t") == 1
    assert await cache.outcome() == "MISS"


async def test_an_alias_never_takes_the_place_of_an_entry(cache):
    own = await cache.store(ASKED, at=0.1)
    await cache.store()
    alias = Alias(own.entry_id, 1.0, 1.0, VERIFIED_MODEL)
    await cache.parts.bodies.put_alias("acme", own.entry_id, alias, cache.parts.clock.now() + HOUR)
    await cache.parts.bodies.drop_alias("acme", own.entry_id)
    assert await cache.outcome() == "EXACT_HIT"


async def test_flooded_feedback_tightens_and_never_loosens(cache, redis):
    source = random.Random(3)
    await cache.store()
    requests = [f"r{index}" for index in range(80)]
    for request_id in requests:
        assert await cache.outcome(at=0.1, request_id=request_id) == "SEMANTIC_HIT"
    threshold = (await cache.measure()).threshold
    for request_id in source.choices(requests, k=150):
        await cache.feedback(request_id, right=source.random() < 0.3)
        now = (await cache.measure()).threshold
        assert now >= threshold
        threshold = now
    measured = await cache.measure()
    assert measured.state == "tight"
    assert measured.feedback_right + measured.feedback_wrong <= len(requests), "a request counts once"
    assert measured.wrong == measured.checked == measured.feedback_wrong
    assert await redis.llen("{acme}:ql:default") <= HEARSAY_KEPT
    assert await cache.outcome(at=0.1) == "MISS"


async def test_a_word_counts_once_over_all_replicas(cache, redis_server, qdrant_server):  # noqa: F811
    await cache.store()
    await cache.lookup(at=0.1, request_id="r1")
    await cache.parts.bodies.flush_notes()
    async with replica(redis_server.port, qdrant_server.port) as other:
        assert await other.feedback("r1", right=False)
        assert not await cache.feedback("r1", right=False)
        await other.parts.quality.sync(other.parts.bodies)
        assert await cache.outcome() == "MISS", "blocked by the other replica"
        assert (await cache.measure()).wrong == 1


async def test_every_record_is_read_as_it_was_written(cache, redis):
    bodies = cache.parts.bodies
    features = tuple(round(index / 7, 5) for index in range(len(FEATURES)))
    ends = cache.parts.clock.now() + HOUR
    for alias in (
        Alias("e" * 64, 12.5, 0.75, "m", 0.99, True, features),
        Alias("e" * 64, 12.5, 0.75, "m"),
    ):
        await bodies.put_alias("acme", "k", alias, ends)
        assert await bodies.fetch("acme", "default", ["k"]) == (0, [alias])
    lesson = Lesson("a" * 64, "e" * 64, 12.5, True, features, 0.5).pack()
    for note in (Note("e" * 64), Note("e" * 64, "default", lesson)):
        bodies.note_answer("acme", "r", note)
        assert await bodies.answered("acme", "r") == note
    header = Header("q", "default", "m", 8, ("t",), "r", per_user=False, cost=5, answer="d" * 16)
    await bodies.put("acme", "f" * 64, Body(b"p", 1.0, None, b""), header)
    _, (body,) = await bodies.fetch("acme", "default", ["f" * 64])
    assert isinstance(body, Body)
    assert bodies.header(body) == header
    labels = [Label(tuple(float(i) for i in range(len(FEATURES))), same, 0.5) for same in (True, False, True)]
    await bodies.add("acme", "n", {"wrong": 1.0, "risk:3": 2.5}, labels, 2)
    await bodies.add("acme", "n", {"wrong": 1.0}, [], 2)
    assert await bodies.counts("acme", "n") == {"wrong": 2.0, "risk:3": 2.5}
    assert await bodies.labels("acme", "n") == labels[1:]
    for right in (True, False, True):
        await bodies.mark("acme", "k", "f" * 64, right=right)
    _, (candidate,) = await bodies.candidates("acme", "n", "k", ["f" * 64])
    assert (candidate.right, candidate.wrong, candidate.blocked) == (2, 1, True)
    _, (elsewhere,) = await bodies.candidates("acme", "n", "other", ["f" * 64])
    assert not elsewhere.blocked
    assert candidate.group == ""
    await bodies.join("acme", "a" * 64, "f" * 64, "d" * 16)
    await bodies.join("acme", "b" * 64, "a" * 64, "other")  # the known one has joined already
    _, joined = await bodies.candidates("acme", "n", "k", ["a" * 64, "b" * 64, "f" * 64])
    assert [one.group for one in joined] == ["d" * 16, "d" * 16, ""]
    assert await redis.ttl("{acme}:g:" + "b" * 64) > 0


@pytest.mark.parametrize("value", [b"", b"\x02", b"\x02[]", b"\x02{}", b"\x02null", b"\x01short", b"\x07other"])
async def test_bytes_of_another_version_count_as_absent(cache, redis, value):
    key = (await cache.lookup()).exact_key.hex()
    await redis.set(f"{{acme}}:e:{key}", value)
    assert await cache.outcome() == "MISS"
    await cache.store(ASKED, at=0.1)
    assert await cache.outcome() == "EXACT_HIT"
