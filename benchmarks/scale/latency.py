"""Latencies in short."""

from collections.abc import Sequence

from benchmarks.scale.results import Latency


def latency(seconds: Sequence[float]) -> Latency:
    """Percentiles of at least one measurement."""
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"count": len(ordered), "p50_ms": at(0.5), "p99_ms": at(0.99), "longest_ms": at(1.0)}
