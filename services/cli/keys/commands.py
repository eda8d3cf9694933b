"""The key commands, as `llmmesh` knows them."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from llmmesh.edge.v1 import keys_pb2
from services.cli.keys import keys as work
from services.cli.keys.door import ADMIN_KEY, Door, Where, connect
from services.cli.running import run

keys = typer.Typer(help="Make, list, rotate and revoke the keys of a mesh.", no_args_is_help=True)

State = Annotated[Path | None, typer.Option("--state", help="Folder of the mesh. Default: ~/.local/state/llmmesh")]
Edge = Annotated[str | None, typer.Option("--edge", metavar="HOST:PORT", help="Edge of a mesh elsewhere")]
Key = Annotated[
    str | None,
    typer.Option(
        "--key", help=f"Admin key. Default: the one in mesh.json; with --edge, {ADMIN_KEY} in the environment"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object")]
Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the key, as `llmmesh keys list` shows it")]


@keys.command()
def create(
    tenant: Annotated[str, typer.Argument(help="Whose key it is")],
    name: Annotated[str, typer.Option("--name", help="What people call it")] = "",
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="inference, costs or admin; may be repeated. Default: both first"),
    ] = None,
    requests_per_minute: Annotated[
        int, typer.Option("--requests-per-minute", min=0, max=1_000_000, help="Over all replicas; 0 for no limit")
    ] = 0,
    expires_in: Annotated[
        str | None, typer.Option("--expires-in", metavar="SPAN", help="Such as 12h or 90d. Default: works for good")
    ] = None,
    state: State = None,
    edge: Edge = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once: on standard output, alone."""

    async def made(door: Door) -> None:
        request = keys_pb2.CreateKeyRequest(
            tenant=tenant, name=name, scopes=scope or (), requests_per_minute=requests_per_minute
        )
        if expires_in is not None:
            request.lifetime.CopyFrom(work.span_of(expires_in))
        await work.create(door, request, as_json=as_json)

    _at(Where(state, edge, key), made)


@keys.command("list")
def list_(
    tenant: Annotated[str, typer.Option("--tenant", help="One tenant's keys. Default: all tenants'")] = "",
    state: State = None,
    edge: Edge = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List keys, without their secrets. Those that ended are listed for 30 days."""
    _at(Where(state, edge, key), lambda door: work.listing(door, tenant, as_json=as_json))


@keys.command()
def rotate(
    key_id: Id,
    grace: Annotated[
        str, typer.Option("--grace", metavar="SPAN", help="How long the old key goes on: 0, 30m, 24h, 7d")
    ] = "24h",
    state: State = None,
    edge: Edge = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Make a key with the same rights, and let the old one end after a while."""

    async def made(door: Door) -> None:
        await work.rotate(door, keys_pb2.RotateKeyRequest(id=key_id, grace=work.span_of(grace)), as_json=as_json)

    _at(Where(state, edge, key), made)


@keys.command()
def revoke(
    key_id: Id,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    state: State = None,
    edge: Edge = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """End a key at once. There is no way back."""
    if not yes:
        typer.confirm(f"End {key_id} at once? Its callers will be refused", abort=True, err=True)
    _at(Where(state, edge, key), lambda door: work.revoke(door, key_id, as_json=as_json))


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.add_typer(keys, name="keys")


def _at(where: Where, work: Callable[[Door], Awaitable[None]]) -> None:
    async def connected() -> None:
        async with connect(where) as door:
            await work(door)

    run(connected())
