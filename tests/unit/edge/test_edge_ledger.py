"""Usage records: on disk and back, and summed by any dimension."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import PermissionDenied
from services.common.money import Bill, CostItem, Rates, Usage, price
from services.edge.domain.bill import answer_bill, failure_bill, hit_bill
from services.edge.domain.costs import Costs, tenant_for
from services.edge.domain.keys import Key, Scope
from services.edge.domain.ledger import (
    DIMENSIONS,
    METRICS,
    CostQuery,
    CostSum,
    Rows,
    UsageRecord,
    amounts,
    day_of,
    hour_of,
    packed,
    row_of,
    rows_of,
    sum_rollups,
    with_users,
)
from services.edge.domain.ports import Charge

BASELINE = Rates(2_500_000_000, 10_000_000_000)
amount = st.integers(0, 10**10)
items = st.lists(
    st.builds(
        CostItem, st.sampled_from(["embedder", "verifier", "router", "compressor"]), st.just(""), amount, st.just(True)
    ),
    max_size=3,
)
names = st.sampled_from(["", "faq", "checkout/v2"])
users = st.sampled_from(["", "ann", "b\x1f\x1fb", "(others)", "7"])


@st.composite
def records(draw):
    cached = draw(st.integers(0, 1000))
    usage = Usage(
        cached + draw(st.integers(0, 1000)),
        draw(st.integers(0, 1000)),
        cached,
        reasoning_output_tokens=draw(st.integers(0, 10)),
        estimated=draw(st.booleans()),
    )
    outcome = draw(st.sampled_from(["exact_hit", "semantic_hit", "miss", "bypass", "error"]))
    overhead = draw(items)
    if outcome == "error":
        bill, usage = failure_bill(overhead), Usage()
    elif outcome.endswith("hit"):
        bill = hit_bill(BASELINE, usage, overhead)
    else:
        rates = draw(st.builds(Rates, amount, amount, amount))
        unpriced = draw(st.booleans())
        cost = 0 if unpriced else price(rates, usage)
        charge = Charge(cost, rates, draw(st.sampled_from(["provider", "engine"])), unpriced, draw(amount))
        bill = answer_bill(BASELINE, "m", usage, charge, draw(st.integers(0, 500)), overhead)
    return UsageRecord(
        draw(st.uuids()).hex,
        draw(st.text(st.characters(codec="utf-8"), max_size=20)),
        draw(st.floats(1.7e9, 1.7e9 + 3 * 86_400)),
        "acme",
        draw(st.sampled_from(["default", "support"])),
        draw(names),
        draw(users | st.text(st.characters(codec="utf-8"), max_size=20)),
        draw(st.sampled_from(["", "gpt-4o", "smollm2"])),
        draw(st.sampled_from(["", "simple", "medium"])),
        outcome,
        usage,
        bill,
        "UPSTREAM_UNAVAILABLE" if outcome == "error" else "",
        draw(st.sampled_from(["", "r1"])),
        draw(st.sampled_from(["", "question", "my/kind"])),
    )


@given(records())
def test_a_record_survives_the_spool(record):
    line = json.dumps(record.to_json(), ensure_ascii=False).encode()
    assert b"\n" not in line
    assert UsageRecord.from_json(json.loads(line)) == record


@pytest.mark.parametrize("line", ["{}", "[]", "5", "null", '{"usage": 1}', '{"usage": [1, 2]}'])
def test_a_line_that_is_no_record_is_refused_by_an_expected_error(line):
    with pytest.raises((KeyError, TypeError, ValueError)):
        UsageRecord.from_json(json.loads(line))


def rollups(records, *, by_user: bool = True) -> list[tuple[str, Rows]]:
    """What the ledger says after these records: roll-ups by hour."""
    hours: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for record in records:
        whole, split = hours.setdefault(record.hour, ({}, {}))
        row = row_of(record)
        for fields, name in ((whole, row), *([(split, f"{row}\x1f{record.user}")] if record.user else [])):
            had = map(int, fields[name].split(",")) if name in fields else [0] * len(METRICS)
            fields[name] = packed(a + b for a, b in zip(had, amounts(record), strict=True))
    return [
        (hour, with_users(rows_of(whole), rows_of(split)) if by_user else rows_of(whole))
        for hour, (whole, split) in sorted(hours.items())
    ]


dimensions = st.lists(st.sampled_from([*DIMENSIONS, "hour", "day", "tenant"]), unique=True).map(tuple)


@given(st.lists(records(), max_size=12), dimensions)
def test_sums_of_rollups_are_the_sums_of_the_records(written, group_by):
    rows, total = sum_rollups("acme", rollups(written), group_by)
    assert total["requests"] == total["records"] == sum(row["requests"] for row in rows) == len(written)
    assert total["unpriced"] == sum(record.bill.unpriced for record in written)
    for metric, of_bill in {
        "actual": lambda b: b.actual,
        "baseline": lambda b: b.baseline,
        "overhead": lambda b: b.overhead,
        "saved.cache": lambda b: b.savings.cache,
        "saved.routing": lambda b: b.savings.routing,
        "saved.compression": lambda b: b.savings.compression,
        "saved.prompt_cache": lambda b: b.savings.prompt_cache,
    }.items():
        expected = sum(of_bill(record.bill) for record in written)
        assert total[metric] == sum(row[metric] for row in rows) == expected, metric
    usage = total.usage()
    assert usage.input_tokens == sum(record.usage.input_tokens for record in written)
    assert usage.output_tokens == sum(record.usage.output_tokens for record in written)
    assert usage.cache_read_input_tokens == sum(record.usage.cache_read_input_tokens for record in written)
    for row in (*rows, total):
        assert row.bill().identity_holds
        assert row.bill().overhead == row["overhead"]


@given(st.lists(records(), min_size=1, max_size=12), dimensions)
def test_each_row_holds_exactly_the_records_of_its_key(written, group_by):
    rows, _ = sum_rollups("acme", rollups(written), group_by)
    assert [row["actual"] for row in rows] == sorted((row["actual"] for row in rows), reverse=True)
    expected: dict[tuple[str, ...], int] = {}
    for record in written:
        values = {d: getattr(record, d) for d in (*DIMENSIONS, "hour", "tenant")} | {"day": day_of(record.hour)}
        key = tuple(values[dimension] for dimension in group_by)
        expected[key] = expected.get(key, 0) + 1
    assert {row.key: row["requests"] for row in rows} == expected


def test_no_record_sums_to_nothing():
    rows, total = sum_rollups("acme", [], ("model",))
    assert rows == []
    assert total == CostSum()
    assert with_users({}, {}) == {}
    assert total.bill().identity_holds


def test_hours_are_utc_and_sort_as_text():
    assert hour_of(0) == "1970-01-01T00"
    assert hour_of(1_700_000_000) == "2023-11-14T22"
    assert hour_of(3599.999) == hour_of(0) < hour_of(3600)


@given(st.lists(records(), max_size=12), dimensions)
def test_users_make_no_difference_to_other_sums(written, group_by):
    if "user" not in group_by:
        split, whole = (sum_rollups("acme", rollups(written, by_user=flag), group_by) for flag in (True, False))
        assert split == whole


OLD = {
    "faq\x1fgpt-4o\x1fmiss\x1fmedium\x1frequests": "2",
    "faq\x1fgpt-4o\x1fmiss\x1fmedium\x1factual": "50",
    "faq\x1fgpt-4o\x1fmiss\x1fcost.provider": "7",  # before there were tiers
    "faq\x1fgpt-4o\x1fmiss\x1fmedium\x1fforgotten": "1",
}


def test_rollups_of_older_versions_are_read():
    new = {"faq\x1fgpt-4o\x1fmiss\x1fmedium\x1fquestion\x1fdefault": "1,1,0,30"}
    rows, total = sum_rollups("acme", [("2026-01-31T14", rows_of(OLD | new))], ("tier", "kind", "namespace"))
    assert [(row.key, row["actual"], row["requests"]) for row in rows] == [
        (("medium", "", ""), 50, 2),
        (("medium", "question", "default"), 30, 1),
        (("", "", ""), 0, 0),
    ]
    assert (total["actual"], total["requests"], total["cost.provider"]) == (80, 3, 7)


def test_what_users_rows_do_not_account_for_had_no_user():
    rows = rows_of(OLD)
    split = with_users(rows, {("faq", "gpt-4o", "miss", "medium", "", "", "ann"): rows_of({"x": "0,1,0,20"})[("x",)]})
    found, total = sum_rollups("acme", [("2026-01-31T14", split)], ("user",))
    assert [(row.key, row["actual"], row["requests"]) for row in found] == [(("",), 30, 1), (("ann",), 20, 1)]
    assert total["actual"] == 50


class MemoryBooks:
    """A ledger of some records."""

    def __init__(self, *written: UsageRecord) -> None:
        self._written = written

    async def tenants(self) -> list[str]:
        return sorted({record.tenant for record in self._written})

    async def hours(self, tenant: str, first_hour: str, end_hour: str) -> list[str]:
        hours = {record.hour for record in self._written if record.tenant == tenant}
        return sorted(hour for hour in hours if first_hour <= hour < end_hour)

    async def rollups(self, tenant: str, first_hour: str, end_hour: str, *, by_user: bool = False):
        mine = [record for record in self._written if record.tenant == tenant]
        for hour, rows in rollups(mine, by_user=by_user):
            if first_hour <= hour < end_hour:
                yield hour, rows

    async def records(self, tenant: str, hour: str):
        for record in self._written:
            if (record.tenant, record.hour) == (tenant, hour):
                yield record
                yield record


async def no_spool() -> None:
    return None


def spent(cost: int, at: float = 1_700_000_000.0, **fields) -> UsageRecord:
    told = {"tenant": "acme", "endpoint": "faq", "user": "", "kind": "question"} | fields
    bill = Bill(cost, cost, items=(CostItem("provider", "m", cost),))
    return UsageRecord(
        f"id{cost}", "r", at, told["tenant"], "default", told["endpoint"], told["user"], "m", "", "miss", Usage(), bill,
        kind=told["kind"],
    )  # fmt: skip


async def test_several_values_of_a_dimension_are_alternatives_and_several_dimensions_hold_at_once():
    books = MemoryBooks(
        spent(1, user="ann"),
        spent(2, user="bob"),
        spent(4, user="ann", endpoint="mail"),
        spent(8, user="cy", tenant="volta"),
        spent(16),
    )
    costs = Costs(books, no_spool)

    async def total(tenant: str | None, *where: tuple[str, str]) -> int:
        rows, total = await costs.sums(CostQuery(0, 2e9, ("endpoint",), tenant, where))
        assert sum(row["actual"] for row in rows) == total["actual"]
        return total["actual"]

    assert await total("acme") == 23
    assert await total(None) == 31
    assert await total("acme", ("user", "ann")) == 5
    assert await total("acme", ("user", "ann"), ("user", "bob")) == 7
    assert await total("acme", ("user", "ann"), ("endpoint", "mail")) == 4
    assert await total(None, ("user", "")) == 16
    assert await total(None, ("tenant", "volta")) == 8
    assert await total("acme", ("user", "nobody")) == 0


async def test_records_come_by_time_over_all_tenants_each_once():
    noon = 1_700_000_000.0
    written = [spent(n + 1, noon + (n * 7919 % 10) * 1800, tenant=("acme", "volta")[n % 2]) for n in range(20)]
    costs = Costs(MemoryBooks(*written), no_spool)
    batches = [batch async for batch in costs.records(None, noon, noon + 9 * 1800)]
    found = [record for batch in batches for record in batch]
    assert [record.at for record in found] == sorted(record.at for record in found)
    assert {record.record_id for record in found} == {r.record_id for r in written if r.at < noon + 9 * 1800}
    assert len(found) == 18
    assert [batch async for batch in costs.records("nobody", 0, 2e9)] == []


async def test_no_message_holds_more_than_500_records():
    written = [spent(n + 1) for n in range(1001)]
    sizes = [len(batch) async for batch in Costs(MemoryBooks(*written), no_spool).records("acme", 0, 2e9)]
    assert sizes == [500, 500, 1]


def test_who_may_see_whose_costs():
    mine, admin = Key("k", "acme"), Key("a", "admin", frozenset({Scope.ADMIN}))
    assert tenant_for(mine, "") == tenant_for(mine, "acme") == tenant_for(admin, "acme") == "acme"
    assert tenant_for(admin, "") == "admin"
    assert tenant_for(admin, "*") is None
    for asked in ("volta", "*"):
        with pytest.raises(PermissionDenied):
            tenant_for(mine, asked)
