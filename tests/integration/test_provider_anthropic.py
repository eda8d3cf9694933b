"""The provider service against a vendor that behaves like Anthropic on the wire, through the official SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.chat import Chat, FinishReason, Message, Role, TextDelta, TextPart, Tool
from services.common.chat_pb import Caller
from services.common.errors import MeshError, from_rpc_error
from services.common.money import Usage, price
from services.common.prices import PriceBook
from services.common.testing import serve
from services.provider.adapters.anthropic import Anthropic
from services.provider.app import build
from services.provider.domain.prompt_cache import Breakpoint, CacheHints
from services.provider.domain.vendor import Call, Completion, Reason, VendorError
from services.provider.settings import ProviderSettings
from tests.vendors.anthropic_cache import Count, tokens_of
from tests.vendors.anthropic_like import TEXT, AnthropicLike, Script

CALLER = caller_pb2.Caller(tenant="acme")
KEY = "sk-ant-test-0123456789"
SONNET = PriceBook.load().rates("claude-sonnet")
assert SONNET is not None
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": false}'
WEATHER = ("c1", "weather", {"city": "Turin"})
TIME: tuple[str, str, dict[str, str]] = ("c2", "time", {})

Provider: TypeAlias = "provider_pb2_grpc.ProviderServiceAsyncStub"


def said(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=text)])


def user(text: str) -> chat_pb2.Message:
    return said(chat_pb2.ROLE_USER, text)


def whole(chat: chat_pb2.Chat | None = None, *candidates: str) -> provider_pb2.GenerateRequest:
    chat = chat or chat_pb2.Chat(messages=[user("Where is my order?")])
    return provider_pb2.GenerateRequest(caller=CALLER, chat=chat, candidates=candidates or ("claude-sonnet",))


def streamed(chat: chat_pb2.Chat | None = None, *candidates: str) -> provider_pb2.StreamGenerateRequest:
    chat = chat or chat_pb2.Chat(messages=[user("Where is my order?")])
    return provider_pb2.StreamGenerateRequest(caller=CALLER, chat=chat, candidates=candidates or ("claude-sonnet",))


@pytest.fixture
async def vendor() -> AsyncIterator[AnthropicLike]:
    async with AnthropicLike(api_key=KEY, rates=SONNET, now=lambda: 0.0) as opened:
        yield opened


@pytest.fixture
async def provider(vendor: AnthropicLike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Provider]:
    monkeypatch.setenv("TEST_VENDOR_KEY", KEY)
    monkeypatch.setenv("TEST_WRONG_KEY", "sk-ant-wrong")
    path = tmp_path / "vendors.yaml"
    path.write_text(
        f"""
vendors:
  - name: acme-ai
    kind: anthropic
    base_url: {vendor.url}
    api_key_env: TEST_VENDOR_KEY
    models: {{claude-sonnet: claude-sonnet-5-5, claude-opus: claude-opus-4-5}}
    timeout_s: 2
    unary_timeout_s: 2
  - name: wrong-key
    kind: anthropic
    base_url: {vendor.url}
    api_key_env: TEST_WRONG_KEY
    models: {{claude-haiku: claude-haiku-5-5}}
  - name: gone
    kind: anthropic
    base_url: http://127.0.0.1:1
    models: {{o1: o1}}
"""
    )
    settings = ProviderSettings(vendors_file=path, max_attempts=2, backoff_base_s=0, breaker_faults=100)
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(serve(await build(settings, stack)))
        yield provider_pb2_grpc.ProviderServiceStub(channel)


@pytest.fixture
async def adapter(vendor: AnthropicLike) -> AsyncIterator[Anthropic]:
    opened = Anthropic("acme-ai", base_url=vendor.url, api_key=KEY)
    yield opened
    await opened.close()


async def refused(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def cut(
    call: grpc.aio.UnaryStreamCall[Any, provider_pb2.StreamGenerateResponse],
) -> tuple[list[str], MeshError]:
    kinds: list[str] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 (what came before counts)
        async for event in call:
            kinds.append(str(event.WhichOneof("event")))
    return kinds, from_rpc_error(caught.value)


async def test_a_whole_answer_is_priced_from_the_book(provider: Provider, vendor: AnthropicLike) -> None:
    usage = {
        "input_tokens": 50,
        "cache_read_input_tokens": 2000,
        "cache_creation_input_tokens": 700,
        "cache_creation": {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 400},
        "output_tokens": 90,
        "output_tokens_details": {"thinking_tokens": 30},
    }
    vendor.next(Script(usage=usage, thinking="The parcel left on Friday."))
    response = await provider.Generate(whole())
    assert response.answer.message.parts[0].text == TEXT
    assert response.answer.message.reasoning == "The parcel left on Friday."
    counts = response.usage
    assert (counts.input_tokens, counts.output_tokens, counts.reasoning_output_tokens) == (2750, 90, 30)
    assert (counts.cache_read_input_tokens, counts.cache_write_input_tokens) == (2000, 700)
    assert [(write.ttl.seconds, write.tokens) for write in counts.cache_writes] == [(300, 300), (3600, 400)]
    assert not counts.estimated
    # $3 input, $0.30 read, $3.75 written for 5 minutes, $6 for an hour, $15 output per million tokens.
    assert response.charge.cost_nanousd == 50 * 3000 + 2000 * 300 + 300 * 3750 + 400 * 6000 + 90 * 15_000 == 5_625_000
    assert vendor.requests[0]["model"] == "claude-sonnet-5-5"
    assert (response.model, response.vendor) == ("claude-sonnet", "acme-ai")


async def test_a_stream_costs_what_a_whole_answer_costs(provider: Provider, vendor: AnthropicLike) -> None:
    vendor.next(Script(thinking="Think."), Script(thinking="Think."))
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    assert "".join(event.delta.reasoning for event in events) == "Think."
    assert sum(bool(event.delta.text) for event in events) > 5
    done = events[-1].finished
    response = await provider.Generate(whole())
    assert response.usage == done.usage
    assert not done.usage.estimated
    assert done.usage.input_tokens == tokens_of("Where is my order?")
    assert done.charge.cost_nanousd + response.charge.cost_nanousd == vendor.invoice
    assert [request.get("stream") for request in vendor.requests] == [True, None]


async def test_the_key_and_the_version_travel_in_headers(provider: Provider, vendor: AnthropicLike) -> None:
    await provider.Generate(whole())
    headers = vendor.headers[0]
    assert KEY in (headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer "))
    assert headers["anthropic-version"]
    assert headers["content-type"] == "application/json"
    assert "traceparent" not in headers


async def test_everything_of_a_chat_reaches_the_vendor(provider: Provider, vendor: AnthropicLike) -> None:
    picture = chat_pb2.Image(data=b"\x89PNG", media_type="image/png")
    chat = chat_pb2.Chat(
        messages=[
            said(chat_pb2.ROLE_SYSTEM, "Be brief."),
            user("Weather?"),
            chat_pb2.Message(
                role=chat_pb2.ROLE_ASSISTANT,
                parts=[chat_pb2.ContentPart(text="I look.")],
                tool_calls=[
                    chat_pb2.ToolCall(id="c1", name="weather", arguments_json='{"city": "Turin"}'),
                    chat_pb2.ToolCall(id="c2", name="weather", arguments_json='{"city": "Rome"}'),
                ],
            ),
            chat_pb2.Message(role=chat_pb2.ROLE_TOOL, tool_call_id="c1", parts=[chat_pb2.ContentPart(text="sunny")]),
            chat_pb2.Message(role=chat_pb2.ROLE_TOOL, tool_call_id="c2", parts=[chat_pb2.ContentPart(text="rain")]),
            chat_pb2.Message(
                role=chat_pb2.ROLE_USER,
                name="ann",
                parts=[
                    chat_pb2.ContentPart(text="And here?"),
                    chat_pb2.ContentPart(image=picture),
                    chat_pb2.ContentPart(image=chat_pb2.Image(url="https://example.com/a.png")),
                ],
            ),
        ],
        tools=[chat_pb2.Tool(name="weather", description="Tells it.", parameters_json_schema=SCHEMA, strict=True)],
        tool_choice=chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_NAMED, name="weather"),
        response_format=chat_pb2.ResponseFormat(
            kind=chat_pb2.ResponseFormat.KIND_JSON_SCHEMA, name="w", json_schema=SCHEMA
        ),
        sampling=chat_pb2.Sampling(temperature=0.5, max_output_tokens=9, stop=["END"], seed=7, presence_penalty=1),
    )
    await provider.Generate(whole(chat, "claude-opus"))
    assert vendor.requests[0] == {
        "model": "claude-opus-4-5",
        "system": [{"type": "text", "text": "Be brief."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Turin"}},
                    {"type": "tool_use", "id": "c2", "name": "weather", "input": {"city": "Rome"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
                    {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "rain"}]},
                    {"type": "text", "text": "And here?"},
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="}},
                    {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
                ],
            },
        ],
        "tools": [
            {"name": "weather", "description": "Tells it.", "input_schema": json.loads(SCHEMA), "strict": True},
        ],
        "tool_choice": {"type": "tool", "name": "weather"},
        "output_config": {"format": {"type": "json_schema", "schema": json.loads(SCHEMA)}},
        "temperature": 0.5,
        "max_tokens": 9,
        "stop_sequences": ["END"],
    }


@pytest.mark.parametrize("model", ["claude-sonnet", "claude-opus"])
async def test_reasoning_is_asked_for_as_the_model_takes_it(
    provider: Provider, vendor: AnthropicLike, model: str
) -> None:
    chat = chat_pb2.Chat(
        messages=[user("Why?")], sampling=chat_pb2.Sampling(reasoning_effort="high", temperature=0.5, top_p=0.5)
    )
    vendor.next(Script(thinking="Because."))
    response = await provider.Generate(whole(chat, model))
    assert response.answer.message.reasoning == "Because."
    kind = vendor.requests[0]["thinking"]["type"]
    assert kind == {"claude-sonnet": "adaptive", "claude-opus": "enabled"}[model]


@pytest.mark.parametrize("model", ["claude-sonnet", "claude-opus"])
async def test_a_loop_of_tools_is_taken_though_nothing_signed_comes_back(
    provider: Provider, vendor: AnthropicLike, model: str
) -> None:
    chat = chat_pb2.Chat(
        messages=[user("Weather?")],
        tools=[chat_pb2.Tool(name="weather"), chat_pb2.Tool(name="time")],
        sampling=chat_pb2.Sampling(reasoning_effort="high"),
    )
    vendor.next(Script(text="", thinking="Look.", tool_calls=[WEATHER, TIME]))
    first = (await provider.Generate(whole(chat, model))).answer.message
    chat.messages.append(first)
    for call in first.tool_calls:
        chat.messages.append(
            chat_pb2.Message(
                role=chat_pb2.ROLE_TOOL, tool_call_id=call.id, parts=[chat_pb2.ContentPart(text=f"{call.name}: fine")]
            )
        )
    response = await provider.Generate(whole(chat, model))
    assert response.answer.message.parts[0].text == TEXT
    assert ["thinking" in request for request in vendor.requests] == [True, False]


async def test_a_hot_temperature_is_refused_by_name(provider: Provider, vendor: AnthropicLike) -> None:
    chat = chat_pb2.Chat(messages=[user("Hi")], sampling=chat_pb2.Sampling(temperature=1.5))
    error = await refused(provider.Generate(whole(chat)))
    assert (error.reason, error.violations[0].field) == ("INVALID_INPUT", "chat.sampling.temperature")
    assert not vendor.requests


@pytest.mark.parametrize("as_stream", [False, True])
async def test_tool_calls_come_back(provider: Provider, vendor: AnthropicLike, as_stream: bool) -> None:
    vendor.next(Script(tool_calls=[WEATHER, TIME]))
    if not as_stream:
        answer = (await provider.Generate(whole())).answer
        got = [(c.id, c.name, c.arguments_json) for c in answer.message.tool_calls]
        reason = answer.finish_reason
    else:
        parts: dict[int, list[str]] = {}
        async for event in provider.StreamGenerate(streamed()):
            if event.delta.HasField("tool_call"):
                piece = event.delta.tool_call
                call = parts.setdefault(piece.index, ["", "", ""])
                call[0] += piece.id
                call[1] += piece.name
                call[2] += piece.arguments_json
            reason = event.finished.finish_reason
        got = [(c[0], c[1], c[2]) for _, c in sorted(parts.items())]
    assert got == [("c1", "weather", '{"city": "Turin"}'), ("c2", "time", "{}")]
    assert reason == chat_pb2.FINISH_REASON_TOOL_CALLS


@pytest.mark.parametrize("as_stream", [False, True])
async def test_an_empty_answer_is_an_answer(provider: Provider, vendor: AnthropicLike, as_stream: bool) -> None:
    vendor.next(Script(fault="empty_content"))
    if as_stream:
        events = [event async for event in provider.StreamGenerate(streamed())]
        reason = events[-1].finished.finish_reason
        assert [event.WhichOneof("event") for event in events] == ["started", "finished"]
    else:
        answer = (await provider.Generate(whole())).answer
        reason = answer.finish_reason
        assert not answer.message.parts
    assert reason == chat_pb2.FINISH_REASON_STOP


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(
    "content",
    [
        [{"type": "redacted_thinking", "data": "c2VhbGVk"}, {"type": "text", "text": "Yes."}],
        [{"type": "something_new", "text": "No."}, {"type": "text", "text": "Yes."}],
        [{"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}, {"type": "text", "text": "Yes."}],
        [{"type": "text", "text": "Yes.", "citations": None}],
    ],
    ids=["redacted", "new", "server tool", "citations"],
)
async def test_blocks_that_we_have_no_word_for_are_passed_over(
    provider: Provider, vendor: AnthropicLike, content: list[Any], as_stream: bool
) -> None:
    vendor.next(Script(content=content))
    if as_stream:
        events = [event async for event in provider.StreamGenerate(streamed())]
        assert events[-1].WhichOneof("event") == "finished"
        assert not any(event.delta.HasField("tool_call") for event in events)
        text = "".join(event.delta.text for event in events)
    else:
        message = (await provider.Generate(whole())).answer.message
        assert not message.tool_calls
        text = message.parts[0].text
    assert text == "Yes."


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", chat_pb2.FINISH_REASON_STOP),
        ("stop_sequence", chat_pb2.FINISH_REASON_STOP),
        ("max_tokens", chat_pb2.FINISH_REASON_LENGTH),
        ("model_context_window_exceeded", chat_pb2.FINISH_REASON_LENGTH),
        ("tool_use", chat_pb2.FINISH_REASON_TOOL_CALLS),
        ("refusal", chat_pb2.FINISH_REASON_CONTENT_FILTER),
    ],
)
async def test_finish_reasons_are_known(
    provider: Provider, vendor: AnthropicLike, reason: str, expected: chat_pb2.FinishReason.ValueType
) -> None:
    vendor.next(Script(stop_reason=reason), Script(stop_reason=reason))
    assert (await provider.Generate(whole())).answer.finish_reason == expected
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert events[-1].finished.finish_reason == expected


INTERRUPTED = [None, "pause_turn", "something_new", "compaction"]


@pytest.mark.parametrize("reason", INTERRUPTED)
async def test_an_answer_that_does_not_say_that_it_is_whole_is_none(
    provider: Provider, vendor: AnthropicLike, reason: str | None
) -> None:
    vendor.next(Script(stop_reason=reason))
    response = await provider.Generate(whole())
    assert [attempt.outcome for attempt in response.attempts] == ["STREAM_CUT", "ok"]
    assert response.charge.wasted_nanousd > 0
    vendor.next(Script(stop_reason=reason))
    kinds, error = await cut(provider.StreamGenerate(streamed()))
    assert error.reason == "STREAM_CUT"
    assert "finished" not in kinds


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(
    "usage", [None, {"input_tokens": None}, {"output_tokens": None}, {"cache_read_input_tokens": "all"}], ids=repr
)
async def test_missing_usage_is_estimated_and_marked(
    provider: Provider, vendor: AnthropicLike, as_stream: bool, usage: dict[str, Any] | None
) -> None:
    vendor.next(Script(usage=usage))
    told: provider_pb2.Finished | provider_pb2.GenerateResponse
    if as_stream:
        told = [event async for event in provider.StreamGenerate(streamed())][-1].finished
    else:
        told = await provider.Generate(whole())
    assert told.usage.estimated
    assert told.usage.input_tokens > 0
    assert told.usage.output_tokens > 5
    assert told.charge.cost_nanousd > 0


NONSENSE: list[Any] = [
    [5],
    ["text"],
    [{"type": "text", "text": 5}],
    [{"type": "thinking", "thinking": [1]}],
    [{"type": "tool_use", "id": "c1", "name": None, "input": {}}],
    [{"type": "tool_use", "id": 7, "name": "f", "input": {}}],
    [{"type": "tool_use", "id": "c1", "name": "f", "input": [1]}],
]


@pytest.mark.parametrize("content", NONSENSE, ids=repr)
async def test_nonsense_is_the_vendors_fault(provider: Provider, vendor: AnthropicLike, content: Any) -> None:
    vendor.next(Script(content=content))
    response = await provider.Generate(whole())
    assert [attempt.outcome for attempt in response.attempts] == ["UPSTREAM_UNAVAILABLE", "ok"]
    vendor.next(Script(content=content), Script(status=500))
    kinds, error = await cut(provider.StreamGenerate(streamed()))
    assert error.reason in ("ALL_CANDIDATES_FAILED", "STREAM_CUT")
    assert "finished" not in kinds


OVERLOADED = {"type": "overloaded_error", "message": "Overloaded"}
PASSING = [
    Script(status=500),
    Script(status=503, headers={"retry-after": "0"}),
    Script(status=529, error=OVERLOADED),
    Script(status=429),
    Script(status=429, headers={"retry-after": "0.01"}),
    Script(delay_s=5),
    Script(fault="reset"),
    Script(fault="wrong_type"),
]


def outcome_of(script: Script) -> str:
    return "RATE_LIMITED" if script.status == 429 else "UPSTREAM_UNAVAILABLE"


@pytest.mark.parametrize(
    "script", [*PASSING, Script(fault="cut"), Script(fault="malformed"), Script(fault="hang")], ids=repr
)
async def test_a_passing_fault_is_survived(provider: Provider, vendor: AnthropicLike, script: Script) -> None:
    vendor.next(script)
    response = await provider.Generate(whole())
    assert response.answer.message.parts[0].text == TEXT
    assert [attempt.outcome for attempt in response.attempts] == [outcome_of(script), "ok"]


@pytest.mark.parametrize("script", PASSING, ids=repr)
async def test_a_passing_fault_before_the_first_piece_is_survived(
    provider: Provider, vendor: AnthropicLike, script: Script
) -> None:
    vendor.next(script)
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    first, second = events[-1].finished.attempts
    assert first.outcome == ("STREAM_CUT" if script.fault == "wrong_type" else outcome_of(script))
    assert second.outcome == "ok"


@pytest.mark.parametrize("fault", ["cut", "cut_clean", "no_stop", "malformed", "error_event", "hang"])
async def test_a_stream_that_breaks_off_is_never_finished(
    provider: Provider, vendor: AnthropicLike, fault: str
) -> None:
    vendor.next(Script(fault=fault))  # type: ignore[arg-type]
    kinds, error = await cut(provider.StreamGenerate(streamed(None, "claude-sonnet", "claude-opus")))
    assert error.reason == "STREAM_CUT"
    assert kinds[:2] == ["started", "delta"]
    assert "finished" not in kinds
    assert int(error.metadata["wasted_nanousd"]) > 0
    assert len(vendor.requests) == 1


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("overloaded_error", Reason.UNAVAILABLE),
        ("api_error", Reason.UNAVAILABLE),
        ("something_new", Reason.UNAVAILABLE),
        ("rate_limit_error", Reason.RATE_LIMITED),
        ("invalid_request_error", Reason.REJECTED),
        ("authentication_error", Reason.CREDENTIAL),
        ("billing_error", Reason.CREDENTIAL),
    ],
)
async def test_an_error_inside_a_stream_has_its_own_reason(
    adapter: Anthropic, vendor: AnthropicLike, kind: str, reason: Reason
) -> None:
    vendor.next(Script(fault="error_event", error={"type": kind, "message": "prompt was: Where is my order?"}))
    call = Call("claude-sonnet-5-5", Chat((Message(Role.USER, (TextPart("Hi"),)),)), Caller("acme"), True, 5.0)
    pieces = []
    with pytest.raises(VendorError) as caught:  # noqa: PT012 (what came before counts)
        async for piece in adapter.call(call):
            pieces.append(piece)
    assert isinstance(pieces[0], TextDelta)
    assert (caught.value.reason, caught.value.billed) == (reason, True)
    assert "order" not in caught.value.message


async def test_rate_limits_tell_when_to_come_back(provider: Provider, vendor: AnthropicLike) -> None:
    limited = {"type": "rate_limit_error", "message": "org acme-secret exceeded its limit"}
    vendor.always = Script(status=429, headers={"retry-after": "120"}, error=limited)
    error = await refused(provider.Generate(whole(), timeout=20))
    assert (error.reason, error.retry_after_s) == ("RATE_LIMITED", 120.0)
    assert error.message == "acme-ai answered 429 (rate_limit_error)"
    assert len(vendor.requests) == 1


@pytest.mark.parametrize("status", [400, 404, 422])
async def test_a_rejected_request_is_not_repeated(provider: Provider, vendor: AnthropicLike, status: int) -> None:
    secret = {"type": "invalid_request_error", "message": "prompt was: Where is my order?"}
    vendor.always = Script(status=status, error=secret)
    error = await refused(provider.Generate(whole()))
    assert error.reason == "UPSTREAM_REJECTED"
    assert error.message == f"acme-ai answered {status} (invalid_request_error)"
    assert len(vendor.requests) == 1


@pytest.mark.parametrize(
    "script",
    [
        Script(
            status=400,
            error={"type": "invalid_request_error", "message": "prompt is too long: 215000 tokens > 200000 maximum"},
        ),
        Script(
            status=400,
            error={
                "type": "invalid_request_error",
                "message": "input length and `max_tokens` exceed context limit: 199000 + 8192 > 200000",
            },
        ),
        Script(status=413, error={"type": "request_too_large", "message": "Request exceeds the maximum size"}),
    ],
    ids=["prompt", "prompt and answer", "bytes"],
)
async def test_a_prompt_too_long_for_one_model_may_fit_the_next(
    provider: Provider, vendor: AnthropicLike, script: Script
) -> None:
    vendor.next(script)
    response = await provider.Generate(whole(None, "claude-sonnet", "claude-opus"))
    assert [attempt.outcome for attempt in response.attempts] == ["INVALID_INPUT", "ok"]
    vendor.next(script, script)
    error = await refused(provider.Generate(whole(None, "claude-sonnet", "claude-opus")))
    assert error.reason == "INVALID_INPUT"
    assert error.violations[0].field == "chat.messages"
    assert "0000" not in error.message


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_what_our_account_may_not_is_named(provider: Provider, vendor: AnthropicLike, status: int) -> None:
    vendor.always = Script(status=status, error={"type": "permission_error", "message": "org acme-secret"})
    error = await refused(provider.Generate(whole(None, "claude-sonnet", "claude-opus")))
    assert error.reason == "UPSTREAM_CREDENTIAL"
    assert "secret" not in error.message
    assert len(vendor.requests) == 1


async def test_our_wrong_key_is_named_and_never_shown(provider: Provider) -> None:
    error = await refused(provider.Generate(whole(None, "claude-haiku")))
    assert error.reason == "UPSTREAM_CREDENTIAL"
    assert "sk-" not in error.message


async def test_a_vendor_that_is_gone_gives_way_to_the_next_and_costs_nothing(provider: Provider) -> None:
    response = await provider.Generate(whole(None, "o1", "claude-sonnet"))
    first, second = response.attempts
    assert (first.outcome, first.cost_nanousd, second.outcome) == ("UPSTREAM_UNAVAILABLE", 0, "ok")


@pytest.mark.parametrize("as_stream", [False, True])
async def test_cancelling_hangs_up_at_the_vendor(provider: Provider, vendor: AnthropicLike, as_stream: bool) -> None:
    if as_stream:
        vendor.next(Script(fault="hang"))
        call = provider.StreamGenerate(streamed())
        await call.read()
        await call.read()
        call.cancel()
    else:
        vendor.next(Script(delay_s=60))
        await refused(provider.Generate(whole(), timeout=0.3))
    await vendor.hung_up.wait()
    assert vendor.hang_ups == 1


GUIDE = "Answer from the shop's handbook. " * 400  # 13,200 characters: 3,300 tokens
QUESTION = Message(Role.USER, (TextPart("Where is my order?"),))
ANSWERED = Message(Role.ASSISTANT, (TextPart(TEXT),))


class Shop:
    """Asks through the adapter, with breakpoints, and keeps what it cost by our reading."""

    def __init__(self, adapter: Anthropic) -> None:
        self.cost = 0
        self._adapter = adapter

    async def ask(self, *messages: Message, breakpoints: tuple[Breakpoint, ...], streaming: bool) -> Usage:
        chat = Chat((Message(Role.SYSTEM, (TextPart(GUIDE),)), *messages), (Tool("find", "Finds an order. " * 300),))
        hints = CacheHints(breakpoints)
        call = Call("claude-sonnet-5-5", chat, Caller("acme"), streaming, 5.0, hints=hints)
        *_, completion = [event async for event in self._adapter.call(call)]
        assert isinstance(completion, Completion)
        assert completion.finish_reason is FinishReason.STOP
        assert completion.usage is not None
        assert SONNET is not None
        self.cost += price(SONNET, completion.usage)
        return completion.usage


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_conversation_costs_what_the_vendors_invoice_says(streaming: bool) -> None:
    now = [0.0]
    async with AnthropicLike(api_key=KEY, rates=SONNET, now=lambda: now[0]) as vendor:
        adapter = Anthropic("acme-ai", base_url=vendor.url, api_key=KEY)
        shop = Shop(adapter)
        static = (Breakpoint(None, 3600), Breakpoint(0, 3600))
        tools = {"name": "find", "description": "Finds an order. " * 300, "input_schema": {"type": "object"}}
        kept = tokens_of(json.dumps(tools)) + tokens_of(GUIDE)
        asked, answered = tokens_of("Where is my order?"), tokens_of(TEXT)

        first = await shop.ask(QUESTION, breakpoints=(*static, Breakpoint(1)), streaming=streaming)
        assert first.cache_writes == ((300, asked), (3600, kept))
        assert first.input_tokens == kept + asked

        second = await shop.ask(QUESTION, ANSWERED, QUESTION, breakpoints=(*static, Breakpoint(3)), streaming=streaming)
        assert second.cache_read_input_tokens == kept + asked
        assert second.cache_writes == ((300, answered + asked),)

        now[0] = 1000  # the short part is gone
        third = await shop.ask(QUESTION, ANSWERED, QUESTION, breakpoints=(*static, Breakpoint(3)), streaming=streaming)
        assert third.cache_read_input_tokens == kept
        assert third.cache_writes == ((300, 2 * asked + answered),)

        now[0] = 5000  # and so is all
        last = await shop.ask(QUESTION, breakpoints=static, streaming=streaming)
        assert last.cache_writes == ((3600, kept),)
        assert last.input_tokens == kept + asked
        await adapter.close()
        output = vendor.charged[0].output_tokens
        # By hand: $3 input, $0.30 read, $3.75 and $6 written, $15 output per million tokens.
        assert shop.cost == vendor.invoice
        assert vendor.invoice == (
            (kept * 6000 + asked * 3750)
            + ((kept + asked) * 300 + (answered + asked) * 3750)
            + (kept * 300 + (2 * asked + answered) * 3750)
            + (kept * 6000 + asked * 3000)
            + 4 * output * 15_000
        )


async def test_without_breakpoints_nothing_is_kept(adapter: Anthropic, vendor: AnthropicLike) -> None:
    shop = Shop(adapter)
    for _ in range(2):
        assert (await shop.ask(QUESTION, breakpoints=(), streaming=False)).cache_writes == ()
    assert shop.cost == vendor.invoice
    assert [line.count for line in vendor.charged] == [Count(vendor.charged[0].count.total)] * 2


async def test_one_connection_serves_one_stream_after_another(adapter: Anthropic, vendor: AnthropicLike) -> None:
    call = Call("claude-sonnet-5-5", Chat((QUESTION,)), Caller("acme"), True, 5.0)
    for _ in range(3):
        *_, completion = [event async for event in adapter.call(call)]
        assert isinstance(completion, Completion)
    assert vendor.connections == 1
