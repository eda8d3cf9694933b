"""The shape of the results file."""

from typing import TypedDict

from benchmarks.machine import Machine


class Latency(TypedDict):
    """Of `count` lookups, milliseconds; `longest_ms` is the longest stall."""

    count: int
    p50_ms: float
    p99_ms: float
    longest_ms: float


class Lookup(TypedDict):
    """Lookups of a tenant of so many entries, in a scope of `scope_entries`. `recall`: share that found the right entry first."""

    tenant_entries: int
    scope_entries: int
    latency: Latency
    recall: float


class Run(TypedDict):
    """One store that was filled. `vectors` is how they are stored; memory and disk are bytes for each entry.

    Resident memory counts mapped files, which the system may drop; anonymous memory does not. `while_loading` and
    `while_rebuilding` are lookups by another process meanwhile.
    """

    vectors: str
    entries: int
    tenants: int
    entries_per_s: float
    rebuild_s: float
    resident_bytes: float
    anonymous_bytes: float
    disk_bytes: float
    while_loading: Latency
    while_rebuilding: Latency
    lookups: list[Lookup]


class Results(TypedDict):
    """The file."""

    machine: Machine
    runs: list[Run]
