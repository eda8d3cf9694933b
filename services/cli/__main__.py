"""The `llmmesh` command."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from services.cli import budgets as budgets_command
from services.cli import chat as chat_command
from services.cli import costs as costs_command
from services.cli import prompt_cache as prompt_cache_command
from services.cli.audit import commands as audit_commands
from services.cli.batch import commands as batch_commands
from services.cli.cache import commands as cache_commands
from services.cli.demo import report, run, workload
from services.cli.export import commands as export_commands
from services.cli.keys import commands as keys_commands
from services.cli.mesh import LocalMesh, MeshError, MeshJson, Reporter, default_state_dir, read_mesh_json
from services.cli.prices import commands as prices_commands
from services.cli.running import run as _run
from services.common.policy import SHIPPED as SHIPPED_POLICY
from services.common.yaml_file import ConfigError

app = typer.Typer(
    help="llmmesh: LLM inference made cheap without making it worse, and proved on every request.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

State = Annotated[Path | None, typer.Option("--state", help="Folder of the mesh. Default: ~/.local/state/llmmesh")]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="Policy file. Default: the shipped one", exists=True, dir_okay=False)
]

evaluate = typer.Typer(help="The services' own decisions on your labelled data.", no_args_is_help=True)
app.add_typer(evaluate, name="evaluate")
LabelledFile = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="Labelled data")]
OutFile = Annotated[Path | None, typer.Option("--out", help="Write a line per input here")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object")]


def main() -> None:
    """Console script llmmesh."""
    # Models come from packages and settings; nothing is looked up on a hub unless somebody asks for it.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    app()


@app.command()
def up(state: State = None, policy: PolicyFile = None) -> None:
    """Start every service on this machine, with embedded Redis and Qdrant, until Ctrl-C."""
    _run(_up((state or default_state_dir()).absolute(), policy, Console()))


@app.command()
def demo(
    state: Annotated[
        Path | None,
        typer.Option("--state", help="Use the mesh that runs there, or start one there. Default: a new one"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object")] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests at a time")] = 4,
) -> None:
    """Replay the support-desk workload through a mesh and show what it saved."""
    _run(_demo(state.absolute() if state else None, as_json, concurrency))


@app.command()
def chat(
    text: Annotated[str, typer.Argument(help="The question")],
    state: State = None,
    tenant: Annotated[str, typer.Option(help="On whose behalf")] = "acme-shop",
    model: Annotated[str, typer.Option(help="auto, a tier or a model, also with :floor, :nitro or :balanced")] = "auto",
    system: Annotated[str | None, typer.Option(help="System prompt")] = None,
) -> None:
    """Ask the running mesh and see the answer as it comes."""
    mesh = _mesh(state)
    _run(chat_command.chat(mesh, Console(), text, tenant, model, system))


@app.command()
def costs(
    state: State = None,
    by: Annotated[
        str, typer.Option(help="Comma-separated: endpoint, namespace, user, model, tier, outcome, kind, hour, day")
    ] = "outcome",
    hours: Annotated[int, typer.Option(min=1, max=8784, help="How far back")] = 24,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Show what was spent and saved."""
    mesh = _mesh(state)
    dimensions = [part.strip() for part in by.split(",") if part.strip()]
    _run(costs_command.costs(mesh, Console(), dimensions, hours, as_json, time.time()))


@app.command("prompt-cache")
def prompt_cache(
    state: State = None,
    tenant: Annotated[str, typer.Option(help="One tenant's requests. Default: all tenants'")] = "",
    endpoint: Annotated[str | None, typer.Option(help="One endpoint's requests. Default: all endpoints'")] = None,
    provider: Annotated[
        str | None, typer.Option("--provider", metavar="HOST:PORT", help="Provider of a mesh elsewhere")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object")] = False,
) -> None:
    """Show what vendors' prompt caches brought since the provider started, and why they missed."""
    address = provider or _mesh(state)["services"]["provider"]["address"]
    _run(prompt_cache_command.prompt_cache(address, tenant, endpoint, Console(), as_json=as_json))


@evaluate.command("cache")
def evaluate_cache(
    file: LabelledFile,
    delta: Annotated[float, typer.Option(help="Error budget: wrong answers as a share of all rows")] = 0.01,
    out: OutFile = None,
    as_json: Json = False,
    policy: PolicyFile = None,
    model: Annotated[str | None, typer.Option(help="Embedding model. Default: the embedder's")] = None,
) -> None:
    """Would the cache have served the right answers? FILE: pairs (a, b, same_answer) or a stream (text, answer_id)."""
    from services.cli.evaluate import cache

    _evaluated(lambda: cache.run(file, delta, out, policy or SHIPPED_POLICY, model), as_json)


@evaluate.command("router")
def evaluate_router(file: LabelledFile, out: OutFile = None, as_json: Json = False) -> None:
    """How hard does the router think each question is? FILE: CSV or JSONL with prompt, question or text."""
    from services.cli.evaluate import router

    _evaluated(lambda: router.run(file, out), as_json)


@evaluate.command("compressor")
def evaluate_compressor(
    file: LabelledFile,
    rate: Annotated[float, typer.Option(help="Share of tokens to keep")] = 0.5,
    out: OutFile = None,
    as_json: Json = False,
) -> None:
    """Does what a question needs survive compression? FILE: JSONL with question, its context and answers."""
    from services.cli.evaluate import compressor

    _evaluated(lambda: compressor.run(file, rate, out), as_json)


def _evaluated(work: Callable[[], dict[str, object]], as_json: bool) -> None:
    try:
        result = work()
    except ConfigError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from None
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
        return
    table = Table(show_header=False)
    for name, value in result.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        table.add_row(name.replace("_", " "), f"{shown:.4g}" if isinstance(shown, float) else str(shown))
    Console().print(table)


def _mesh(state: Path | None) -> MeshJson:
    try:
        return read_mesh_json(state or default_state_dir())
    except MeshError as error:
        Console(stderr=True).print(f"[red]error:[/red] {error}", highlight=False)
        raise typer.Exit(1) from None


def _reporter(console: Console) -> Reporter:
    def ready(name: str, address: str, seconds: float) -> None:
        console.print(f"  [green]✓[/green] {name:<11} {address:<22} ready after {seconds:.1f} s", highlight=False)

    def died(name: str, how: str, again: bool) -> None:
        console.print(
            f"  [red]✗[/red] {name} ended ({how}); {'starting it again' if again else 'giving up'}", highlight=False
        )

    return Reporter(ready, died)


async def _until_stopped() -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()


async def _up(state: Path, policy: Path | None, console: Console) -> None:
    console.print(f"Starting llmmesh in {state} (the first start converts the embedding model)", highlight=False)
    stopped = asyncio.create_task(_until_stopped())
    async with contextlib.AsyncExitStack() as stack:
        starting = asyncio.create_task(stack.enter_async_context(LocalMesh(state, _reporter(console), policy)))
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if stopped.done() and not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return
        mesh = (await starting).json
        tenant, key = next(iter(mesh["keys"].items()))
        console.print(f"\nReady. The edge speaks gRPC at [bold]{mesh['edge']}[/bold]. Try:\n", highlight=False)
        where = "" if state == default_state_dir() else f" --state {state}"
        console.print(f'  llmmesh chat{where} "How do I return a jacket?"', highlight=False, soft_wrap=True)
        console.print(
            f"  buf curl --protocol grpc --http2-prior-knowledge -H 'authorization: Bearer {key}' "
            f'-d \'{{"chat":{{"messages":[{{"role":"ROLE_USER","parts":[{{"text":"Hello"}}]}}]}}}}\' '
            f"http://{mesh['edge']}/llmmesh.edge.v1.InferenceService/Complete",
            highlight=False,
            soft_wrap=True,
        )
        console.print(
            f"  curl {mesh['http']}/v1/chat/completions -H 'authorization: Bearer {key}' "
            f"-H 'content-type: application/json' "
            f'-d \'{{"model":"auto","messages":[{{"role":"user","content":"Hello"}}]}}\'',
            highlight=False,
            soft_wrap=True,
        )
        console.print(
            f"\nCosts, cache and keys to look at: [bold]{mesh['http']}/console[/bold] "
            f"(the key to sign in: {state / 'admin_key.plain'})",
            highlight=False,
            soft_wrap=True,
        )
        console.print(
            f"Keys of all tenants and all addresses: {state / 'mesh.json'} ({tenant} above). Ctrl-C stops.",
            highlight=False,
        )
        await stopped
        console.print("Stopping …")
    console.print("Stopped.")


async def _demo(state: Path | None, as_json: bool, concurrency: int) -> None:
    console = Console(stderr=as_json)
    requests = workload.load()
    console.print(run.HEADING, highlight=False)
    async with contextlib.AsyncExitStack() as stack:
        mesh = _running(state)
        if mesh is None:
            folder = state or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llmmesh-demo-")))
            console.print(
                f"\nStarting a mesh in {folder} (the first start converts the embedding model)", highlight=False
            )
            mesh = (await stack.enter_async_context(LocalMesh(folder, _reporter(console)))).json
        outcomes = await run.replay(mesh, requests, concurrency, console)
        figures = report.summarise(outcomes)
        if as_json:
            sys.stdout.write(json.dumps(figures) + "\n")
        else:
            report.show(figures, outcomes, console)


def _running(state: Path | None) -> MeshJson | None:
    if state is None:
        return None
    with contextlib.suppress(MeshError):
        return read_mesh_json(state)
    return None


audit_commands.register(app)
batch_commands.register(app)
budgets_command.register(app)
cache_commands.register(app)
export_commands.register(app)
keys_commands.register(app)
prices_commands.register(app)

if __name__ == "__main__":
    main()
