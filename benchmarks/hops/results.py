"""The shape of the results file."""

from typing import TypedDict

from benchmarks.machine import Machine


class Row(TypedDict):
    """One case at one concurrency. `cpu_ms_per_1k`: CPU milliseconds per 1,000 requests by process, and their total."""

    case: str
    concurrency: int
    requests: int
    p50_ms: float
    p99_ms: float
    rps: float
    cpu_ms_per_1k: dict[str, float]


class Results(TypedDict):
    """The file. CPU of the processes in `not_in_total` is shown beside the total, not in it."""

    machine: Machine
    seconds: float
    not_in_total: list[str]
    spans_received: int
    rows: list[Row]
