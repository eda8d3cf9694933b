"""`llmmesh demo`: replays the workload through a running mesh."""

import asyncio
import time
from collections.abc import Sequence

import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from llmmesh.edge.v1 import inference_pb2
from services.cli.chat import OUTCOMES
from services.cli.client import Client, connect, in_words
from services.cli.demo.report import Outcome
from services.cli.demo.workload import Request
from services.cli.mesh import MeshJson

HEADING = (
    "Support desk, English and Spanish, two tenants. Simple questions go to the local engine at its measured cost. "
    "All others go to a local stand-in vendor: it speaks the OpenAI wire, answers with the same small model, and is "
    "billed at list prices. The money is what the vendor's list says, not what anyone paid."
)
TIMEOUT_S = 120.0


async def replay(mesh: MeshJson, requests: Sequence[Request], concurrency: int, console: Console) -> list[Outcome]:
    """Sends the requests in order, at most `concurrency` at a time, and returns what came back, in order."""
    outcomes: list[Outcome | None] = [None] * len(requests)
    waiting = iter(enumerate(requests))
    hits = {"exact_hit": 0, "semantic_hit": 0, "miss": 0, "error": 0}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    with Progress(*columns, console=console) as progress:
        task = progress.add_task("replaying", total=len(requests))

        async def worker(clients: dict[str, Client]) -> None:
            for index, request in waiting:
                outcome = await _ask(clients[request.tenant], request)
                outcomes[index] = outcome
                kind = OUTCOMES[outcome.response.receipt.outcome] if outcome.response else "error"
                hits[kind] = hits.get(kind, 0) + 1
                words = f"{hits['exact_hit']} exact, {hits['semantic_hit']} semantic, {hits['miss']} by a model"
                progress.update(
                    task, advance=1, description=words + (f", {hits['error']} errors" if hits["error"] else "")
                )

        async with connect(mesh, "acme-shop") as acme, connect(mesh, "volta-energy") as volta:
            clients = {"acme-shop": acme, "volta-energy": volta}
            await asyncio.gather(*(worker(clients) for _ in range(concurrency)))
    return [outcome for outcome in outcomes if outcome is not None]


async def _ask(client: Client, request: Request) -> Outcome:
    message = inference_pb2.CompleteRequest(chat=request.chat, endpoint=request.endpoint, user=request.user)
    started = time.perf_counter()
    try:
        response = await client.inference.Complete(message, metadata=client.metadata, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        return Outcome(request, None, in_words(error), time.perf_counter() - started)
    return Outcome(request, response, None, time.perf_counter() - started)
