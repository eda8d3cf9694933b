"""`llmmesh calibrate`: labelled pairs through the service's own verdict, and the setting that they suggest."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table

from services.cache.convert import rules_of
from services.cache.domain.calibration import Calibration
from services.cache.domain.quality import Quality
from services.cli.cache.curve import Curve, Point, Suggestion, suggest
from services.cli.evaluate.cache import CacheTrial, Line, serve_pairs
from services.cli.evaluate.rows import read_rows
from services.common.clock import SystemClock
from services.common.policy import Policy
from services.common.prices import PriceBook
from services.common.yaml_file import ConfigError
from services.embedder.adapters.loader import load_encoder
from services.embedder.domain import PairModel, TextModel
from services.embedder.settings import EmbedderSettings

GRID = (0.999, 0.998, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Required probabilities that the table shows; the service never goes below the last."""
EXAMPLES = 15
NAMESPACE = "default"
TODAY, SUGGESTED = "today", "suggested"


class PairRow(BaseModel):
    """A pair and whether one answer serves both."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    a: str = Field(min_length=1)
    b: str = Field(min_length=1)
    same_answer: bool


@dataclass(frozen=True, slots=True)
class Example:
    """A pair to look at. `probability` is None where a veto or the floor decided."""

    a: str
    b: str
    probability: float | None
    similarity: float
    reason: str


@dataclass(frozen=True, slots=True)
class Calibrated:
    """All that is known after a run. `identical` pairs are exact hits and not among the others; `today` is the point of the
    policy's `error_budget`, `cosine` the curve of the bare similarity, `cosine_best` its loosest point within `delta`.
    """

    file: str
    delta: float
    model_id: str
    identical: int
    curve: Curve
    cosine: Curve
    error_budget: float
    today: Point
    suggestion: Suggestion
    cosine_best: Point | None
    worst: tuple[Example, ...]
    missed: tuple[Example, ...]

    @property
    def verdict(self) -> str:
        """What the pairs say, in words."""
        point, now = self.suggestion.point, self.today
        if point is None:
            return f"No suggestion: {self.suggestion.why}."
        low, high = now.interval
        kept = "within" if high <= self.delta else "beyond" if low > self.delta else "not surely within"
        return (
            f"Today's error_budget {self.error_budget:g} requires P {now.threshold:.3f}: {_served(now)}, {kept} "
            f"{self.delta:.2%}. Up to P {point.threshold:.3f} it would keep within: {_served(point)}. {self._setting}"
        )

    @property
    def _setting(self) -> str:
        budget, reached = self.suggestion.error_budget, self.suggestion.reached
        if budget is None or reached is None:
            return "No error_budget starts that strictly: switch `semantic` off for such questions."
        if budget == self.error_budget:
            return f"Keep error_budget {budget:g}."
        start = f"error_budget {budget:g} starts there, or as near as it gets, at P {reached.threshold:.3f}: {_served(reached)}"
        if budget <= self.delta:
            return f"Suggested: {start}."
        return (
            f"{start}. But {budget:g} is also what the namespace would then keep to, so {self.delta:g} is the better setting: "
            "it starts carefully, and opens by itself as it learns."
        )

    @property
    def caution(self) -> str:
        """What the figures do not say."""
        return (
            "A setting that was chosen on these pairs looks better on them than on others, and traffic with fewer look-alikes "
            "than they have is safer than they say."
        )


def _served(point: Point) -> str:
    return f"{point.hit_share:.1%} hits, {point.wrong_share:.2%} wrong (at most {point.interval[1]:.2%})"


def run(file: Path, delta: float, policy_file: Path) -> Calibrated:
    """Puts the pairs of `file` through the verdict. `delta`: wrong hits as a share of all pairs. Raises ConfigError."""
    if not 0 < delta < 1:
        raise ConfigError(f"delta {delta:g} must be between 0 and 1")
    rows = list(read_rows(file, PairRow))
    if not rows:
        raise ConfigError(f"{file}: no rows")
    policy = Policy.load(policy_file, PriceBook.load())
    settings = EmbedderSettings.load()
    model_id = settings.models[0]
    try:
        encoder = load_encoder(model_id, settings)
    except Exception as error:  # whatever the runtime raises, the model is what is missing
        raise ConfigError(f"embedding model {model_id} could not be loaded: {error}") from None
    return calibrated(file.name, rows, delta, policy, encoder, Calibration.load())


def calibrated(
    name: str, rows: Sequence[PairRow], delta: float, policy: Policy, encoder: TextModel, calibration: Calibration
) -> Calibrated:
    """The verdict on each pair, as in a namespace without history. Raises ConfigError without a verifier."""
    rules = rules_of(policy)[NAMESPACE]
    if not isinstance(encoder, PairModel) or encoder.info.model_id != calibration.model_id:
        raise ConfigError(
            f"{encoder.info.model_id} gives no probabilities: calibrate needs {calibration.model_id}, so put it first in "
            "LLMMESH_EMBEDDER_MODELS"
        )
    if not rules.verifier:
        raise ConfigError(f"namespace {NAMESPACE} goes by similarity alone: set `verifier: true` in the policy")
    budget = rules.error_budget

    def trial() -> CacheTrial:
        return CacheTrial(encoder, rules, budget, calibration, learns=False)

    lines = serve_pairs([(row.a, row.b, row.same_answer) for row in rows], encoder, trial, rules)
    judged = [(row, line) for row, line in zip(rows, lines, strict=True) if line["reason"] != "exact"]
    same = [row.same_answer for row, _ in judged]
    curve = Curve([line["probability"] for _, line in judged], same)
    cosine = Curve([line["similarity"] for _, line in judged], same)

    def risk_under(error_budget: float) -> float:
        return Quality(calibration, SystemClock()).highest_risk("", "", error_budget)

    today = curve.at(1.0 - risk_under(budget))
    suggestion = suggest(curve, delta, risk_under)
    threshold = today.threshold if suggestion.point is None else suggestion.point.threshold
    return Calibrated(
        file=name,
        delta=delta,
        model_id=encoder.info.model_id,
        identical=len(rows) - len(judged),
        curve=curve,
        cosine=cosine,
        error_budget=budget,
        today=today,
        suggestion=suggestion,
        cosine_best=cosine.loosest(delta, -1.0),
        worst=_examples(judged, same_answer=False, from_=threshold, below=None),
        missed=_examples(judged, same_answer=True, from_=None, below=threshold),
    )


def _examples(
    judged: Sequence[tuple[PairRow, Line]], *, same_answer: bool, from_: float | None, below: float | None
) -> tuple[Example, ...]:
    """Pairs with that label that are served (`from_`) or not (`below`), the most probable first."""
    found: list[Example] = []
    for row, line in judged:
        probability = line["probability"]
        known = -1.0 if probability is None else probability
        inside = (from_ is None or known >= from_) and (below is None or known < below)
        if row.same_answer is same_answer and inside:
            found.append(Example(row.a, row.b, probability, line["similarity"] or 0.0, line["reason"]))
    found.sort(key=lambda e: (-1.0 if e.probability is None else e.probability, e.similarity), reverse=True)
    return tuple(found[:EXAMPLES])


def table_points(found: Calibrated) -> list[tuple[Point, str]]:
    """The rows of the table, the strictest first, with today's and the suggested setting among them, named."""
    points = {round(p, 6): (found.curve.at(p), "") for p in GRID}
    named = [(found.today, TODAY)]
    if found.suggestion.point is not None:
        named.append((found.suggestion.point, SUGGESTED))
    for point, name in named:
        key = round(point.threshold, 6)
        before = points.get(key, (point, ""))[1]
        points[key] = (point, f"{before}, {name}" if before else name)
    return [points[key] for key in sorted(points, reverse=True)]


def show(found: Calibrated, console: Console) -> None:
    """Prints table and verdict."""
    table = Table(title=f"{found.curve.rows:,} pairs, {found.curve.wanted:,} with one answer", title_justify="left")
    for name in ("P required", "hits", "hit share", "of wanted", "wrong", "wrong share", "95% interval"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for point, name in table_points(found):
        low, high = point.interval
        style = "bold" if name else ("" if high <= found.delta else "dim")
        table.add_row(
            f"{point.threshold:.4f}",
            f"{point.hits:,}",
            f"{point.hit_share:.1%}",
            _of_wanted(point, found.curve),
            f"{point.wrong:,}",
            f"{point.wrong_share:.2%}",
            f"{low:.2%} – {high:.2%}",
            name,
            style=style,
        )
    console.print(table)
    console.print(found.verdict, highlight=False)
    console.print(cosine_said(found), highlight=False)
    if found.identical:
        console.print(identical_said(found), highlight=False)
    console.print(f"[dim]{found.caution}[/dim]", highlight=False)


def _of_wanted(point: Point, curve: Curve) -> str:
    return f"{(point.hits - point.wrong) / curve.wanted:.1%}" if curve.wanted else "-"


def cosine_said(found: Calibrated) -> str:
    """What a bare threshold would do on the same pairs."""
    best = found.cosine_best
    if best is None:
        return f"No plain cosine threshold keeps within {found.delta:.2%} on these pairs."
    return (
        f"Plain cosine within {found.delta:.2%}: from {best.threshold:.3f} on, {best.hit_share:.1%} hits, "
        f"{best.wrong_share:.2%} wrong."
    )


def identical_said(found: Calibrated) -> str:
    """What was left out."""
    pairs = "pair is" if found.identical == 1 else "pairs are"
    return f"{found.identical:,} {pairs} left out: the same words twice are an exact hit under any setting."


def as_json(found: Calibrated) -> dict[str, object]:
    """All figures."""
    return {
        "file": found.file,
        "model": found.model_id,
        "delta": found.delta,
        "pairs": found.curve.rows,
        "with_one_answer": found.curve.wanted,
        "identical": found.identical,
        "error_budget": found.error_budget,
        "today": _point(found.today, found.curve),
        "suggested": None if found.suggestion.point is None else _point(found.suggestion.point, found.curve),
        "suggested_error_budget": found.suggestion.error_budget,
        "reached": None if found.suggestion.reached is None else _point(found.suggestion.reached, found.curve),
        "no_suggestion": found.suggestion.why or None,
        "cosine": None if found.cosine_best is None else _point(found.cosine_best, found.cosine),
        "verdict": found.verdict,
        "curve": [_point(point, found.curve) for point, _ in table_points(found)],
    }


def _point(point: Point, curve: Curve) -> dict[str, float | int | None]:
    low, high = point.interval
    return {
        "threshold": round(point.threshold, 6),
        "hits": point.hits,
        "wrong": point.wrong,
        "hit_share": point.hit_share,
        "of_wanted": (point.hits - point.wrong) / curve.wanted if curve.wanted else None,
        "wrong_share": point.wrong_share,
        "wrong_low": low,
        "wrong_high": high,
    }
