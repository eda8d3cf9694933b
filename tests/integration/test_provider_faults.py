"""A vendor's faults against the real provider over gRPC: what the caller gets, what is called, what is billed."""

import asyncio
from pathlib import Path

import pytest

from benchmarks.faults.cases import FAULTS
from benchmarks.faults.measure import MAX_ATTEMPTS, measure
from benchmarks.faults.results import Row
from benchmarks.faults.table import page

ROOT = Path(__file__).parents[2]

# gpt-4o-mini: $0.15 input, $0.60 output per million tokens; the vendor counts 20 and 10.
COST = 20 * 150 + 10 * 600

FAILED = "ALL_CANDIDATES_FAILED"
FALLS_OVER = ("healthy", 2, FAILED, 3)
BREAKS_OFF = ("STREAM_CUT", 1, "STREAM_CUT", 1)
ANSWERS = ("faulty", 1, "faulty", 1)

# For whole answers, then for streams: who answers or which error, after how many calls, with a second vendor; then alone.
EXPECTED = {
    "connect_refused": (FALLS_OVER, FALLS_OVER),
    "tls": (FALLS_OVER, FALLS_OVER),
    "dns": (FALLS_OVER, FALLS_OVER),
    "429_retry_after": (("healthy", 2, "RATE_LIMITED", 1),) * 2,
    "429": (("healthy", 2, "RATE_LIMITED", 3),) * 2,
    "500": (FALLS_OVER, FALLS_OVER),
    "502": (FALLS_OVER, FALLS_OVER),
    "529": (FALLS_OVER, FALLS_OVER),
    "slow_first_byte": (FALLS_OVER, FALLS_OVER),
    "stall": (FALLS_OVER, BREAKS_OFF),
    "cut": (FALLS_OVER, BREAKS_OFF),
    "malformed_json": (FALLS_OVER, BREAKS_OFF),
    "empty_choices": (FALLS_OVER, FALLS_OVER),
    "wrong_content_type": (FALLS_OVER, FALLS_OVER),
    "duplicate_chunk": (ANSWERS, ANSWERS),
    "huge_chunk": (FALLS_OVER, BREAKS_OFF),
    "auth": (("healthy", 2, "UPSTREAM_CREDENTIAL", 1),) * 2,
}
# The vendor had the request and has probably computed: that is on its invoice.
BILLED = {"slow_first_byte", "stall", "cut", "malformed_json", "empty_choices", "wrong_content_type", "huge_chunk"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return asyncio.run(measure(tmp_path_factory.mktemp("faults")))


@pytest.fixture(params=[fault.name for fault in FAULTS])
def of_fault(request: pytest.FixtureRequest, rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["fault"] == request.param]


def test_every_fault_ends_as_it_should(of_fault: list[Row]) -> None:
    ends = {
        (row["shape"], row["second_vendor"]): (row["answered_by"] or row["error"], row["attempts"]) for row in of_fault
    }
    name = of_fault[0]["fault"]
    for shape, (second, calls, alone, calls_alone) in zip(("unary", "stream"), EXPECTED[name], strict=True):
        assert ends[shape, True] == (second, calls)
        assert ends[shape, False] == (alone, calls_alone)


def test_no_request_is_lost_and_none_is_both_answered_and_refused(rows: list[Row]) -> None:
    assert len(rows) == 4 * len(FAULTS) == 4 * len(EXPECTED)
    assert all(bool(row["answered_by"]) != bool(row["error"]) for row in rows)
    assert all(row["pieces"] > 0 for row in rows if row["answered_by"])


def test_there_is_no_retry_storm(rows: list[Row]) -> None:
    assert all(1 <= row["attempts"] <= MAX_ATTEMPTS for row in rows)
    assert all(row["requests"] == row["attempts"] for row in rows if row["requests"] is not None)
    assert {row["fault"] for row in rows if row["requests"] is None} == {"connect_refused", "tls", "dns"}


def test_an_answer_is_billed_once_and_an_error_never(rows: list[Row]) -> None:
    assert all(row["cost_nanousd"] == (COST if row["answered_by"] else 0) for row in rows)
    assert all(row["outcomes"].count("ok") == 1 for row in rows if row["answered_by"])


def test_what_failed_calls_cost_is_told_where_the_vendor_had_the_request(rows: list[Row]) -> None:
    assert {row["fault"] for row in rows if row["wasted_nanousd"]} == BILLED
    assert all(row["wasted_nanousd"] for row in rows if row["fault"] in BILLED)


def test_a_wait_that_the_vendor_names_reaches_the_caller(rows: list[Row]) -> None:
    told = [row["retry_after_s"] for row in rows if row["fault"] == "429_retry_after" and row["error"]]
    assert told == [30, 30]


def test_the_page_says_what_was_measured(rows: list[Row]) -> None:
    assert (ROOT / "docs" / "faults.md").read_text(encoding="utf-8") == page(rows, MAX_ATTEMPTS)
