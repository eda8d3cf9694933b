"""The shape of the results file."""

from typing import TypedDict

from benchmarks.machine import Machine


class Row(TypedDict):
    """One audit in a process of its own: wall and CPU seconds from start to end, and its greatest resident memory.

    `lines_per_s` counts all seconds, those of the sample's judging too. Money in nano-USD.
    """

    lines: int
    log_mib: float
    sample: int
    seconds: float
    cpu_seconds: float
    lines_per_s: int
    peak_mib: float
    requests: int
    malformed: int
    spend_nanousd: int
    avoidable_nanousd: int
    avoidable_low_nanousd: int
    avoidable_high_nanousd: int
    waste_nanousd: dict[str, int]


class Results(TypedDict):
    """The file."""

    machine: Machine
    seed: int
    rows: list[Row]
