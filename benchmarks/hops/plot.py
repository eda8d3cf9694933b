"""A picture of the results, where matplotlib is installed."""

from pathlib import Path

from benchmarks.hops.results import Results


def save(results: Results, path: Path) -> bool:
    """Bars of p50 and of CPU per 1,000 requests by case; False when matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 4), layout="constrained")
    latency, cpu = figure.subplots(1, 2)
    labels = [f"{row['case']} x{row['concurrency']}" for row in results["rows"]]
    latency.barh(labels, [row["p50_ms"] for row in results["rows"]])
    latency.set(title="p50, ms", xscale="log")
    start = [0.0] * len(labels)
    outside = {*results["not_in_total"], "total"}
    for name in sorted({name for row in results["rows"] for name in row["cpu_ms_per_1k"]} - outside):
        used = [row["cpu_ms_per_1k"].get(name, 0.0) for row in results["rows"]]
        cpu.barh(labels, used, left=start, label=name)
        start = [a + b for a, b in zip(start, used, strict=True)]
    cpu.set(title="CPU ms per 1,000 requests")
    cpu.legend()
    for axes in (latency, cpu):
        axes.invert_yaxis()
    figure.savefig(path, dpi=120)
    return True
