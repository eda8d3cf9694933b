"""Budgets in a real Redis: all windows or none, settled where they were reserved, exact over processes."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis as sync_redis
from redis.asyncio import Redis

from services.cli.embedded.redis_server import redis_command
from services.cli.processes import free_ports
from services.common.errors import BudgetExceeded, NotReady
from services.common.money import Bill, CostItem, Usage
from services.edge.adapters.redis import RedisLedger, open_redis
from services.edge.adapters.redis_budgets import KEPT_S, RedisBudgets
from services.edge.domain.budgets import RESERVATION_S, Budget, BudgetBook, Mode, Period, Window
from services.edge.domain.ledger import UsageRecord
from services.edge.domain.ports import Question
from tests.integration.edge_spender import BUDGETS, DOLLAR, NOON, FixedClock
from tests.unit.edge.fakes import chat

ROOT = Path(__file__).parents[2]
DAY_S = 86_400
ALL = Budget("all", DOLLAR, Period.DAY)
MONTH = Budget("month", 2 * DOLLAR, Period.MONTH)
EACH_USER = Budget("each-user", DOLLAR // 2, Period.DAY, user="*")
SOFT = Budget("soft", DOLLAR // 10, Period.DAY, Mode.SOFT, tenant="acme", degrade_to="simple")


def asked(tenant: str = "acme", user: str = "", endpoint: str = "") -> Question:
    return Question(tenant, "r", chat(), user=user, endpoint=endpoint)


class Desk:
    """Budgets and ledger beside each other, as an edge has them."""

    def __init__(self, redis: Redis, *budgets: Budget, replicas: int = 1) -> None:
        self.clock = FixedClock()
        self.book = BudgetBook(budgets)
        self.budgets = RedisBudgets(redis, self.book, replicas, self.clock)
        self.ledger = RedisLedger(redis)
        self.records = 0

    def windows(self, **fields: str) -> tuple[Window, ...]:
        return self.book.windows(asked(**fields), self.clock.at)

    async def reserve(
        self, amount: int, name: str, *, past_soft: bool = False, for_s: float = RESERVATION_S, **fields: str
    ) -> tuple[str, ...]:
        """Names of the soft budgets without room."""
        windows = self.windows(**fields)
        full = await self.budgets.reserve(
            fields.get("tenant", "acme"), windows, amount, name, past_soft=past_soft, for_s=for_s
        )
        return tuple(window.budget.name for window in full)

    async def spend(self, cost: int, windows: tuple[Window, ...], reservation: str = "", tenant: str = "acme") -> None:
        self.records += 1
        bill = Bill(cost, cost, items=(CostItem("provider", "m", cost),))
        who = (tenant, "default", "", "", "m", "medium", "miss", Usage(10, 5), bill)
        names = tuple(window.name for window in windows)
        record = UsageRecord(f"x{self.records}", "r", self.clock.at, *who, reservation_id=reservation, budgets=names)
        await self.ledger.write([record])

    async def stands(self, tenant: str | None = "acme") -> dict[str, tuple[int, int]]:
        """Spent and reserved by budget."""
        return {s.name: (s.spent, s.reserved) for s in await self.budgets.status(tenant)}


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """Address of a Redis of our own."""
    (port,) = free_ports(1)
    command = redis_command(tmp_path_factory.mktemp("redis"), port)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    retry = sync_redis.retry.Retry(sync_redis.backoff.ConstantBackoff(0.05), 200)
    with sync_redis.Redis(port=port, retry=retry) as client:
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
def desk(redis) -> Desk:
    return Desk(redis, ALL, MONTH, EACH_USER)


async def test_every_key_has_the_tenant_as_its_hash_tag_and_none_can_be_evicted(desk, redis):
    await desk.reserve(1, "r")
    await desk.spend(10, desk.windows(), "r")
    keys = await redis.keys("*")
    assert len(keys) > 4
    assert {key for key in keys if not key.startswith(b"{acme}:")} <= {b"ledger:tenants"}
    assert {await redis.ttl(key) for key in keys} == {-1}


async def test_a_reservation_is_settled_by_its_record_in_every_window(desk):
    await desk.reserve(DOLLAR // 2, "r1", user="ann")
    assert await desk.stands() == dict.fromkeys(("all", "month", "each-user"), (0, DOLLAR // 2))
    with pytest.raises(BudgetExceeded):
        await desk.reserve(1, "r2", user="ann")
    await desk.spend(DOLLAR // 4, desk.windows(user="ann"), "r1")
    assert await desk.stands() == dict.fromkeys(("all", "month", "each-user"), (DOLLAR // 4, 0))
    await desk.reserve(DOLLAR // 4, "r3", user="ann")
    with pytest.raises(BudgetExceeded):
        await desk.reserve(1, "r4", user="ann")


async def test_what_one_budget_has_no_room_for_is_reserved_in_none(desk):
    with pytest.raises(BudgetExceeded) as caught:
        await desk.reserve(DOLLAR // 2 + 1, "r1", user="ann")
    assert caught.value.metadata["budget"] == "each-user"
    assert await desk.stands() == {"all": (0, 0), "month": (0, 0)}
    await desk.reserve(DOLLAR // 2, "r2", user="bob")
    await desk.reserve(DOLLAR // 2, "r3", user="cy")
    with pytest.raises(BudgetExceeded) as caught:
        await desk.reserve(1, "r4", user="dee")
    assert caught.value.metadata["budget"] == "all"


async def test_the_budget_that_resets_last_names_the_time(redis):
    desk = Desk(redis, ALL, Budget("month", DOLLAR, Period.MONTH), EACH_USER)
    await desk.spend(DOLLAR, desk.windows())
    with pytest.raises(BudgetExceeded) as caught:
        await desk.reserve(5, "r1")
    assert caught.value.metadata == {
        "tenant": "acme",
        "budget": "month",
        "period": "2026-03",
        "limit_nanousd": str(DOLLAR),
        "spent_nanousd": str(DOLLAR),
        "reserved_nanousd": "0",
        "resets_at": "2026-04-01T00:00:00+00:00",
    }
    assert caught.value.retry_after_s == 30.5 * DAY_S
    assert "$1.0000 a month is used up" in caught.value.message
    assert "it resets at 2026-04-01 00:00 UTC" in caught.value.message


async def test_a_settlement_that_comes_twice_spends_once(desk):
    await desk.reserve(10, "r1")
    for _ in range(3):
        desk.records = 0
        await desk.spend(DOLLAR // 2, desk.windows(), "r1")
    assert (await desk.stands())["all"] == (DOLLAR // 2, 0)


async def test_a_released_reservation_is_free_again(desk):
    await desk.reserve(DOLLAR // 2, "r1")
    names = [window.name for window in desk.windows()]
    await desk.budgets.release("acme", names, "r1")
    await desk.budgets.release("acme", names, "r1")
    assert set((await desk.stands()).values()) == {(0, 0)}
    await desk.reserve(DOLLAR // 2, "r2")


async def test_the_same_reservation_again_takes_the_place_of_the_first_one(desk):
    await desk.reserve(DOLLAR // 4, "r1", for_s=DAY_S)
    await desk.reserve(DOLLAR // 2, "r1", for_s=DAY_S)
    desk.clock.at += RESERVATION_S + 1
    assert (await desk.stands())["all"] == (0, DOLLAR // 2)


async def test_a_reservation_expires_by_itself(desk):
    await desk.reserve(DOLLAR // 2, "r1")
    desk.clock.at += RESERVATION_S - 1
    with pytest.raises(BudgetExceeded):
        await desk.reserve(1, "r2")
    desk.clock.at += 1
    assert set((await desk.stands()).values()) == {(0, 0)}
    await desk.reserve(DOLLAR // 2, "r2")


async def test_what_was_reserved_before_midnight_is_settled_there(desk):
    desk.clock.at = datetime(2026, 3, 1, 23, 59, 59, tzinfo=UTC).timestamp()
    yesterday = desk.windows()
    await desk.reserve(DOLLAR // 2, "r1")
    desk.clock.at += 2
    await desk.reserve(DOLLAR // 2, "r2")
    assert await desk.stands() == {
        "all": (0, DOLLAR // 2),
        "each-user": (0, DOLLAR // 2),
        "month": (0, DOLLAR),
    }
    await desk.spend(7, yesterday, "r1")
    assert await desk.stands() == {
        "all": (0, DOLLAR // 2),
        "each-user": (0, DOLLAR // 2),
        "month": (7, DOLLAR // 2),
    }
    desk.clock.at -= 2
    assert (await desk.stands())["all"] == (7, 0)


@pytest.mark.parametrize(
    ("last", "next_one"),
    [((2028, 2, 29), (2028, 3, 1)), ((2027, 2, 28), (2027, 3, 1)), ((2026, 12, 31), (2027, 1, 1))],
    ids=["leap day", "february", "december"],
)
async def test_a_month_begins_anew_with_its_first_day(redis, last, next_one):
    desk = Desk(redis, Budget("month", DOLLAR, Period.MONTH))
    desk.clock.at = datetime(*last, 23, 59, 30, tzinfo=UTC).timestamp()
    await desk.spend(DOLLAR, desk.windows())
    with pytest.raises(BudgetExceeded) as caught:
        await desk.reserve(1, "r1")
    assert caught.value.retry_after_s == 30
    assert caught.value.metadata["resets_at"] == datetime(*next_one, tzinfo=UTC).isoformat()
    desk.clock.at += 30
    await desk.reserve(DOLLAR, "r1")


async def test_a_soft_budget_lets_pass_what_it_is_told_to_and_is_itself_again_after_the_reset(redis):
    desk = Desk(redis, ALL, SOFT)
    assert await desk.reserve(DOLLAR // 10, "r1") == ()
    assert await desk.reserve(1, "r2") == ("soft",)
    assert await desk.stands() == {"soft": (0, DOLLAR // 10), "all": (0, DOLLAR // 10)}
    assert await desk.reserve(1, "r2", past_soft=True) == ()
    assert await desk.stands() == {"soft": (0, DOLLAR // 10 + 1), "all": (0, DOLLAR // 10 + 1)}
    with pytest.raises(BudgetExceeded):
        await desk.reserve(DOLLAR, "r3", past_soft=True)
    desk.clock.at += DAY_S
    assert await desk.reserve(DOLLAR // 10, "r4") == ()


async def test_another_tenant_has_a_budget_of_its_own(desk):
    await desk.spend(DOLLAR, desk.windows())
    await desk.reserve(DOLLAR // 2, "r1", tenant="volta")
    with pytest.raises(BudgetExceeded):
        await desk.reserve(1, "r1")


async def test_the_status_shows_the_windows_that_run_the_fullest_first(redis):
    desk = Desk(redis, ALL, MONTH, EACH_USER, SOFT)
    await desk.spend(DOLLAR // 4, desk.windows(user="ann:x"))
    await desk.reserve(DOLLAR // 8, "r1", user="böb", past_soft=True)
    await desk.spend(5, desk.windows(tenant="volta"), tenant="volta")
    found = await desk.budgets.status("acme")
    assert [(s.name, s.user, s.period, s.spent, s.reserved) for s in found] == [
        ("soft", "", "2026-03-01", DOLLAR // 4, DOLLAR // 8),
        ("each-user", "ann:x", "2026-03-01", DOLLAR // 4, 0),
        ("all", "", "2026-03-01", DOLLAR // 4, DOLLAR // 8),
        ("each-user", "böb", "2026-03-01", 0, DOLLAR // 8),
        ("month", "", "2026-03", DOLLAR // 4, DOLLAR // 8),
    ]
    assert found[0].resets_at == datetime(2026, 3, 2, tzinfo=UTC).timestamp()
    everyone = await desk.budgets.status(None)
    assert Counter(s.tenant for s in everyone) == {"acme": 5, "volta": 3}
    assert [s.name for s in await desk.budgets.status("nobody")] == ["all", "month"]
    desk.clock.at += DAY_S
    assert await desk.stands() == {"all": (0, 0), "month": (DOLLAR // 4, 0), "soft": (0, 0)}


async def test_windows_that_ended_long_ago_go_with_the_next_reservations(desk, redis):
    for user in range(10):
        await desk.spend(1, desk.windows(user=f"u{user}"))
    assert len(await redis.keys("*:budget:each-user:*")) == 10
    desk.clock.at += 2 * DAY_S + KEPT_S
    await desk.reserve(1, "r1")
    await desk.reserve(1, "r2")
    # What is left is today's, and the month's, which is younger.
    assert len(await redis.keys("*:budget:*")) == 4 - 1 == await redis.zcard("{acme}:budgets")


async def test_without_redis_a_replica_spends_its_share_of_what_was_left():
    down = open_redis("redis://127.0.0.1:1/0")
    desk = Desk(down, ALL, Budget("month", DOLLAR, Period.MONTH, endpoint="faq"), replicas=2)
    await desk.reserve(DOLLAR // 4, "r1", endpoint="faq")
    await desk.reserve(DOLLAR // 4, "r2")
    with pytest.raises(BudgetExceeded):
        await desk.reserve(1, "r3", endpoint="faq")
    desk.budgets.settle("acme", [window.name for window in desk.windows()], "r1", DOLLAR // 8)
    await desk.reserve(DOLLAR // 8, "r3")
    with pytest.raises(BudgetExceeded):
        await desk.reserve(1, "r4")
    await desk.reserve(DOLLAR // 2, "r1", tenant="volta")
    desk.clock.at += DAY_S
    await desk.reserve(DOLLAR // 4, "r4", endpoint="faq")
    with pytest.raises(BudgetExceeded, match="month"):
        await desk.reserve(1, "r5", endpoint="faq")
    with pytest.raises(NotReady):
        await desk.budgets.release("acme", [window.name for window in desk.windows(endpoint="faq")], "r4")
    await desk.reserve(DOLLAR // 4, "r5", endpoint="faq")
    with pytest.raises(NotReady):
        await desk.stands()
    await down.aclose()


async def test_without_redis_soft_budgets_are_soft():
    down = open_redis("redis://127.0.0.1:1/0")
    desk = Desk(down, ALL, SOFT, replicas=2)
    assert await desk.reserve(DOLLAR // 20, "r1") == ()
    assert await desk.reserve(1, "r2") == ("soft",)
    assert await desk.reserve(1, "r2", past_soft=True) == ()
    await down.aclose()


async def test_the_share_counts_from_what_redis_last_said(desk):
    await desk.spend(DOLLAR // 4, desk.windows())
    await desk.reserve(DOLLAR // 8, "r1")
    await desk.budgets._redis.aclose()
    desk.budgets._redis = open_redis("redis://127.0.0.1:1/0")
    await desk.reserve(DOLLAR // 8, "r2")
    with pytest.raises(BudgetExceeded, match="each-user"):
        await desk.reserve(1, "r3")
    await desk.budgets._redis.aclose()


def spender(server: str, spool: Path, seed: int, hang_after: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.integration.edge_spender", server, str(spool), str(seed), str(hang_after)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


async def written(redis: Redis) -> list[UsageRecord]:
    """All records of the ledger."""
    keys = await redis.keys("{acme}:ledger:records:*")
    return [UsageRecord.from_json(json.loads(raw)) for key in keys for raw in await redis.hvals(key)]


async def test_eight_edges_spend_no_nano_usd_too_much_even_when_one_is_killed(server, redis, tmp_path):
    never = 1_000_000
    edges = [spender(server, tmp_path / f"{n}", n, never) for n in range(1, 9)]
    killed = spender(server, tmp_path / "0", 0, 5)
    children = [killed, *edges]
    try:
        assert {line_of(child) for child in children} == {"ready"}
        go(killed)
        assert line_of(killed) == "hangs"
        for child in edges:
            go(child)
        killed.kill()
        killed.wait()
        counts = [tuple(map(int, line_of(child).split())) for child in edges]
        # What the killed one had written down is sent by whoever gets its folder.
        heir = spender(server, tmp_path / "0", 0, 0)
        children.append(heir)
        assert line_of(heir) == "ready"
        go(heir)
        assert line_of(heir) == "0 0 0"
    finally:
        for child in children:
            child.kill()
            child.communicate()

    records = await written(redis)
    answered, refused, cheaper = map(sum, zip(*counts, strict=True))
    assert refused > 0
    assert cheaper > 0
    paid = [record for record in records if record.bill.actual]
    assert len(paid) == answered + 5
    assert all(record.bill.identity_holds for record in records)

    clock = FixedClock(NOON)
    budgets = RedisBudgets(redis, BudgetBook(BUDGETS), 1, clock)
    found = await budgets.status("acme")
    assert len(found) == 2 + 3 + 5 + 1
    for status in found:
        mine = [
            record.bill.actual
            for record in records
            if status.endpoint in ("", record.endpoint) and (status.name != "each-user" or status.user == record.user)
        ]
        assert status.spent == sum(mine)
        if status.mode is Mode.HARD:
            assert status.spent + status.reserved <= status.limit
    spent = {status.name: status.spent for status in found}
    assert sum(record.bill.actual for record in records) == spent["all"] == spent["month"]
    # The limit was reached: an answer may cost a cent, and 36 are made at once.
    assert spent["month"] > DOLLAR * 60 // 100 - 36 * DOLLAR // 100
    # What the killed one had reserved stays so until it has expired.
    assert max(status.reserved for status in found) > 0
    clock.at += RESERVATION_S
    assert {status.reserved for status in await budgets.status("acme")} == {0}
