"""The commands around the cache, as `llmmesh` knows them."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from llmmesh.cache.v1 import cache_pb2
from services.cli.cache import explain as explaining
from services.cli.cache import record
from services.cli.cache import warm as warming
from services.cli.cache.target import Asked, Where, find, tenant_of, text_or_file
from services.cli.mesh import MeshError, default_state_dir, read_mesh_json
from services.cli.running import in_words, run
from services.common.policy import SHIPPED as SHIPPED_POLICY

cache = typer.Typer(help="See, measure and remove what the cache holds.", no_args_is_help=True)

State = Annotated[Path | None, typer.Option("--state", help="Folder of the mesh. Default: ~/.local/state/llmmesh")]
Tenant = Annotated[str | None, typer.Option("--tenant", help="On whose behalf. Default: the mesh's first tenant")]
Key = Annotated[str | None, typer.Option("--key", help="On whose behalf, by the tenant's key")]
Namespace = Annotated[str, typer.Option("--namespace", help="The policy's namespace")]
CacheAddress = Annotated[
    str | None, typer.Option("--cache", metavar="HOST:PORT", help="Cache service of a mesh elsewhere, with --tenant")
]
EmbedderAddress = Annotated[
    str | None, typer.Option("--embedder", metavar="HOST:PORT", help="Embedder of a mesh elsewhere")
]
System = Annotated[
    str, typer.Option("--system", metavar="TEXT|FILE", help="System text as callers send it, or a file that holds it")
]
Model = Annotated[str, typer.Option("--model", help="Model as callers ask for it")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="Temperature as callers send it")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Output limit as callers send it")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object")]


def warm(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FAQ.jsonl",
            exists=True,
            dir_okay=False,
            help="A line each: question, answer; maybe system, tags, ttl_class, also (other wordings)",
        ),
    ],
    state: State = None,
    tenant: Tenant = None,
    key: Key = None,
    namespace: Namespace = "default",
    system: System = "",
    pin: Annotated[bool, typer.Option("--pin", help="Curated: no expiry until replaced, always preferred")] = False,
    tags: Annotated[str, typer.Option("--tags", help="Comma-separated names by which all of it can be purged")] = "",
    ttl_class: Annotated[
        str | None, typer.Option("--ttl-class", help="realtime, faq, static or archive. Default: the namespace's")
    ] = None,
    model: Model = "auto",
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    cache: CacheAddress = None,
    embedder: EmbedderAddress = None,
    as_json: Json = False,
) -> None:
    """Store known answers before anybody asks. What was stored before and is still there is skipped."""

    async def work() -> None:
        target = find(Where(state, tenant, key, namespace, cache, embedder), embeds=True)
        if ttl_class is not None and ttl_class not in ("realtime", "faq", "static", "archive"):
            raise MeshError(
                f"no ttl class for everybody's answers is named {ttl_class!r}: realtime, faq, static, archive"
            )
        options = warming.Options(
            asked=Asked(text_or_file(system), model, temperature, max_tokens),
            where=cache or str((state or default_state_dir()).absolute()),
            pin=pin,
            tags=tuple(tag.strip() for tag in tags.split(",") if tag.strip()),
            ttl_class=ttl_class or "",
        )
        await warming.warm(target, file, options, as_json=as_json)

    run(work())


def calibrate(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS", exists=True, dir_okay=False, help="JSONL or CSV: a, b and same_answer in each row"
        ),
    ],
    delta: Annotated[float, typer.Option(help="Error budget: wrong hits as a share of all pairs")] = 0.01,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for picture and page. Default: FILE's name with .calibration")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Policy file. Default: the shipped one", exists=True, dir_okay=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Which setting would keep wrong hits within DELTA on your pairs? A table, a picture and a page."""
    with in_words():
        # Models and pictures take a second to import: only who needs them waits.
        from services.cli.cache import calibrate as calibrating
        from services.cli.cache import page

        with Console(stderr=True).status("Judging the pairs"):
            found = calibrating.run(file, delta, policy or SHIPPED_POLICY)
        image, html = page.write(found, out or Path(f"{file.name.split('.')[0]}.calibration"))
        if as_json:
            sys.stdout.write(json.dumps({**calibrating.as_json(found), "png": str(image), "html": str(html)}) + "\n")
            return
        console = Console()
        calibrating.show(found, console)
        console.print(f"Picture: {image}\nPage: {html}", highlight=False, markup=False, soft_wrap=True)


@cache.command()
def explain(
    question: Annotated[str, typer.Argument(help="The question")],
    state: State = None,
    tenant: Tenant = None,
    key: Key = None,
    namespace: Namespace = "default",
    system: System = "",
    model: Model = "auto",
    temperature: Temperature = None,
    max_tokens: MaxTokens = None,
    cache: CacheAddress = None,
    embedder: EmbedderAddress = None,
    as_json: Json = False,
) -> None:
    """What would the cache do with a question, and why? Leaves no trace."""

    async def work() -> None:
        target = find(Where(state, tenant, key, namespace, cache, embedder), embeds=True)
        asked = Asked(text_or_file(system), model, temperature, max_tokens)
        await explaining.explain(target, asked, question, as_json=as_json)

    run(work())


@cache.command()
def purge(
    request_id: Annotated[str | None, typer.Option("--request-id", help="The answer that this request got")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="All answers with this tag")] = None,
    entry: Annotated[str | None, typer.Option("--entry", help="One answer, by its entry id")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All answers of the namespace")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask")] = False,
    state: State = None,
    tenant: Tenant = None,
    key: Key = None,
    namespace: Namespace = "default",
    cache: CacheAddress = None,
    as_json: Json = False,
) -> None:
    """Remove answers: of a request, with a tag, one entry, or all."""

    async def work() -> None:
        chosen = [value for value in (request_id, tag, entry, everything or None) if value is not None]
        if len(chosen) != 1:
            raise MeshError("say what to remove by exactly one of --request-id, --tag, --entry, --all")
        target = find(Where(state, tenant, key, namespace, cache))
        if everything and not yes:
            typer.confirm(
                f"Remove all answers of {target.tenant} in namespace {target.namespace}?", abort=True, err=True
            )
        selector = cache_pb2.InvalidateRequest()
        if request_id is not None:
            selector.request_id = request_id
        elif tag is not None:
            selector.tag = tag
        elif entry is not None:
            selector.entry_id = entry
        else:
            selector.whole_namespace = True
        await record.purge(target, selector, as_json=as_json)

    run(work())


@cache.command()
def measure(
    state: State = None,
    tenant: Tenant = None,
    key: Key = None,
    namespace: Namespace = "default",
    cache: CacheAddress = None,
    as_json: Json = False,
) -> None:
    """Hits, wrong hits and the error budget of a namespace, and what to make of them."""

    async def work() -> None:
        await record.measure(find(Where(state, tenant, key, namespace, cache)), as_json=as_json)

    run(work())


def feedback(
    request_id: Annotated[str, typer.Argument(help="The id in the answer's receipt")],
    right: Annotated[bool, typer.Option("--right/--wrong", help="Was the answer right for the question?")],
    state: State = None,
    tenant: Tenant = None,
    key: Key = None,
    namespace: Namespace = "default",
    edge: Annotated[
        str | None, typer.Option("--edge", metavar="HOST:PORT", help="Edge of a mesh elsewhere, with --key")
    ] = None,
) -> None:
    """Say whether an answer out of the cache was right. A wrong one is not served for that question again."""

    async def work() -> None:
        if edge is not None:
            if key is None:
                raise MeshError("a mesh elsewhere needs --key")
            await record.feedback(edge, key, request_id, right, namespace)
            return
        mesh = read_mesh_json(state or default_state_dir())
        owner = tenant_of(mesh, Where(tenant=tenant, key=key))
        await record.feedback(mesh["edge"], mesh["keys"][owner], request_id, right, namespace)

    run(work())


def register(app: typer.Typer) -> None:
    """Makes them commands of `app`."""
    app.command()(warm)
    app.command()(calibrate)
    app.command()(feedback)
    app.add_typer(cache, name="cache")
