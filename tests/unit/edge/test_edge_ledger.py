"""Usage records: on disk and back, and summed by any dimension."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.money import CostItem, Rates, Usage, price
from services.edge.domain.bill import answer_bill, failure_bill, hit_bill
from services.edge.domain.ledger import DIMENSIONS, CostSum, UsageRecord, hour_of, increments, sum_rollups
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
        "default",
        draw(names),
        draw(st.text(st.characters(codec="utf-8"), max_size=20)),
        draw(st.sampled_from(["", "gpt-4o", "smollm2"])),
        draw(st.sampled_from(["", "simple", "medium"])),
        outcome,
        usage,
        bill,
        "UPSTREAM_UNAVAILABLE" if outcome == "error" else "",
        draw(st.sampled_from(["", "r1"])),
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


def rollups(records):
    """What the ledger holds after these records: roll-ups by hour."""
    hours: dict[str, dict[str, int]] = {}
    for record in records:
        fields = hours.setdefault(record.hour, {})
        for field, value in increments(record).items():
            fields[field] = fields.get(field, 0) + value
    return sorted(hours.items())


dimensions = st.lists(st.sampled_from([*DIMENSIONS, "hour", "tenant"]), unique=True).map(tuple)


@given(st.lists(records(), max_size=12), dimensions)
def test_sums_of_rollups_are_the_sums_of_the_records(written, group_by):
    rows, total = sum_rollups("acme", rollups(written), group_by)
    assert total["requests"] == sum(row["requests"] for row in rows) == len(written)
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
        values = {d: getattr(record, d) for d in (*DIMENSIONS, "hour", "tenant")}
        key = tuple(values[dimension] for dimension in group_by)
        expected[key] = expected.get(key, 0) + 1
    assert {row.key: row["requests"] for row in rows} == expected


def test_no_record_sums_to_nothing():
    rows, total = sum_rollups("acme", [], ("model",))
    assert rows == []
    assert total == CostSum()
    assert total.bill().identity_holds


def test_hours_are_utc_and_sort_as_text():
    assert hour_of(0) == "1970-01-01T00"
    assert hour_of(1_700_000_000) == "2023-11-14T22"
    assert hour_of(3599.999) == hour_of(0) < hour_of(3600)
