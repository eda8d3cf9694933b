"""`llmmesh prompt-cache`: what vendors' prompt caches brought, by endpoint, and why not more."""

import json
import sys
from collections.abc import Sequence
from typing import TypedDict

import grpc
from rich.console import Console
from rich.table import Table

from llmmesh.provider.v1 import provider_pb2
from llmmesh.provider.v1.provider_pb2_grpc import ProviderServiceStub
from services.cli.client import in_words
from services.cli.mesh import MeshError
from services.common.channels import open_channel
from services.common.money import usd

TIMEOUT_S = 10.0
_OUTCOMES = {
    number: name.removeprefix("PROMPT_CACHE_OUTCOME_").lower()
    for name, number in provider_pb2.PromptCacheOutcome.items()
    if number != provider_pb2.PROMPT_CACHE_OUTCOME_UNSPECIFIED
}
_HIT = _OUTCOMES[provider_pb2.PROMPT_CACHE_OUTCOME_HIT]


class RowJson(TypedDict):
    """A row of `llmmesh prompt-cache --json`. `hit_rate` is between 0 and 1; `outcomes` counts requests, hits included."""

    tenant: str
    endpoint: str
    model: str
    vendor: str
    requests: int
    hits: int
    hit_rate: float
    input_tokens: int
    read_tokens: int
    written_tokens: int
    saved_nanousd: int
    volatile_requests: int
    outcomes: dict[str, int]


async def prompt_cache(provider: str, tenant: str, endpoint: str | None, console: Console, *, as_json: bool) -> None:
    """Prints what the provider at an address counted since it began. Raises MeshError with its error in words."""
    async with open_channel(provider) as channel:
        rows = await counted(channel, tenant, endpoint)
    if as_json:
        sys.stdout.write(json.dumps({"rows": rows}) + "\n")
    elif rows:
        console.print(table(rows))
    else:
        console.print("No request was answered yet.")


async def counted(channel: grpc.aio.Channel, tenant: str = "", endpoint: str | None = None) -> list[RowJson]:
    """The rows of a tenant, of an endpoint, or all. Raises MeshError with the provider's error in words."""
    request = provider_pb2.PromptCacheStatsRequest(tenant=tenant, endpoint=endpoint)
    try:
        answer = await ProviderServiceStub(channel).PromptCacheStats(request, timeout=TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        raise MeshError(in_words(error)) from None
    return [_row(row) for row in answer.rows]


def table(rows: Sequence[RowJson]) -> Table:
    """For people: a line for each endpoint at each model, and why its misses were none."""
    made = Table(title="Prompt caches", title_justify="left")
    for name in ("tenant", "endpoint", "model", "vendor"):
        made.add_column(name, overflow="fold")
    for name in ("requests", "hits", "read tokens", "written", "saved $"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("misses", overflow="fold")
    for row in rows:
        misses = [f"{name.replace('_', ' ')} {count:,}" for name, count in row["outcomes"].items() if name != _HIT]
        if row["volatile_requests"]:
            misses.append(f"[yellow]volatile system text {row['volatile_requests']:,}[/yellow]")
        share = row["read_tokens"] / row["input_tokens"] if row["input_tokens"] else 0.0
        made.add_row(
            row["tenant"],
            row["endpoint"] or "-",
            row["model"],
            row["vendor"],
            f"{row['requests']:,}",
            f"{row['hit_rate']:.1%}",
            f"{row['read_tokens']:,} ({share:.0%})",
            f"{row['written_tokens']:,}",
            usd(row["saved_nanousd"]).replace("$", ""),
            ", ".join(misses) or "-",
        )
    return made


def _row(row: provider_pb2.PromptCacheRow) -> RowJson:
    return {
        "tenant": row.tenant,
        "endpoint": row.endpoint,
        "model": row.model,
        "vendor": row.vendor,
        "requests": row.requests,
        "hits": row.hits,
        "hit_rate": round(row.hits / row.requests, 4) if row.requests else 0.0,
        "input_tokens": row.input_tokens,
        "read_tokens": row.read_tokens,
        "written_tokens": row.written_tokens,
        "saved_nanousd": row.saved_nanousd,
        "volatile_requests": row.volatile_requests,
        "outcomes": {_OUTCOMES[count.outcome]: count.requests for count in row.outcomes if count.outcome in _OUTCOMES},
    }
