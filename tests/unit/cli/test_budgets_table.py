"""The table of budgets."""

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from llmmesh.edge.v1 import costs_pb2
from services.cli.budgets import bar, table_of

amounts = st.integers(0, 10**12)


@given(st.integers(1, 10**12), amounts, amounts)
def test_a_bar_is_as_long_as_any_other_and_full_only_when_nothing_is_free(limit, spent, reserved):
    shown = Text.from_markup(bar(limit, spent, reserved)).plain
    cells, share = shown[:20], shown[20:]
    assert set(cells) <= set("█▒░")
    assert list(cells) == sorted(cells, key="█▒░".index)
    assert ("░" not in cells) == (spent + reserved >= limit)
    assert share.strip().endswith("%")


def test_a_budget_is_a_line_with_whom_it_is_for():
    rows = [
        costs_pb2.Budget(
            name="per-user",
            user="[bold]ann",
            endpoint="faq",
            period="2026-11-24",
            mode=costs_pb2.BUDGET_MODE_SOFT,
            limit_nanousd=2_000_000_000,
            spent_nanousd=1_000_000_000,
            reserved_nanousd=500_000_000,
        ),
        costs_pb2.Budget(name="all", period="2026-11", mode=costs_pb2.BUDGET_MODE_HARD, limit_nanousd=1),
    ]
    rows[0].resets_at.FromSeconds(1_795_564_800)
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of("acme", rows))
    text = console.file.getvalue()
    line = next(line for line in text.splitlines() if "per-user" in line)
    for part in (
        "endpoint faq, user [bold]ann",
        "soft",
        "$2.0000",
        "$1.0000",
        "$0.5000",
        "██████████▒▒▒▒▒░░░░░",
        "75%",
    ):
        assert part in line
    assert "2026-11-25 00:00" in line
    assert "all requests" in next(line for line in text.splitlines() if "hard" in line)
