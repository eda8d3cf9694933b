"""The provider service against a vendor that behaves like Google's Gemini API on the wire, through the official SDK."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import pytest

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.chat import Chat, Message, Role, TextDelta, TextPart
from services.common.chat_pb import Caller
from services.common.errors import MeshError, from_rpc_error
from services.common.money import Rates
from services.common.testing import serve
from services.provider.adapters.gemini import Gemini
from services.provider.app import build
from services.provider.domain.vendor import Call
from services.provider.settings import ProviderSettings
from tests.vendors.gemini_like import TEXT, GeminiLike, Script

# An SDK meets a word of the API that it does not know.
pytestmark = pytest.mark.filterwarnings("ignore:.* is not a valid FinishReason:UserWarning")

CALLER = caller_pb2.Caller(tenant="acme")
KEY = "AIza-test-0123456789"
BOOK = """
models:
  gemini-flash:
    prices: [{valid_from: 2026-01-01, input: 0.30, cache_read: 0.03, output: 2.50}]
  gemini-pro:
    prices: [{valid_from: 2026-01-01, input: 2.00, cache_read: 0.20, output: 12.00}]
"""

Provider: TypeAlias = "provider_pb2_grpc.ProviderServiceAsyncStub"


def user(text: str) -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])


def chat_of(*messages: chat_pb2.Message, **fields: Any) -> chat_pb2.Chat:
    return chat_pb2.Chat(messages=messages or [user("Where is my order?")], **fields)


def whole(chat: chat_pb2.Chat | None = None, *candidates: str) -> provider_pb2.GenerateRequest:
    return provider_pb2.GenerateRequest(
        caller=CALLER, chat=chat or chat_of(), candidates=candidates or ("gemini-flash",)
    )


def streamed(chat: chat_pb2.Chat | None = None, *candidates: str) -> provider_pb2.StreamGenerateRequest:
    return provider_pb2.StreamGenerateRequest(
        caller=CALLER, chat=chat or chat_of(), candidates=candidates or ("gemini-flash",)
    )


@pytest.fixture
async def vendor() -> AsyncIterator[GeminiLike]:
    async with GeminiLike(api_key=KEY) as opened:
        yield opened


@pytest.fixture
async def provider(vendor: GeminiLike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Provider]:
    monkeypatch.setenv("TEST_VENDOR_KEY", KEY)
    monkeypatch.setenv("TEST_WRONG_KEY", "AIza-wrong")
    # What the SDK would take from the environment must not matter.
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_API_KEY", "AIza-of-someone-else")
    vendors = tmp_path / "vendors.yaml"
    vendors.write_text(
        f"""
vendors:
  - name: google
    kind: gemini
    base_url: {vendor.url}
    api_key_env: TEST_VENDOR_KEY
    models: {{gemini-flash: gemini-2.5-flash, gemini-pro: gemini-3-pro, mystery: gemini-1.5-mystery}}
    timeout_s: 2
    unary_timeout_s: 2
  - name: wrong-key
    kind: gemini
    base_url: {vendor.url}
    api_key_env: TEST_WRONG_KEY
    models: {{gemini-locked: gemini-2.5-pro}}
  - name: gone
    kind: gemini
    base_url: http://127.0.0.1:1
    models: {{gemini-gone: gemini-2.5-pro}}
"""
    )
    prices = tmp_path / "prices.yaml"
    prices.write_text(BOOK)
    settings = ProviderSettings(
        vendors_file=vendors, prices_file=prices, max_attempts=2, backoff_base_s=0, breaker_faults=100
    )
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(serve(await build(settings, stack)))
        yield provider_pb2_grpc.ProviderServiceStub(channel)


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


Got = tuple[str, str, list[tuple[str, str, str]], int, Any, int]


async def got(provider: Provider, as_stream: bool, chat: chat_pb2.Chat | None = None, *candidates: str) -> Got:
    """Text, reasoning, tool calls, finish reason, usage and cost, whichever way they come."""
    if not as_stream:
        response = await provider.Generate(whole(chat, *candidates))
        message = response.answer.message
        text = "".join(part.text for part in message.parts)
        calls = [(call.id, call.name, call.arguments_json) for call in message.tool_calls]
        reason = response.answer.finish_reason
        return text, message.reasoning, calls, reason, response.usage, response.charge.cost_nanousd
    events = [event async for event in provider.StreamGenerate(streamed(chat, *candidates))]
    pieces = [event.delta.tool_call for event in events if event.delta.HasField("tool_call")]
    assert [piece.index for piece in pieces] == list(range(len(pieces)))
    done = events[-1].finished
    return (
        "".join(event.delta.text for event in events),
        "".join(event.delta.reasoning for event in events),
        [(piece.id, piece.name, piece.arguments_json) for piece in pieces],
        done.finish_reason,
        done.usage,
        done.charge.cost_nanousd,
    )


ways = pytest.mark.parametrize("as_stream", [False, True], ids=["whole", "stream"])


@ways
async def test_an_answer_is_priced_from_the_book(provider: Provider, vendor: GeminiLike, as_stream: bool) -> None:
    usage = {
        "promptTokenCount": 2000,
        "cachedContentTokenCount": 1024,
        "candidatesTokenCount": 180,
        "thoughtsTokenCount": 120,
        "toolUsePromptTokenCount": 7,
        "totalTokenCount": 2307,
    }
    vendor.next(Script(usage=usage, reasoning="The parcel left on Friday."))
    text, reasoning, _, reason, counts, cost = await got(provider, as_stream)
    assert (text, reasoning) == (TEXT, "The parcel left on Friday.")
    assert reason == chat_pb2.FINISH_REASON_STOP
    assert (counts.input_tokens, counts.cache_read_input_tokens) == (2007, 1024)
    assert (counts.output_tokens, counts.reasoning_output_tokens, counts.estimated) == (300, 120, False)
    # $0.30 input, $0.03 cached, $2.50 output per million tokens: 983, 1,024 and 300 of them.
    assert cost == 294_900 + 30_720 + 750_000
    assert vendor.models == ["gemini-2.5-flash"]


@ways
async def test_a_repeated_prefix_is_read_from_the_vendors_cache(
    provider: Provider, vendor: GeminiLike, as_stream: bool
) -> None:
    handbook = chat_pb2.Message(
        role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text="Parcels leave daily. " * 400)]
    )
    costs, reads = [], []
    for question in ("Where is my order?", "Can I return it?"):
        *_, counts, cost = await got(provider, as_stream, chat_of(handbook, user(question)))
        costs.append(cost)
        reads.append(counts.cache_read_input_tokens)
    # 8,400 letters and the JSON around them, in blocks of 128 tokens.
    assert reads == [0, 2048]
    (_, first), (_, second) = vendor.charged
    answer = -(-len(TEXT) // 4) * 2500
    assert costs[0] == first["promptTokenCount"] * 300 + answer
    assert costs[1] == (second["promptTokenCount"] - 2048) * 300 + 2048 * 30 + answer
    rates = Rates(input=300_000_000, cache_read=30_000_000, output=2_500_000_000)
    assert sum(costs) == vendor.invoice({"gemini-2.5-flash": rates})


async def test_everything_of_a_chat_reaches_the_vendor(provider: Provider, vendor: GeminiLike) -> None:
    schema = '{"type": "object", "properties": {"home_city": {"type": "string", "default": null}}}'
    picture = chat_pb2.Image(data=b"\xff\xfe\xfb", media_type="image/png")
    chat = chat_of(
        chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text="Be brief.")]),
        user("Weather?"),
        chat_pb2.Message(
            role=chat_pb2.ROLE_ASSISTANT,
            parts=[chat_pb2.ContentPart(text="I look.")],
            reasoning="Two places.",
            tool_calls=[
                chat_pb2.ToolCall(id="c1", name="weather", arguments_json='{"home_city": "Turin", "day": null}'),
                chat_pb2.ToolCall(id="c2", name="time", arguments_json="{}"),
            ],
        ),
        chat_pb2.Message(role=chat_pb2.ROLE_TOOL, tool_call_id="c1", parts=[chat_pb2.ContentPart(text="sunny")]),
        chat_pb2.Message(role=chat_pb2.ROLE_TOOL, tool_call_id="c2", parts=[chat_pb2.ContentPart(image=picture)]),
        chat_pb2.Message(
            role=chat_pb2.ROLE_USER,
            parts=[
                chat_pb2.ContentPart(text="And here?"),
                chat_pb2.ContentPart(image=picture),
                chat_pb2.ContentPart(image=chat_pb2.Image(url="https://example.com/a.png?size=2")),
                chat_pb2.ContentPart(image=chat_pb2.Image(url="https://example.com/a")),
            ],
        ),
        tools=[
            chat_pb2.Tool(name="time"),
            chat_pb2.Tool(name="weather", description="Tells it.", parameters_json_schema=schema, strict=True),
        ],
        response_format=chat_pb2.ResponseFormat(
            kind=chat_pb2.ResponseFormat.KIND_JSON_SCHEMA, name="w", json_schema=schema
        ),
        sampling=chat_pb2.Sampling(
            temperature=0,
            top_p=0.5,
            max_output_tokens=9,
            stop=["END"],
            seed=7,
            presence_penalty=0.25,
            frequency_penalty=-0.5,
            reasoning_effort="medium",
        ),
    )
    await provider.Generate(whole(chat, "gemini-pro"))
    assert vendor.requests == [
        {
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "Weather?"}]},
                {
                    "role": "model",
                    "parts": [
                        {"text": "I look."},
                        {
                            "functionCall": {
                                "id": "c1",
                                "name": "weather",
                                "args": {"home_city": "Turin", "day": None},
                            },
                            # "skip_thought_signature_validator", as documented for calls that come from elsewhere.
                            "thoughtSignature": "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I=",
                        },
                        {"functionCall": {"id": "c2", "name": "time", "args": {}}},
                    ],
                },
                {
                    "role": "user",
                    "parts": [
                        {"functionResponse": {"id": "c1", "name": "weather", "response": {"output": "sunny"}}},
                        {
                            "functionResponse": {
                                "id": "c2",
                                "name": "time",
                                "response": {"output": ""},
                                "parts": [{"inlineData": {"data": "__77", "mimeType": "image/png"}}],
                            }
                        },
                    ],
                },
                {
                    "role": "user",
                    "parts": [
                        {"text": "And here?"},
                        {"inlineData": {"data": "__77", "mimeType": "image/png"}},
                        {
                            "fileData": {
                                "fileUri": "https://example.com/a.png?size=2",
                                "mimeType": "image/png",
                            }
                        },
                        {"fileData": {"fileUri": "https://example.com/a"}},
                    ],
                },
            ],
            "tools": [
                {
                    "functionDeclarations": [
                        {"name": "time"},
                        {"name": "weather", "description": "Tells it.", "parametersJsonSchema": json.loads(schema)},
                    ]
                }
            ],
            "generationConfig": {
                "temperature": 0,
                "topP": 0.5,
                "maxOutputTokens": 9,
                "stopSequences": ["END"],
                "seed": 7,
                "presencePenalty": 0.25,
                "frequencyPenalty": -0.5,
                "responseMimeType": "application/json",
                "responseJsonSchema": json.loads(schema),
                "thinkingConfig": {"includeThoughts": True, "thinkingLevel": "MEDIUM"},
            },
        }
    ]
    # The SDK would tell its limit between two pieces as that of the whole answer.
    assert "x-server-timeout" not in vendor.headers[0]


@pytest.mark.parametrize(
    ("mode", "name", "expected"),
    [
        (chat_pb2.ToolChoice.MODE_AUTO, "", {"mode": "AUTO"}),
        (chat_pb2.ToolChoice.MODE_NONE, "", {"mode": "NONE"}),
        (chat_pb2.ToolChoice.MODE_REQUIRED, "", {"mode": "ANY"}),
        (chat_pb2.ToolChoice.MODE_NAMED, "weather", {"mode": "ANY", "allowedFunctionNames": ["weather"]}),
    ],
)
async def test_the_tool_choice_is_told(
    provider: Provider,
    vendor: GeminiLike,
    mode: chat_pb2.ToolChoice.Mode.ValueType,
    name: str,
    expected: dict[str, object],
) -> None:
    tools, choice = [chat_pb2.Tool(name="weather")], chat_pb2.ToolChoice(mode=mode, name=name)
    await provider.Generate(whole(chat_of(tools=tools, tool_choice=choice)))
    assert vendor.requests[0]["toolConfig"] == {"functionCallingConfig": expected}


async def test_json_without_a_schema_is_asked_for(provider: Provider, vendor: GeminiLike) -> None:
    form = chat_pb2.ResponseFormat(kind=chat_pb2.ResponseFormat.KIND_JSON_OBJECT)
    await provider.Generate(whole(chat_of(response_format=form)))
    assert vendor.requests[0]["generationConfig"] == {"responseMimeType": "application/json"}


@ways
async def test_tool_calls_come_back(provider: Provider, vendor: GeminiLike, as_stream: bool) -> None:
    calls: list[dict[str, Any]] = [{"id": "c1", "name": "weather", "args": {"city": "Turin"}}, {"name": "time"}]
    vendor.next(Script(text="I look. ", tool_calls=calls))
    text, _, (first, second), reason, _, _ = await got(provider, as_stream)
    assert (text, reason) == ("I look. ", chat_pb2.FINISH_REASON_TOOL_CALLS)
    assert first == ("c1", "weather", '{"city": "Turin"}')
    assert second[0].startswith("call_")
    assert second[1:] == ("time", "{}")


@ways
@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("MAX_TOKENS", chat_pb2.FINISH_REASON_LENGTH),
        ("SAFETY", chat_pb2.FINISH_REASON_CONTENT_FILTER),
        ("RECITATION", chat_pb2.FINISH_REASON_CONTENT_FILTER),
        ("BLOCKLIST", chat_pb2.FINISH_REASON_CONTENT_FILTER),
        ("PROHIBITED_CONTENT", chat_pb2.FINISH_REASON_CONTENT_FILTER),
        ("SPII", chat_pb2.FINISH_REASON_CONTENT_FILTER),
        ("IMAGE_SAFETY", chat_pb2.FINISH_REASON_CONTENT_FILTER),
    ],
)
async def test_finish_reasons_are_known(
    provider: Provider, vendor: GeminiLike, as_stream: bool, word: str, expected: int
) -> None:
    # A call that the limit or a filter has cut is none to run.
    vendor.next(Script(finish_reason=word, tool_calls=[{"name": "weather"}]))
    assert (await got(provider, as_stream))[3] == expected


@ways
@pytest.mark.parametrize("reason", ["SAFETY", "OTHER"])
async def test_a_refused_prompt_is_filtered_content(
    provider: Provider, vendor: GeminiLike, as_stream: bool, reason: str
) -> None:
    vendor.next(Script(block_reason=reason))
    text, _, _, finish, counts, cost = await got(provider, as_stream)
    assert (text, finish) == ("", chat_pb2.FINISH_REASON_CONTENT_FILTER)
    assert (counts.output_tokens, counts.estimated) == (0, False)
    assert cost == vendor.charged[0][1]["promptTokenCount"] * 300


INTERRUPTED = [None, "MALFORMED_FUNCTION_CALL", "OTHER", "FINISH_REASON_UNSPECIFIED", "SOMETHING_NEW"]


@pytest.mark.parametrize("reason", INTERRUPTED)
async def test_an_answer_that_does_not_say_that_it_is_whole_is_none(
    provider: Provider, vendor: GeminiLike, reason: str | None
) -> None:
    vendor.next(Script(finish_reason=reason))
    response = await provider.Generate(whole())
    assert [attempt.outcome for attempt in response.attempts] == ["STREAM_CUT", "ok"]
    assert response.charge.wasted_nanousd > 0


@pytest.mark.parametrize("reason", INTERRUPTED)
async def test_a_stream_that_does_not_say_that_it_is_whole_is_cut(
    provider: Provider, vendor: GeminiLike, reason: str | None
) -> None:
    vendor.next(Script(finish_reason=reason))
    kinds, error = await cut(provider.StreamGenerate(streamed()))
    assert error.reason == "STREAM_CUT"
    assert "finished" not in kinds


NONSENSE: list[Any] = [
    {"text": 5},
    {"text": ["text"]},
    {"functionCall": 5},
    {"functionCall": {"id": 7, "name": "weather"}},
    {"functionCall": {"args": {}}},
    {"functionCall": {"name": "f", "args": [1]}},
    {"thought": "perhaps", "text": "a"},
    "text",
]


@pytest.mark.parametrize("part", NONSENSE, ids=repr)
async def test_nonsense_is_the_vendors_fault(provider: Provider, vendor: GeminiLike, part: Any) -> None:
    vendor.next(Script(parts=[part]))
    response = await provider.Generate(whole())
    assert [attempt.outcome for attempt in response.attempts] == ["UPSTREAM_UNAVAILABLE", "ok"]


@pytest.mark.parametrize("part", NONSENSE, ids=repr)
async def test_nonsense_in_a_stream_is_the_vendors_fault(provider: Provider, vendor: GeminiLike, part: Any) -> None:
    vendor.next(Script(parts=[part]), Script(status=500))
    kinds, error = await cut(provider.StreamGenerate(streamed()))
    assert error.reason == "ALL_CANDIDATES_FAILED"
    assert "finished" not in kinds


@ways
async def test_parts_that_nobody_asked_for_are_passed_over(
    provider: Provider, vendor: GeminiLike, as_stream: bool
) -> None:
    parts = [{"somethingNew": {"a": 1}}, {"text": ""}, {"text": "On its way. \ud83d", "somethingElse": 2}]
    vendor.next(Script(parts=parts))
    assert (await got(provider, as_stream))[0] == "On its way. \ufffd"


@ways
@pytest.mark.parametrize("usage", [None, {}, {"totalTokenCount": 30}, {"promptTokenCount": 20}], ids=repr)
async def test_missing_usage_is_estimated_and_marked(
    provider: Provider, vendor: GeminiLike, as_stream: bool, usage: dict[str, Any] | None
) -> None:
    vendor.next(Script(usage=usage))
    told = (await got(provider, as_stream))[4]
    assert told.estimated
    assert told.input_tokens > 0
    assert told.output_tokens > 5


async def test_a_connection_that_breaks_after_the_last_piece_breaks_nothing(
    provider: Provider, vendor: GeminiLike
) -> None:
    vendor.next(Script(fault="cut_late"))
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    assert not events[-1].finished.usage.estimated


UNAVAILABLE = {"status": "UNAVAILABLE", "message": "The model is overloaded."}
PASSING = [
    Script(status=500),
    Script(status=503, error=UNAVAILABLE, headers={"retry-after": "0"}),
    Script(status=504),
    Script(status=429, error={"status": "RESOURCE_EXHAUSTED"}),
    Script(status=429, headers={"retry-after": "0.01"}),
    Script(delay_s=5),
    Script(fault="reset"),
    Script(fault="wrong_type"),
    Script(fault="empty_candidates"),
]


def outcome_of(script: Script) -> str:
    return "RATE_LIMITED" if script.status == 429 else "UPSTREAM_UNAVAILABLE"


@pytest.mark.parametrize("script", [*PASSING, Script(fault="cut"), Script(fault="malformed")], ids=repr)
async def test_a_passing_fault_is_survived(provider: Provider, vendor: GeminiLike, script: Script) -> None:
    vendor.next(script)
    response = await provider.Generate(whole())
    assert response.answer.message.parts[0].text == TEXT
    assert [attempt.outcome for attempt in response.attempts] == [outcome_of(script), "ok"]
    assert len(vendor.requests) == 2


@pytest.mark.parametrize("script", [*PASSING, Script(fault="error_first")], ids=repr)
async def test_a_passing_fault_before_the_first_piece_is_survived(
    provider: Provider, vendor: GeminiLike, script: Script
) -> None:
    vendor.next(script)
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    first, second = events[-1].finished.attempts
    assert first.outcome == ("STREAM_CUT" if script.fault == "empty_candidates" else outcome_of(script))
    assert second.outcome == "ok"
    assert len(vendor.requests) == 2


async def test_a_rate_limit_in_a_streams_first_event_is_one(provider: Provider, vendor: GeminiLike) -> None:
    vendor.next(Script(fault="error_first", error={"code": 429, "status": "RESOURCE_EXHAUSTED"}))
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert [attempt.outcome for attempt in events[-1].finished.attempts] == ["RATE_LIMITED", "ok"]


@pytest.mark.parametrize("fault", ["cut", "cut_clean", "malformed", "error_event", "hang"])
async def test_a_stream_that_breaks_off_is_never_finished(provider: Provider, vendor: GeminiLike, fault: str) -> None:
    vendor.next(Script(fault=fault))  # type: ignore[arg-type]
    kinds, error = await cut(provider.StreamGenerate(streamed(None, "gemini-flash", "mystery")))
    assert error.reason == "STREAM_CUT"
    assert kinds[:2] == ["started", "delta"]
    assert "finished" not in kinds
    assert int(error.metadata["wasted_nanousd"]) > 0
    assert len(vendor.requests) == 1


async def test_rate_limits_tell_in_their_details_when_to_come_back(provider: Provider, vendor: GeminiLike) -> None:
    details = [
        {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": []},
        {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "36.5s"},
    ]
    vendor.always = Script(status=429, error={"status": "RESOURCE_EXHAUSTED", "details": details})
    error = await refused(provider.Generate(whole(), timeout=20))
    assert (error.reason, error.retry_after_s) == ("RATE_LIMITED", 36.5)
    assert len(vendor.requests) == 1


@pytest.mark.parametrize(("status", "word"), [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (413, "TOO_LARGE")])
async def test_a_rejected_request_is_not_repeated(
    provider: Provider, vendor: GeminiLike, status: int, word: str
) -> None:
    vendor.always = Script(status=status, error={"message": "prompt was: Where is my order?", "status": word})
    error = await refused(provider.Generate(whole()))
    assert error.reason == "UPSTREAM_REJECTED"
    assert error.message == f"google answered {status} ({word})"
    assert len(vendor.requests) == 1


async def test_a_prompt_too_long_for_one_model_may_fit_the_next(provider: Provider, vendor: GeminiLike) -> None:
    message = "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."
    too_long = Script(status=400, error={"message": message, "status": "INVALID_ARGUMENT"})
    vendor.next(too_long)
    response = await provider.Generate(whole(None, "gemini-flash", "gemini-pro"))
    assert [attempt.outcome for attempt in response.attempts] == ["INVALID_INPUT", "ok"]
    vendor.next(too_long, too_long)
    error = await refused(provider.Generate(whole(None, "gemini-flash", "gemini-pro")))
    assert error.reason == "INVALID_INPUT"
    assert error.violations[0].field == "chat.messages"


async def test_a_broken_connection_is_billed_only_where_the_vendor_had_the_request(
    provider: Provider, vendor: GeminiLike
) -> None:
    vendor.next(Script(fault="reset"))
    first, _ = (await provider.Generate(whole())).attempts
    assert first.cost_nanousd > 0
    first, _ = (await provider.Generate(whole(None, "gemini-gone", "gemini-flash"))).attempts
    assert (first.outcome, first.cost_nanousd) == ("UPSTREAM_UNAVAILABLE", 0)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_is_named_and_never_shown(provider: Provider, vendor: GeminiLike, status: int) -> None:
    # A wrong key is answered with 400, and its details tell.
    error = await refused(provider.Generate(whole(None, "gemini-locked")))
    assert error.reason == "UPSTREAM_CREDENTIAL"
    assert error.message.endswith("wrong-key refused our key (400)")
    vendor.next(Script(status=status, error={"message": f"{KEY} is suspended", "status": "PERMISSION_DENIED"}))
    error = await refused(provider.Generate(whole()))
    assert error.reason == "UPSTREAM_CREDENTIAL"
    assert "AIza" not in error.message


async def test_a_picture_behind_plain_http_is_for_another_vendor(provider: Provider, vendor: GeminiLike) -> None:
    picture = chat_pb2.ContentPart(image=chat_pb2.Image(url="http://example.com/a.png"))
    error = await refused(provider.Generate(whole(chat_of(chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[picture])))))
    assert error.reason == "INVALID_INPUT"
    assert vendor.requests == []


@ways
async def test_cancelling_hangs_up_at_the_vendor(provider: Provider, vendor: GeminiLike, as_stream: bool) -> None:
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


async def test_closing_between_two_pieces_hangs_up_at_once(vendor: GeminiLike) -> None:
    vendor.next(Script(fault="hang"))
    chat = Chat((Message(Role.USER, (TextPart("Where is my order?"),)),))
    adapter = Gemini("google", base_url=vendor.url, api_key=KEY)
    async with aclosing(adapter.call(Call("gemini-2.5-flash", chat, Caller("acme"), True, 60.0))) as events:
        assert await anext(events) == TextDelta("Your")
    await vendor.hung_up.wait()
    assert vendor.hang_ups == 1
    await adapter.close()


async def test_the_deadline_ends_a_slow_vendor(provider: Provider, vendor: GeminiLike) -> None:
    vendor.next(Script(delay_s=60))
    error = await refused(provider.Generate(whole(), timeout=0.2))
    assert error.reason == "DEADLINE_EXCEEDED"
