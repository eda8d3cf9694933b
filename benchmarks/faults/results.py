"""The shape of the results file."""

from typing import Literal, TypedDict

from benchmarks.machine import Machine

Shape = Literal["unary", "stream"]


class Row(TypedDict):
    """What came of one request. Nano-USD; `attempts` counts the provider's calls by its own word.

    `answered_by` is "faulty", "healthy" or empty; `error` is the reason of the error, empty for an answer. `pieces` of text came
    before either. `requests` is what the vendors saw, null where the faulty one cannot be reached.
    """

    fault: str
    shape: Shape
    second_vendor: bool
    answered_by: str
    error: str
    retry_after_s: float | None
    pieces: int
    attempts: int
    outcomes: list[str]
    requests: int | None
    cost_nanousd: int
    wasted_nanousd: int


class Results(TypedDict):
    """The file. `max_attempts` is the budget of every request."""

    machine: Machine
    max_attempts: int
    rows: list[Row]
