"""The outcomes as a page."""

from collections.abc import Iterable, Sequence

from benchmarks.faults.cases import FAULTS
from benchmarks.faults.results import Row, Shape

_HEAD = """# What comes of a vendor's faults

Every fault is made by a real server on the wire, and meets the real provider over gRPC: the first vendor always answers with
it, the second one is healthy or is not there. A request may make {budget} calls. `calls` are those that were made; where the
vendor can be reached it saw exactly as many requests. An error is named by its reason; before the first piece another vendor
takes over, after it the answer is cut. An answer is billed once, by its own usage; `wasted` is what the failed calls probably
cost all the same, in nano-USD. This page is generated: `python -m benchmarks.faults`.

| fault | whole answer, second vendor | whole answer, alone | stream, second vendor | stream, alone |
|---|---|---|---|---|
"""
_FOOT = """
A repeated piece of text cannot be told from a model that repeats itself, since the pieces have no numbers: it stays in the
answer, and the bill follows the usage, which counts once.
"""


def page(rows: Sequence[Row], max_attempts: int) -> str:
    """The Markdown page."""
    lines = [_line(fault.name, fault.what, [r for r in rows if r["fault"] == fault.name]) for fault in FAULTS]
    return _HEAD.format(budget=max_attempts) + "".join(lines) + _FOOT


def _line(name: str, what: str, rows: Iterable[Row]) -> str:
    cells = {(row["shape"], row["second_vendor"]): _cell(row) for row in rows}
    order: tuple[tuple[Shape, bool], ...] = (("unary", True), ("unary", False), ("stream", True), ("stream", False))
    return f"| `{name}`: {what} | " + " | ".join(cells[key] for key in order) + " |\n"


def _cell(row: Row) -> str:
    if row["error"]:
        ending = f"`{row['error']}`"
        if row["retry_after_s"] is not None:
            ending += f", retry after {row['retry_after_s']:g} s"
    else:
        ending = "the second answers" if row["answered_by"] == "healthy" else "it answers"
    calls = f"{row['attempts']} call{'s' if row['attempts'] > 1 else ''}"
    wasted = f", wasted {row['wasted_nanousd']:,}" if row["wasted_nanousd"] else ""
    return f"{ending}; {calls}{wasted}"
