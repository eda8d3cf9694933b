"""`python -m benchmarks.hops`: exact hit, semantic hit and miss, a bare gRPC chain and a Redis GET, in one run."""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import uvloop

from benchmarks.hops import plot
from benchmarks.hops.cases import count_spans, open_cases
from benchmarks.hops.load import Sample, drive
from benchmarks.hops.processes import CHAIN, OUTSIDE, SERVICES, Running, start
from benchmarks.hops.results import Results, Row
from benchmarks.machine import Machine, machine

CONCURRENCIES = (1, 32)
# Rounds of all cases one after the other: what disturbs the machine for a while disturbs them all.
ROUNDS = 2
WARM_UP_S = 0.5
PARAPHRASES_PER_S = 260

MESH = ("redis", "qdrant", *SERVICES)
MEASURED: dict[str, tuple[str, ...]] = {
    "exact_hit": MESH,
    "semantic_hit": MESH,
    "miss": MESH,
    "bare_chain": CHAIN,
    "redis_get": ("redis",),
}


def main() -> None:
    """Measures, prints the table and writes the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hops", description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="measured time of each case at each concurrency")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "hops.json")
    options = parser.parse_args()
    here = machine()
    with tempfile.TemporaryDirectory(prefix="llmmesh-bench-") as folder:
        results = uvloop.run(_measure(Path(folder), options.seconds, here))
    print_table(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")
    plot.save(results, options.out.with_suffix(".png"))


async def _measure(folder: Path, seconds: float, here: Machine) -> Results:
    samples: dict[tuple[str, int], Sample] = {}
    print("starting the mesh ...", flush=True)
    async with start(folder) as running, open_cases(running) as cases:
        print("choosing paraphrases ...", flush=True)
        await cases.prepare(int(PARAPHRASES_PER_S * (seconds + ROUNDS * WARM_UP_S) * len(CONCURRENCIES)))
        await cases.put_value()
        for _ in range(ROUNDS):
            for case, call in cases.calls().items():
                for concurrency in CONCURRENCIES:
                    await drive(call, concurrency, WARM_UP_S, {}, Sample())
                    print(f"{case} x {concurrency}", flush=True)
                    sample = samples.setdefault((case, concurrency), Sample())
                    await drive(call, concurrency, seconds / ROUNDS, _pids(case, running), sample)
        spans = await count_spans(running)
    return {
        "machine": here,
        "seconds": seconds,
        "not_in_total": ["client", *OUTSIDE],
        "spans_received": spans,
        "rows": [_row(case, concurrency, sample) for (case, concurrency), sample in samples.items()],
    }


def _pids(case: str, running: Running) -> Mapping[str, int]:
    names = (*MEASURED[case], *(OUTSIDE if MEASURED[case] is MESH else ()))
    return {"client": os.getpid(), **{name: running.pids[name] for name in names}}


def _row(case: str, concurrency: int, sample: Sample) -> Row:
    thousands = len(sample.latencies) / 1000
    cpu = {name: round(used / thousands, 1) for name, used in sample.cpu.items()}
    cpu["total"] = round(sum(sample.cpu[name] for name in MEASURED[case]) / thousands, 1)
    return {
        "case": case,
        "concurrency": concurrency,
        "requests": len(sample.latencies),
        "p50_ms": round(sample.percentile(0.50), 3),
        "p99_ms": round(sample.percentile(0.99), 3),
        "rps": round(sample.rps, 1),
        "cpu_ms_per_1k": cpu,
    }


def print_table(results: Results) -> None:
    """The rows for people; processes that used next to nothing are left out."""
    print(f"\n{'case':<13}{'callers':>8}{'p50 ms':>9}{'p99 ms':>9}{'req/s':>8}{'CPU ms/1k':>11}   by process")
    for row in results["rows"]:
        cpu = row["cpu_ms_per_1k"]
        parts = [
            f"({name} {ms:,.0f})" if name in results["not_in_total"] else f"{name} {ms:,.0f}"
            for name, ms in sorted(cpu.items(), key=lambda item: (item[0] in results["not_in_total"], -item[1]))
            if name != "total" and ms >= 5
        ]
        print(
            f"{row['case']:<13}{row['concurrency']:>8}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['rps']:>8,.0f}"
            f"{cpu['total']:>11,.0f}   {', '.join(parts)}"
        )
    print(f"Processes in brackets are no part of the total. {results['spans_received']:,} spans arrived.\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
