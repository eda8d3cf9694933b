"""`llmmesh audit`."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.running import in_words
from services.common import policy as policies
from services.common import prices as books
from services.common.yaml_file import ConfigError


def audit(
    log: Annotated[
        Path,
        typer.Argument(
            metavar="LOG", exists=True, dir_okay=False, help="Request log: JSON lines, JSON array or CSV; also gzip"
        ),
    ],
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="Policy file to judge by. Default: the shipped one", exists=True, dir_okay=False),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option("--prices", help="Price book. Default: the shipped one", exists=True, dir_okay=False)
    ] = None,
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=100, max=1_000_000, help="Requests that the models judge, about")
    ] = 1_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", dir_okay=False, help="Write a report that opens in any browser"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", dir_okay=False, help="Write a JSON line per claim on a request here"),
    ] = None,
    show_texts: Annotated[
        bool, typer.Option("--show-texts", help="Show questions in examples; otherwise no text of the log is shown")
    ] = False,
) -> None:
    """Show where the money of a request log went, how much of it was avoidable, and what to switch on first."""
    from services.cli.audit import audit as audits
    from services.cli.audit.objects import as_json as object_of
    from services.cli.audit.terminal import show
    from services.cli.audit.tools import Tools

    console, said = Console(), Console(stderr=True)
    with in_words():
        tools = Tools.load(policy or policies.SHIPPED, prices or books.SHIPPED)
        with _lines(out) as lines, _Bars(said) as bars:

            def line(claim: audits.Line) -> None:
                if lines is not None:
                    lines.write(json.dumps(claim) + "\n")

            found = audits.audit(
                log, tools, sample, texts=show_texts, progress=bars, out=line if lines is not None else None
            )
        if not found.counts.requests:
            raise ConfigError(f"{log}: none of its {found.counts.malformed:,} lines is a request")
        if page is not None:
            from services.cli.audit.page import write

            write(found, page)
        if as_json:
            sys.stdout.write(json.dumps(object_of(found)) + "\n")
        else:
            show(found, console)
        if page is not None:
            said.print(f"\nThe report is in {escape(str(page))}", highlight=False, soft_wrap=True)


class _Bars:
    """Progress by bytes, then by judged requests. Nothing is shown where nobody looks."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._reading = self._bars.add_task("Reading the log", total=None)
        self._judging = self._bars.add_task("Judging a sample", total=None, visible=False)

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def reading(self, done: int, total: int) -> None:
        self._bars.update(self._reading, completed=done, total=total)

    def judging(self, done: int, total: int) -> None:
        self._bars.update(self._judging, completed=done, total=total, visible=True)


@contextmanager
def _lines(path: Path | None) -> Iterator[TextIO | None]:
    if path is None:
        yield None
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name another file with --out") from None
    with file:
        yield file


def register(app: typer.Typer) -> None:
    """Makes it a command of `app`."""
    app.command()(audit)
