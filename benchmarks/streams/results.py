"""The shape of the results file."""

from typing import TypedDict

from benchmarks.machine import Machine


class Row(TypedDict):
    """One process: resident memory in MiB before the streams and at its highest, open files before and at most, and how late
    its event loop woke a sleeper while the streams ran, in milliseconds.
    """

    process: str
    idle_mib: float
    peak_mib: float
    idle_files: int
    peak_files: int
    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float


class Results(TypedDict):
    """The file. `open_at_once` streams had begun and not ended at one time; `dropped` ended without their last event."""

    machine: Machine
    streams: int
    open_at_once: int
    completed: int
    dropped: int
    errors: dict[str, int]
    pieces: int
    seconds: float
    first_piece_p50_ms: float
    first_piece_p99_ms: float
    rows: list[Row]
