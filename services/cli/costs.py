"""`llmmesh costs`: what was spent and saved, out of the ledger."""

import json

import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table

from llmmesh.edge.v1 import costs_pb2
from services.cli.client import connect, in_words
from services.cli.mesh import MeshError, MeshJson
from services.common.money import usd

DIMENSIONS = {
    name.removeprefix("COST_DIMENSION_").lower(): number
    for name, number in costs_pb2.CostDimension.items()
    if number != costs_pb2.COST_DIMENSION_UNSPECIFIED
}


async def costs(mesh: MeshJson, console: Console, by: list[str], hours: int, as_json: bool, now: float) -> None:
    """Prints the costs of all tenants whose keys the local mesh has. Raises MeshError with the mesh's error in words."""
    unknown = [dimension for dimension in by if dimension not in DIMENSIONS]
    if unknown:
        raise MeshError(f"cannot group by {unknown[0]!r}; choose among {', '.join(sorted(DIMENSIONS))}")
    request = costs_pb2.QueryCostsRequest(group_by=[DIMENSIONS[dimension] for dimension in by])
    getattr(request, "from").FromSeconds(int(now) - (hours - 1) * 3600)
    answers: dict[str, costs_pb2.QueryCostsResponse] = {}
    for tenant in mesh["keys"]:
        async with connect(mesh, tenant) as client:
            try:
                answers[tenant] = await client.costs.QueryCosts(request, metadata=client.metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                raise MeshError(in_words(error)) from None
    if as_json:
        rows = {t: MessageToDict(a, preserving_proto_field_name=True) for t, a in answers.items()}
        console.print_json(json.dumps(rows))
        return
    for tenant, answer in answers.items():
        table = Table(title=f"{tenant}, last {hours} h", title_justify="left")
        for dimension in by:
            table.add_column(dimension, overflow="fold")
        for name in ("requests", "baseline $", "cost $", "saved"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in answer.rows:
            _add(table, list(row.key), row)
        if by:
            table.add_section()
            _add(table, ["total", *[""] * (len(by) - 1)], answer.total)
        console.print(table)


def _add(table: Table, key: list[str], row: costs_pb2.CostRow) -> None:
    bill = row.bill
    share = f"{1 - bill.actual_nanousd / bill.baseline_nanousd:.1%}" if bill.baseline_nanousd else "-"
    table.add_row(
        *(value or "-" for value in key),
        f"{row.requests:,}" + (f" ({row.unpriced_requests} unpriced)" if row.unpriced_requests else ""),
        _dollars(bill.baseline_nanousd),
        _dollars(bill.actual_nanousd),
        share,
    )


def _dollars(nanousd: int) -> str:
    return usd(nanousd).replace("$", "")
