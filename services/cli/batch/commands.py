"""The batch commands, as `llmmesh` knows them."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from services.cli.batch import batches
from services.cli.cache.target import Where, tenant_of
from services.cli.client import Client, connect
from services.cli.mesh import default_state_dir, read_mesh_json
from services.cli.running import run

batch = typer.Typer(help="Answer files of questions that can wait, at the vendors' batch prices.", no_args_is_help=True)

State = Annotated[Path | None, typer.Option("--state", help="Folder of the mesh. Default: ~/.local/state/llmmesh")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="On whose behalf. Default: the mesh's first tenant")]
Key = Annotated[str | None, typer.Option("--key", help="On whose behalf, by the tenant's key")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object")]
Id = Annotated[str, typer.Argument(metavar="BATCH", help="Id of the batch")]
Wait = Annotated[bool, typer.Option("--wait", help="Show progress until the batch has ended")]


@batch.command()
def submit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.jsonl",
            exists=True,
            dir_okay=False,
            help="OpenAI's batch file: custom_id and body in each line; at most 10,000 lines and 24 MiB",
        ),
    ],
    state: State = None,
    tenant: Tenant = None,
    key: Key = None,
    model: Annotated[
        str | None, typer.Option("--model", help="auto, a tier or a model, for all. Default: what the lines say")
    ] = None,
    namespace: Annotated[str, typer.Option("--namespace", help="The policy's namespace")] = "default",
    endpoint: Annotated[str, typer.Option("--endpoint", help="Name for the ledger")] = "batch",
    idempotency_key: Annotated[
        str, typer.Option("--idempotency-key", help="The same key and file again name the same batch")
    ] = "",
    wait: Wait = False,
    as_json: Json = False,
) -> None:
    """Hand a file in. It is answered within 24 hours."""

    async def work(client: Client) -> None:
        await batches.submit(client, file, model, namespace, endpoint, idempotency_key, wait=wait, as_json=as_json)

    _as(Where(state, tenant, key), work)


@batch.command()
def status(
    batch_id: Id, state: State = None, tenant: Tenant = None, key: Key = None, wait: Wait = False, as_json: Json = False
) -> None:
    """Say how far a batch is, and what it cost so far."""
    _as(Where(state, tenant, key), lambda client: batches.status(client, batch_id, wait=wait, as_json=as_json))


@batch.command()
def results(
    batch_id: Id,
    state: State = None,
    tenant: Tenant = None,
    key: Key = None,
    out: Annotated[
        Path | None, typer.Option("--out", dir_okay=False, help="Write here. Default: standard output")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the batch has ended")] = False,
) -> None:
    """Write the results there are: OpenAI's output lines, with the receipt beside."""
    _as(Where(state, tenant, key), lambda client: batches.results(client, batch_id, out, follow=follow))


@batch.command()
def cancel(batch_id: Id, state: State = None, tenant: Tenant = None, key: Key = None, as_json: Json = False) -> None:
    """End a batch early. What is finished keeps its result."""
    _as(Where(state, tenant, key), lambda client: batches.cancel(client, batch_id, as_json=as_json))


@batch.command("list")
def list_(state: State = None, tenant: Tenant = None, key: Key = None, as_json: Json = False) -> None:
    """List the newest batches."""
    _as(Where(state, tenant, key), lambda client: batches.listing(client, as_json=as_json))


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(batch, name="batch")


def _as(where: Where, work: Callable[[Client], Awaitable[None]]) -> None:
    async def connected() -> None:
        mesh = read_mesh_json(where.state or default_state_dir())
        async with connect(mesh, tenant_of(mesh, where)) as client:
            await work(client)

    run(connected())
