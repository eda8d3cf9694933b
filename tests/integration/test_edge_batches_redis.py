"""Batches kept in a real Redis: holds and fences, one result each, nothing that can be evicted, and what is removed."""

import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from services.cli.embedded.redis_server import redis_command
from services.cli.processes import free_ports
from services.common.chat import Tool
from services.common.errors import FailedPrecondition, NotReady, RateLimited
from services.common.money import Bill, CostItem, Savings, Usage
from services.edge.adapters.redis import open_redis
from services.edge.adapters.redis_batches import RedisBatches
from services.edge.domain.batch import (
    KEPT_S,
    MAX_OPEN,
    Batch,
    BatchItem,
    BatchStatus,
    HoldLost,
    ItemFailure,
    Mode,
    Outcome,
    Plan,
    Ref,
    Submission,
)
from services.edge.domain.ledger import UsageRecord
from services.edge.domain.ports import CacheControl, Vector
from services.edge.domain.trip import Receipt
from tests.unit.edge.fakes import chat, text_answer

NOW = 1_772_000_000.25
REF = Ref("acme", "batch_1")


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
def store(redis: Redis) -> RedisBatches:
    return RedisBatches(redis)


def batch(size: int = 3, **fields: Any) -> Batch:
    return Batch(**({"id": REF.id, "tenant": REF.tenant, "total": size, "created_at": NOW} | fields))


def items(size: int = 3) -> list[BatchItem]:
    return [BatchItem(f"c-{i}", chat(f"question {i}", temperature=0.5), "auto") for i in range(size)]


def outcome(index: int, cost: int = 10, **fields: Any) -> Outcome:
    bill = Bill(cost, 100, Savings(routing=100 - cost - 5, batch=5), (CostItem("provider", "m", cost),))
    record = UsageRecord(
        f"batch_1-{index}", f"batch_1-{index}", NOW, "acme", "default", "", "", "m", "medium", "miss", Usage(3, 4), bill
    )
    receipt = Receipt(f"batch_1-{index}", "miss", "m", "medium", bill)
    return Outcome(index, f"c-{index}", record, receipt, **({"answer": text_answer(f"{index}")} | fields))


async def held(store: RedisBatches, holder: str = "one", for_s: float = 30.0):
    found = await store.hold(REF, holder, for_s, NOW)
    assert found is not None
    return found


async def test_what_is_kept_comes_back(store):
    control = CacheControl(True, True, 0.9, 60.0, ("a", "b"))
    made = await store.create(batch(endpoint="e", user="u", control=control), items())
    assert await store.get(REF) == made
    assert await store.due(NOW, 10) == [REF]
    assert await store.due(NOW - 1, 10) == []
    found = await store.items(REF, [2, 0])
    assert {index: item.custom_id for index, item in found.items()} == {2: "c-2", 0: "c-0"}
    assert found[2].chat == items()[2].chat
    assert await store.get(Ref("volta", REF.id)) is None


async def test_plans_and_submissions_come_back(store):
    await store.create(batch(), items())
    hold = await held(store)
    shorter = replace(chat("x"), tools=(Tool("find", "a tool", '{"type": "object"}'),))
    plan = Plan(
        "miss",
        ("a", "b"),
        "medium",
        "short",
        12,
        99,
        1000,
        shorter,
        (CostItem("embedder", "tiny", 7, overhead=True),),
        4,
        "no_candidate",
        0.5,
        ("router",),
        3,
        Vector(b"\0\1\2\xff", "tiny", 1),
        b"lesson\0",
    )
    bare = replace(plan, chat=None, vector=None, similarity=None, namespace_version=None, lesson=b"")
    await store.save_plans(hold, {0: plan, 2: bare})
    assert await store.plans(REF, [0, 1, 2]) == {0: plan, 2: bare}
    failure = ItemFailure(2, "UPSTREAM_UNAVAILABLE", "busy", True, 5)
    first = Submission(
        "s1", Mode.VENDOR, "a", "v", ("a", "b"), (0, 2), NOW, NOW, NOW + 1, "vb", failures_of={2: failure}
    )
    second = Submission("s0", Mode.RUN, "a", "v", ("a",), (1,), NOW + 1, windows=("all:2026-03-01", "month:2026-03"))
    await store.save_submission(hold, second)
    await store.save_submission(hold, first)
    work = await store.work(hold)
    assert work.submissions == (first, second)
    assert work.planned == {0, 2}
    await store.save_submission(hold, replace(first, ended=True))
    assert [s.ended for s in (await store.work(hold)).submissions] == [True, False]


async def test_one_holder_at_a_time_and_every_new_one_is_fenced(store):
    await store.create(batch(), items())
    first = await held(store)
    assert await store.hold(REF, "two", 30.0, NOW) is None
    assert (await held(store)).fence == first.fence
    await store.release(first, NOW, cancelling=False)
    second = await held(store, "two")
    assert second.fence == first.fence + 1
    for write in (
        store.save_plans(first, {}),
        store.save_submission(first, Submission("s", Mode.RUN, "a", "v", (), (), NOW)),
        store.commit(first, [outcome(0)]),
        store.end(first, BatchStatus.COMPLETED, NOW),
        store.release(first, NOW, cancelling=False),
        store.work(first),
    ):
        with pytest.raises(HoldLost):
            await write
    assert await store.ended(REF) == []


async def test_a_hold_that_is_not_kept_ends_by_itself(store):
    await store.create(batch(), items())
    await held(store, for_s=0.0)
    assert (await held(store, "two")).fence == 2


async def test_who_holds_it_is_not_disturbed_until_the_hold_could_have_ended(store):
    await store.create(batch(), items())
    hold = await held(store, for_s=30.0)
    assert await store.due(NOW + 29, 10) == []
    assert await store.due(NOW + 31, 10) == [REF]
    await store.release(hold, NOW + 5, cancelling=False)
    assert await store.due(NOW + 5, 10) == [REF]


async def test_the_first_result_of_an_item_counts_and_so_does_its_record(store):
    await store.create(batch(), items())
    hold = await held(store)
    await store.commit(hold, [outcome(1, 10)])
    await store.commit(hold, [outcome(1, 70), outcome(0, 30)])
    assert await store.ended(REF) == [0, 1]
    found = await store.results(REF, [0, 1, 2])
    assert [(r.index, r.custom_id, r.receipt.bill.actual_nanousd) for r in found] == [(0, "c-0", 30), (1, "c-1", 10)]
    tally = (await store.get(REF)).tally
    assert (tally.answered, tally.actual, tally.baseline, tally.savings) == (2, 40, 200, (0, 150, 0, 0, 10))
    records = await store.unrecorded(REF)
    assert {r.record_id: r.bill.actual for r in records} == {"batch_1-0": 30, "batch_1-1": 10}
    await store.recorded(REF, records[:1])
    assert len(await store.unrecorded(REF)) == 1


async def test_errors_are_counted_by_kind(store):
    await store.create(batch(), items())
    hold = await held(store)
    cancelled = outcome(0, answer=None, error=("CANCELLED", "it was cancelled"))
    failed = outcome(1, answer=None, error=("UPSTREAM_REJECTED", "no"))
    await store.commit(hold, [cancelled, failed])
    tally = (await store.get(REF)).tally
    assert (tally.answered, tally.failed, tally.cancelled) == (0, 1, 1)
    (first, _) = await store.results(REF, [0, 1])
    assert (first.error.reason, first.WhichOneof("result")) == ("CANCELLED", "error")


async def test_a_cancel_is_seen_at_once_also_by_who_is_at_work(store):
    await store.create(batch(), items())
    hold = await held(store)
    assert (await store.cancel(REF)).status is BatchStatus.CANCELLING
    await store.release(hold, NOW + 1000, cancelling=False)
    assert await store.due(NOW, 10) == [REF]
    hold = await held(store)
    await store.release(hold, NOW + 1000, cancelling=True)
    assert await store.due(NOW, 10) == []
    assert await store.cancel(Ref("acme", "none")) is None


async def test_a_batch_that_ended_stays_as_it_is(store):
    await store.create(batch(), items())
    hold = await held(store)
    await store.end(hold, BatchStatus.COMPLETED, NOW + 9)
    await store.release(hold, None, cancelling=True)
    ended = await store.cancel(REF)
    assert (ended.status, ended.ended_at) == (BatchStatus.COMPLETED, NOW + 9)
    assert await store.due(NOW + 10**6, 10) == []


async def test_the_same_key_makes_one_batch(store, redis):
    first = await store.create(batch(key="k", digest="d"), items())
    again = await store.create(batch(key="k", digest="d", id="batch_2"), items())
    assert again == first
    with pytest.raises(FailedPrecondition):
        await store.create(batch(key="k", digest="other", id="batch_3"), items())
    other = await store.create(batch(key="k", digest="d", id="batch_4", tenant="volta"), items())
    assert other.id == "batch_4"
    assert sorted(await store.due(NOW, 10), key=lambda r: r.id) == [REF, Ref("volta", "batch_4")]
    assert not [key for key in await redis.keys("*") if b"batch_2" in key or b"batch_3" in key]


async def test_a_tenant_has_a_limit_of_open_batches(store):
    for number in range(MAX_OPEN):
        await store.create(batch(id=f"batch_{number}"), items())
    with pytest.raises(RateLimited):
        await store.create(batch(id="one_more"), items())
    await store.create(batch(tenant="volta"), items())
    hold = await held(store)
    await store.end(hold, BatchStatus.COMPLETED, NOW)
    await store.create(batch(id="one_more"), items())


async def test_batches_are_listed_in_pages_the_newest_first(store):
    for number in range(5):
        await store.create(batch(id=f"batch_{number}", created_at=NOW + number), items())
    await store.create(batch(tenant="volta"), items())
    first = await store.page("acme", 2, "")
    second = await store.page("acme", 2, first[-1].id)
    last = await store.page("acme", 2, second[-1].id)
    assert [b.id[-1] for b in (*first, *second, *last)] == ["4", "3", "2", "1", "0"]
    assert await store.page("acme", 2, "none") == []


async def test_nothing_of_a_batch_can_be_evicted_and_all_of_it_is_on_its_tenants_slot(store, redis):
    await store.create(batch(key="k"), items())
    hold = await held(store)
    await store.save_plans(hold, {1: Plan("miss", ("a",), "", "", 1, 1, 1)})
    await store.commit(hold, [outcome(0)])
    await store.end(hold, BatchStatus.COMPLETED, NOW)
    keys = await redis.keys("*")
    assert {await redis.ttl(key) for key in keys} == {-1}
    assert {key for key in keys if not key.startswith(b"{acme}:")} == {b"batches:due", b"batches:ended"}


async def test_old_batches_are_removed_whole(store, redis):
    await store.create(batch(key="k"), items())
    hold = await held(store)
    await store.commit(hold, [outcome(0)])
    await store.end(hold, BatchStatus.COMPLETED, NOW)
    await store.release(hold, None, cancelling=True)
    await store.remove_old(NOW - 1)
    assert await store.get(REF) is not None
    await store.remove_old(NOW + KEPT_S)
    assert await redis.keys("*") == []


async def test_a_batch_that_was_announced_and_never_made_is_forgotten_in_time(store, redis):
    await redis.zadd("batches:due", {"acme/lost": NOW})
    await redis.hset("{acme}:batch:lost:items", "0", b"x")
    ref = Ref("acme", "lost")
    assert await store.hold(ref, "one", 30.0, NOW + 60) is None
    assert await store.due(NOW, 10) == [ref]
    assert await store.hold(ref, "one", 30.0, NOW + 7200) is None
    assert await redis.keys("*") == []


async def test_a_store_that_is_away_is_named():
    client = open_redis("redis://127.0.0.1:1/0")
    with pytest.raises(NotReady):
        await RedisBatches(client).get(REF)
    await client.aclose()
