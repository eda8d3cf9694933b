"""Vendors' limits over a real Redis: shared by replicas, and kept to a share while it is down."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import redis.asyncio
from structlog.testing import capture_logs

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.errors import RateLimited, from_rpc_error
from services.common.testing import serve
from services.provider.adapters.redis import RedisLimits, open_limits
from services.provider.app import build
from services.provider.domain.limits import LocalLimits, Quota, Ticket, Window
from services.provider.settings import ProviderSettings
from services.provider.vendors import load_vendors
from tests.integration.test_leases import RedisServer
from tests.vendors.openai_like import OpenAILike

REQUESTS = Quota("acme-ai", "", "requests", 3)
TOKENS = Quota("acme-ai", "mini", "tokens", 1000)
KEY_OF_TOKENS = "{acme-ai}:limit:mini:tokens"


class Hand:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def server(tmp_path: Path):
    started = RedisServer(tmp_path)
    started.start()
    yield started
    started.kill()


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    async with redis.asyncio.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
async def replicas(server: RedisServer) -> AsyncIterator[tuple[RedisLimits, RedisLimits, Hand]]:
    clock = Hand()
    one, other = (open_limits(server.url, LocalLimits(clock, replicas=2), clock) for _ in range(2))
    yield one, other, clock
    await one.close()
    await other.close()


async def taken(limits: RedisLimits, tokens: int, *quotas: Quota) -> Ticket:
    ticket = await limits.take(quotas, tokens)
    assert isinstance(ticket, Ticket)
    return ticket


async def test_replicas_share_a_limit(replicas) -> None:
    one, other, _ = replicas
    for limits in (one, other, one):
        assert (await taken(limits, 5, REQUESTS)).shared
    for limits in (one, other):
        wait = await limits.take([REQUESTS], 5)
        assert isinstance(wait, float)
        assert 50 < wait <= 61


async def test_a_call_takes_from_all_quotas_or_from_none(replicas, store) -> None:
    one, other, _ = replicas
    await taken(one, 900, REQUESTS, TOKENS)
    for _ in range(5):
        assert isinstance(await other.take([REQUESTS, TOKENS], 200), float)
    await taken(other, 100, REQUESTS, TOKENS)
    lifetimes = [await store.ttl(key) for key in await store.keys("{acme-ai}:limit:*")]
    assert len(lifetimes) == 2
    assert all(0 < lifetime <= 62 for lifetime in lifetimes)


async def test_the_real_count_is_settled_for_all(replicas, store) -> None:
    one, other, _ = replicas
    ticket = await taken(one, 5000, REQUESTS, TOKENS)
    one.settle(ticket, 40)
    await one.close()
    assert await store.hvals(KEY_OF_TOKENS) == [b"40"]
    await taken(other, 960, TOKENS)
    assert isinstance(await other.take([TOKENS], 1), float)


async def test_what_is_settled_too_late_stays_forgotten(replicas, store) -> None:
    one, _, _ = replicas
    one.settle(Ticket((TOKENS,), (500,), 7, shared=True), 900)
    await one.close()
    assert await store.keys("*") == []


@pytest.mark.parametrize("used", [[(5, 200), (20, 300), (58, 450)], [(0, 1000)], [(59, 999)], [(30, 5000)], []])
@pytest.mark.parametrize("amount", [1, 60, 700, 1000])
async def test_redis_counts_as_a_process_does(replicas, store, used: list[tuple[int, int]], amount: int) -> None:
    one, _, _ = replicas
    now = int((await store.time())[0])
    window = Window()
    for age, tokens in sorted(used, reverse=True):
        await store.hset(KEY_OF_TOKENS, str(now - age), tokens)
        window.add(now - age, tokens)
    await store.hset(KEY_OF_TOKENS, str(now - 62), 100_000)
    answer = await one.take([TOKENS], amount)
    seconds, micros = await store.time()
    wait = window.wait_s(amount, TOKENS.limit, int(seconds) + int(micros) / 1e6)
    if isinstance(answer, Ticket):
        assert wait == 0
        assert not await store.hexists(KEY_OF_TOKENS, str(now - 62))
    else:
        assert answer == pytest.approx(wait, abs=10)


async def test_without_redis_each_keeps_to_its_share_and_says_so_once(replicas, server: RedisServer) -> None:
    one, _, clock = replicas
    await taken(one, 1, TOKENS)
    server.kill()
    with capture_logs() as logs:
        ticket = await taken(one, 400, TOKENS)
        assert not ticket.shared
        assert isinstance(await one.take([TOKENS], 200), float)
        one.settle(ticket, 300)
        clock.now += 5
        await taken(one, 200, TOKENS)
        assert [log["event"] for log in logs] == ["limits_not_shared"]
        server.start()
        clock.now += 5
        assert (await taken(one, 900, TOKENS)).shared
        assert [log["event"] for log in logs] == ["limits_not_shared", "limits_shared_again"]


async def test_an_outage_is_met_once_a_second_and_not_by_each(replicas, server: RedisServer) -> None:
    one, _, clock = replicas
    server.kill()
    await taken(one, 1, TOKENS)
    server.start()
    assert not (await taken(one, 1, TOKENS)).shared
    clock.now += 1.5
    assert (await taken(one, 1, TOKENS)).shared


def limited_file(folder: Path, limited: OpenAILike, free: OpenAILike | None = None, **limits: object) -> Path:
    models = {"gpt-4o-mini": "mini"}
    vendors = [
        {"name": "limited", "kind": "openai", "base_url": limited.base_url, "models": models, **limits},
    ]
    if free is not None:
        vendors.append({"name": "free", "kind": "openai", "base_url": free.base_url, "models": models})
    path = folder / "vendors.yaml"
    path.write_text(json.dumps({"vendors": vendors}))
    return path


async def ask(provider: provider_pb2_grpc.ProviderServiceAsyncStub) -> provider_pb2.GenerateResponse:
    chat = chat_pb2.Chat(
        messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="Where is my order?")])]
    )
    request = provider_pb2.GenerateRequest(
        caller=caller_pb2.Caller(tenant="acme"), chat=chat, candidates=["gpt-4o-mini"]
    )
    return await provider.Generate(request, timeout=20)


async def test_replicas_of_the_provider_leave_a_vendor_at_its_limit(server: RedisServer, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        limited = await stack.enter_async_context(OpenAILike())
        free = await stack.enter_async_context(OpenAILike())
        path = limited_file(tmp_path, limited, free, requests_per_minute=3)
        settings = ProviderSettings(vendors_file=path, redis_url=server.url)  # type: ignore[arg-type]
        answered = []
        for _ in range(2):
            closing = await stack.enter_async_context(AsyncExitStack())
            channel = await stack.enter_async_context(serve(await build(settings, closing)))
            provider = provider_pb2_grpc.ProviderServiceStub(channel)
            answered += [(await ask(provider)).vendor for _ in range(3)]
        assert answered == ["limited"] * 3 + ["free"] * 3
        assert (len(limited.requests), len(free.requests)) == (3, 3)


@pytest.mark.parametrize(
    "limits", [{"requests_per_minute": 1}, {"model_limits": {"gpt-4o-mini": {"tokens_per_minute": 30}}}]
)
async def test_a_limit_without_another_vendor_is_named_with_the_time(
    server: RedisServer, tmp_path: Path, limits: dict[str, object]
) -> None:
    async with AsyncExitStack() as stack:
        limited = await stack.enter_async_context(OpenAILike())
        path = limited_file(tmp_path, limited, **limits)
        settings = ProviderSettings(vendors_file=path, redis_url=server.url)  # type: ignore[arg-type]
        closing = await stack.enter_async_context(AsyncExitStack())
        channel = await stack.enter_async_context(serve(await build(settings, closing)))
        provider = provider_pb2_grpc.ProviderServiceStub(channel)
        await ask(provider)
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(provider)
        error = from_rpc_error(caught.value)
        assert isinstance(error, RateLimited)
        assert error.retry_after_s is not None
        assert 20 < error.retry_after_s < 65  # a window and a second; the clock may have been set back a little
        assert time.monotonic() - began < 19  # it did not wait for what comes too late
        assert len(limited.requests) == 1


async def test_limits_of_a_model_that_is_not_served_are_a_mistake(tmp_path: Path) -> None:
    async with OpenAILike() as vendor:
        path = limited_file(tmp_path, vendor, model_limits={"gpt-4o": {"requests_per_minute": 1}})
    with pytest.raises(Exception, match="gpt-4o is not among the models"):
        load_vendors(path)
