"""`python -m benchmarks.streams`: a thousand streams at once through edge and provider while the vendor is slow."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.machine import Machine, machine
from benchmarks.streams.load import Use, drive
from benchmarks.streams.processes import WATCHED, lag_file, start
from benchmarks.streams.results import Results, Row


def main() -> None:
    """Measures, prints the table and writes the file. Ends with 1 when a stream was dropped."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streams", description=__doc__)
    parser.add_argument("--streams", type=int, default=1000, help="at once (1 to 1000)")
    parser.add_argument("--delay-ms", type=float, default=2000.0, help="of the vendor, before an answer begins")
    parser.add_argument("--pace-ms", type=float, default=2000.0, help="of the vendor, between two of some 13 pieces")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "streams.json")
    options = parser.parse_args()
    here = machine()
    with tempfile.TemporaryDirectory(prefix="llmmesh-bench-") as folder:
        results = uvloop.run(_measure(Path(folder), options.streams, options.delay_ms, options.pace_ms, here))
    print_table(results)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")
    if results["dropped"]:
        raise SystemExit(1)


async def _measure(folder: Path, streams: int, delay_ms: float, pace_ms: float, here: Machine) -> Results:
    print("starting edge and provider ...", flush=True)
    async with start(folder, streams, delay_ms, pace_ms) as running:
        print(f"{streams} streams ...", flush=True)
        seen, used = await drive(running, streams, {name: running.pids[name] for name in WATCHED})
    # Written when the services ended.
    lags = {}
    for name in WATCHED:
        looks: list[tuple[float, float]] = json.loads(lag_file(folder, name).read_text(encoding="utf-8"))
        lags[name] = [late for when, late in looks if seen.began <= when <= seen.ended]
    return {
        "machine": here,
        "streams": streams,
        "open_at_once": seen.open_at_once,
        "completed": seen.completed,
        "dropped": seen.dropped,
        "errors": dict(seen.errors),
        "pieces": seen.pieces,
        "seconds": round(seen.ended - seen.began, 2),
        "first_piece_p50_ms": round(_percentile(seen.first_ms, 0.50), 1),
        "first_piece_p99_ms": round(_percentile(seen.first_ms, 0.99), 1),
        "rows": [_row(name, used[name], lags[name]) for name in WATCHED],
    }


def _row(name: str, use: Use, lags: Sequence[float]) -> Row:
    return {
        "process": name,
        "idle_mib": use.idle_mib,
        "peak_mib": use.peak_mib,
        "idle_files": use.idle_files,
        "peak_files": use.peak_files,
        "lag_p50_ms": _percentile(lags, 0.50),
        "lag_p99_ms": _percentile(lags, 0.99),
        "lag_max_ms": max(lags, default=0.0),
    }


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def print_table(results: Results) -> None:
    """The rows for people."""
    print(
        f"\n{results['streams']} streams, {results['open_at_once']} open at once, {results['completed']} completed, "
        f"{results['dropped']} dropped {results['errors'] or ''}, {results['pieces']} pieces in {results['seconds']} s; "
        f"first piece after {results['first_piece_p50_ms']:,.0f} ms (p99 {results['first_piece_p99_ms']:,.0f})\n"
    )
    print(
        f"{'process':<10}{'MiB idle':>10}{'MiB peak':>10}{'files idle':>12}{'files peak':>12}{'lag p50/p99/max ms':>24}"
    )
    for row in results["rows"]:
        lag = f"{row['lag_p50_ms']:.1f}/{row['lag_p99_ms']:.1f}/{row['lag_max_ms']:.1f}"
        print(
            f"{row['process']:<10}{row['idle_mib']:>10.1f}{row['peak_mib']:>10.1f}{row['idle_files']:>12}"
            f"{row['peak_files']:>12}{lag:>24}"
        )
    print()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
