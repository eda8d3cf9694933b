"""`llmmesh prompt-cache` against a provider that has counted."""

import io

import pytest
from rich.console import Console

from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.cli.mesh import MeshError
from services.cli.prompt_cache import counted, table
from services.common.errors import NotReady
from services.common.runtime import Service
from services.common.testing import serve

ROW = provider_pb2.PromptCacheRow(
    tenant="acme",
    endpoint="support",
    model="claude-sonnet",
    vendor="anthropic",
    requests=500,
    hits=480,
    input_tokens=1_750_000,
    read_tokens=1_500_000,
    written_tokens=60_000,
    saved_nanousd=4_005_000_000,
    volatile_requests=500,
    outcomes=[
        provider_pb2.PromptCacheOutcomeCount(outcome=provider_pb2.PROMPT_CACHE_OUTCOME_HIT, requests=480),
        provider_pb2.PromptCacheOutcomeCount(outcome=provider_pb2.PROMPT_CACHE_OUTCOME_TOO_SHORT, requests=1),
        provider_pb2.PromptCacheOutcomeCount(outcome=provider_pb2.PROMPT_CACHE_OUTCOME_EXPIRED, requests=19),
    ],
)


class Provider(provider_pb2_grpc.ProviderServiceServicer):
    """Gives its rows, or raises its failure."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[provider_pb2.PromptCacheStatsRequest] = []

    async def PromptCacheStats(self, request, context):
        self.asked.append(request)
        if self.failure is not None:
            raise self.failure
        return provider_pb2.PromptCacheStatsResponse(rows=[ROW])


def serving(provider: Provider):
    return serve(
        [
            Service(
                "llmmesh.provider.v1.ProviderService",
                provider,
                provider_pb2_grpc.add_ProviderServiceServicer_to_server,
            )
        ]
    )


async def test_rows_have_rates_and_reasons() -> None:
    provider = Provider()
    async with serving(provider) as channel:
        (row,) = await counted(channel, "acme", "")
        await counted(channel)
    assert (provider.asked[0].tenant, provider.asked[0].HasField("endpoint")) == ("acme", True)
    assert (provider.asked[1].tenant, provider.asked[1].HasField("endpoint")) == ("", False)
    assert (row["requests"], row["hits"], row["hit_rate"]) == (500, 480, 0.96)
    assert row["outcomes"] == {"hit": 480, "too_short": 1, "expired": 19}


async def test_the_table_says_why_there_were_misses() -> None:
    async with serving(Provider()) as channel:
        rows = await counted(channel)
    out = io.StringIO()
    Console(file=out, width=200).print(table(rows))
    shown = out.getvalue()
    for words in ("support", "96.0%", "1,500,000 (86%)", "4.0050", "too short 1, expired 19, volatile system text 500"):
        assert words in shown


async def test_an_error_is_told_in_words() -> None:
    async with serving(Provider(NotReady("not yet"))) as channel:
        with pytest.raises(MeshError, match="not yet"):
            await counted(channel)
