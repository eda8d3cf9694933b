"""A picture of the results, where matplotlib is installed."""

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cache_quality.contestants import DELTAS, HINDSIGHT, OURS
from benchmarks.cache_quality.results import Results
from benchmarks.cache_quality.sets import BANKING, PAIRS_EN, PAIRS_ES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

WORST = 0.12
"""Nobody would want to see further."""


def save(results: Results, path: Path) -> bool:
    """Wrong share over hit share, one panel a set; False when matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    present = {row["set"] for row in results["rows"]}
    names = [name for name in (BANKING, PAIRS_EN, PAIRS_ES) if name in present]
    figure = Figure(figsize=(4.6 * len(names) + 2.4, 4.4), layout="constrained")
    known: dict[str, Line2D] = {}
    colours = {f"{OURS}, any limit": "black"}

    def show(
        panel: "Axes", label: str, x: list[float], y: list[float], line: str, mark: str = "", size: float = 6
    ) -> None:
        """One line or mark; the same contestant has one colour in all panels."""
        colour = colours.setdefault(label, f"C{len(colours) % 10}")
        (drawn,) = panel.plot(x, y, color=colour, linestyle=line, linewidth=1.3, marker=mark, markersize=size)
        known.setdefault(label, drawn)

    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        right = 0.05
        for curve in results["curves"]:
            contestant = curve["contestant"]
            if curve["set"] == name and (contestant == OURS or not contestant.startswith(OURS)):
                label = f"{OURS}, any limit" if contestant == OURS else contestant
                line = "-" if contestant == OURS else "--"
                show(panel, label, curve["hit_share"], curve["wrong_share"], line)
                seen = zip(curve["hit_share"], curve["wrong_share"], strict=True)
                right = max(right, *(hit for hit, wrong in seen if wrong <= WORST))
        for row in results["rows"]:
            contestant = row["contestant"].partition(" (")[0]
            if row["set"] != name or row["order"] > 1 or contestant.startswith("cosine"):
                continue
            at, share = [row["hit_share"]], [row["wrong_share"]]
            if contestant == OURS:
                show(panel, f"{OURS} at {row['delta']:.0%}", at, share, "", "*", 14)
            elif contestant != HINDSIGHT:
                mark = "x" if contestant.startswith(OURS) else "s"
                show(panel, contestant, at, share, "", mark)
            right = max(right, *(hit for hit, wrong in zip(at, share, strict=True) if wrong <= WORST), 0.0)
        for delta in DELTAS:
            panel.axhline(delta, color="red", linewidth=0.8, linestyle=":")
        panel.set(title=name, xlabel="hits, share of requests", xlim=(0, 1.05 * right), ylim=(-0.002, WORST))
    figure.axes[0].set_ylabel("wrong answers, share of requests (dotted: the budgets)")
    figure.legend(list(known.values()), list(known), loc="outside right upper", fontsize=7)
    figure.savefig(path, dpi=120)
    return True
