"""Leases over a real Redis, by the RPCs and through the edge."""

import asyncio
import contextlib
import signal
import socket
import subprocess
import time
from pathlib import Path

import grpc
import pytest
import redis.asyncio
from google.protobuf.duration_pb2 import Duration

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import caller_pb2, chat_pb2, usage_pb2
from services.cache.adapters.leases import open_leases
from services.cache.app import build
from services.cache.lease_servicer import LeaseServicer
from services.cache.settings import CacheSettings
from services.cli.embedded.redis_server import redis_command
from services.common.chat import (
    Answer,
    FinishReason,
    Message,
    ReasoningDelta,
    Role,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
)
from services.common.errors import FailedPrecondition, InvalidInput, NotReady, from_rpc_error
from services.common.runtime import Service
from services.common.testing import serve
from services.edge.adapters.peers import CachePeer, LeasePeer
from services.edge.domain.ports import AnswerEnd
from services.edge.domain.trip import Began, Ended
from tests.unit.edge.fakes import USAGE, World, question, text_answer
from tests.unit.edge.test_edge_company import KEY, Cache, ask, check_bills, many, outcomes
from tests.waiting import until, until_answer

SERVICE = "llmmesh.cache.v1.CacheService"


class RedisServer:
    """A redis-server on a fixed port that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(redis_command(self.folder, self.port), stdout=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert time.monotonic() < end, "the server did not open its port"
            time.sleep(0.02)

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)


@pytest.fixture
def redis_server(tmp_path):
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def store(redis_server):
    client = redis.asyncio.Redis.from_url(redis_server.url)
    yield client
    await client.aclose()


class OnlyLeases(LeaseServicer, cache_pb2_grpc.CacheServiceServicer):
    """The cache service's leases without the rest."""


class Door:
    """The lease RPCs."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.stub = cache_pb2_grpc.CacheServiceStub(channel)

    async def acquire(
        self, holder: str, *, key: bytes = KEY, tenant: str = "acme", ttl_ms: int = 30_000, keep_only: bool = False
    ) -> cache_pb2.AcquireLeaseResponse:
        ttl = Duration()
        ttl.FromMilliseconds(ttl_ms)
        return await self.stub.AcquireLease(
            cache_pb2.AcquireLeaseRequest(
                caller=caller(tenant), exact_key=key, holder=holder, ttl=ttl, keep_only=keep_only
            )
        )

    async def publish(self, token: int, *said: str, end: cache_pb2.Entry | None = None, release: bool = False):
        """Publishes texts, one a message, and gives the lease up where asked to."""

        async def requests():
            yield cache_pb2.PublishLeaseRequest(caller=caller(), exact_key=KEY, fencing_token=token)
            for text in said:
                yield cache_pb2.PublishLeaseRequest(deltas=[chat_pb2.Delta(text=text)])
            if end is not None:
                yield cache_pb2.PublishLeaseRequest(release=True, entry=end, entry_id=end.entry_id)
            elif release:
                yield cache_pb2.PublishLeaseRequest(release=True)

        await self.stub.PublishLease(requests())

    def follow(self, *, tenant: str = "acme"):
        return self.stub.FollowLease(cache_pb2.FollowLeaseRequest(caller=caller(tenant), exact_key=KEY))


def caller(tenant: str = "acme") -> caller_pb2.Caller:
    return caller_pb2.Caller(tenant=tenant)


def entry(entry_id: str = "") -> cache_pb2.Entry:
    answer = chat_pb2.Answer(finish_reason=chat_pb2.FINISH_REASON_LENGTH)
    return cache_pb2.Entry(entry_id=entry_id, answer=answer, model="m", usage=usage_pb2.Usage(input_tokens=3))


@pytest.fixture
async def door(redis_server):
    async with open_leases(redis_server.url, timeout=2.0, connections=16) as leases:
        servicer = OnlyLeases()
        servicer.leases = leases
        services = [Service(SERVICE, servicer, cache_pb2_grpc.add_CacheServiceServicer_to_server)]
        async with serve(services) as channel:
            yield Door(channel)


async def read(call) -> tuple[list[str], cache_pb2.FollowLeaseResponse]:
    """The texts, their numbers checked, and the last word."""
    texts: list[str] = []
    async for response in call:
        assert response.position == len(texts)
        if response.WhichOneof("event") != "delta":
            return texts, response
        texts.append(response.delta.text)
    raise AssertionError("a follower is told how it ended")


async def test_of_many_one_gets_the_lease_and_the_others_learn_who(door):
    answers = await asyncio.gather(*(door.acquire(f"h{n}") for n in range(50)))
    (first,) = (answer for answer in answers if answer.acquired)
    assert {(answer.holder, answer.fencing_token) for answer in answers} == {(first.holder, first.fencing_token)}
    assert (await door.acquire("elsewhere", tenant="volta")).acquired
    assert (await door.acquire("other", key=b"o" * 32)).acquired


async def test_asking_again_renews_and_keeping_takes_nothing(door, store):
    assert not (await door.acquire("a", keep_only=True)).acquired
    first = await door.acquire("a", ttl_ms=20_000)
    again = await door.acquire("a", ttl_ms=40_000, keep_only=True)
    assert (again.acquired, again.fencing_token) == (True, first.fencing_token)
    assert await store.pttl(f"{{acme}}:l:{KEY.hex()}") > 20_000


async def test_tokens_rise_even_when_redis_forgot_and_when_its_clock_went_back(door, store):
    tokens = []
    for number in range(4):
        if number == 2:
            await store.flushall()
        if number == 3:
            await store.set("{acme}:lf", tokens[-1] + 10**12)
            tokens.append(tokens[-1] + 10**12)
        lease = await door.acquire(f"h{number}")
        assert lease.acquired
        tokens.append(lease.fencing_token)
        await door.publish(lease.fencing_token, release=True)
    assert tokens == sorted(set(tokens))


async def test_a_follower_gets_every_piece_in_order_as_it_comes_and_the_end(door):
    lease = await door.acquire("a")
    asked = asyncio.Queue[str | None]()

    async def requests():
        yield cache_pb2.PublishLeaseRequest(caller=caller(), exact_key=KEY, fencing_token=lease.fencing_token)
        while (text := await asked.get()) is not None:
            yield cache_pb2.PublishLeaseRequest(deltas=[chat_pb2.Delta(text=piece) for piece in text])
        yield cache_pb2.PublishLeaseRequest(release=True, entry=entry("e"), entry_id="e")

    publishing = door.stub.PublishLease(requests())
    asked.put_nowait("ab")
    early = door.follow()
    assert [(await early.read()).delta.text for _ in range(2)] == ["a", "b"]
    assert (await door.acquire("a")).followed
    asked.put_nowait("c")
    late = door.follow()
    assert (await early.read()).delta.text == "c"
    asked.put_nowait(None)
    await publishing
    texts, last = await read(late)
    assert texts == ["a", "b", "c"]
    assert last.entry == entry("e")
    assert last.fencing_token == lease.fencing_token
    assert (await early.read()).entry == entry("e")


async def test_a_holder_that_was_slow_cannot_mix_its_words_with_its_successors(door):
    slow = await door.acquire("slow", ttl_ms=1)
    await until_answer(lambda: taken(door, "quick"))
    quick = await door.acquire("quick")
    assert quick.fencing_token > slow.fencing_token
    following = door.follow()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.publish(slow.fencing_token, "old ", "words", end=entry("e"))
    assert isinstance(from_rpc_error(caught.value), FailedPrecondition)
    await door.publish(quick.fencing_token, "new", end=entry("e"))
    texts, last = await read(following)
    assert (texts, last.fencing_token) == (["new"], quick.fencing_token)


async def taken(door: Door, holder: str) -> bool:
    return (await door.acquire(holder)).acquired


async def test_a_holder_whose_process_dies_is_missed_at_once(door, store):
    lease = await door.acquire("a", ttl_ms=60_000)

    async def requests():
        yield cache_pb2.PublishLeaseRequest(
            caller=caller(), exact_key=KEY, fencing_token=lease.fencing_token, deltas=[chat_pb2.Delta(text="a")]
        )
        await asyncio.Event().wait()

    publishing = door.stub.PublishLease(requests())
    following = door.follow()
    assert (await following.read()).delta.text == "a"
    publishing.cancel()
    assert (await following.read()).leader_lost
    assert (await door.acquire("b")).acquired


async def test_a_holder_that_is_silent_for_too_long_is_lost(door):
    await door.acquire("a", ttl_ms=300)
    assert (await read(door.follow()))[1].leader_lost
    assert (await door.acquire("b")).acquired


async def test_nobody_to_follow_is_a_lost_leader(door):
    assert (await read(door.follow()))[1].leader_lost


async def test_a_holder_that_failed_says_so(door):
    lease = await door.acquire("a")
    following = asyncio.create_task(read(door.follow()))
    await door.publish(lease.fencing_token, "a", release=True)
    _, last = await following
    assert last.leader_lost
    assert (await door.acquire("b")).acquired


async def test_who_missed_a_stored_answer_by_a_moment_is_led_to_it_while_it_is_there(door, store):
    await store.set(f"{{acme}}:e:{KEY.hex()}", b"the entry")
    lease = await door.acquire("a")
    await door.publish(lease.fencing_token, "a", "b", end=entry(KEY.hex()))
    late = await door.acquire("b")
    assert not late.acquired
    assert (await read(door.follow()))[0] == ["a", "b"]
    # A purged answer is nobody's any more.
    await store.delete(f"{{acme}}:e:{KEY.hex()}")
    assert (await door.acquire("c")).acquired


async def test_an_answer_that_was_not_stored_is_for_those_who_follow_already(door):
    lease = await door.acquire("a")
    following = door.follow()
    await until_answer(lambda: followed(door, "a"))
    await door.publish(lease.fencing_token, "a", end=entry())
    texts, last = await read(following)
    assert (texts, last.entry) == (["a"], entry())
    assert (await door.acquire("b")).acquired


async def followed(door: Door, holder: str) -> bool:
    return (await door.acquire(holder, keep_only=True)).followed


async def test_everything_but_the_token_counter_goes_by_itself(door, store):
    lease = await door.acquire("a")
    await asyncio.gather(door.publish(lease.fencing_token, "a", end=entry(KEY.hex())), read(door.follow()))
    keys = await store.keys("*")
    assert len(keys) == 4
    for key in keys:
        assert key.startswith(b"{acme}:")
        assert (await store.pttl(key) > 0) == (key != b"{acme}:lf")


BAD = {
    "caller.tenant": cache_pb2.AcquireLeaseRequest(exact_key=KEY, holder="a"),
    "exact_key": cache_pb2.AcquireLeaseRequest(caller=caller(), exact_key=b"short", holder="a"),
    "holder": cache_pb2.AcquireLeaseRequest(caller=caller(), exact_key=KEY),
    "ttl": cache_pb2.AcquireLeaseRequest(caller=caller(), exact_key=KEY, holder="a", ttl=Duration(seconds=-1)),
}


@pytest.mark.parametrize(("field", "request_"), BAD.items(), ids=BAD.keys())
async def test_bad_input_is_named(door, field, request_):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.AcquireLease(request_)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidInput)
    assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"entry": entry()}, "entry"),
        ({"release": True, "entry_id": "e"}, "entry_id"),
        ({"exact_key": b""}, "exact_key"),
    ],
)
async def test_a_last_word_that_makes_no_sense_is_named(door, said, field):
    lease = await door.acquire("a")
    first = {"caller": caller(), "exact_key": KEY, "fencing_token": lease.fencing_token} | said

    async def requests():
        yield cache_pb2.PublishLeaseRequest(**first)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.PublishLease(requests())
    assert [violation.field for violation in from_rpc_error(caught.value).violations] == [field]


async def test_without_redis_there_are_no_leases_and_afterwards_there_are(door, redis_server):
    redis_server.kill()
    for call in (door.acquire("a"), door.publish(1, "a"), read(door.follow())):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert isinstance(from_rpc_error(caught.value), NotReady)
    redis_server.start()
    assert (await door.acquire("a")).acquired


# Through the edge.


def edges(door: Door, count: int) -> list[World]:
    cache = Cache()
    return [World(cache=cache, leases=LeasePeer(door.channel, 5.0)) for _ in range(count)]


async def test_identical_requests_over_two_edges_cost_one_generation(door):
    both = edges(door, 2)
    for edge in both:
        edge.provider.hangs = True
    tasks = [task for edge in both for task in many(edge, 50) + many(edge, 50, streaming=True)]
    await until(lambda: sum(edge.provider.calls for edge in both) == 1 and both[0].cache.calls == 202)
    for edge in both:
        edge.provider.hang.set()
    answers = await asyncio.gather(*tasks)
    assert {answer.answer for answer in answers} == {text_answer()}
    assert sum(edge.provider.calls for edge in both) == 1
    counts = sorted((outcomes(edge) for edge in both), key=len)
    assert counts == [{"coalesced": 100}, {"miss": 1, "coalesced": 99}]
    for edge in both:
        check_bills(edge)
        await edge.walk.close()


async def test_a_follower_elsewhere_gets_the_pieces_as_they_come(door):
    here, there = edges(door, 2)
    here.provider.hangs = True
    leader, follower = here.walk.stream(question()), there.walk.stream(question())
    assert isinstance(await anext(leader), Began)
    assert await anext(leader) == TextDelta("Ye")
    assert isinstance(await anext(follower), Began)
    assert await anext(follower) == TextDelta("Ye")
    here.provider.hang.set()
    rest = [event async for event in follower]
    assert rest[0] == TextDelta("s.")
    assert rest[-1].usage == USAGE
    async for _ in leader:
        pass
    await here.walk.close()


async def test_a_leader_that_fails_is_replaced_by_the_other_edge(door):
    here, there = edges(door, 2)
    here.provider.hangs = True
    here.provider.script = [(("Ye",), NotReady("gone")), (("Ye",), NotReady("gone"))]
    leader = asyncio.create_task(ask(here, streaming=True))
    await until(lambda: bool(here.provider.calls))
    follower = there.walk.stream(question())
    assert isinstance(await anext(follower), Began)
    assert await anext(follower) == TextDelta("Ye")
    here.provider.hang.set()
    with pytest.raises(NotReady):
        await leader
    rest = [event async for event in follower]
    assert rest[0] == TextDelta("s.")
    assert isinstance(rest[-1], Ended)
    assert (here.provider.calls, there.provider.calls) == (1, 1)
    await there.walk.close()


async def test_all_kinds_of_pieces_arrive_whole(door):
    peer = LeasePeer(door.channel, 5.0)
    lease = await peer.acquire(question(), KEY, "a")
    pieces = (ReasoningDelta("Hm"), TextDelta("ñ"), ToolCallDelta(1, "c", "find", "{}"))
    end = AnswerEnd(FinishReason.TOOL_CALLS, USAGE, "m", "t", "e")

    async def batches():
        yield ()
        yield pieces
        yield end

    await peer.publish(question(), KEY, lease.token, batches())
    assert [event async for event in peer.follow(question(), KEY)] == [*pieces, end]


POLICY = """
baseline: gpt-4o
tiers: {medium: {candidates: [gpt-4o-mini]}}
namespaces: {default: {cache: {store_tool_calls: true, semantic: false}}}
"""


async def test_a_stored_answer_is_replayed_as_a_stream_with_reasoning_and_tool_calls(redis_server, tmp_path):
    (tmp_path / "policy.yaml").write_text(POLICY)
    settings = CacheSettings(
        redis_url=redis_server.url, policy_file=tmp_path / "policy.yaml", qdrant_address="127.0.0.1:1"
    )
    calls = (ToolCall("c1", "find", '{"order": 1}'), ToolCall("c2", "mail", "{}"))
    message = Message(Role.ASSISTANT, (TextPart("One moment."),), tool_calls=calls, reasoning="Hm.")
    async with contextlib.AsyncExitStack() as stack:
        channel = await stack.enter_async_context(serve(await build(settings, stack)))
        world = World(
            cache=CachePeer(channel, 5.0, 5.0),
            leases=LeasePeer(channel, 5.0),
            semantic=False,
            store_tool_calls=True,
        )
        world.provider.answer = Answer(message, FinishReason.TOOL_CALLS)
        first = await world.walk.complete(question())
        assert (first.receipt.outcome, bool(first.receipt.entry_id)) == ("miss", True)
        began, *pieces, ended = [event async for event in world.walk.stream(question())]
        assert began.receipt.outcome == "exact_hit"
        assert pieces == [
            ReasoningDelta("Hm."),
            TextDelta("One moment."),
            ToolCallDelta(0, "c1", "find", '{"order": 1}'),
            ToolCallDelta(1, "c2", "mail", "{}"),
        ]
        assert ended.finish_reason is FinishReason.TOOL_CALLS
        assert (ended.usage, ended.receipt.bill.actual) == (USAGE, 0)
        assert ended.receipt.bill.savings.cache == ended.receipt.bill.baseline > 0
        await world.walk.close()
