"""`llmmesh budgets`: what limits hold, and how full they are."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmmesh.edge.v1 import costs_pb2
from services.cli.client import connect, in_words
from services.cli.mesh import MeshError, MeshJson, default_state_dir, read_mesh_json
from services.cli.running import run
from services.common.money import usd

_BAR = 20
_MODES = {costs_pb2.BUDGET_MODE_HARD: "hard", costs_pb2.BUDGET_MODE_SOFT: "soft"}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("budgets")(budgets)


def budgets(
    state: Annotated[
        Path | None, typer.Option("--state", help="Folder of the mesh. Default: ~/.local/state/llmmesh")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="One tenant's. Default: all whose keys the mesh has")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Show what limits hold, what is spent of them, and when they reset."""
    run(_show(state or default_state_dir(), tenant, as_json, Console()))


async def _show(state: Path, tenant: str | None, as_json: bool, console: Console) -> None:
    mesh = read_mesh_json(state)
    standing = {name: await _budgets_of(mesh, name) for name in ([tenant] if tenant else mesh["keys"])}
    if as_json:
        shown = {
            name: [MessageToDict(budget, preserving_proto_field_name=True) for budget in rows]
            for name, rows in standing.items()
        }
        console.print_json(json.dumps(shown))
        return
    for name, rows in standing.items():
        if rows:
            console.print(table_of(name, rows))
        else:
            console.print(f"{name}: the policy has no budget for it", highlight=False)


async def _budgets_of(mesh: MeshJson, tenant: str) -> list[costs_pb2.Budget]:
    async with connect(mesh, tenant) as client:
        try:
            answer = await client.costs.ListBudgets(
                costs_pb2.ListBudgetsRequest(), metadata=client.metadata, timeout=10
            )
        except grpc.aio.AioRpcError as error:
            raise MeshError(in_words(error)) from None
    return list(answer.budgets)


def table_of(tenant: str, rows: list[costs_pb2.Budget]) -> Table:
    """The budgets of a tenant, a line each."""
    table = Table(title=tenant, title_justify="left")
    for name in ("budget", "for", "period"):
        table.add_column(name, overflow="fold")
    table.add_column("mode")
    for name in ("limit", "spent", "reserved"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("used", no_wrap=True)
    table.add_column("resets (UTC)", no_wrap=True)
    for row in rows:
        resets = datetime.fromtimestamp(row.resets_at.ToSeconds(), UTC)
        table.add_row(
            row.name,
            escape(_whom(row)),
            row.period,
            _MODES.get(row.mode, ""),
            *(usd(amount) for amount in (row.limit_nanousd, row.spent_nanousd, row.reserved_nanousd)),
            bar(row.limit_nanousd, row.spent_nanousd, row.reserved_nanousd),
            f"{resets:%Y-%m-%d %H:%M}",
        )
    return table


def _whom(row: costs_pb2.Budget) -> str:
    parts = (("endpoint", row.endpoint), ("user", row.user), ("namespace", row.namespace))
    return ", ".join(f"{name} {value}" for name, value in parts if value) or "all requests"


def bar(limit: int, spent: int, reserved: int) -> str:
    """Spent, reserved and free as a bar, and the share that is not free. It is full only when nothing is free."""
    used = min(spent, limit) * _BAR // limit
    taken = min(spent + reserved, limit) * _BAR // limit
    colour = "red" if spent + reserved >= limit else "yellow" if 5 * (spent + reserved) >= 4 * limit else "green"
    cells = f"[{colour}]{'█' * used}{'▒' * (taken - used)}[/{colour}]{'░' * (_BAR - taken)}"
    return f"{cells} {(spent + reserved) / limit:>4.0%}"
