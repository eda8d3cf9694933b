"""`llmmesh export`: `finetune` and `purge` of kept traffic, `ledger` of what it cost."""

import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console

from services.cli.client import connect
from services.cli.export import ledger as records
from services.cli.export.examples import Quality, examples
from services.cli.mesh import MeshError, default_state_dir, read_mesh_json
from services.cli.running import run
from services.common.clock import SystemClock
from services.common.errors import NotReady
from services.edge.adapters.redis import open_redis
from services.edge.adapters.traffic import RedisTraffic

export = typer.Typer(help="What tenants had us keep of their traffic, and what it cost.", no_args_is_help=True)

NOTHING = "nothing is kept of {}: the policy has to name the tenant in a namespace's record.tenants"

Tenant = Annotated[str, typer.Option("--tenant", help="Whose traffic")]
Namespace = Annotated[str | None, typer.Option("--namespace", help="The policy's namespace. Default: all")]
State = Annotated[Path | None, typer.Option("--state", help="Folder of the mesh. Default: ~/.local/state/llmmesh")]
RedisUrl = Annotated[
    str | None,
    typer.Option(
        "--redis", metavar="URL", envvar="LLMMESH_EDGE_REDIS_URL", help="The edge's Redis, of a mesh elsewhere"
    ),
]


@export.command()
def finetune(
    tenant: Tenant,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", dir_okay=False, help="JSONL file to write")],
    min_quality: Annotated[
        Quality,
        typer.Option(
            "--min-quality", help="unrefuted: nobody called the answer wrong; confirmed: somebody called it right"
        ),
    ] = Quality.UNREFUTED,
    namespace: Namespace = None,
    state: State = None,
    redis: RedisUrl = None,
) -> None:
    """Write a tenant's kept questions and answers as a fine-tuning set: JSONL, a chat a line, its model and tier beside it."""

    async def work() -> None:
        async with _traffic(state, redis) as traffic:
            with _private_file(out) as file:
                written, kept = await _write(traffic, tenant, namespace, min_quality, file)
                if not kept:
                    raise MeshError(NOTHING.format(tenant))
        said = f"{written:,} of {kept:,} kept answers of {tenant} written to {out}"
        why = "; the others are repeated, wrong or not confirmed." if written < kept else "."
        Console().print(said + why, highlight=False, markup=False, soft_wrap=True)

    run(work())


@export.command()
def purge(
    tenant: Tenant,
    namespace: Namespace = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    state: State = None,
    redis: RedisUrl = None,
) -> None:
    """Remove all that was kept of a tenant's traffic. The policy says whether more is kept from now on."""

    async def work() -> None:
        async with _traffic(state, redis) as traffic:
            names = [namespace] if namespace else await traffic.namespaces(tenant)
            if not yes:
                typer.confirm(f"Remove all kept questions and answers of {tenant}?", abort=True, err=True)
            removed = sum([await traffic.purge(tenant, name) for name in names])
        Console().print(f"{removed:,} questions and answers of {tenant} removed.", highlight=False)

    run(work())


@export.command()
def ledger(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", dir_okay=False, help="File to write, ending in .jsonl, .csv or .parquet"),
    ],
    hours: Annotated[int, typer.Option(min=1, max=8784, help="How far back")] = 24,
    tenant: Annotated[
        str | None, typer.Option("--tenant", help="One tenant. Default: all whose keys the mesh has")
    ] = None,
    state: State = None,
) -> None:
    """Write what every request cost and saved, a row each: JSONL, CSV or Parquet, money in whole nano-USD."""

    async def work() -> None:
        form = records.format_of(out)
        mesh = read_mesh_json(state or default_state_dir())
        end = datetime.fromtimestamp(time.time(), UTC)
        written = 0
        with _private_file(out) as file, records.writing(file, form) as write:
            for name in [tenant] if tenant else mesh["keys"]:
                async with connect(mesh, name) as client:
                    async for batch in records.records(client, end - timedelta(hours=hours), end):
                        write(map(records.row_of, batch))
                        written += len(batch)
        Console().print(f"{written:,} records written to {out}", highlight=False, markup=False, soft_wrap=True)

    run(work())


async def _write(
    traffic: RedisTraffic, tenant: str, namespace: str | None, quality: Quality, file: TextIO
) -> tuple[int, int]:
    """Examples written, and pairs that there are."""
    written = kept = 0
    seen: set[bytes] = set()
    for name in [namespace] if namespace else await traffic.namespaces(tenant):
        kept += await traffic.count(tenant, name)
        marks = await traffic.marks(tenant, name)
        async for line in examples(partial(traffic.pairs, tenant, name), marks, quality, seen):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            written += 1
    return written, kept


@contextmanager
def _private_file(path: Path) -> Iterator[TextIO]:
    """A file for its owner's eyes only, since it holds what people wrote; it is there when it is whole."""
    unfinished = path.with_name(f"{path.name}.part")
    try:
        with os.fdopen(
            os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8"
        ) as file:
            yield file
        unfinished.replace(path)
    except OSError as error:
        raise MeshError(f"{path}: {error.strerror}") from None
    finally:
        unfinished.unlink(missing_ok=True)


@asynccontextmanager
async def _traffic(state: Path | None, redis_url: str | None) -> AsyncIterator[RedisTraffic]:
    """What is kept, in a mesh on this machine or in the Redis that is named. Raises MeshError when it cannot be reached."""
    if state is not None or redis_url is None:
        redis_url = read_mesh_json(state or default_state_dir())["redis"]
    client = open_redis(redis_url)
    try:
        yield RedisTraffic(client, SystemClock())
    except NotReady as error:
        raise MeshError(error.message) from None
    finally:
        await client.aclose()


def register(app: typer.Typer) -> None:
    """Makes them commands of `app`."""
    app.add_typer(export, name="export")
