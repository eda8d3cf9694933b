"""The results for people."""

from collections.abc import Sequence

from rich.table import Table

from benchmarks.cache_quality.results import Results, Row


def table(results: Results) -> Table:
    """A line for each contestant on each set; the orders of a stream are averaged, and `kept` counts them."""
    made = Table(
        title="Semantic cache: hits against wrong hits" + (", a tenth of each set" if results["quick"] else "")
    )
    made.add_column("set")
    made.add_column("contestant")
    made.add_column("encoder")
    for name in ("budget", "hit", "wrong", "of hits", "kept", "AUC", "at ≤1%", "at ≤5%", "same", "traps", "CPU ms/1k"):
        made.add_column(name, justify="right")
    names = list(dict.fromkeys(row["set"] for row in results["rows"]))
    for name in names:
        groups: dict[tuple[str, str, float], list[Row]] = {}
        for row in results["rows"]:
            if row["set"] == name:
                # What hindsight chose differs between orders; it is one contestant.
                contestant = row["contestant"].partition(" (")[0] if row["kind"] == "stream" else row["contestant"]
                groups.setdefault((contestant, row["encoder"], row["delta"]), []).append(row)
        for (contestant, encoder, delta), rows in groups.items():
            made.add_row(
                name,
                contestant,
                encoder,
                f"{delta:.0%}",
                *(
                    _share(_mean([row[key] for row in rows]))
                    for key in ("hit_share", "wrong_share", "wrong_share_of_hits")
                ),
                f"{sum(row['kept'] for row in rows)}/{len(rows)}",
                *(
                    _share(_mean([row[key] for row in rows]))
                    for key in ("auc", "served_at_1", "served_at_5", "same_served", "traps_served")
                ),
                _number(_mean([row["cpu_ms_per_1k"] for row in rows])),
            )
        made.add_section()
    return made


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
