"""The ledger's records as a file: one flat row a request, money in whole nano-USD."""

import csv
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TextIO

import grpc
import pyarrow
import pyarrow.parquet

from llmmesh.common.v1 import usage_pb2
from llmmesh.edge.v1 import costs_pb2
from services.cli.client import Client, in_words
from services.cli.mesh import MeshError

Row = dict[str, str | int | bool]

_NAMES = (
    "record_id",
    "request_id",
    "tenant",
    "namespace",
    "endpoint",
    "user",
    "model",
    "tier",
    "outcome",
    "error",
    "kind",
)
_TOKENS = (
    "input_tokens",
    "cache_read_input_tokens",
    "cache_write_input_tokens",
    "output_tokens",
    "reasoning_output_tokens",
)
_SAVINGS = tuple(field.name for field in usage_pb2.Savings.DESCRIPTOR.fields)
COMPONENTS = {
    number: name.removeprefix("COST_COMPONENT_").lower()
    for name, number in usage_pb2.CostComponent.items()
    if number != usage_pb2.COST_COMPONENT_UNSPECIFIED
}


class Format(StrEnum):
    """How the rows are written."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def row_of(record: costs_pb2.UsageRecord) -> Row:
    """A record without nesting. `cost_<component>_nanousd` add up to `actual_nanousd`, and so do `baseline_nanousd` less
    the savings plus `overhead_nanousd`.
    """
    row: Row = {"at": record.at.ToDatetime(UTC).isoformat(timespec="milliseconds")}
    row |= {name: getattr(record, name) for name in _NAMES}
    row |= {name: getattr(record.usage, name) for name in _TOKENS}
    bill = record.bill
    row |= {
        "usage_estimated": record.usage.estimated,
        "baseline_nanousd": bill.baseline_nanousd,
        **{f"saved_{name}": getattr(bill.savings, name) for name in _SAVINGS},
        "overhead_nanousd": bill.overhead_nanousd,
        "actual_nanousd": bill.actual_nanousd,
        "unpriced": bill.unpriced,
    }
    costs = dict.fromkeys(COMPONENTS.values(), 0)
    for item in bill.items:
        costs[COMPONENTS[item.component]] += item.cost_nanousd
    return row | {f"cost_{name}_nanousd": cost for name, cost in costs.items()}


async def records(client: Client, start: datetime, end: datetime) -> AsyncIterator[list[costs_pb2.UsageRecord]]:
    """The records of the client's tenant from `start` up to and without `end`. Raises MeshError: the mesh's words."""
    request = costs_pb2.ExportRecordsRequest()
    getattr(request, "from").FromDatetime(start)
    request.to.FromDatetime(end)
    try:
        async for response in client.costs.ExportRecords(request, metadata=client.metadata):
            yield list(response.records)
    except grpc.aio.AioRpcError as error:
        raise MeshError(in_words(error)) from None


_EMPTY = row_of(costs_pb2.UsageRecord())
COLUMNS = tuple(_EMPTY)


@contextmanager
def writing(file: TextIO, form: Format) -> Iterator[Callable[[Iterable[Row]], None]]:
    """Gives what appends rows to a file. The columns stand there even where no row follows."""
    if form is Format.JSONL:
        yield lambda rows: file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif form is Format.CSV:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        yield lambda rows: table.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    else:
        types = {str: pyarrow.string(), int: pyarrow.int64(), bool: pyarrow.bool_()}
        schema = pyarrow.schema([(name, types[type(value)]) for name, value in _EMPTY.items()])
        with pyarrow.parquet.ParquetWriter(file.buffer, schema) as parquet:
            yield lambda rows: parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema))


def format_of(path: Path) -> Format:
    """The format that a file's name asks for. Raises MeshError for another ending."""
    try:
        return Format(path.suffix.removeprefix(".").lower())
    except ValueError:
        raise MeshError(f"{path}: the name has to end in .jsonl, .csv or .parquet") from None


def _harmless(value: str | int | bool) -> str | int | bool:
    """Spreadsheets run what begins like a formula, and callers choose request ids, endpoints and users (OWASP, CSV injection)."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
