"""`python -m benchmarks.scale`: the embedded vector store with many entries of many tenants, through Qdrant's gRPC API."""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.scale import lookups, population, store
from benchmarks.scale.latency import latency
from benchmarks.scale.population import Tenant
from benchmarks.scale.results import Latency, Lookup, Results, Run
from services.cache.adapters.qdrant import open_qdrant

LOOKUPS = 300
SMALLER = 10
"""Ways to store vectors are compared on one part in so many of the entries."""


def main() -> None:
    """Measures, prints the tables and writes the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000, help="entries; half of them are one tenant's")
    parser.add_argument("--tenants", type=int, default=1_000)
    parser.add_argument("--only", choices=store.VECTORS, help="one way to store vectors, with all entries")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "scale.json")
    options = parser.parse_args()
    console = Console()
    results: Results = {"machine": machine(), "runs": []}
    plans = (
        [(options.only, options.entries)]
        if options.only
        else [
            (store.VECTORS[0], options.entries),
            *((vectors, options.entries // SMALLER) for vectors in store.VECTORS),
        ]
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        for vectors, entries in plans:
            with tempfile.TemporaryDirectory(prefix="llmmesh-bench-") as folder:
                run = _run(Path(folder) / "qdrant", vectors, entries, min(options.tenants, entries // 4), progress)
                results["runs"].append(asyncio.run(run))
    for table in tables(results):
        Console(width=max(console.width, 140)).print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")


async def _run(folder: Path, vectors: str, entries: int, tenants: int, progress: Progress) -> Run:
    whole = population.tenants(entries, tenants)
    task = progress.add_task(f"{entries:,} x {vectors}: loading", total=entries)
    async with store.started(folder) as running:
        first = population.entry(whole[0], 0)
        await running.create(vectors, first, population.vectors(0, 1)[0])
        resident, anonymous = running.memory()
        async with store.probed(running, entries, tenants) as loading:
            took = await running.fill(whole, lambda done: progress.advance(task, done))
        progress.update(task, description=f"{entries:,} x {vectors}: work in the background")
        async with store.probed(running, entries, tenants) as rebuilding:
            rebuild_s = await running.settle()
        progress.update(task, description=f"{entries:,} x {vectors}: lookups")
        found = await _lookups(running, whole)
        resident_after, anonymous_after = running.memory()
        disk = running.disk()
    progress.remove_task(task)
    return {
        "vectors": vectors,
        "entries": entries,
        "tenants": tenants,
        "entries_per_s": round(entries / took, 1),
        "rebuild_s": round(rebuild_s, 1),
        "resident_bytes": round((resident_after - resident) / entries, 1),
        "anonymous_bytes": round((anonymous_after - anonymous) / entries, 1),
        "disk_bytes": round(disk / entries, 1),
        "while_loading": loading[0],
        "while_rebuilding": rebuilding[0],
        "lookups": found,
    }


async def _lookups(running: store.Store, whole: list[Tenant]) -> list[Lookup]:
    """The smallest tenant, the one in the middle, the tenth, the second and the largest: one scope each, and typical ones."""
    chosen = (whole[-1], whole[len(whole) // 2], whole[min(10, len(whole) - 1)], whole[1], whole[0])
    found: list[Lookup] = []
    async with open_qdrant(running.address, api_key=None, tls=False, prefix=lookups.PREFIX, timeout=60) as adapter:
        for tenant in chosen:
            for one_scope in (True, False):
                asked = list(lookups.questions(tenant, whole=one_scope, count=LOOKUPS, seed=tenant.first))
                await lookups.ask_all(adapter, tenant, asked[: LOOKUPS // 10])  # warms up
                taken, recall = await lookups.ask_all(adapter, tenant, asked)
                entry: Lookup = {
                    "tenant_entries": tenant.entries,
                    "scope_entries": lookups.scope_entries(tenant, whole=one_scope),
                    "latency": latency(taken),
                    "recall": round(recall, 4),
                }
                found.append(entry)
    return found


def tables(results: Results) -> list[Table]:
    """Lookups, and what the store takes and does meanwhile."""
    searches = Table(title="Lookups of a tenant, filtered to one scope")
    for name in ("vectors", "entries", "tenant's", "scope's", "p50 ms", "p99 ms", "longest ms", "right entry first"):
        searches.add_column(name, justify="right")
    stores = Table(title="The store")
    for name in ("vectors", "entries", "loaded/s", "rebuild s", "resident B/entry", "anonymous", "disk"):
        stores.add_column(name, justify="right")
    for name in ("p50 / p99 / longest ms while loading", "while rebuilding"):
        stores.add_column(name, justify="right")
    for run in results["runs"]:
        for row in run["lookups"]:
            at = row["latency"]
            shape = (f"{run['entries']:,}", f"{row['tenant_entries']:,}", f"{row['scope_entries']:,}")
            times = (f"{at['p50_ms']:.2f}", f"{at['p99_ms']:.2f}", f"{at['longest_ms']:.2f}")
            searches.add_row(run["vectors"], *shape, *times, f"{row['recall']:.3f}")
        searches.add_section()
        stores.add_row(
            run["vectors"],
            f"{run['entries']:,}",
            f"{run['entries_per_s']:,.0f}",
            f"{run['rebuild_s']:.0f}",
            *(f"{run[key]:,.0f}" for key in ("resident_bytes", "anonymous_bytes", "disk_bytes")),
            _short(run["while_loading"]),
            _short(run["while_rebuilding"]),
        )
    return [searches, stores]


def _short(at: Latency) -> str:
    return f"{at['p50_ms']:.1f} / {at['p99_ms']:.1f} / {at['longest_ms']:.1f}"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
