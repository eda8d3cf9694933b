"""An audit from a log to what it found."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypedDict

from services.cli.audit import near
from services.cli.audit.claims import Claims, Judged, Waste, Waterfall, waterfall
from services.cli.audit.layers import Found, Layers
from services.cli.audit.near import Near
from services.cli.audit.sample import Block, Kept
from services.cli.audit.scan import EXCERPT, Claimed, Counts, Example, Scan
from services.cli.audit.tally import Oversized, Spent
from services.cli.audit.tools import Pricing, Tools
from services.cli.logs import Form, form_of, read_log

EXAMPLES = 5
MONTH_S = 365.25 / 12 * 86_400


class Line(TypedDict):
    """A line of --out: a claim on a request of the log, `same_as` and `probability` where an earlier answer would have served."""

    line: int
    waste: str
    nanousd: int
    same_as: int | None
    probability: float | None


@dataclass(frozen=True, slots=True)
class Shown:
    """An example of a class of waste: how often it was seen, the money in it (in nano-USD), and what was seen."""

    times: int
    nanousd: int
    line: int
    model: str
    endpoint: str
    note: str
    text: str = ""
    other: str = ""


@dataclass(frozen=True, slots=True)
class Sampled:
    """How the sample came out: requests that were judged, in how many blocks; questions that the cache could have been asked, how
    many it would have answered, and how many of these wrongly by the log's own answers.
    """

    judged: int
    blocks: int
    complete: bool
    questions: int
    served: int
    contradicted: int


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found. Money in nano-USD."""

    file: str
    form: Form
    counts: Counts
    waterfall: Waterfall
    sampled: Sampled
    by: dict[str, list[tuple[str, Spent]]]
    unpriced: list[tuple[str, Spent]]
    oversized: list[Oversized]
    examples: dict[Waste, list[Shown]]
    ttl_s: float
    overflowed: bool
    routes: list[tuple[str, str, int]] = field(default_factory=list)

    @property
    def span_s(self) -> float:
        """Seconds from the first request to the last; 0 where the log has no times."""
        first, last = self.counts.first, self.counts.last
        return 0.0 if first is None or last is None else last - first

    def monthly(self, nanousd: int) -> int | None:
        """What a sum of the log comes to in a month; None where the log has too little time to say."""
        return round(nanousd * (MONTH_S / self.span_s)) if self.span_s >= 3600 else None


class Progressed(Protocol):
    """Hears how far the audit is."""

    def reading(self, done: int, total: int) -> None:
        """Bytes of the file."""
        ...

    def judging(self, done: int, total: int) -> None:
        """Steps of the sample."""
        ...


def audit(
    log: Path,
    tools: Tools,
    sample: int,
    *,
    texts: bool = False,
    progress: Progressed | None = None,
    out: Callable[[Line], None] | None = None,
) -> Audit:
    """Audits a log in one pass, and judges about `sample` of its requests. Raises ConfigError where it cannot be read.

    `texts`: examples have questions, cut; otherwise none of what people wrote is in the result.
    """
    pricing = Pricing(tools.book, tools.prompt_caches)

    def claimed(one: Claimed) -> None:
        if out is not None:
            out(
                {
                    "line": one.line,
                    "waste": one.waste.value,
                    "nanousd": one.nanousd,
                    "same_as": None,
                    "probability": None,
                }
            )

    form = form_of(log)
    scan = Scan(tools, pricing, sample, texts=texts, claimed=claimed if out is not None else None)
    for item in read_log(log, progress.reading if progress is not None else None):
        scan.add(item)
    blocks = scan.blocks.blocks()
    steps = 2 * sum(len(block.requests) for block in blocks)
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done = min(done + more, steps)
        if progress is not None:
            progress.judging(done, steps)

    verdicts = near.judge(blocks, tools.rules, advance) if steps else near.Verdicts(0, {})
    judged, seen = _judge(blocks, verdicts.near, Layers(tools, pricing), texts, out)
    counts = scan.counts
    found = waterfall(
        counts.spend,
        {waste: (spent.requests, spent.nanousd) for waste, spent in counts.counted.items()},
        judged,
        max(1, scan.blocks.count),
        counts.unclaimed,
    )
    served = list(verdicts.near.values())
    return Audit(
        file=log.name,
        form=form,
        counts=counts,
        waterfall=found,
        sampled=Sampled(
            len(judged),
            len(blocks),
            scan.blocks.complete,
            verdicts.judged,
            len(served),
            sum(one.contradicted for one in served),
        ),
        by={
            "model": scan.models.rows(),
            "endpoint": scan.endpoints.rows(),
            "tenant": scan.tenants.rows(),
            "day": sorted(scan.days.rows()),
        },
        unpriced=scan.unpriced.rows(),
        oversized=scan.lengths.oversized(),
        examples={
            Waste.RETRIES: [_shown(*top, "asked again at once") for top in scan.retries.first(EXAMPLES)],
            Waste.REPEATED: [_shown(*top, "asked again word for word") for top in scan.repeats.first(EXAMPLES)],
            **{waste: sorted(shown, key=lambda one: -one.nanousd)[:EXAMPLES] for waste, shown in seen.examples.items()},
        },
        ttl_s=tools.rules.ttl[""],
        overflowed=scan.overflowed,
        routes=[(old, new, count) for (old, new), count in seen.routes.most_common(8)],
    )


@dataclass(slots=True)
class _Seen:
    examples: dict[Waste, list[Shown]] = field(default_factory=dict)
    routes: Counter[tuple[str, str]] = field(default_factory=Counter)


def _judge(
    blocks: list[Block], near: dict[int, Near], layers: Layers, texts: bool, out: Callable[[Line], None] | None
) -> tuple[list[Judged], _Seen]:
    """The claims on each judged request, and examples of them."""
    judged: list[Judged] = []
    seen = _Seen()
    for block in blocks:
        for kept in block.requests[block.judged_from :]:
            claims = Claims(kept.cost)
            match = near.get(kept.line)
            found = None
            if match is not None and not match.contradicted:
                claims.claim(Waste.NEAR_REPEATED, claims.left)
            elif kept.chat is not None:
                match = None
                found = layers.claim(kept, kept.chat, claims)
                if Waste.ROUTING in claims.by:
                    seen.routes[kept.model, found.model] += 1
            judged.append(Judged(block.index, kept.cost, claims.by))
            for waste, amount in claims.by.items():
                shown = seen.examples.setdefault(waste, [])
                shown.append(_example(waste, amount, kept, match, found, texts))
                if len(shown) > 50 * EXAMPLES:
                    shown.sort(key=lambda one: -one.nanousd)
                    del shown[EXAMPLES:]
                if out is not None:
                    out(
                        {
                            "line": kept.line,
                            "waste": waste.value,
                            "nanousd": amount,
                            "same_as": match.same_as if match else None,
                            "probability": match.probability if match else None,
                        }
                    )
    return judged, seen


def _example(waste: Waste, amount: int, kept: Kept, match: Near | None, found: Found | None, texts: bool) -> Shown:
    note = ""
    if match is not None:
        sure = "" if match.probability is None else f", {match.probability:.1%} sure"
        note = f"the answer of line {match.same_as:,} serves{sure}"
    elif found is not None and waste is Waste.ROUTING:
        note = f"{found.model} would do: {found.why}"
    elif found is not None and waste is Waste.COMPRESSION:
        note = f"{found.tokens:,} prompt tokens, {found.kept_tokens:,} are needed"
    elif waste is Waste.PROMPT_CACHE:
        note = f"about {kept.readable:,} tokens had been sent before"
    return Shown(
        1,
        amount,
        kept.line,
        kept.model,
        kept.endpoint,
        note,
        kept.text[:EXCERPT] if texts else "",
        match.other[:EXCERPT] if texts and match is not None else "",
    )


def _shown(times: int, nanousd: int, example: Example, note: str) -> Shown:
    return Shown(times, nanousd, example.line, example.model, example.endpoint, note, example.text)
