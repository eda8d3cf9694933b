"""`python -m benchmarks.faults`: prints the table, writes benchmarks/results/faults.json and docs/faults.md."""

import argparse
import json
import tempfile
from pathlib import Path

import uvloop

from benchmarks.faults.measure import MAX_ATTEMPTS, measure
from benchmarks.faults.results import Results
from benchmarks.faults.table import page
from benchmarks.machine import machine

_ROOT = Path(__file__).parents[2]


def main() -> None:
    """Makes every fault once, prints the table and writes the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--out", type=Path, default=_ROOT / "benchmarks" / "results" / "faults.json")
    parser.add_argument("--page", type=Path, default=_ROOT / "docs" / "faults.md")
    options = parser.parse_args()
    here = machine()
    with tempfile.TemporaryDirectory(prefix="llmmesh-bench-") as folder:
        rows = uvloop.run(measure(Path(folder)))
    results: Results = {"machine": here, "max_attempts": MAX_ATTEMPTS, "rows": rows}
    text = page(rows, MAX_ATTEMPTS)
    print(text)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    options.page.write_text(text, encoding="utf-8")
    print(f"written: {options.out}, {options.page}")


if __name__ == "__main__":
    main()
