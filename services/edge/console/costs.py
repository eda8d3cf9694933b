"""Sums of the ledger, as the pages show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol

from markupsafe import Markup

from services.edge.console import charts
from services.edge.console.words import money, percent, plural, share
from services.edge.domain.ledger import CostQuery, CostSum

HITS = ("exact_hit", "semantic_hit", "coalesced")
"""Answers that no model was paid for."""
NO_ANSWERS = ("error", "shadow", "embedding")
"""Outcomes that the cache had no part in."""
LAYERS = (
    ("cache", "Answers from the cache", "asked before, in the same or in other words"),
    ("routing", "Cheaper models", "simple questions went to a model that is good enough"),
    ("compression", "Shorter prompts", "long context was compressed"),
    ("prompt_cache", "Prompt cache", "the vendor charged less for repeated beginnings"),
    ("batch", "Batches", "work that could wait was done at a discount"),
)


class Costs(Protocol):
    """The ledger's sums."""

    async def sums(self, query: CostQuery) -> tuple[list[CostSum], CostSum]:
        """Rows, dearest first, and their total. Raises MeshError."""
        ...


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of time and its slots. `unit` is the dimension of a slot: "hour" or "day"."""

    name: str
    title: str
    unit: str
    start: float
    end: float
    slots: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """The slots, for people."""
        if self.unit == "hour":
            return [f"{slot[11:]}:00" for slot in self.slots]
        return [f"{datetime.fromisoformat(slot):%d %b}" for slot in self.slots]


DAYS = {"today": 1, "7d": 7, "30d": 30}
_TITLES = {"today": "today", "7d": "the last 7 days", "30d": "the last 30 days"}


def range_of(name: str, now: float) -> Range:
    """The range of that name up to `now`; 7 days where there is none such. Days begin at midnight UTC."""
    name = name if name in DAYS else "7d"
    today = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    first = today - timedelta(days=DAYS[name] - 1)
    end = today + timedelta(days=1)
    if name == "today":
        slots = tuple(f"{today:%Y-%m-%d}T{hour:02d}" for hour in range(24))
        return Range(name, _TITLES[name], "hour", first.timestamp(), end.timestamp(), slots)
    slots = tuple(f"{first + timedelta(days=day):%Y-%m-%d}" for day in range(DAYS[name]))
    return Range(name, _TITLES[name], "day", first.timestamp(), end.timestamp(), slots)


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the waterfall: `amount` in nano-USD, with its sign."""

    title: str
    why: str
    amount: int
    kind: str
    bar: Markup


def waterfall(total: CostSum) -> list[Step]:
    """From what it would have cost to what it did; layers without an effect are left out."""
    bill = total.bill()
    saved = bill.savings
    changes = [
        (title, why, -amount, "saved" if amount > 0 else "lost")
        for (layer, title, why), amount in zip(
            LAYERS, (saved.cache, saved.routing, saved.compression, saved.prompt_cache, saved.batch), strict=True
        )
        if amount
    ]
    if bill.overhead:
        changes.append(("The mesh itself", "embedding, verifying, routing, checking", bill.overhead, "lost"))
    level, highest = bill.baseline, bill.baseline
    for _, _, change, _ in changes:
        level += change
        highest = max(highest, level)
    steps = [
        Step(
            "Without the mesh",
            "every request at the policy's baseline model",
            bill.baseline,
            "baseline",
            charts.span(0, bill.baseline, highest, "baseline"),
        )
    ]
    level = bill.baseline
    for title, why, change, kind in changes:
        steps.append(Step(title, why, change, kind, charts.span(level, level + change, highest, kind)))
        level += change
    steps.append(
        Step(
            "Spent",
            "what was really paid, the mesh itself included",
            bill.actual,
            "actual",
            charts.span(0, bill.actual, highest, "actual"),
        )
    )
    return steps


@dataclass(slots=True)
class Totals:
    """Sums of a stretch of time, money in nano-USD."""

    actual: int = 0
    baseline: int = 0
    requests: int = 0
    hits: int = 0
    looked_up: int = 0
    unpriced: int = 0

    def add(self, outcome: str, row: CostSum) -> None:
        """Adds what had this outcome."""
        self.actual += row["actual"]
        self.baseline += row["baseline"]
        self.requests += row["requests"]
        self.unpriced += row["unpriced"]
        if outcome not in NO_ANSWERS:
            self.looked_up += row["requests"]
            self.hits += row["requests"] if outcome in HITS else 0

    @property
    def saved(self) -> int:
        """What the mesh spared, net of its own cost."""
        return self.baseline - self.actual

    @property
    def saved_share(self) -> str:
        """The same as a share of what it would have cost."""
        return share(self.saved, self.baseline)

    @property
    def hit_rate(self) -> float | None:
        """Requests that no model was paid for, as a share of those that were answered."""
        return self.hits / self.looked_up if self.looked_up else None


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart with the words around it: values of the axis from the top down, and times from left to right."""

    picture: Markup
    axis: tuple[str, ...]
    times: tuple[str, ...]
    legend: tuple[tuple[int, str, str], ...] = ()


def times_of(when: Range) -> tuple[str, ...]:
    """First, middle and last slot."""
    words = when.words
    return (words[0], words[len(words) // 2], words[-1])


def hit_rate_chart(when: Range, by_slot: Mapping[str, Totals]) -> Chart:
    """The hit rate over time."""
    rates = [by_slot[slot].hit_rate if slot in by_slot else None for slot in when.slots]
    words = [
        "no requests" if rate is None else f"{percent(rate)} of {plural(by_slot[slot].looked_up, 'request')}"
        for slot, rate in zip(when.slots, rates, strict=True)
    ]
    picture = charts.line(rates, when.words, words, f"Share of requests answered without paying a model, {when.title}")
    return Chart(picture, ("100%", "50%", "0%"), times_of(when))


def stacked(when: Range, rows: Sequence[CostSum], named: Mapping[str, str], title: str) -> Chart:
    """Cost over time, by rows whose keys are slot and value; the dearest values have colours of their own."""
    sums: dict[str, int] = {}
    cells: dict[tuple[str, str], int] = {}
    for row in rows:
        slot, value = row.key
        sums[value] = sums.get(value, 0) + row["actual"]
        cells[(slot, value)] = cells.get((slot, value), 0) + row["actual"]
    ordered = sorted((v for v in sums if sums[v] > 0), key=lambda value: (-sums[value], value))
    most = charts.SERIES - 1
    groups = [[value] for value in ordered[:most]]
    if len(ordered) > most:
        groups.append(ordered[most:])
    series, legend = [], []
    for colour, values in enumerate(groups):
        name = named.get(values[0], values[0]) if colour < most else f"{len(values)} others"
        amounts = [sum(cells.get((slot, value), 0) for value in values) for slot in when.slots]
        series.append(charts.Series(name, colour, amounts, [money(amount) for amount in amounts]))
        legend.append((colour, name, money(sum(amounts))))
    top = charts.top_of(max((sum(one.values[i] for one in series) for i in range(len(when.slots))), default=0.0))
    picture = charts.columns(series, when.words, top, title)
    return Chart(picture, (money(top), money(top / 2), "$0"), times_of(when), tuple(legend))
