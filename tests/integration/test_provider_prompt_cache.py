"""Prompts that vendors keep: the provider service against vendor-like servers that count and charge by themselves."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.money import Rates
from services.common.prices import PriceBook
from services.common.testing import serve
from services.provider.app import build
from services.provider.settings import ProviderSettings
from tests.vendors.anthropic_like import AnthropicLike
from tests.vendors.bedrock_like import ACCESS_KEY, BedrockLike
from tests.vendors.gemini_like import GeminiLike
from tests.vendors.openai_cache import PromptCache
from tests.vendors.openai_like import OpenAILike

Provider: TypeAlias = "provider_pb2_grpc.ProviderServiceAsyncStub"
Outcome = provider_pb2.PromptCacheOutcome

PRICES = """
models:
  mini: {prices: [{valid_from: 2024-01-01, input: 0.15, output: 0.6, cache_read: 0.075}]}
  writer: {prices: [{valid_from: 2024-01-01, input: 2, output: 8, cache_read: 0.2, cache_write: 2.5}]}
  sonnet: {prices: [{valid_from: 2024-01-01, input: 3, output: 15, cache_read: 0.3, cache_write: 3.75, cache_write_long: 6}]}
  flash: {prices: [{valid_from: 2024-01-01, input: 0.3, output: 2.5, cache_read: 0.03}]}
"""
SYSTEM = "You answer questions of customers of a shop for jackets, always kindly and in one sentence. " * 140
TOOLS = [
    chat_pb2.Tool(name=name, description=f"Does {name}.", parameters_json_schema='{"type": "object", "properties": {}}')
    for name in ("refund", "cancel", "find")
]


def text(role: chat_pb2.Role.ValueType, words: str) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=words)])


def ask(
    model: str, question: str = "Where is it?", *, system: str = SYSTEM, turned: bool = False
) -> provider_pb2.GenerateRequest:
    messages = [text(chat_pb2.ROLE_SYSTEM, system), text(chat_pb2.ROLE_USER, question)]
    tools = TOOLS[::-1] if turned else TOOLS
    return provider_pb2.GenerateRequest(
        caller=caller_pb2.Caller(tenant="acme", endpoint="support"),
        chat=chat_pb2.Chat(messages=messages, tools=tools),
        candidates=[model],
    )


@asynccontextmanager
async def provider_of(folder: Path, vendors: str, **settings: bool) -> AsyncIterator[Provider]:
    (folder / "vendors.yaml").write_text(f"vendors:\n{vendors}")
    (folder / "prices.yaml").write_text(PRICES)
    options = ProviderSettings(
        vendors_file=folder / "vendors.yaml", prices_file=folder / "prices.yaml", max_attempts=1, **settings
    )
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(serve(await build(options, stack)))
        yield provider_pb2_grpc.ProviderServiceStub(channel)


def rates(folder: Path, model: str) -> Rates:
    found = PriceBook.load(folder / "prices.yaml").rates(model)
    assert found is not None
    return found


@pytest.fixture(autouse=True)
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def openai(vendor: OpenAILike, models: str, fields: str = "") -> str:
    more = f", prompt_cache_fields: {fields}" if fields else ""
    return f"  - {{name: o, kind: openai, base_url: '{vendor.base_url}', models: {{{models}}}{more}}}"


def anthropic(vendor: AnthropicLike) -> str:
    return f"  - {{name: a, kind: anthropic, base_url: '{vendor.url}', models: {{sonnet: claude-sonnet-4-5}}}}"


async def outcomes(provider: Provider, *requests: provider_pb2.GenerateRequest) -> list[provider_pb2.GenerateResponse]:
    return [await provider.Generate(request) for request in requests]


async def test_openai_reads_what_requests_with_one_key_share(tmp_path: Path) -> None:
    cache = PromptCache(lambda: 0.0, rates(tmp_path, "mini"))
    async with OpenAILike(prompt_cache=cache) as vendor:
        entry = (
            f"  - {{name: o, kind: openai, base_url: '{vendor.base_url}', models: {{mini: gpt-4o-mini}},"
            " prompt_cache_fields: key}"
        )
        async with provider_of(tmp_path, entry) as provider:
            answers = await outcomes(provider, ask("mini", "One"), ask("mini", "Two", turned=True))
    assert [a.prompt_cache.outcome for a in answers] == [
        Outcome.PROMPT_CACHE_OUTCOME_FIRST,
        Outcome.PROMPT_CACHE_OUTCOME_HIT,
    ]
    assert answers[1].prompt_cache.read_tokens > 2500
    assert len({request["prompt_cache_key"] for request in vendor.requests}) == 1
    assert "prompt_cache_options" not in vendor.requests[0]
    assert sum(a.charge.cost_nanousd for a in answers) == vendor.invoice


async def test_openai_writes_no_more_than_what_returns_where_writes_cost(tmp_path: Path) -> None:
    cache = PromptCache(lambda: 0.0, rates(tmp_path, "writer"))
    async with OpenAILike(prompt_cache=cache) as vendor:
        entry = (
            f"  - {{name: o, kind: openai, base_url: '{vendor.base_url}', models: {{writer: gpt-5.6}},"
            " prompt_cache_fields: breakpoints}"
        )
        async with provider_of(tmp_path, entry) as provider:
            answers = await outcomes(provider, *(ask("writer", f"Question {n}") for n in range(4)))
    request = vendor.requests[-1]
    assert request["prompt_cache_options"] == {"mode": "explicit"}
    assert request["messages"][0]["content"][0]["prompt_cache_breakpoint"] == {"mode": "explicit"}
    assert isinstance(request["messages"][1]["content"], str)
    reports = [a.prompt_cache for a in answers]
    assert reports[0].written_tokens == reports[1].read_tokens == reports[3].read_tokens > 2500
    assert reports[1].written_tokens == reports[3].written_tokens == 0
    assert sum(a.charge.cost_nanousd for a in answers) == vendor.invoice


async def test_compatible_vendors_get_no_field_that_they_do_not_know(tmp_path: Path) -> None:
    async with OpenAILike() as vendor:
        entry = openai(vendor, "mini: llama-3")
        async with provider_of(tmp_path, entry) as provider:
            (answer,) = await outcomes(provider, ask("mini"))
    assert answer.prompt_cache.outcome == Outcome.PROMPT_CACHE_OUTCOME_UNREPORTED
    assert [tool["function"]["name"] for tool in vendor.requests[0]["tools"]] == ["cancel", "find", "refund"]


async def test_anthropic_keeps_tools_and_system_text(tmp_path: Path) -> None:
    async with AnthropicLike(rates=rates(tmp_path, "sonnet")) as vendor:
        entry = anthropic(vendor)
        async with provider_of(tmp_path, entry) as provider:
            answers = await outcomes(provider, *(ask("sonnet", f"Question {n}", turned=n == 1) for n in range(3)))
    reports = [a.prompt_cache for a in answers]
    assert reports[0].outcome == Outcome.PROMPT_CACHE_OUTCOME_FIRST
    assert reports[0].written_tokens == reports[1].read_tokens == reports[2].read_tokens > 2500
    assert reports[1].written_tokens == 0
    assert sum(a.charge.cost_nanousd for a in answers) == vendor.invoice


async def test_bedrock_keeps_tools_and_system_text(tmp_path: Path) -> None:
    async with BedrockLike(rates(tmp_path, "sonnet")) as vendor:
        entry = (
            f"  - {{name: b, kind: bedrock, region: us-east-1, endpoint_url: '{vendor.url}', "
            "models: {sonnet: us.anthropic.claude-sonnet-4-5-20250929-v1:0}}"
        )
        async with provider_of(tmp_path, entry) as provider:
            answers = await outcomes(provider, *(ask("sonnet", f"Question {n}", turned=n == 1) for n in range(3)))
    reports = [a.prompt_cache for a in answers]
    assert reports[0].written_tokens == reports[1].read_tokens == reports[2].read_tokens > 2500
    assert sum(a.charge.cost_nanousd for a in answers) == vendor.invoice


async def test_gemini_reads_what_stays_the_same(tmp_path: Path) -> None:
    async with GeminiLike() as vendor:
        entry = f"  - {{name: g, kind: gemini, base_url: '{vendor.url}', models: {{flash: gemini-2.5-flash}}}}"
        async with provider_of(tmp_path, entry) as provider:
            answers = await outcomes(provider, ask("flash", "One"), ask("flash", "Two", turned=True))
    assert answers[1].prompt_cache.outcome == Outcome.PROMPT_CACHE_OUTCOME_HIT
    assert answers[1].prompt_cache.read_tokens > 2500
    invoice = vendor.invoice({"gemini-2.5-flash": rates(tmp_path, "flash")})
    assert sum(a.charge.cost_nanousd for a in answers) == invoice


async def test_a_timestamp_in_front_is_shown_and_moved_where_that_is_wanted(tmp_path: Path) -> None:
    def stamped(second: int) -> provider_pb2.GenerateRequest:
        return ask("sonnet", system=f"Current time: 2025-11-24T10:33:{second:02}Z\n{SYSTEM}")

    async with AnthropicLike(rates=rates(tmp_path, "sonnet")) as vendor:
        entry = anthropic(vendor)
        async with provider_of(tmp_path, entry) as provider:
            answers = await outcomes(provider, stamped(1), stamped(2))
        async with provider_of(tmp_path, entry, prompt_cache_move_volatile=True) as provider:
            moved = await outcomes(provider, stamped(3), stamped(4))
    report = answers[1].prompt_cache
    assert report.outcome == Outcome.PROMPT_CACHE_OUTCOME_CHANGED
    assert (report.change.part, report.change.offset) == ("messages[0]", len("Current time: 2025-11-24T10:33:"))
    assert report.change.excerpt.startswith("02Z")
    assert [(v.kind, v.moved) for v in report.volatile_fields] == [(provider_pb2.VOLATILE_KIND_TIMESTAMP, False)]
    assert moved[1].prompt_cache.outcome == Outcome.PROMPT_CACHE_OUTCOME_HIT
    assert moved[1].prompt_cache.volatile_fields[0].moved
    assert "2025-11-24T10:33:04Z" in str(vendor.requests[-1]["messages"][-1])
    assert "2025-11-24" not in str(vendor.requests[-1]["system"])


@pytest.mark.parametrize("kind", ["openai", "anthropic", "bedrock", "gemini"])
async def test_what_was_moved_follows_a_tools_result(kind: str, tmp_path: Path) -> None:
    call = chat_pb2.ToolCall(id="call_1", name="find", arguments_json="{}")
    request = ask("m", system=f"Current time: 2025-11-24T10:33:01Z\n{SYSTEM}")
    request.chat.messages.append(chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, tool_calls=[call]))
    result = text(chat_pb2.ROLE_TOOL, "It is in Lyon.")
    result.tool_call_id = "call_1"
    request.chat.messages.append(result)
    async with AsyncExitStack() as stack:
        vendor: OpenAILike | AnthropicLike | BedrockLike | GeminiLike
        match kind:
            case "openai":
                vendor = await stack.enter_async_context(OpenAILike())
                fields = f"base_url: '{vendor.base_url}', models: {{m: gpt-4.1}}"
            case "anthropic":
                vendor = await stack.enter_async_context(AnthropicLike())
                fields = f"base_url: '{vendor.url}', models: {{m: claude-sonnet-4-5}}"
            case "bedrock":
                vendor = await stack.enter_async_context(BedrockLike())
                fields = (
                    f"region: us-east-1, endpoint_url: '{vendor.url}', models: {{m: us.anthropic.claude-sonnet-4-5}}"
                )
            case _:
                vendor = await stack.enter_async_context(GeminiLike())
                fields = f"base_url: '{vendor.url}', models: {{m: gemini-2.5-flash}}"
        entry = f"  - {{name: v, kind: {kind}, {fields}}}"
        async with provider_of(tmp_path, entry, prompt_cache_move_volatile=True) as provider:
            answer = await provider.Generate(request)
    assert answer.prompt_cache.volatile_fields[0].moved
    sent = json.dumps(vendor.requests[0])
    assert sent.index("It is in Lyon.") < sent.index("2025-11-24T10:33:01Z")
    assert sent.count("2025-11-24T10:33:01Z") == 1


async def test_a_stream_says_it_too_and_the_counts_are_by_endpoint(tmp_path: Path) -> None:
    async with AnthropicLike(rates=rates(tmp_path, "sonnet")) as vendor:
        entry = anthropic(vendor)
        async with provider_of(tmp_path, entry) as provider:
            await provider.Generate(ask("sonnet", "One"))
            whole = ask("sonnet", "Two")
            request = provider_pb2.StreamGenerateRequest(
                caller=whole.caller, chat=whole.chat, candidates=whole.candidates
            )
            events = [event async for event in provider.StreamGenerate(request)]
            stats = await provider.PromptCacheStats(provider_pb2.PromptCacheStatsRequest(tenant="acme"))
            nobodys = await provider.PromptCacheStats(provider_pb2.PromptCacheStatsRequest(endpoint=""))
    assert events[-1].finished.prompt_cache.outcome == Outcome.PROMPT_CACHE_OUTCOME_HIT
    (row,) = stats.rows
    assert (row.tenant, row.endpoint, row.model, row.vendor) == ("acme", "support", "sonnet", "a")
    assert (row.requests, row.hits, row.read_tokens) == (2, 1, events[-1].finished.prompt_cache.read_tokens)
    assert {count.outcome: count.requests for count in row.outcomes} == {
        Outcome.PROMPT_CACHE_OUTCOME_HIT: 1,
        Outcome.PROMPT_CACHE_OUTCOME_FIRST: 1,
    }
    assert row.saved_nanousd > 0
    assert not nobodys.rows


async def test_switched_off_the_request_goes_as_it_came(tmp_path: Path) -> None:
    async with AnthropicLike(rates=rates(tmp_path, "sonnet")) as vendor:
        entry = anthropic(vendor)
        async with provider_of(tmp_path, entry, prompt_cache=False) as provider:
            (answer,) = await outcomes(provider, ask("sonnet"))
    assert answer.prompt_cache.outcome == Outcome.PROMPT_CACHE_OUTCOME_OFF
    assert [tool["name"] for tool in vendor.requests[0]["tools"]] == ["refund", "cancel", "find"]
    assert "cache_control" not in str(vendor.requests[0])
