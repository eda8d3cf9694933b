"""Ledger and budgets in a real Redis."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis as sync_redis

from services.cli.embedded.redis_server import redis_command
from services.cli.processes import free_ports
from services.common.errors import BudgetExceeded, NotReady
from services.common.money import NANO, Bill, CostItem, Usage
from services.edge.adapters.redis import RESERVATION_S, RedisBudgets, RedisLedger, open_redis
from services.edge.domain.ledger import UsageRecord, sum_rollups

ROOT = Path(__file__).parents[2]
LIMIT_USD = 1.0
LIMIT = NANO
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


class FixedClock:
    def __init__(self, at: float = NOON) -> None:
        self.at = at

    def now(self) -> float:
        return self.at


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


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def budgets(redis, clock) -> RedisBudgets:
    return RedisBudgets(redis, {"default": LIMIT_USD, "free": None}, 1, clock)


async def total(ledger: RedisLedger, tenant: str = "acme"):
    return sum_rollups(tenant, await ledger.rollups(tenant, "0", "9"), ())[1]


async def test_records_are_summed_by_hour_and_tenant(ledger):
    await ledger.write([record("1", 10), record("2", 20, at=NOON + 3600), record("3", 40, tenant="volta")])
    hours = await ledger.rollups("acme", "0", "9")
    assert [hour for hour, _ in hours] == ["2026-03-01T12", "2026-03-01T13"]
    assert (await total(ledger))["actual"] == 30
    assert (await total(ledger, "volta"))["actual"] == 40
    assert (await total(ledger, "nobody"))["actual"] == 0
    assert [hour for hour, _ in await ledger.rollups("acme", "2026-03-01T13", "9")] == ["2026-03-01T13"]
    assert [hour for hour, _ in await ledger.rollups("acme", "0", "2026-03-01T13")] == ["2026-03-01T12"]


async def test_the_same_records_twice_count_once(ledger):
    batch = [record(str(n), n) for n in range(1, 50)]
    await ledger.write(batch)
    before = await ledger.rollups("acme", "0", "9")
    await ledger.write(batch)
    await ledger.write([*reversed(batch), record("new", 1000)])
    after = await total(ledger)
    assert after["actual"] == sum_rollups("acme", before, ())[1]["actual"] + 1000
    assert after["requests"] == 50


async def test_nothing_of_the_ledger_can_be_evicted(ledger, redis):
    await ledger.write([record("1", 10, "x")])
    assert [await redis.ttl(key) for key in await redis.keys("*ledger*")] == [-1, -1, -1]


async def test_every_key_has_the_tenant_as_its_hash_tag(ledger, budgets, redis):
    await budgets.reserve("acme", "default", 1, "r")
    await ledger.write([record("1", 10, "r")])
    keys = await redis.keys("*")
    assert keys
    assert all(key.startswith(b"{acme}:") for key in keys)


async def test_a_reservation_is_settled_by_its_record(ledger, budgets):
    await budgets.reserve("acme", "default", LIMIT, "r1")
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "default", 1, "r2")
    await ledger.write([record("1", LIMIT // 4, "r1")])
    await budgets.reserve("acme", "default", LIMIT * 3 // 4, "r3")
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "default", 1, "r4")


async def test_a_settlement_that_comes_twice_spends_once(ledger, budgets):
    await budgets.reserve("acme", "default", 10, "r1")
    for _ in range(3):
        await ledger.write([record("1", LIMIT // 2, "r1")])
    await budgets.reserve("acme", "default", LIMIT // 2, "r2")


async def test_a_released_reservation_is_free_again(budgets):
    await budgets.reserve("acme", "default", LIMIT, "r1")
    await budgets.release("acme", "default", "r1")
    await budgets.release("acme", "default", "r1")
    await budgets.reserve("acme", "default", LIMIT, "r2")


async def test_the_same_reservation_again_takes_the_place_of_the_first_one(budgets, clock):
    await budgets.reserve("acme", "default", LIMIT // 2, "r1", for_s=86_400.0)
    await budgets.reserve("acme", "default", LIMIT, "r1", for_s=86_400.0)
    clock.at += RESERVATION_S + 1
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "default", 1, "r2")


async def test_a_reservation_expires_by_itself(budgets, clock):
    await budgets.reserve("acme", "default", LIMIT, "r1")
    clock.at += RESERVATION_S - 1
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "default", 1, "r2")
    clock.at += 1
    await budgets.reserve("acme", "default", LIMIT, "r2")


async def test_a_refusal_says_when_the_budget_resets(budgets, ledger):
    await ledger.write([record("1", LIMIT)])
    with pytest.raises(BudgetExceeded) as caught:
        await budgets.reserve("acme", "default", 1, "r1")
    assert caught.value.retry_after_s == 12 * 3600
    assert caught.value.metadata["resets_at"] == "2026-03-02T00:00:00+00:00"
    assert "$1.00" in caught.value.message


async def test_tomorrow_is_another_budget_and_so_is_another_tenant(budgets, ledger, clock):
    await ledger.write([record("1", LIMIT)])
    await budgets.reserve("volta", "default", LIMIT, "r1")
    clock.at += 12 * 3600
    await budgets.reserve("acme", "default", LIMIT, "r1")


async def test_a_namespace_without_a_limit_reserves_nothing(budgets, redis):
    await budgets.reserve("acme", "free", 10 * LIMIT, "r1")
    assert await redis.keys("*budget*") == []


async def test_without_redis_a_replica_spends_its_share_of_what_was_left(server, clock):
    down = open_redis("redis://127.0.0.1:1/0")
    fresh = RedisBudgets(down, {"default": LIMIT_USD}, 2, clock)
    await fresh.reserve("acme", "default", LIMIT // 4, "r1")
    await fresh.reserve("acme", "default", LIMIT // 4, "r2")
    with pytest.raises(BudgetExceeded):
        await fresh.reserve("acme", "default", 1, "r3")
    fresh.settle("acme", "default", "r1", LIMIT // 8)
    await fresh.reserve("acme", "default", LIMIT // 8, "r3")
    with pytest.raises(BudgetExceeded):
        await fresh.reserve("acme", "default", 1, "r4")
    await fresh.reserve("volta", "default", LIMIT // 2, "r1")
    clock.at += 86_400
    await fresh.reserve("acme", "default", LIMIT // 2, "r4")
    with pytest.raises(NotReady):
        await fresh.release("acme", "default", "r4")
    await down.aclose()


async def test_the_share_counts_from_what_redis_last_said(server, redis, clock, ledger):
    budgets = RedisBudgets(redis, {"default": LIMIT_USD}, 1, clock)
    await ledger.write([record("1", LIMIT // 2)])
    await budgets.reserve("acme", "default", LIMIT // 4, "r1")
    budgets._redis = open_redis("redis://127.0.0.1:1/0")
    await budgets.reserve("acme", "default", LIMIT // 4, "r2")
    with pytest.raises(BudgetExceeded):
        await budgets.reserve("acme", "default", 1, "r3")
    await budgets._redis.aclose()


async def test_without_redis_the_ledger_says_what_is_missing():
    down = open_redis("redis://127.0.0.1:1/0")
    ledger = RedisLedger(down)
    assert "redis" in (await ledger.missing() or "")
    with pytest.raises(NotReady):
        await ledger.write([record("1", 1)])
    with pytest.raises(NotReady):
        await ledger.rollups("acme", "0", "9")
    await down.aclose()


async def test_eight_processes_never_spend_more_than_the_last_dollar(server, redis, ledger):
    amount = LIMIT // 37  # does not divide the limit
    children = [
        subprocess.Popen(  # noqa: ASYNC220 - they run beside us
            [sys.executable, "-m", "tests.integration.edge_spender", server, f"p{n}", str(amount)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(8)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    allowed = [int(child.communicate()[0]) for child in children]
    assert sum(allowed) == 37
    spent = (await total(ledger))["actual"]
    assert spent == 37 * amount <= LIMIT
