"""What a replay found: counts, money, latency, and whether each hit was right."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

from rich.console import Console
from rich.table import Table

from llmmesh.edge.v1 import inference_pb2
from services.cli.chat import OUTCOMES
from services.cli.demo.workload import Request
from services.common.money import usd

LAYERS = ("cache", "routing", "compression", "prompt_cache", "batch")
HITS = ("exact_hit", "semantic_hit")
NOT_GENERATED = (*HITS, "coalesced")


class Latency(TypedDict):
    """Milliseconds from the request to the whole answer."""

    p50: float
    p95: float
    n: int


class ReportJson(TypedDict):
    """What `llmmesh demo --json` prints."""

    requests: int
    answered: int
    errors: int
    exact_hits: int
    semantic_hits: int
    coalesced: int
    misses: int
    wrong_hits: int
    trap_pairs: int
    trap_hits: int
    unverified_hits: int
    tiers: dict[str, int]
    tokens: dict[str, int]
    actual_nanousd: int
    baseline_nanousd: int
    savings_nanousd: dict[str, int]
    overhead_nanousd: int
    identity_holds: bool
    degraded: dict[str, int]
    latency_ms: dict[str, Latency]


@dataclass(frozen=True)
class Outcome:
    """One replayed request: its answer, or the error in words; and how long it took, in seconds."""

    request: Request
    response: inference_pb2.CompleteResponse | None
    error: str | None
    seconds: float


def sources(outcomes: Sequence[Outcome]) -> dict[str, Request]:
    """The request that each entry was made for, as far as this replay made it."""
    return {
        o.response.receipt.entry_id: o.request
        for o in outcomes
        if o.response and OUTCOMES[o.response.receipt.outcome] not in NOT_GENERATED and o.response.receipt.entry_id
    }


def hits(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, str]]:
    """Requests that were answered from the cache, each with the entry that served it."""
    return [
        (o, o.response.receipt.entry_id)
        for o in outcomes
        if o.response and OUTCOMES[o.response.receipt.outcome] in HITS
    ]


def wrong_hits(outcomes: Sequence[Outcome]) -> list[tuple[Outcome, Request]]:
    """Hits whose answer was made for a question with another label, each with the request that the answer came from."""
    made_for = sources(outcomes)
    return [
        (o, made_for[entry])
        for o, entry in hits(outcomes)
        if entry in made_for and made_for[entry].answer_id != o.request.answer_id
    ]


def summarise(outcomes: Sequence[Outcome]) -> ReportJson:
    """The figures of a replay."""
    answered = [(o, o.response) for o in outcomes if o.response is not None]
    kinds = Counter(OUTCOMES[response.receipt.outcome] for _, response in answered)
    bills = [response.receipt.bill for _, response in answered]
    wrong = wrong_hits(outcomes)
    made_for = sources(outcomes)
    saved = {layer: sum(getattr(b.savings, f"{layer}_nanousd") for b in bills) for layer in LAYERS}
    usages = [response.usage for _, response in answered]
    latency: dict[str, Latency] = {}
    for kind in sorted(kinds):
        times = sorted(o.seconds * 1000 for o, r in answered if OUTCOMES[r.receipt.outcome] == kind)
        latency[kind] = {"p50": _percentile(times, 50), "p95": _percentile(times, 95), "n": len(times)}
    return {
        "requests": len(outcomes),
        "answered": len(answered),
        "errors": len(outcomes) - len(answered),
        "exact_hits": kinds["exact_hit"],
        "semantic_hits": kinds["semantic_hit"],
        "coalesced": kinds["coalesced"],
        "misses": kinds["miss"] + kinds["bypass"],
        "wrong_hits": len(wrong),
        "trap_pairs": len({o.request.trap for o in outcomes if o.request.trap}),
        "trap_hits": sum(1 for o, source in wrong if o.request.trap and o.request.trap == source.trap),
        # Of entries that an earlier run wrote into the same mesh: nobody knows for which question.
        "unverified_hits": sum(entry not in made_for for _, entry in hits(outcomes)),
        "tiers": dict(Counter(r.receipt.tier for _, r in answered if OUTCOMES[r.receipt.outcome] not in NOT_GENERATED)),
        "tokens": {
            "input": sum(u.input_tokens for u in usages),
            "output": sum(u.output_tokens for u in usages),
            "cached": sum(u.cache_read_input_tokens for u in usages),
        },
        "actual_nanousd": sum(b.actual_nanousd for b in bills),
        "baseline_nanousd": sum(b.baseline_nanousd for b in bills),
        "savings_nanousd": saved,
        "overhead_nanousd": sum(b.overhead_nanousd for b in bills),
        "identity_holds": all(
            b.baseline_nanousd - sum(getattr(b.savings, f"{x}_nanousd") for x in LAYERS) + b.overhead_nanousd
            == b.actual_nanousd
            == sum(item.cost_nanousd for item in b.items)
            for b in bills
        ),
        "degraded": dict(Counter(name for _, r in answered for name in r.receipt.degraded)),
        "latency_ms": latency,
    }


def _percentile(ordered: Sequence[float], percent: int) -> float:
    """Nearest rank."""
    return round(ordered[max(-(-len(ordered) * percent // 100) - 1, 0)], 2)


def show(report: ReportJson, outcomes: Sequence[Outcome], console: Console) -> None:
    """The figures for people."""
    total = report["answered"] or 1
    table = Table(title="What the mesh did", show_header=False, min_width=64)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    table.add_row("requests", f"{report['requests']}", f"{report['answered']} answered, {report['errors']} errors")
    table.add_row("exact hits", f"{report['exact_hits']}", f"{report['exact_hits'] / total:.0%}")
    table.add_row("semantic hits", f"{report['semantic_hits']}", f"{report['semantic_hits'] / total:.0%}")
    if report["coalesced"]:
        table.add_row("coalesced", f"{report['coalesced']}", "the answer of an identical request at the same time")
    table.add_row("misses", f"{report['misses']}", "answered by a model")
    table.add_row(
        "wrong hits",
        f"[{'red' if report['wrong_hits'] else 'green'}]{report['wrong_hits']}[/]",
        f"against the labels; {report['trap_hits']} of {report['trap_pairs']} trap pairs",
    )
    if report["unverified_hits"]:
        table.add_row("not verified", f"{report['unverified_hits']}", "hits on answers of an earlier run")
    tiers = ", ".join(f"{name or 'pinned'} {n}" for name, n in sorted(report["tiers"].items()))
    table.add_row("tiers of the misses", "", tiers)
    tokens = report["tokens"]
    table.add_row(
        "tokens", f"{tokens['input'] + tokens['output']:,}", f"{tokens['input']:,} in, {tokens['output']:,} out"
    )
    degraded = ", ".join(f"{name} ×{n}" for name, n in sorted(report["degraded"].items())) or "nothing"
    table.add_row("degraded", "", degraded)
    console.print(table)

    money = Table(title="What it cost", min_width=64)
    money.add_column("")
    money.add_column("USD", justify="right")
    money.add_column("of baseline", justify="right")
    baseline = report["baseline_nanousd"] or 1
    money.add_row("baseline (all by the baseline model)", usd(report["baseline_nanousd"]), "100%", style="bold")
    for layer in LAYERS:
        amount = report["savings_nanousd"][layer]
        if amount:
            money.add_row(f"− saved by {layer.replace('_', ' ')}", usd(amount), f"{amount / baseline:.1%}")
    money.add_row(
        "+ overhead (embedding, failed calls)",
        usd(report["overhead_nanousd"]),
        f"{report['overhead_nanousd'] / baseline:.1%}",
    )
    money.add_row("= actual", usd(report["actual_nanousd"]), f"{report['actual_nanousd'] / baseline:.1%}", style="bold")
    console.print(money)
    if not report["identity_holds"]:
        console.print("[red]The sums do not add up: baseline − savings + overhead ≠ actual.[/red]")

    times = Table(title="How fast (whole answer)", min_width=64)
    for name in ("outcome", "p50 ms", "p95 ms", "n"):
        times.add_column(name, justify="left" if name == "outcome" else "right")
    for kind, row in report["latency_ms"].items():
        times.add_row(kind.replace("_", " "), f"{row['p50']:,.1f}", f"{row['p95']:,.1f}", str(row["n"]))
    console.print(times)

    for outcome, made_for in wrong_hits(outcomes)[:10]:
        console.print(f"[red]wrong hit[/red] {outcome.request.id} got the answer of {made_for.id}")
    errors = Counter(o.error for o in outcomes if o.error)
    for error, n in errors.most_common(5):
        console.print(f"[red]{n} × {error}[/red]")
