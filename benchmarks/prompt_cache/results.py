"""The shape of the results file."""

from typing import TypedDict

from benchmarks.machine import Machine


class Row(TypedDict):
    """One workload at one vendor in one mode; `case` is all three.

    `cost_nanousd` is the vendor-like server's own invoice, `of_naive` its share of the naive mode's, `charged_nanousd` what the
    provider charged for the same calls. Tokens are the vendor's own count. `hit_rate` is the share of requests of which a part
    was read; `outcomes` counts requests by what the planner says of them. Times are of a call through the provider's gRPC; CPU
    milliseconds per 1,000 requests are of one process with client, provider and vendor in it.
    """

    case: str
    workload: str
    vendor: str
    model: str
    mode: str
    concurrency: int
    requests: int
    static_tokens: int
    cost_nanousd: int
    of_naive: float
    charged_nanousd: int
    input_tokens: int
    read_tokens: int
    written_tokens: int
    hit_rate: float
    outcomes: dict[str, int]
    p50_ms: float
    p99_ms: float
    rps: float
    cpu_ms_per_1k: dict[str, float]


class Results(TypedDict):
    """The file. `seed` is that of the arrivals, and of the machines that OpenAI's requests without a key go to."""

    machine: Machine
    seed: int
    notes: list[str]
    rows: list[Row]
