"""An audit in a terminal of 80 columns."""

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.audit.audit import Audit
from services.cli.audit.plan import SHORT, caveats, dollars, headline, margin, plan, share
from services.cli.audit.tally import Spent

ROWS = 6


def show(found: Audit, console: Console) -> None:
    """Prints it: the finding, where the money goes, what is avoidable, the plan, what to keep in mind."""
    counts, fall = found.counts, found.waterfall
    console.print()
    console.print(f"[bold]{escape(headline(found))} {margin(found)}[/bold]".rstrip(), highlight=False)
    span = f", {found.span_s / 86_400:.1f} days" if found.span_s else ""
    console.print(
        f"{escape(found.file)}: {found.form.value}, {counts.requests:,} requests{span}, {dollars(fall.spend)}",
        highlight=False,
        style="dim",
    )
    if counts.malformed:
        console.print(f"[yellow]{counts.malformed:,} lines could not be read[/yellow], such as", highlight=False)
        for bad in counts.first_malformed:
            console.print(f"  line {bad.line:,}: {escape(bad.reason)}", highlight=False)
    for name, rows in found.by.items():
        if len(rows) > 1 or name == "model":
            _spend(name, rows, fall.spend, console)
    _waste(found, console)
    _plan(found, console)
    if found.oversized:
        console.print("\n[bold]Worth a look[/bold] (advice; in no sum above)")
        for one in found.oversized[:3]:
            limit = f", {one.unlimited:,} of them without a limit" if one.unlimited else ""
            console.print(
                f"  {escape(one.kind)}: {one.long_answers:,} of {one.answers:,} answers are over four times the usual "
                f"{one.median_tokens:,} tokens{limit}; up to {dollars(one.nanousd)}.",
                highlight=False,
            )
    console.print("\n[bold]Keep in mind[/bold]")
    for said in caveats(found):
        console.print(f"  [dim]•[/dim] {escape(said)}", highlight=False)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _spend(name: str, rows: list[tuple[str, Spent]], spend: int, console: Console) -> None:
    if name == "day" and len(rows) > ROWS:
        dearest = max(rows, key=lambda row: row[1].nanousd)
        mean = spend // len(rows)
        console.print(
            f"\n[bold]By day[/bold]: {dollars(mean)} on average over {len(rows)} days, "
            f"most on {dearest[0]}: {dollars(dearest[1].nanousd)}",
            highlight=False,
        )
        return
    table = _table(f"By {name}")
    table.add_column("", overflow="ellipsis", no_wrap=True, max_width=34)
    for column in ("requests", "cost", "share"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, spent in rows[:ROWS]:
        table.add_row(escape(label), f"{spent.requests:,}", dollars(spent.nanousd), share(spent.nanousd, spend))
    if len(rows) > ROWS:
        rest = [spent for _, spent in rows[ROWS:]]
        cost = sum(spent.nanousd for spent in rest)
        table.add_row(f"{len(rest):,} more", f"{sum(s.requests for s in rest):,}", dollars(cost), share(cost, spend))
    console.print()
    console.print(table)


def _waste(found: Audit, console: Console) -> None:
    fall = found.waterfall
    table = _table("What is avoidable (each dollar is claimed once, from top to bottom)")
    table.add_column("")
    for column in ("requests", "in this log", "share", "95% interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row("spent", f"{found.counts.requests:,}", dollars(fall.spend), "100%", "")
    for saving in fall.savings:
        about = "~" if saving.estimated else ""
        interval = f"{dollars(saving.low)} – {dollars(saving.high)}" if saving.high > saving.low else ""
        table.add_row(
            f"– {SHORT[saving.waste]}",
            f"{about}{saving.requests:,}",
            f"{about}{dollars(saving.nanousd)}",
            share(saving.nanousd, fall.spend),
            interval,
        )
    table.add_row("remains", "", dollars(fall.remaining), share(fall.remaining, fall.spend), "", style="bold")
    console.print()
    console.print(table)


def _plan(found: Audit, console: Console) -> None:
    steps = plan(found)
    console.print("\n[bold]What to switch on, in this order[/bold]")
    if not steps:
        console.print("  Nothing here is worth it: this traffic is lean already.")
    for step in steps:
        if step.monthly is None:
            saved = f"{dollars(step.saving.nanousd)} in this log"
        else:
            between = ""
            if step.monthly_low is not None and step.monthly_high is not None and step.monthly_high > step.monthly_low:
                between = f" ({dollars(step.monthly_low)} to {dollars(step.monthly_high)})"
            saved = f"{dollars(step.monthly)} a month{between}"
        console.print(f"  {step.number}. [bold]{step.kind.title}[/bold]: {saved}", highlight=False)
        console.print(f"     {step.kind.takes}", highlight=False, style="dim")
        console.print(f"     Risk for answers: {step.kind.risk}", highlight=False, style="dim")
