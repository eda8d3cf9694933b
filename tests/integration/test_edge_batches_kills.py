"""Batches through the edge's API, a real Redis, the real provider and vendors that behave like the real ones, kills included."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
import redis as sync_redis
from redis.asyncio import Redis

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import batch_pb2, batch_pb2_grpc
from services.cli.batch import batches as cli
from services.cli.client import Client
from services.cli.embedded.redis_server import redis_command
from services.cli.mesh import MeshError as WrongMesh
from services.cli.processes import free_ports
from services.common.clock import SystemClock
from services.common.errors import (
    FailedPrecondition,
    InvalidInput,
    MeshError,
    Unauthenticated,
    UnknownBatch,
    from_rpc_error,
)
from services.common.runtime import Service
from services.common.testing import serve
from services.edge.adapters.keys import KeyFile, hash_key
from services.edge.adapters.redis import RedisLedger, open_redis
from services.edge.adapters.redis_batches import RedisBatches
from services.edge.batch_servicer import BatchServicer
from services.edge.domain.ledger import sum_rollups
from services.provider.app import build
from services.provider.settings import ProviderSettings
from tests.integration.batch_edge import item_steps, work
from tests.unit.edge.fakes import EMBED_COST, ROUTE_COST, VERIFIER_COST, NoLimits, World
from tests.vendors.batches import BatchScript
from tests.vendors.openai_batch_like import OpenAIBatchLike
from tests.vendors.openai_like import Script
from tests.waiting import until

KEY = (("authorization", "Bearer k-1"),)
OTHER = (("authorization", "Bearer k-2"),)
VENDOR_KEY = "sk-test-0123456789"
OVERHEAD = EMBED_COST + ROUTE_COST + VERIFIER_COST

Batches: TypeAlias = "batch_pb2_grpc.BatchServiceAsyncStub"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (port,) = free_ports(1)
    process = subprocess.Popen(redis_command(tmp_path_factory.mktemp("redis"), port), stdout=subprocess.DEVNULL)
    retry = sync_redis.retry.Retry(sync_redis.backoff.ConstantBackoff(0.05), 200)
    with sync_redis.Redis(port=port, retry=retry) as client:
        client.ping()
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture
async def redis(server: str) -> AsyncIterator[Redis]:
    client = open_redis(server)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def vendor() -> AsyncIterator[OpenAIBatchLike]:
    async with OpenAIBatchLike(api_key=VENDOR_KEY) as opened:
        yield opened


@pytest.fixture
def vendors_file(vendor: OpenAIBatchLike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TEST_VENDOR_KEY", VENDOR_KEY)
    path = tmp_path / "vendors.yaml"
    path.write_text(
        f"""
vendors:
  - name: openai
    kind: openai
    batch: true
    base_url: {vendor.url}/v1
    api_key_env: TEST_VENDOR_KEY
    models: {{gpt-4o-mini: mini-2026}}
"""
    )
    return path


@pytest.fixture
async def provider(vendors_file: Path) -> AsyncIterator[grpc.aio.Channel]:
    """Channel to a provider in this process."""
    settings = ProviderSettings(vendors_file=vendors_file, max_attempts=1, backoff_base_s=0)
    async with AsyncExitStack() as stack:
        services = await build(settings, stack)
        yield await stack.enter_async_context(serve(services))


@pytest.fixture
async def edge(redis: Redis, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({hash_key("k-1"): {"tenant": "acme"}, hash_key("k-2"): {"tenant": "volta"}}))
    rules_of = item_steps(World())._steps.rules_of
    servicer = BatchServicer(RedisBatches(redis), KeyFile(path), NoLimits(), SystemClock(), rules_of, lambda: None)
    service = Service("llmmesh.edge.v1.BatchService", servicer, batch_pb2_grpc.add_BatchServiceServicer_to_server)
    async with serve([service]) as channel:
        yield channel


@pytest.fixture
def batches(edge: grpc.aio.Channel) -> Batches:
    return batch_pb2_grpc.BatchServiceStub(edge)


@pytest.fixture
async def worker(server: str, provider: grpc.aio.Channel) -> AsyncIterator[None]:
    """An edge's worker in this process."""
    task = asyncio.create_task(work(server, provider))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def item(text: str, custom_id: str | None = None, model: str = "") -> batch_pb2.BatchItem:
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return batch_pb2.BatchItem(
        custom_id=text if custom_id is None else custom_id, chat=chat_pb2.Chat(messages=[message]), model=model
    )


async def create(batches: Batches, *texts: str, **fields) -> batch_pb2.Batch:
    request = batch_pb2.CreateBatchRequest(**({"items": [item(text) for text in texts]} | fields))
    return (await batches.CreateBatch(request, metadata=KEY)).batch


async def get(batches: Batches, batch_id: str) -> batch_pb2.Batch:
    return (await batches.GetBatch(batch_pb2.GetBatchRequest(id=batch_id), metadata=KEY)).batch


async def results(batches: Batches, batch_id: str, follow: bool = True) -> list[batch_pb2.StreamBatchResultsResponse]:
    request = batch_pb2.StreamBatchResultsRequest(id=batch_id, follow=follow)
    return [result async for result in batches.StreamBatchResults(request, metadata=KEY)]


async def refusal(call) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def total(redis: Redis):
    return sum_rollups("acme", [found async for found in RedisLedger(redis).rollups("acme", "0", "9")], ())[1]


async def test_a_batch_is_answered_at_half_the_price(batches, vendor, redis, worker):
    made = await create(batches, "one", "two", "three", endpoint="nightly")
    assert made.status == batch_pb2.BATCH_STATUS_IN_PROGRESS
    assert made.counts.total == 3
    assert made.expires_at.seconds - made.created_at.seconds == 86_400
    got = await results(batches, made.id)
    assert [(r.custom_id, r.index) for r in sorted(got, key=lambda r: r.index)] == [
        ("one", 0),
        ("two", 1),
        ("three", 2),
    ]
    assert {r.answer.message.parts[0].text for r in got} == {"About one", "About two", "About three"}
    ended = await get(batches, made.id)
    assert ended.status == batch_pb2.BATCH_STATUS_COMPLETED
    assert ended.counts.answered == 3
    # 1,000 x $.15/M + 100 x $.60/M = 210,000 nano-USD of the list; a batch pays half.
    assert ended.bill.actual_nanousd == 3 * (105_000 + OVERHEAD)
    assert ended.bill.savings.batch_nanousd == 3 * 105_000
    assert {r.receipt.bill.savings.batch_nanousd for r in got} == {105_000}
    summed = await total(redis)
    assert (summed["requests"], summed["actual"]) == (3, ended.bill.actual_nanousd)
    assert summed["saved.batch"] == 3 * 105_000
    assert len(vendor.batches) == 1


async def test_items_that_fail_say_why(batches, vendor, worker):
    vendor.usual = BatchScript(errors={"two": (400, "invalid_value")}, twice=frozenset({"one"}))
    made = await create(batches, "one", "two")
    got = {r.custom_id: r for r in await results(batches, made.id)}
    assert len(got) == 2
    assert got["two"].error.reason == "UPSTREAM_REJECTED"
    assert got["two"].receipt.bill.actual_nanousd == OVERHEAD
    ended = await get(batches, made.id)
    assert (ended.counts.answered, ended.counts.failed) == (1, 1)


async def test_what_a_vendor_left_is_sent_once_more(batches, vendor, worker):
    vendor.next_batch(BatchScript(ends="expired", undone=frozenset({"two"}), missing=frozenset({"three"})))
    made = await create(batches, "one", "two", "three")
    got = await results(batches, made.id)
    assert all(r.HasField("answer") for r in got)
    assert [text for text, _ in vendor.bodies] == ["one", "two", "three", "two", "three"]


async def test_a_batch_that_is_refused_as_a_whole_goes_again_without_the_items_at_fault(batches, vendor, worker):
    vendor.next_batch(BatchScript(ends="failed", refused=frozenset({"two"})))
    made = await create(batches, "one", "two", "three")
    got = {r.custom_id: r.WhichOneof("result") for r in await results(batches, made.id)}
    assert got == {"one": "answer", "two": "error", "three": "answer"}
    assert [text for text, _ in vendor.bodies] == ["one", "two", "three", "one", "three"]


async def test_a_submission_whose_answer_was_lost_is_found_again(batches, vendor, worker):
    vendor.next_batch(BatchScript(lost=True))
    made = await create(batches, "one", "two")
    got = await results(batches, made.id)
    assert all(r.HasField("answer") for r in got)
    assert len(vendor.batches) == 1


async def test_cancel_keeps_what_is_finished(batches, vendor, worker):
    vendor.usual = BatchScript(steps=10**6, undone=frozenset({"two"}))
    made = await create(batches, "one", "two")
    await until(lambda: bool(vendor.batches))
    cancelled = (await batches.CancelBatch(batch_pb2.CancelBatchRequest(id=made.id), metadata=KEY)).batch
    assert cancelled.status == batch_pb2.BATCH_STATUS_CANCELLING
    got = {r.custom_id: r for r in await results(batches, made.id)}
    assert got["one"].HasField("answer")
    assert got["two"].error.reason == "CANCELLED"
    ended = await get(batches, made.id)
    assert ended.status == batch_pb2.BATCH_STATUS_CANCELLED
    again = (await batches.CancelBatch(batch_pb2.CancelBatchRequest(id=made.id), metadata=KEY)).batch
    assert again == ended


async def test_a_tenant_sees_its_own_batches_alone(batches):
    made = await create(batches, "one")
    for call in (
        batches.GetBatch(batch_pb2.GetBatchRequest(id=made.id), metadata=OTHER),
        batches.CancelBatch(batch_pb2.CancelBatchRequest(id=made.id), metadata=OTHER),
        batches.GetBatch(batch_pb2.GetBatchRequest(id="batch_none"), metadata=KEY),
    ):
        assert isinstance(await refusal(call), UnknownBatch)
    assert isinstance(await refusal(batches.GetBatch(batch_pb2.GetBatchRequest(id=made.id))), Unauthenticated)
    listed = await batches.ListBatches(batch_pb2.ListBatchesRequest(), metadata=OTHER)
    assert not listed.batches


async def test_batches_are_listed_in_pages(batches):
    made = [(await create(batches, "one")).id for _ in range(3)]
    first = await batches.ListBatches(batch_pb2.ListBatchesRequest(page_size=2), metadata=KEY)
    rest = await batches.ListBatches(
        batch_pb2.ListBatchesRequest(page_size=2, page_token=first.next_page_token), metadata=KEY
    )
    assert [b.id for b in (*first.batches, *rest.batches)] == made[::-1]
    assert not rest.next_page_token


async def test_the_same_request_twice_makes_one_batch(batches):
    first = await create(batches, "one", idempotency_key="k")
    assert (await create(batches, "one", idempotency_key="k")).id == first.id
    again = create(batches, "two", idempotency_key="k")
    assert isinstance(await refusal(again), FailedPrecondition)


BAD = {
    "no items": ({"items": []}, "items"),
    "too many": ({"items": [batch_pb2.BatchItem()] * 10_001}, "items"),
    "too much": ({"items": [item("x" * 4_000_000, str(i)) for i in range(7)]}, "items"),
    "one id twice": ({"items": [item("a", "x"), item("b", "x")]}, "items[1].custom_id"),
    "no id": ({"items": [item("a", "")]}, "items[0].custom_id"),
    "an empty chat": ({"items": [item("a"), batch_pb2.BatchItem(custom_id="b")]}, "items[1].chat.messages"),
    "a long model": ({"items": [item("a", model="m" * 129)]}, "items[0].model"),
    "a namespace that is not there": ({"namespace": "nowhere"}, "namespace"),
    "a namespace with a slash": ({"namespace": "a/b"}, "namespace"),
    "a key with a blank": ({"idempotency_key": "a b"}, "idempotency_key"),
    "seventeen tags": ({"cache": {"tags": ["t"] * 17}}, "cache.tags"),
}


@pytest.mark.parametrize(("fields", "field"), BAD.values(), ids=BAD)
async def test_a_batch_is_checked_before_it_is_taken_on(batches, redis, fields, field):
    error = await refusal(create(batches, "one", **fields))
    assert isinstance(error, InvalidInput)
    assert field in [violation.field for violation in error.violations]
    assert await redis.keys("*") == []


async def test_results_that_are_there_can_be_read_while_the_others_come(batches, vendor, worker):
    vendor.next_batch(BatchScript(missing=frozenset({"two"})), BatchScript(steps=10**6))
    made = await create(batches, "one", "two")
    await until(lambda: len(vendor.batches) == 2)
    got = await results(batches, made.id, follow=False)
    assert [r.custom_id for r in got] == ["one"]


async def test_the_command_takes_openais_files_and_writes_them(edge, vendor, worker, tmp_path, capsys):
    client = Client(edge, "k-1")
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"custom_id": f"c{i}", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": [message]}}
        for i, message in enumerate([{"role": "user", "content": "one"}, {"role": "user", "content": "two"}])
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    vendor.usual = BatchScript(errors={"two": (400, "invalid_value")})
    await cli.submit(client, file, "auto", "default", "batch", "", wait=True, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["status"] == "BATCH_STATUS_COMPLETED"
    assert shown["counts"] == {"total": 2, "answered": 1, "cached": 0, "failed": 1, "cancelled": 0}
    await cli.results(client, shown["id"], out, follow=True)
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first["custom_id"] == "c0"
    assert first["response"]["body"]["choices"][0]["message"]["content"] == "About one"
    assert first["response"]["body"]["usage"]["total_tokens"] == 1100
    assert first["llmmesh"]["bill"]["savings"]["batch_nanousd"] == "105000"
    assert second["error"]["code"] == "upstream_rejected"
    await cli.status(client, shown["id"], wait=False, as_json=False)
    await cli.cancel(client, shown["id"], as_json=False)
    await cli.listing(client, as_json=False)
    said = capsys.readouterr().out
    assert "completed" in said
    assert "1 of 2 answered" in said
    with pytest.raises(WrongMesh, match="UNKNOWN_BATCH"):
        await cli.status(client, "batch_none", wait=False, as_json=True)


async def test_items_of_a_model_without_a_batch_api_are_run(batches, vendor, vendors_file, server):
    vendors_file.write_text(vendors_file.read_text().replace("batch: true", "batch: false"))
    vendor.always = Script(text="ran")
    settings = ProviderSettings(vendors_file=vendors_file, max_attempts=1, backoff_base_s=0)
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(serve(await build(settings, stack)))
        task = asyncio.create_task(work(server, channel))
        made = await create(batches, *(f"q{i}" for i in range(20)))
        got = await results(batches, made.id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert {r.answer.message.parts[0].text for r in got} == {"ran"}
    assert len(vendor.requests) == 20
    assert {r.receipt.bill.savings.batch_nanousd for r in got} == {0}


class Killed:
    """A process that is killed and started again."""

    def __init__(self, *command: str, env: dict[str, str] | None = None, says: str) -> None:
        self._command = command
        self._env = {**os.environ, **(env or {})}
        self._says = says

    async def start(self) -> None:
        """Returns when it is at work."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self._process.stdout is not None
        while self._says not in (line := (await self._process.stdout.readline()).decode()):
            assert line, "it ended"
        self._reading = asyncio.create_task(self._process.stdout.read())

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()
        await self._reading


async def test_kills_of_edge_and_provider_lose_and_repeat_nothing(batches, vendor, vendors_file, server, redis):
    (port,) = free_ports(1)
    provider = Killed(
        sys.executable,
        "-m",
        "services.provider",
        env={"LLMMESH_PROVIDER_VENDORS_FILE": str(vendors_file), "LLMMESH_PROVIDER_PORT": str(port)},
        says="listening",
    )
    edge = Killed(sys.executable, "-m", "tests.integration.batch_edge", server, f"127.0.0.1:{port}", says="at work")
    vendor.next_batch(
        BatchScript(steps=5, lost=True, missing=frozenset({"q1", "q2"}), twice=frozenset({"q3", "q4"})),
        BatchScript(steps=5, errors={"q1": (400, "invalid_value")}),
    )
    texts = [f"q{i}" for i in range(60)]
    made = await create(batches, *texts)
    chance = random.Random(7)
    await asyncio.gather(provider.start(), edge.start())
    for number in range(8):
        await asyncio.sleep(chance.uniform(0.05, 0.9))
        await edge.kill()
        if number % 3 == 2:
            await provider.kill()
            await provider.start()
        await edge.start()
    got = await results(batches, made.id)
    await edge.kill()
    await provider.kill()
    assert sorted(r.index for r in got) == list(range(60))
    assert [r.custom_id for r in got if r.HasField("error")] == ["q1"]
    assert [text for text, _ in vendor.bodies] == [*texts, "q1", "q2"]
    ended = await get(batches, made.id)
    assert (ended.counts.answered, ended.counts.failed) == (59, 1)
    summed = await total(redis)
    assert summed["requests"] == 60
    assert summed["actual"] == ended.bill.actual_nanousd == 59 * 105_000 + 60 * OVERHEAD
    assert summed["saved.batch"] == 59 * 105_000
    assert sum(r.receipt.bill.actual_nanousd for r in got) == summed["actual"]
