"""The ledger in a real Redis."""

import subprocess
from datetime import UTC, datetime

import pytest
import redis as sync_redis

from services.cli.embedded.redis_server import redis_command
from services.cli.processes import free_ports
from services.common.errors import NotReady
from services.common.money import Bill, CostItem, Usage
from services.edge.adapters.redis import RedisLedger, open_redis
from services.edge.domain.ledger import UsageRecord, hour_of, sum_rollups

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def record(record_id: str, cost: int, reservation: str = "", *, at: float = NOON, **fields) -> UsageRecord:
    bill = Bill(cost, cost, items=(CostItem("provider", "gpt-4o", cost),))
    defaults = {"tenant": "acme", "namespace": "default", "endpoint": "faq", "outcome": "miss"} | fields
    return UsageRecord(
        record_id,
        "r",
        at,
        defaults["tenant"],
        defaults["namespace"],
        defaults["endpoint"],
        "",
        "gpt-4o",
        "medium",
        defaults["outcome"],
        Usage(10, 5),
        bill,
        reservation_id=reservation,
        budgets=(f"{defaults['namespace']}:{hour_of(at)[:10]}",),
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a Redis of our own."""
    (port,) = free_ports(1)
    command = redis_command(tmp_path_factory.mktemp("redis"), port)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    with sync_redis.Redis(
        port=port, retry=sync_redis.retry.Retry(sync_redis.backoff.ConstantBackoff(0.05), 200)
    ) as client:
        client.ping()
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    process.wait()


@pytest.fixture
async def redis(server):
    client = open_redis(server)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def ledger(redis) -> RedisLedger:
    return RedisLedger(redis)


async def rollups(ledger: RedisLedger, tenant: str = "acme", start: str = "0", end: str = "9"):
    return [rollup async for rollup in ledger.rollups(tenant, start, end)]


async def total(ledger: RedisLedger, tenant: str = "acme"):
    return sum_rollups(tenant, await rollups(ledger, tenant), ())[1]


async def test_records_are_summed_by_hour_and_tenant(ledger):
    await ledger.write([record("1", 10), record("2", 20, at=NOON + 3600), record("3", 40, tenant="volta")])
    hours = await rollups(ledger)
    assert [hour for hour, _ in hours] == ["2026-03-01T12", "2026-03-01T13"]
    assert (await total(ledger))["actual"] == 30
    assert (await total(ledger, "volta"))["actual"] == 40
    assert (await total(ledger, "nobody"))["actual"] == 0
    assert [hour for hour, _ in await rollups(ledger, start="2026-03-01T13")] == ["2026-03-01T13"]
    assert [hour for hour, _ in await rollups(ledger, end="2026-03-01T13")] == ["2026-03-01T12"]


async def test_the_same_records_twice_count_once(ledger):
    batch = [record(str(n), n) for n in range(1, 50)]
    await ledger.write(batch)
    before = await rollups(ledger)
    await ledger.write(batch)
    await ledger.write([*reversed(batch), record("new", 1000)])
    after = await total(ledger)
    assert after["actual"] == sum_rollups("acme", before, ())[1]["actual"] + 1000
    assert after["requests"] == 50


async def test_nothing_of_the_ledger_can_be_evicted(ledger, redis):
    await ledger.write([record("1", 10, "x")])
    assert [await redis.ttl(key) for key in await redis.keys("*ledger*")] == [-1] * 4


async def test_without_redis_the_ledger_says_what_is_missing():
    down = open_redis("redis://127.0.0.1:1/0")
    ledger = RedisLedger(down)
    assert "redis" in (await ledger.missing() or "")
    with pytest.raises(NotReady):
        await ledger.write([record("1", 1)])
    with pytest.raises(NotReady):
        await rollups(ledger)
    await down.aclose()
