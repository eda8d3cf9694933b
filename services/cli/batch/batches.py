"""What the batch commands do: calls, progress, and what is printed."""

import asyncio
import json
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from llmmesh.edge.v1 import batch_pb2
from services.cli.batch.file import read, result_line
from services.cli.client import Client, in_words
from services.cli.mesh import MeshError
from services.common.errors import from_rpc_error
from services.common.money import usd

R = TypeVar("R")

TIMEOUT_S = 60.0
LOOK_EVERY_S = 1.0
PATIENCE = 30  # looks in a row that may fail while the mesh is restarted
_OVER = (batch_pb2.BATCH_STATUS_COMPLETED, batch_pb2.BATCH_STATUS_CANCELLED, batch_pb2.BATCH_STATUS_EXPIRED)


async def submit(
    client: Client, file: Path, model: str | None, namespace: str, endpoint: str, key: str, *, wait: bool, as_json: bool
) -> None:
    """Hands a file in. Raises MeshError, and ConfigError for lines that are wrong."""
    items = await asyncio.to_thread(read, file, model)
    request = batch_pb2.CreateBatchRequest(items=items, namespace=namespace, endpoint=endpoint, idempotency_key=key)
    call = client.batches.CreateBatch(request, metadata=client.metadata, timeout=TIMEOUT_S)
    batch = (await told(call)).batch
    if wait:
        batch = await watch(client, batch.id)
    show(batch, as_json=as_json)


async def status(client: Client, batch_id: str, *, wait: bool, as_json: bool) -> None:
    """Prints how far a batch is. Raises MeshError."""
    show(await (watch(client, batch_id) if wait else _get(client, batch_id)), as_json=as_json)


async def cancel(client: Client, batch_id: str, *, as_json: bool) -> None:
    """Ends a batch early. Raises MeshError."""
    request = batch_pb2.CancelBatchRequest(id=batch_id)
    call = client.batches.CancelBatch(request, metadata=client.metadata, timeout=TIMEOUT_S)
    show((await told(call)).batch, as_json=as_json)


async def results(client: Client, batch_id: str, out: Path | None, *, follow: bool) -> None:
    """Writes the results, a line each. Raises MeshError."""
    request = batch_pb2.StreamBatchResultsRequest(id=batch_id, follow=follow)
    timeout = None if follow else 600.0
    file = out.open("w", encoding="utf-8") if out else sys.stdout
    count = 0
    try:
        async for result in client.batches.StreamBatchResults(request, metadata=client.metadata, timeout=timeout):
            file.write(result_line(result) + "\n")
            count += 1
    except grpc.aio.AioRpcError as error:
        raise MeshError(in_words(error)) from None
    finally:
        if out:
            file.close()
    if out:
        Console(stderr=True).print(f"{count:,} results in {out}", highlight=False)


async def listing(client: Client, *, as_json: bool) -> None:
    """Prints the newest batches. Raises MeshError."""
    request = batch_pb2.ListBatchesRequest(page_size=100)
    batches = (await told(client.batches.ListBatches(request, metadata=client.metadata, timeout=TIMEOUT_S))).batches
    if as_json:
        sys.stdout.write(json.dumps([_dict(batch) for batch in batches]) + "\n")
        return
    table = Table()
    for name in ("batch", "status", "created (UTC)"):
        table.add_column(name, no_wrap=True)
    for name in ("items", "ended", "cost $"):
        table.add_column(name, justify="right")
    for batch in batches:
        counts = batch.counts
        ended = counts.answered + counts.failed + counts.cancelled
        cost = usd(batch.bill.actual_nanousd).removeprefix("$")
        created = batch.created_at.ToDatetime().strftime("%Y-%m-%d %H:%M")
        table.add_row(batch.id, _status(batch), created, f"{counts.total:,}", f"{ended:,}", cost)
    Console().print(table)


async def watch(client: Client, batch_id: str) -> batch_pb2.Batch:
    """Shows progress until the batch has ended. Raises MeshError."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[cached]:,} out of the cache, {task.fields[failed]:,} failed"),
        TimeElapsedColumn(),
    )
    batch = await _get(client, batch_id)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(_status(batch), total=batch.counts.total, cached=0, failed=0)
        while True:
            counts = batch.counts
            progress.update(
                task,
                description=_status(batch),
                completed=counts.answered + counts.failed + counts.cancelled,
                cached=counts.cached,
                failed=counts.failed,
            )
            if batch.status in _OVER:
                return batch
            await asyncio.sleep(LOOK_EVERY_S)
            batch = await _patiently(client, batch_id)


async def _patiently(client: Client, batch_id: str) -> batch_pb2.Batch:
    """The batch; a mesh that is away for a moment is asked again."""
    request = batch_pb2.GetBatchRequest(id=batch_id)
    for _ in range(PATIENCE):
        try:
            return (await client.batches.GetBatch(request, metadata=client.metadata, timeout=TIMEOUT_S)).batch
        except grpc.aio.AioRpcError as error:
            if not from_rpc_error(error).retryable:
                raise MeshError(in_words(error)) from None
        await asyncio.sleep(LOOK_EVERY_S)
    return await _get(client, batch_id)


async def _get(client: Client, batch_id: str) -> batch_pb2.Batch:
    request = batch_pb2.GetBatchRequest(id=batch_id)
    return (await told(client.batches.GetBatch(request, metadata=client.metadata, timeout=TIMEOUT_S))).batch


async def told(call: Awaitable[R]) -> R:
    """The call's result. Raises MeshError in words."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise MeshError(in_words(error)) from None


def show(batch: batch_pb2.Batch, *, as_json: bool) -> None:
    """Prints a batch."""
    if as_json:
        sys.stdout.write(json.dumps(_dict(batch)) + "\n")
        return
    console = Console()
    counts, bill = batch.counts, batch.bill
    console.print(f"{batch.id}: {_status(batch)}", highlight=False, soft_wrap=True)
    parts = [f"{counts.answered:,} of {counts.total:,} answered, {counts.cached:,} of them out of the cache"]
    parts += [
        f"{number:,} {what}" for number, what in ((counts.failed, "failed"), (counts.cancelled, "cancelled")) if number
    ]
    console.print(f"  {', '.join(parts)}", highlight=False)
    saved = bill.baseline_nanousd - bill.actual_nanousd
    unpriced = ", not counting models without a price" if bill.unpriced else ""
    console.print(
        f"  cost {usd(bill.actual_nanousd)}, saved {usd(saved)}, of which {usd(bill.savings.batch_nanousd)} as a batch{unpriced}",
        highlight=False,
    )
    if batch.status not in _OVER:
        console.print(f"  ends by {batch.expires_at.ToDatetime():%Y-%m-%d %H:%M} UTC", highlight=False)


def _status(batch: batch_pb2.Batch) -> str:
    return batch_pb2.BatchStatus.Name(batch.status).removeprefix("BATCH_STATUS_").lower().replace("_", " ")


def _dict(batch: batch_pb2.Batch) -> dict[str, object]:
    shown: dict[str, object] = MessageToDict(
        batch, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return shown
