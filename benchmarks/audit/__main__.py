"""`python -m benchmarks.audit`: time and peak memory of an audit of a million requests."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.audit.results import Results, Row
from benchmarks.audit.traffic import lines
from benchmarks.machine import machine


def main() -> None:
    """Writes the log, audits it, prints the figures and writes the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--sample", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--page", type=Path, help="keep the report here")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "audit.json")
    options = parser.parse_args()
    results: Results = {"machine": machine(), "seed": options.seed, "rows": []}
    console = Console()
    with tempfile.TemporaryDirectory(prefix="llmmesh-bench-") as folder:
        log = Path(folder) / "log.jsonl"
        with console.status(f"writing {options.lines:,} lines"), log.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines(options.lines, options.seed))
        with console.status("auditing"):
            row = _measure(log, options.lines, options.sample, options.page)
    results["rows"].append(row)
    table = Table(show_header=False)
    for name, value in row.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int | float) else str(value))
    console.print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")


def _measure(log: Path, count: int, sample: int, page: Path | None) -> Row:
    command = [sys.executable, "-m", "services.cli", "audit", str(log), "--json", "--sample", str(sample)]
    if page is not None:
        command += ["--html", str(page)]
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"the audit ended with status {child.returncode}")
        seconds = time.perf_counter() - began
        output.seek(0)
        found = json.load(output)
    return {
        "lines": count,
        "log_mib": round(log.stat().st_size / 2**20, 1),
        "sample": sample,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "lines_per_s": int(count / seconds),
        "peak_mib": round(used.ru_maxrss / 1024, 1),
        "requests": found["requests"],
        "malformed": found["malformed"],
        "spend_nanousd": found["spend_nanousd"],
        "avoidable_nanousd": found["avoidable_nanousd"],
        "avoidable_low_nanousd": found["avoidable_low_nanousd"],
        "avoidable_high_nanousd": found["avoidable_high_nanousd"],
        "waste_nanousd": {one["waste"]: one["nanousd"] for one in found["waste"]},
    }


if __name__ == "__main__":
    main()
