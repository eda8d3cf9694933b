"""The commands around prices, as `llmmesh` knows them."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from services.cli.prices import listing
from services.cli.prices.check import problems_in
from services.cli.running import in_words
from services.common import policy as policies
from services.common import prices as books
from services.common.prices import PriceBook

prices = typer.Typer(help="What models cost, and what is wrong with a price book.", no_args_is_help=True)

PricesFile = Annotated[
    Path | None, typer.Option("--file", help="Price book. Default: the shipped one", exists=True, dir_okay=False)
]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy file. Default: the shipped one", exists=True, dir_okay=False)
]
VendorsFile = Annotated[
    Path | None,
    typer.Option(
        "--vendors", help="Vendors file. Default: none, so who serves what is not checked", exists=True, dir_okay=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object")]


@prices.command("list")
def list_prices(file: PricesFile = None, as_json: Json = False) -> None:
    """Show today's prices."""
    with in_words():
        book, today = PriceBook.load(file or books.SHIPPED), datetime.now(UTC).date()
        if as_json:
            sys.stdout.write(json.dumps(listing.as_json(book, today)) + "\n")
        else:
            listing.show(book, today, Console())


@prices.command("check")
def check_prices(
    file: PricesFile = None, policy: PolicyFile = None, vendors: VendorsFile = None, as_json: Json = False
) -> None:
    """Find mistakes and gaps in a price book, and models of the policy and the vendors that it lacks. Status 1 if any."""
    book = file or books.SHIPPED
    problems = problems_in(book, policy or policies.SHIPPED, vendors, datetime.now(UTC).date())
    if as_json:
        rows = [{"file": str(p.file), "line": p.line, "problem": p.what, "to_do": p.to_do} for p in problems]
        sys.stdout.write(json.dumps({"ok": not problems, "problems": rows}) + "\n")
    else:
        console = Console()
        for problem in problems:
            where = escape(f"{problem.file}:{problem.line}")
            console.print(
                f"[red]✗[/red] {where}: {escape(problem.what)}\n  {escape(problem.to_do)}",
                highlight=False,
                soft_wrap=True,
            )
        done = (
            f"[red]{len(problems)} {'problem' if len(problems) == 1 else 'problems'}[/red]"
            if problems
            else "[green]✓[/green] no problems"
        )
        console.print(f"{done} in {escape(str(book))}", highlight=False, soft_wrap=True)
    if problems:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Adds the commands to `llmmesh`."""
    app.add_typer(prices, name="prices")
