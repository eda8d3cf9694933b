"""The provider service against a vendor that behaves like Amazon Bedrock on the wire, through boto3."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest
from botocore.loaders import Loader, create_loader

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.chat import Chat, Message, Role, TextDelta, TextPart, Tool
from services.common.chat_pb import Caller
from services.common.errors import MeshError, from_rpc_error
from services.common.money import Rates, price
from services.common.testing import serve
from services.provider.adapters.bedrock import Bedrock
from services.provider.app import build
from services.provider.domain.prompt_cache import LONG_TTL_S, Breakpoint, CacheHints
from services.provider.domain.vendor import Call, Completion, Reason, VendorError
from services.provider.settings import ProviderSettings
from tests.vendors.bedrock_like import ACCESS_KEY, TEXT, BedrockLike, Script

CALLER = caller_pb2.Caller(tenant="acme")
MODEL = "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"
SCHEMA = '{"type": "object", "properties": {"city": {"type": "string"}}}'
# $3 input, $0.30 read, $3.75 written for 5 minutes, $6 for an hour, $15 output per million tokens.
SONNET = Rates(3_000_000_000, 15_000_000_000, 300_000_000, 3_750_000_000, 6_000_000_000)

Provider: TypeAlias = "provider_pb2_grpc.ProviderServiceAsyncStub"


def said(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=text)])


def user(text: str) -> chat_pb2.Message:
    return said(chat_pb2.ROLE_USER, text)


def chat_of(*messages: chat_pb2.Message, **fields: Any) -> chat_pb2.Chat:
    return chat_pb2.Chat(messages=messages or [user("Where is my order?")], **fields)


def whole(chat: chat_pb2.Chat | None = None, *candidates: str) -> provider_pb2.GenerateRequest:
    return provider_pb2.GenerateRequest(
        caller=CALLER, chat=chat or chat_of(), candidates=candidates or ("claude-sonnet",)
    )


def streamed(*candidates: str) -> provider_pb2.StreamGenerateRequest:
    return provider_pb2.StreamGenerateRequest(
        caller=CALLER, chat=chat_of(), candidates=candidates or ("claude-sonnet",)
    )


@pytest.fixture(scope="module")
def descriptions() -> Loader:
    """boto3's descriptions of AWS, read once: that takes longer than a test."""
    return create_loader()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, descriptions: Loader) -> None:
    """Those of the test only, however the machine is set up."""
    monkeypatch.setattr("botocore.session.create_loader", lambda _: descriptions)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def no_credentials(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


@pytest.fixture
async def vendor() -> AsyncIterator[BedrockLike]:
    async with BedrockLike(rates=SONNET, now=lambda: 0.0) as opened:
        yield opened


@pytest.fixture
async def provider(vendor: BedrockLike, tmp_path: Path) -> AsyncIterator[Provider]:
    path = tmp_path / "vendors.yaml"
    path.write_text(
        f"""
vendors:
  - name: aws
    kind: bedrock
    region: eu-central-1
    endpoint_url: {vendor.url}
    models: {{claude-sonnet: "{MODEL}", claude-haiku: haiku, mystery: mystery}}
    timeout_s: 1
    unary_timeout_s: 1
"""
    )
    settings = ProviderSettings(vendors_file=path, max_attempts=2, backoff_base_s=0, breaker_faults=100)
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(serve(await build(settings, stack)))
        yield provider_pb2_grpc.ProviderServiceStub(channel)


@asynccontextmanager
async def opened(vendor: BedrockLike) -> AsyncIterator[Bedrock]:
    adapter = Bedrock("aws", region="eu-central-1", endpoint_url=vendor.url, max_concurrency=1)
    yield adapter
    await adapter.close()


@pytest.fixture
async def adapter(vendor: BedrockLike) -> AsyncIterator[Bedrock]:
    """With one thread: a call that does not free it holds all others up."""
    async with opened(vendor) as adapter:
        yield adapter


def call_of(chat: Chat | None = None, *, streaming: bool = True, hints: CacheHints | None = None) -> Call:
    """A call that waits longer for the vendor than a test may take."""
    chat = chat or Chat((Message(Role.USER, (TextPart("Where is my order?"),)),))
    return Call(MODEL, chat, Caller("acme"), streaming, 600.0, hints=hints or CacheHints())


async def completed(adapter: Bedrock, call: Call) -> Completion:
    last = [event async for event in adapter.call(call)][-1]
    assert isinstance(last, Completion)
    return last


async def failed(adapter: Bedrock, call: Call) -> VendorError:
    with pytest.raises(VendorError) as caught:
        await completed(adapter, call)
    return caught.value


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


async def test_a_whole_answer_is_priced_from_the_book(provider: Provider, vendor: BedrockLike) -> None:
    usage = {
        "inputTokens": 50,
        "outputTokens": 90,
        "totalTokens": 2840,
        "cacheReadInputTokens": 2000,
        "cacheWriteInputTokens": 700,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 400}, {"ttl": "5m", "inputTokens": 300}],
    }
    vendor.next(Script(usage=usage, reasoning="The parcel left on Friday."))
    response = await provider.Generate(whole())
    assert response.answer.message.parts[0].text == TEXT
    assert response.answer.message.reasoning == "The parcel left on Friday."
    counts = response.usage
    assert (counts.input_tokens, counts.output_tokens, counts.estimated) == (2750, 90, False)
    assert (counts.cache_read_input_tokens, counts.cache_write_input_tokens) == (2000, 700)
    assert {(write.ttl.seconds, write.tokens) for write in counts.cache_writes} == {(300, 300), (3600, 400)}
    assert response.charge.cost_nanousd == 50 * 3000 + 2000 * 300 + 300 * 3750 + 400 * 6000 + 90 * 15_000 == 5_625_000
    assert vendor.models == [MODEL]
    assert (response.model, response.vendor) == ("claude-sonnet", "aws")


async def test_a_stream_costs_what_a_whole_answer_costs(provider: Provider, vendor: BedrockLike) -> None:
    vendor.next(Script(reasoning="Think."), Script(reasoning="Think."))
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    assert "".join(event.delta.reasoning for event in events) == "Think."
    assert sum(bool(event.delta.text) for event in events) > 5
    done = events[-1].finished
    response = await provider.Generate(whole())
    assert response.usage == done.usage
    assert not done.usage.estimated
    assert done.usage.input_tokens == 5  # 18 letters
    assert done.charge.cost_nanousd + response.charge.cost_nanousd == vendor.invoice


async def test_requests_are_signed_for_the_region(provider: Provider, vendor: BedrockLike) -> None:
    await provider.Generate(whole())
    assert "/eu-central-1/bedrock/aws4_request" in vendor.headers[0]["authorization"]
    assert "test-secret" not in str(vendor.headers[0])


async def test_everything_of_a_chat_reaches_the_vendor(provider: Provider, vendor: BedrockLike) -> None:
    picture = chat_pb2.Image(data=b"\x89PNG", media_type="image/png")
    chat = chat_of(
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
            parts=[chat_pb2.ContentPart(text="And here?"), chat_pb2.ContentPart(image=picture)],
        ),
        tools=[chat_pb2.Tool(name="weather", description="Tells it.", parameters_json_schema=SCHEMA, strict=True)],
        tool_choice=chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_NAMED, name="weather"),
        response_format=chat_pb2.ResponseFormat(
            kind=chat_pb2.ResponseFormat.KIND_JSON_SCHEMA, name="w", json_schema=SCHEMA
        ),
        sampling=chat_pb2.Sampling(
            temperature=0.5, top_p=0.25, max_output_tokens=9, stop=["END"], seed=7, reasoning_effort="low"
        ),
    )
    await provider.Generate(whole(chat))
    sent = vendor.requests[0]
    assert sent["system"][0] == {"text": "Be brief."}
    messages = [
        {"role": m["role"], "content": [block for block in m["content"] if "cachePoint" not in block]}
        for m in sent["messages"]
    ]
    assert messages == [
        {"role": "user", "content": [{"text": "Weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"text": "I look."},
                {"toolUse": {"toolUseId": "c1", "name": "weather", "input": {"city": "Turin"}}},
                {"toolUse": {"toolUseId": "c2", "name": "weather", "input": {"city": "Rome"}}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "c1", "content": [{"text": "sunny"}]}},
                {"toolResult": {"toolUseId": "c2", "content": [{"text": "rain"}]}},
                {"text": "And here?"},
                {"image": {"format": "png", "source": {"bytes": base64.b64encode(b"\x89PNG").decode()}}},
            ],
        },
    ]
    spec = {"name": "weather", "description": "Tells it.", "inputSchema": {"json": json.loads(SCHEMA)}, "strict": True}
    assert sent["toolConfig"]["tools"][0] == {"toolSpec": spec}
    assert sent["toolConfig"]["toolChoice"] == {"tool": {"name": "weather"}}
    text_format = sent["outputConfig"]["textFormat"]
    assert (sent["outputConfig"]["effort"], text_format["type"]) == ("low", "json_schema")
    assert text_format["structure"]["jsonSchema"]["name"] == "w"
    assert json.loads(text_format["structure"]["jsonSchema"]["schema"]) == json.loads(SCHEMA)
    assert sent["inferenceConfig"] == {"temperature": 0.5, "topP": 0.25, "maxTokens": 9, "stopSequences": ["END"]}


@pytest.mark.parametrize("as_stream", [False, True])
async def test_tool_calls_come_back(provider: Provider, vendor: BedrockLike, as_stream: bool) -> None:
    calls = [("c1", "weather", {"city": "Turin"}), ("c2", "now", {})]
    vendor.next(Script(text="I look.", tool_calls=calls, stop_reason="tool_use"))
    if not as_stream:
        answer = (await provider.Generate(whole())).answer
        got = [(c.id, c.name, c.arguments_json) for c in answer.message.tool_calls]
        assert answer.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
    else:
        parts: dict[int, list[str]] = {}
        async for event in provider.StreamGenerate(streamed()):
            if event.delta.HasField("tool_call"):
                piece = event.delta.tool_call
                call = parts.setdefault(piece.index, ["", "", ""])
                call[0] += piece.id
                call[1] += piece.name
                call[2] += piece.arguments_json
        got = [(c[0], c[1], c[2]) for _, c in sorted(parts.items())]
    assert got == [("c1", "weather", '{"city": "Turin"}'), ("c2", "now", "{}")]


@pytest.mark.parametrize("as_stream", [False, True])
async def test_a_tool_call_without_an_id_gets_one(provider: Provider, vendor: BedrockLike, as_stream: bool) -> None:
    vendor.next(Script(text="", tool_calls=[("", "weather", {"a": 1})], stop_reason="tool_use"))
    if as_stream:
        events = [event async for event in provider.StreamGenerate(streamed())]
        id_ = next(event.delta.tool_call.id for event in events if event.delta.HasField("tool_call"))
    else:
        id_ = (await provider.Generate(whole())).answer.message.tool_calls[0].id
    assert id_.startswith("call_")


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("end_turn", chat_pb2.FINISH_REASON_STOP),
        ("stop_sequence", chat_pb2.FINISH_REASON_STOP),
        ("max_tokens", chat_pb2.FINISH_REASON_LENGTH),
        ("model_context_window_exceeded", chat_pb2.FINISH_REASON_LENGTH),
        ("guardrail_intervened", chat_pb2.FINISH_REASON_CONTENT_FILTER),
        ("content_filtered", chat_pb2.FINISH_REASON_CONTENT_FILTER),
    ],
)
async def test_stop_reasons_are_known(
    provider: Provider, vendor: BedrockLike, as_stream: bool, reason: str, expected: int
) -> None:
    vendor.next(Script(stop_reason=reason))
    if as_stream:
        told = [event async for event in provider.StreamGenerate(streamed())][-1].finished.finish_reason
    else:
        told = (await provider.Generate(whole())).answer.finish_reason
    assert told == expected


INTERRUPTED = [None, "", "malformed_model_output", "malformed_tool_use", "something_new"]


@pytest.mark.parametrize("reason", INTERRUPTED)
async def test_an_answer_that_does_not_say_that_it_is_whole_is_none(
    provider: Provider, vendor: BedrockLike, reason: str | None
) -> None:
    vendor.next(Script(stop_reason=reason))
    response = await provider.Generate(whole())
    assert [attempt.outcome for attempt in response.attempts] == ["STREAM_CUT", "ok"]
    assert response.charge.wasted_nanousd > 0


@pytest.mark.parametrize("reason", INTERRUPTED)
async def test_a_stream_that_does_not_say_that_it_is_whole_is_cut(
    provider: Provider, vendor: BedrockLike, reason: str | None
) -> None:
    vendor.next(Script(stop_reason=reason))
    kinds, error = await cut(provider.StreamGenerate(streamed()))
    assert error.reason == "STREAM_CUT"
    assert "finished" not in kinds


@pytest.mark.parametrize("script", [Script(fault="no_metadata"), Script(fault="lost_metadata"), Script(usage=None)])
async def test_an_answer_without_metadata_is_whole_and_its_usage_estimated(
    provider: Provider, vendor: BedrockLike, script: Script
) -> None:
    vendor.next(script)
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    assert events[-1].finished.usage.estimated
    assert events[-1].finished.charge.cost_nanousd > 0


@pytest.mark.parametrize("usage", [None, {}, {"inputTokens": 5}, {"inputTokens": -5, "outputTokens": 1}], ids=repr)
async def test_missing_usage_is_estimated_and_marked(
    provider: Provider, vendor: BedrockLike, usage: dict[str, Any] | None
) -> None:
    vendor.next(Script(usage=usage))
    told = (await provider.Generate(whole())).usage
    assert told.estimated
    assert told.input_tokens > 0
    assert told.output_tokens > 5


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_frames_may_come_in_any_pieces(provider: Provider, vendor: BedrockLike, size: int) -> None:
    vendor.next(Script(text="Grüße " * 20, dribble=size))
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == "Grüße " * 20
    assert not events[-1].finished.usage.estimated


async def test_events_that_are_not_known_are_passed_over(provider: Provider, vendor: BedrockLike) -> None:
    events = [
        ("messageStart", {"role": "assistant"}),
        ("newEvent", {"x": 1}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "On its way."}}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"citation": {"title": "x"}}}),
    ]
    vendor.next(Script(events=events))
    got = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in got) == "On its way."
    assert got[-1].WhichOneof("event") == "finished"


NONSENSE: list[Any] = [
    5,
    "text",
    ["text"],
    [{"text": 5}],
    [{"text": ["a"]}],
    [{"toolUse": 5}],
    [{"toolUse": {"toolUseId": "c1", "input": {}}}],
    [{"toolUse": {"toolUseId": "c1", "name": "", "input": {}}}],
    [{"toolUse": {"toolUseId": "c1", "name": 7, "input": {}}}],
    [{"toolUse": {"toolUseId": "c1", "name": "f", "input": 5}}],
    [{"reasoningContent": {"reasoningText": {"text": 7}}}],
]


@pytest.mark.parametrize("content", NONSENSE, ids=repr)
async def test_nonsense_is_the_vendors_fault(provider: Provider, vendor: BedrockLike, content: Any) -> None:
    vendor.next(Script(content=content))
    response = await provider.Generate(whole())
    assert [attempt.outcome for attempt in response.attempts] == ["UPSTREAM_UNAVAILABLE", "ok"]


@pytest.mark.parametrize(
    "event",
    [
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": 5}}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"toolUse": {"input": "{}"}}}),
        ("contentBlockDelta", {"contentBlockIndex": 0, "delta": 5}),
        ("contentBlockDelta", {"contentBlockIndex": 0}),
        ("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": "c1"}}}),
        ("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": {"toolUseId": 7, "name": "f"}}}),
        ("contentBlockDelta", "text"),
    ],
    ids=repr,
)
async def test_nonsense_in_a_stream_is_the_vendors_fault(
    provider: Provider, vendor: BedrockLike, event: tuple[str, Any]
) -> None:
    vendor.next(Script(events=[event]))
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    assert [attempt.outcome for attempt in events[-1].finished.attempts] == ["UPSTREAM_UNAVAILABLE", "ok"]


PASSING = [
    Script(status=500, code="InternalServerException"),
    Script(status=503, code="ServiceUnavailableException", headers={"retry-after": "0"}),
    Script(status=408, code="ModelTimeoutException"),
    Script(status=424, code="ModelErrorException"),
    Script(status=502),
    Script(status=429, code="ThrottlingException"),
    Script(status=429, code="ModelNotReadyException", headers={"retry-after": "0.01"}),
    Script(status=400, code="ThrottlingException"),
    Script(delay_s=5),
    Script(fault="reset"),
]


def outcome_of(script: Script) -> str:
    limited = script.code in ("ThrottlingException", "ModelNotReadyException")
    return "RATE_LIMITED" if limited else "UPSTREAM_UNAVAILABLE"


@pytest.mark.parametrize(
    "script",
    [*PASSING, Script(fault="cut"), Script(fault="hang"), Script(fault="malformed"), Script(fault="wrong_type")],
    ids=repr,
)
async def test_a_passing_fault_is_survived(provider: Provider, vendor: BedrockLike, script: Script) -> None:
    vendor.next(script)
    response = await provider.Generate(whole())
    assert response.answer.message.parts[0].text == TEXT
    assert [attempt.outcome for attempt in response.attempts] == [outcome_of(script), "ok"]
    assert len(vendor.requests) == 2


@pytest.mark.parametrize("script", [*PASSING, Script(fault="wrong_type")], ids=repr)
async def test_a_passing_fault_before_the_first_piece_is_survived(
    provider: Provider, vendor: BedrockLike, script: Script
) -> None:
    vendor.next(script)
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    assert [attempt.outcome for attempt in events[-1].finished.attempts] == [outcome_of(script), "ok"]


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("throttlingException", "RATE_LIMITED"),
        ("internalServerException", "UPSTREAM_UNAVAILABLE"),
        ("modelStreamErrorException", "UPSTREAM_UNAVAILABLE"),
        ("serviceUnavailableException", "UPSTREAM_UNAVAILABLE"),
        ("modelTimeoutException", "UPSTREAM_UNAVAILABLE"),
    ],
)
async def test_an_exception_before_the_first_piece_is_survived(
    provider: Provider, vendor: BedrockLike, code: str, outcome: str
) -> None:
    vendor.next(Script(fault="exception", events=[], code=code))
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    assert [attempt.outcome for attempt in events[-1].finished.attempts] == [outcome, "ok"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [("Malformed input request", "UPSTREAM_REJECTED"), ("Input is too long for requested model.", "INVALID_INPUT")],
)
async def test_a_stream_that_refuses_the_request_is_not_repeated(
    provider: Provider, vendor: BedrockLike, message: str, reason: str
) -> None:
    vendor.next(Script(fault="exception", events=[], code="validationException", message=message))
    _, error = await cut(provider.StreamGenerate(streamed()))
    assert error.reason == reason
    assert message not in error.message
    assert len(vendor.requests) == 1


@pytest.mark.parametrize(
    "script",
    [
        Script(fault="cut"),
        Script(fault="cut_clean"),
        Script(fault="malformed"),
        Script(fault="hang"),
        Script(fault="exception", code="modelStreamErrorException", message="secret"),
        Script(fault="exception", code="throttlingException"),
        Script(fault="error", code="InternalFailure"),
    ],
    ids=repr,
)
async def test_a_stream_that_breaks_off_is_never_finished(
    provider: Provider, vendor: BedrockLike, script: Script
) -> None:
    vendor.next(script)
    kinds, error = await cut(provider.StreamGenerate(streamed("claude-sonnet", "mystery")))
    assert error.reason == "STREAM_CUT"
    assert "secret" not in error.message
    assert kinds[:2] == ["started", "delta"]
    assert "finished" not in kinds
    assert int(error.metadata["wasted_nanousd"]) > 0
    assert len(vendor.requests) == 1


async def test_rate_limits_tell_when_to_come_back(provider: Provider, vendor: BedrockLike) -> None:
    vendor.always = Script(status=429, code="ThrottlingException", headers={"retry-after": "120"})
    error = await refused(provider.Generate(whole(), timeout=20))
    assert (error.reason, error.retry_after_s) == ("RATE_LIMITED", 120.0)
    assert len(vendor.requests) == 1


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(
    ("status", "code"), [(400, "ValidationException"), (404, "ResourceNotFoundException"), (413, "")]
)
async def test_a_rejected_request_is_not_repeated(
    provider: Provider, vendor: BedrockLike, status: int, code: str, as_stream: bool
) -> None:
    vendor.always = Script(status=status, code=code, message="prompt was: Where is my order?")
    if as_stream:
        _, error = await cut(provider.StreamGenerate(streamed()))
    else:
        error = await refused(provider.Generate(whole()))
    assert error.reason == "UPSTREAM_REJECTED"
    assert error.message == f"aws answered {status}" + (f" ({code})" if code else "")
    assert len(vendor.requests) == 1


@pytest.mark.parametrize(
    "message",
    [
        "Input is too long for requested model.",
        "The model returned the following errors: prompt is too long: 210000 tokens > 200000 maximum",
        "The model returned the following errors: Input Tokens Exceeded: Number of input tokens exceeds maximum length.",
        "This model's maximum context length is 8192 tokens. Please reduce the length of the prompt",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
    ],
)
async def test_a_prompt_too_long_for_one_model_may_fit_the_next(
    provider: Provider, vendor: BedrockLike, message: str
) -> None:
    too_long = Script(status=400, code="ValidationException", message=message)
    vendor.next(too_long)
    response = await provider.Generate(whole(None, "claude-sonnet", "mystery"))
    assert [attempt.outcome for attempt in response.attempts] == ["INVALID_INPUT", "ok"]
    vendor.next(too_long, too_long)
    error = await refused(provider.Generate(whole(None, "claude-sonnet", "mystery")))
    assert (error.reason, error.violations[0].field) == ("INVALID_INPUT", "chat.messages")


async def test_what_converse_cannot_be_told_is_never_sent(provider: Provider, vendor: BedrockLike) -> None:
    picture = chat_pb2.ContentPart(image=chat_pb2.Image(url="https://example.com/a.png"))
    chat = chat_of(chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[picture]))
    error = await refused(provider.Generate(whole(chat)))
    assert (error.reason, error.violations[0].field) == ("INVALID_INPUT", "chat.messages[0].parts")
    assert vendor.requests == []


async def test_what_boto3_takes_for_no_request_is_the_requests_fault(adapter: Bedrock, vendor: BedrockLike) -> None:
    error = await failed(adapter, call_of(Chat(call_of().chat.messages, (Tool(""),))))
    assert error.reason is Reason.INVALID_INPUT
    assert vendor.requests == []


async def test_a_broken_connection_is_billed_only_where_the_vendor_had_the_request(
    adapter: Bedrock, vendor: BedrockLike
) -> None:
    vendor.next(Script(fault="reset"))
    error = await failed(adapter, call_of())
    assert (error.reason, error.billed) == (Reason.UNAVAILABLE, True)
    gone = Bedrock("aws", region="eu-central-1", endpoint_url="http://127.0.0.1:1", max_concurrency=1)
    error = await failed(gone, call_of())
    await gone.close()
    assert (error.reason, error.billed) == (Reason.UNAVAILABLE, False)
    assert error.message == "aws cannot be reached or broke the connection"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "AccessDeniedException"),
        (403, "ExpiredTokenException"),
        (400, "UnrecognizedClientException"),
        (403, "InvalidSignatureException"),
    ],
)
@pytest.mark.parametrize("as_stream", [False, True])
async def test_refused_credentials_are_named_and_never_shown(
    provider: Provider, vendor: BedrockLike, status: int, code: str, as_stream: bool
) -> None:
    message = f"User: arn:aws:iam::123456789012:user/{ACCESS_KEY} is not authorized"
    vendor.always = Script(status=status, code=code, message=message)
    if as_stream:
        _, error = await cut(provider.StreamGenerate(streamed()))
    else:
        error = await refused(provider.Generate(whole(None, "claude-sonnet", "mystery")))
    assert error.reason == "UPSTREAM_CREDENTIAL"
    assert ACCESS_KEY not in error.message
    assert len(vendor.requests) == 1


async def test_a_wrong_key_is_refused_by_the_vendor(vendor: BedrockLike, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    async with opened(vendor) as adapter:
        assert (await failed(adapter, call_of())).reason is Reason.CREDENTIAL
    assert vendor.requests == []


@pytest.mark.usefixtures("no_credentials")
async def test_without_credentials_every_call_says_so(provider: Provider, vendor: BedrockLike) -> None:
    for _ in range(2):
        error = await refused(provider.Generate(whole()))
        assert (error.reason, error.message) == ("UPSTREAM_CREDENTIAL", "aws has no AWS credentials")
    assert vendor.requests == []


@pytest.mark.parametrize(("variable", "value"), [("AWS_PROFILE", "nobody"), ("AWS_SECRET_ACCESS_KEY", "")])
async def test_half_credentials_are_none(
    vendor: BedrockLike, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    async with opened(vendor) as adapter:
        assert (await failed(adapter, call_of())).reason is Reason.CREDENTIAL
    assert vendor.requests == []


async def test_an_unpriced_model_says_so(provider: Provider) -> None:
    charge = (await provider.Generate(whole(None, "mystery"))).charge
    assert charge.unpriced
    assert not charge.HasField("rates")


@pytest.mark.parametrize("as_stream", [False, True])
async def test_cancelling_hangs_up_at_the_vendor(provider: Provider, vendor: BedrockLike, as_stream: bool) -> None:
    if as_stream:
        vendor.next(Script(fault="hang"))
        call = provider.StreamGenerate(streamed())
        await call.read()
        await call.read()
        call.cancel()
    else:
        vendor.next(Script(delay_s=60))
        waiting = provider.Generate(whole())
        await vendor.got_request.wait()
        waiting.cancel()
    await vendor.hung_up.wait()
    assert vendor.hang_ups == 1


async def test_the_deadline_ends_a_slow_vendor(provider: Provider, vendor: BedrockLike) -> None:
    vendor.next(Script(delay_s=60))
    error = await refused(provider.Generate(whole(), timeout=0.3))
    assert error.reason == "DEADLINE_EXCEEDED"


# The adapter alone: what the service does not show.


async def test_a_caller_who_leaves_before_the_first_byte_frees_the_thread(
    adapter: Bedrock, vendor: BedrockLike
) -> None:
    for streaming in (False, True):
        vendor.hung_up.clear()
        vendor.next(Script(delay_s=600))
        waiting = asyncio.ensure_future(completed(adapter, call_of(streaming=streaming)))
        await vendor.got_request.wait()
        vendor.got_request.clear()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await vendor.hung_up.wait()
        assert await completed(adapter, call_of())
        vendor.got_request.clear()


async def test_a_caller_who_leaves_between_events_frees_the_thread(adapter: Bedrock, vendor: BedrockLike) -> None:
    vendor.next(Script(fault="hang"))
    async with aclosing(adapter.call(call_of())) as events:
        assert await anext(events) == TextDelta("Your")
    await vendor.hung_up.wait()
    assert await completed(adapter, call_of())


async def test_a_caller_who_leaves_behind_a_fast_vendor_frees_the_thread(adapter: Bedrock, vendor: BedrockLike) -> None:
    vendor.next(Script(text="word " * 5000))
    async with aclosing(adapter.call(call_of())) as events:
        assert await anext(events) == TextDelta("word")
    assert await completed(adapter, call_of())


async def test_a_slow_caller_gets_everything_of_a_fast_vendor(adapter: Bedrock, vendor: BedrockLike) -> None:
    vendor.next(Script(text="word " * 1000))
    seen = 0
    async with aclosing(adapter.call(call_of())) as events:
        async for event in events:
            await asyncio.sleep(0)
            seen += isinstance(event, TextDelta)
    assert seen == 1001


async def test_a_call_that_waits_for_a_thread_is_never_sent_when_its_caller_leaves(
    adapter: Bedrock, vendor: BedrockLike
) -> None:
    vendor.next(Script(fault="hang"))
    async with aclosing(adapter.call(call_of())) as events:
        await anext(events)
        waiting = asyncio.ensure_future(completed(adapter, call_of()))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await completed(adapter, call_of())
    assert len(vendor.requests) == 2


async def test_many_streams_share_the_threads(vendor: BedrockLike) -> None:
    adapter = Bedrock("aws", region="eu-central-1", endpoint_url=vendor.url, max_concurrency=4)
    answers = await asyncio.gather(*(completed(adapter, call_of(streaming=bool(i % 2))) for i in range(40)))
    await adapter.close()
    assert len(answers) == len(vendor.requests) == 40


async def test_closing_ends_the_calls_under_way(vendor: BedrockLike) -> None:
    adapter = Bedrock("aws", region="eu-central-1", endpoint_url=vendor.url, max_concurrency=1)
    vendor.next(Script(fault="hang"))
    events = adapter.call(call_of())
    await anext(events)
    await adapter.close()
    await vendor.hung_up.wait()
    with pytest.raises(VendorError) as caught:
        async for _ in events:
            pass
    assert caught.value.reason is Reason.UNAVAILABLE


@pytest.mark.usefixtures("no_credentials")
async def test_credentials_that_come_later_are_found(
    adapter: Bedrock, vendor: BedrockLike, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await failed(adapter, call_of())).reason is Reason.CREDENTIAL
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    adapter._look_again_at = 0.0
    assert await completed(adapter, call_of())


@pytest.mark.parametrize("streaming", [False, True])
async def test_kept_prefixes_cost_what_the_vendor_bills(streaming: bool) -> None:
    now = [0.0]
    async with BedrockLike(rates=SONNET, minimum=1000, now=lambda: now[0]) as vendor:
        adapter = Bedrock("aws", region="eu-central-1", endpoint_url=vendor.url, max_concurrency=1)
        tool = Tool("look", "x" * 4000)
        tool_tokens = -(-len(json.dumps({"toolSpec": spec_of(tool)}, ensure_ascii=False)) // 4)
        messages = (
            Message(Role.SYSTEM, (TextPart("s" * 2000),)),
            Message(Role.USER, (TextPart("d" * 800),)),
            Message(Role.ASSISTANT, (TextPart("a" * 40),)),
            Message(Role.USER, (TextPart("q" * 20),)),
        )
        hints = CacheHints((Breakpoint(None, LONG_TTL_S), Breakpoint(0, LONG_TTL_S), Breakpoint(1)))
        costs: list[int] = []
        for at in (0.0, 100.0, 3000.0, 10_000.0):
            now[0] = at
            done = await completed(adapter, call_of(Chat(messages, (tool,)), streaming=streaming, hints=hints))
            assert done.usage is not None
            costs.append(price(SONNET, done.usage))
        await adapter.close()
        sent = vendor.requests[0]
        assert sent["toolConfig"]["tools"][1] == {"cachePoint": {"type": "default", "ttl": "1h"}}
        assert sent["system"][1] == {"cachePoint": {"type": "default", "ttl": "1h"}}
        assert sent["messages"][0]["content"][1] == {"cachePoint": {"type": "default"}}
        fixed = 15 * 3000 + 12 * 15_000  # the assistant's words, the question, and the answer of 47 letters
        first = (tool_tokens + 500) * 6000 + 200 * 3750 + fixed
        read = (tool_tokens + 700) * 300 + fixed
        short_expired = (tool_tokens + 500) * 300 + 200 * 3750 + fixed
        assert costs == [first, read, short_expired, first]
        assert sum(costs) == vendor.invoice


def spec_of(tool: Tool) -> dict[str, Any]:
    return {"name": tool.name, "inputSchema": {"json": {"type": "object"}}, "description": tool.description}
