"""The provider service against a vendor that behaves like OpenAI on the wire, through the official SDK."""

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
from services.common.errors import MeshError, from_rpc_error
from services.common.testing import serve
from services.common.yaml_file import ConfigError
from services.provider.app import build
from services.provider.settings import ProviderSettings
from services.provider.vendors import load_vendors
from tests.vendors.openai_like import TEXT, OpenAILike, Script

CALLER = caller_pb2.Caller(tenant="acme")
KEY = "sk-test-0123456789"

Provider: TypeAlias = "provider_pb2_grpc.ProviderServiceAsyncStub"


def user(text: str) -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])


def whole(chat: chat_pb2.Chat | None = None, *candidates: str) -> provider_pb2.GenerateRequest:
    chat = chat or chat_pb2.Chat(messages=[user("Where is my order?")])
    return provider_pb2.GenerateRequest(caller=CALLER, chat=chat, candidates=candidates or ("gpt-4o-mini",))


def streamed(*candidates: str) -> provider_pb2.StreamGenerateRequest:
    chat = chat_pb2.Chat(messages=[user("Where is my order?")])
    return provider_pb2.StreamGenerateRequest(caller=CALLER, chat=chat, candidates=candidates or ("gpt-4o-mini",))


@pytest.fixture
async def vendor() -> AsyncIterator[OpenAILike]:
    async with OpenAILike(api_key=KEY) as opened:
        yield opened


@pytest.fixture
async def provider(vendor: OpenAILike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Provider]:
    monkeypatch.setenv("TEST_VENDOR_KEY", KEY)
    monkeypatch.setenv("TEST_WRONG_KEY", "sk-wrong")
    path = tmp_path / "vendors.yaml"
    path.write_text(
        f"""
vendors:
  - name: acme-ai
    kind: openai
    base_url: {vendor.base_url}
    api_key_env: TEST_VENDOR_KEY
    models: {{gpt-4o-mini: mini-2026, mystery: mystery-1}}
    timeout_s: 2
    unary_timeout_s: 2
  - name: wrong-key
    kind: openai
    base_url: {vendor.base_url}
    api_key_env: TEST_WRONG_KEY
    models: {{gpt-4o: big-2026}}
  - name: gone
    kind: openai
    base_url: http://127.0.0.1:1/v1
    models: {{o1: o1}}
  - name: our-engine
    kind: engine
    address: 127.0.0.1:1
    models: {{smollm2-135m-instruct: smollm2-135m-instruct}}
"""
    )
    settings = ProviderSettings(vendors_file=path, max_attempts=2, backoff_base_s=0, breaker_faults=100)
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


async def test_a_whole_answer_is_priced_from_the_book(provider: Provider, vendor: OpenAILike) -> None:
    usage = {
        "prompt_tokens": 2000,
        "completion_tokens": 300,
        "total_tokens": 2300,
        "prompt_tokens_details": {"cached_tokens": 1024},
        "completion_tokens_details": {"reasoning_tokens": 120},
    }
    vendor.next(Script(usage=usage, reasoning="The parcel left on Friday."))
    response = await provider.Generate(whole())
    assert response.answer.message.parts[0].text == TEXT
    assert response.answer.message.reasoning == "The parcel left on Friday."
    counts = response.usage
    assert (counts.input_tokens, counts.cache_read_input_tokens) == (2000, 1024)
    assert (counts.output_tokens, counts.reasoning_output_tokens, counts.estimated) == (300, 120, False)
    # gpt-4o-mini: $0.15 input, $0.075 cached, $0.60 output per million tokens.
    assert response.charge.cost_nanousd == (2000 - 1024) * 150 + 1024 * 75 + 300 * 600
    assert vendor.requests[0]["model"] == "mini-2026"
    assert (response.model, response.vendor) == ("gpt-4o-mini", "acme-ai")


async def test_a_stream_arrives_piece_by_piece_with_its_usage(provider: Provider, vendor: OpenAILike) -> None:
    vendor.next(Script(reasoning="Think."))
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    assert "".join(event.delta.reasoning for event in events) == "Think."
    done = events[-1].finished
    assert (done.usage.input_tokens, done.usage.output_tokens, done.usage.estimated) == (20, 10, False)
    assert vendor.requests[0]["stream_options"] == {"include_usage": True}


async def test_everything_of_a_chat_reaches_the_vendor(provider: Provider, vendor: OpenAILike) -> None:
    schema = '{"type": "object", "properties": {"city": {"type": "string"}}}'
    picture = chat_pb2.Image(data=b"\x89PNG", media_type="image/png")
    chat = chat_pb2.Chat(
        messages=[
            chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text="Be brief.")]),
            user("Weather?"),
            chat_pb2.Message(
                role=chat_pb2.ROLE_ASSISTANT,
                tool_calls=[chat_pb2.ToolCall(id="c1", name="weather", arguments_json='{"city": "Turin"}')],
            ),
            chat_pb2.Message(role=chat_pb2.ROLE_TOOL, tool_call_id="c1", parts=[chat_pb2.ContentPart(text="sunny")]),
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
        tools=[chat_pb2.Tool(name="weather", description="Tells it.", parameters_json_schema=schema, strict=True)],
        tool_choice=chat_pb2.ToolChoice(mode=chat_pb2.ToolChoice.MODE_NAMED, name="weather"),
        response_format=chat_pb2.ResponseFormat(
            kind=chat_pb2.ResponseFormat.KIND_JSON_SCHEMA, name="w", json_schema=schema
        ),
        sampling=chat_pb2.Sampling(
            temperature=0, top_p=0.5, max_output_tokens=9, stop=["END"], seed=7, reasoning_effort="low"
        ),
    )
    await provider.Generate(whole(chat))
    sent = vendor.requests[0]
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Turin"}'}}
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "c1"},
        {
            "role": "user",
            "name": "ann",
            "content": [
                {"type": "text", "text": "And here?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
            ],
        },
    ]
    function = sent["tools"][0]["function"]
    assert function == {
        "name": "weather",
        "description": "Tells it.",
        "parameters": json.loads(schema),
        "strict": True,
    }
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert sent["response_format"]["json_schema"]["schema"] == json.loads(schema)
    assert (sent["temperature"], sent["top_p"], sent["max_completion_tokens"]) == (0, 0.5, 9)
    assert (sent["stop"], sent["seed"], sent["reasoning_effort"]) == (["END"], 7, "low")


@pytest.mark.parametrize("as_stream", [False, True])
async def test_tool_calls_come_back(provider: Provider, vendor: OpenAILike, as_stream: bool) -> None:
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Turin"}'}},
        {"id": "c2", "type": "function", "function": {"name": "time", "arguments": '{"zone": "CET"}'}},
    ]
    vendor.next(Script(text="", tool_calls=calls, finish_reason="tool_calls"))
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
    assert got == [("c1", "weather", '{"city": "Turin"}'), ("c2", "time", '{"zone": "CET"}')]


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("length", chat_pb2.FINISH_REASON_LENGTH),
        ("content_filter", chat_pb2.FINISH_REASON_CONTENT_FILTER),
        ("model_length", chat_pb2.FINISH_REASON_LENGTH),
        ("max_tokens", chat_pb2.FINISH_REASON_LENGTH),
    ],
)
async def test_finish_reasons_are_known(provider: Provider, vendor: OpenAILike, reason: str, expected: int) -> None:
    vendor.next(Script(finish_reason=reason))
    assert (await provider.Generate(whole())).answer.finish_reason == expected


INTERRUPTED = [None, "", "error", "insufficient_system_resource", "something_new"]


@pytest.mark.parametrize("reason", INTERRUPTED)
async def test_an_answer_that_does_not_say_that_it_is_whole_is_none(
    provider: Provider, vendor: OpenAILike, reason: str | None
) -> None:
    vendor.next(Script(finish_reason=reason))
    response = await provider.Generate(whole())
    assert [attempt.outcome for attempt in response.attempts] == ["STREAM_CUT", "ok"]
    assert response.charge.wasted_nanousd > 0


@pytest.mark.parametrize("reason", INTERRUPTED)
async def test_a_stream_that_does_not_say_that_it_is_whole_is_cut(
    provider: Provider, vendor: OpenAILike, reason: str | None
) -> None:
    vendor.next(Script(finish_reason=reason))
    kinds, error = await cut(provider.StreamGenerate(streamed()))
    assert error.reason == "STREAM_CUT"
    assert "finished" not in kinds


@pytest.mark.parametrize("as_stream", [False, True])
async def test_a_refusal_is_no_plain_answer(provider: Provider, vendor: OpenAILike, as_stream: bool) -> None:
    vendor.next(Script(deltas=[{"role": "assistant", "content": None, "refusal": "I cannot help with that."}]))
    if as_stream:
        events = [event async for event in provider.StreamGenerate(streamed())]
        text, reason = "".join(event.delta.text for event in events), events[-1].finished.finish_reason
    else:
        answer = (await provider.Generate(whole())).answer
        text, reason = answer.message.parts[0].text, answer.finish_reason
    assert (text, reason) == ("I cannot help with that.", chat_pb2.FINISH_REASON_CONTENT_FILTER)


def weather(**fields: object) -> dict[str, object]:
    return {"index": 0, "type": "function", "function": {"name": "weather", "arguments": "{}"}, **fields}


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize("call", [weather(), weather(id=None), weather(id="", type=None)], ids=repr)
async def test_a_tool_call_without_an_id_gets_one(
    provider: Provider, vendor: OpenAILike, as_stream: bool, call: dict[str, object]
) -> None:
    vendor.next(Script(deltas=[{"role": "assistant", "tool_calls": [call]}], finish_reason="tool_calls"))
    if as_stream:
        events = [event async for event in provider.StreamGenerate(streamed())]
        piece: Any = next(event.delta.tool_call for event in events if event.delta.HasField("tool_call"))
        assert events[-1].WhichOneof("event") == "finished"
    else:
        piece = (await provider.Generate(whole())).answer.message.tool_calls[0]
    assert piece.id.startswith("call_")
    assert (piece.name, piece.arguments_json) == ("weather", "{}")


@pytest.mark.parametrize("as_stream", [False, True])
async def test_content_in_parts_is_joined(provider: Provider, vendor: OpenAILike, as_stream: bool) -> None:
    parts = [{"type": "text", "text": "On its "}, {"type": "thinking"}, {"type": "text", "text": "way. \ud83d"}]
    vendor.next(Script(deltas=[{"role": "assistant", "content": parts}]))
    if as_stream:
        events = [event async for event in provider.StreamGenerate(streamed())]
        text = "".join(event.delta.text for event in events)
    else:
        text = (await provider.Generate(whole())).answer.message.parts[0].text
    assert text == "On its way. \ufffd"


NONSENSE: list[Any] = [
    {"role": "assistant", "content": 5},
    {"role": "assistant", "content": [{"type": "text"}]},
    {"role": "assistant", "content": ["text"]},
    {"role": "assistant", "tool_calls": [5]},
    {"role": "assistant", "tool_calls": 5},
    {"role": "assistant", "tool_calls": [weather(id=7)]},
    {"role": "assistant", "tool_calls": [weather(function={"name": None, "arguments": "{}"})]},
    {"role": "assistant", "tool_calls": [weather(function={"name": "f", "arguments": [1]})]},
    {"role": "assistant", "tool_calls": [weather(function="f")]},
    "text",
]


@pytest.mark.parametrize("message", NONSENSE, ids=repr)
async def test_nonsense_is_the_vendors_fault(provider: Provider, vendor: OpenAILike, message: Any) -> None:
    vendor.next(Script(deltas=[message]))
    response = await provider.Generate(whole())
    assert [attempt.outcome for attempt in response.attempts] == ["UPSTREAM_UNAVAILABLE", "ok"]


@pytest.mark.parametrize(
    "message", [*NONSENSE, {"tool_calls": [weather(index=-1)]}, {"tool_calls": [weather(index=2**40)]}], ids=repr
)
async def test_nonsense_in_a_stream_is_the_vendors_fault(provider: Provider, vendor: OpenAILike, message: Any) -> None:
    vendor.next(Script(deltas=[message]), Script(status=500))
    kinds, error = await cut(provider.StreamGenerate(streamed()))
    assert error.reason in ("ALL_CANDIDATES_FAILED", "STREAM_CUT")
    assert "finished" not in kinds


async def test_a_tool_call_in_repetitive_pieces_is_put_together_once(provider: Provider, vendor: OpenAILike) -> None:
    pieces = [
        {"tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": '{"a":'}}]},
        {"tool_calls": [{"id": "c1", "function": {"name": "weather", "arguments": "1}"}}]},
        {"tool_calls": [{"id": "c2", "function": {"name": "", "arguments": None}}]},
        {"tool_calls": [{"function": {"name": "time", "arguments": "{}"}}]},
    ]
    vendor.next(Script(deltas=pieces, finish_reason="tool_calls"))
    calls: dict[int, list[str]] = {}
    async for event in provider.StreamGenerate(streamed()):
        if event.delta.HasField("tool_call"):
            piece = event.delta.tool_call
            call = calls.setdefault(piece.index, ["", "", ""])
            for place, part in enumerate((piece.id, piece.name, piece.arguments_json)):
                call[place] += part
    assert calls == {0: ["c1", "weather", '{"a":1}'], 1: ["c2", "time", "{}"]}


@pytest.mark.parametrize("as_stream", [False, True])
@pytest.mark.parametrize(
    "usage", [None, {}, {"prompt_tokens": None, "completion_tokens": None}, {"total_tokens": 30}], ids=repr
)
async def test_missing_usage_is_estimated_and_marked(
    provider: Provider, vendor: OpenAILike, as_stream: bool, usage: dict[str, Any] | None
) -> None:
    vendor.next(Script(usage=usage))
    if as_stream:
        told = [event async for event in provider.StreamGenerate(streamed())][-1].finished.usage
    else:
        told = (await provider.Generate(whole())).usage
    assert told.estimated
    assert told.input_tokens > 0
    assert told.output_tokens > 5


PASSING = [
    Script(status=500),
    Script(status=503, headers={"retry-after": "0"}),
    Script(status=529),
    Script(status=429),
    Script(status=429, headers={"retry-after": "0.01"}),
    Script(delay_s=5),
    Script(fault="empty_choices"),
    Script(fault="wrong_type"),
]


def outcome_of(script: Script) -> str:
    return "RATE_LIMITED" if script.status == 429 else "UPSTREAM_UNAVAILABLE"


@pytest.mark.parametrize("script", [*PASSING, Script(fault="cut"), Script(fault="malformed")], ids=repr)
async def test_a_passing_fault_is_survived(provider: Provider, vendor: OpenAILike, script: Script) -> None:
    vendor.next(script)
    response = await provider.Generate(whole())
    assert response.answer.message.parts[0].text == TEXT
    assert [attempt.outcome for attempt in response.attempts] == [outcome_of(script), "ok"]


@pytest.mark.parametrize("script", PASSING, ids=repr)
async def test_a_passing_fault_before_the_first_piece_is_survived(
    provider: Provider, vendor: OpenAILike, script: Script
) -> None:
    vendor.next(script)
    events = [event async for event in provider.StreamGenerate(streamed())]
    assert "".join(event.delta.text for event in events) == TEXT
    first, second = events[-1].finished.attempts
    ended_without_a_piece = script.fault in ("empty_choices", "wrong_type")
    assert first.outcome == ("STREAM_CUT" if ended_without_a_piece else outcome_of(script))
    assert second.outcome == "ok"


@pytest.mark.parametrize("fault", ["cut", "cut_clean", "malformed", "error_event", "hang"])
async def test_a_stream_that_breaks_off_is_never_finished(provider: Provider, vendor: OpenAILike, fault: str) -> None:
    vendor.next(Script(fault=fault))  # type: ignore[arg-type]
    kinds, error = await cut(provider.StreamGenerate(streamed("gpt-4o-mini", "mystery")))
    assert error.reason == "STREAM_CUT"
    assert kinds[:2] == ["started", "delta"]
    assert "finished" not in kinds
    assert int(error.metadata["wasted_nanousd"]) > 0
    assert len(vendor.requests) == 1


async def test_rate_limits_tell_when_to_come_back(provider: Provider, vendor: OpenAILike) -> None:
    vendor.always = Script(status=429, headers={"retry-after": "120"}, error={"code": "rate_limit_exceeded"})
    error = await refused(provider.Generate(whole(), timeout=20))
    assert (error.reason, error.retry_after_s) == ("RATE_LIMITED", 120.0)
    assert len(vendor.requests) == 1


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_a_rejected_request_is_not_repeated(provider: Provider, vendor: OpenAILike, status: int) -> None:
    secret = {"message": "prompt was: Where is my order?", "code": "invalid_value"}
    vendor.always = Script(status=status, error=secret)
    error = await refused(provider.Generate(whole()))
    assert error.reason == "UPSTREAM_REJECTED"
    assert error.message == f"acme-ai answered {status} (invalid_value)"
    assert len(vendor.requests) == 1


async def test_a_prompt_too_long_for_one_model_may_fit_the_next(provider: Provider, vendor: OpenAILike) -> None:
    too_long = Script(status=400, error={"code": "context_length_exceeded"})
    vendor.next(too_long)
    response = await provider.Generate(whole(None, "gpt-4o-mini", "mystery"))
    assert [attempt.outcome for attempt in response.attempts] == ["INVALID_INPUT", "ok"]
    vendor.next(too_long, too_long)
    error = await refused(provider.Generate(whole(None, "gpt-4o-mini", "mystery")))
    assert error.reason == "INVALID_INPUT"
    assert error.violations[0].field == "chat.messages"


async def test_a_broken_connection_is_billed_only_where_the_vendor_had_the_request(
    provider: Provider, vendor: OpenAILike
) -> None:
    vendor.next(Script(fault="reset"))
    first, _ = (await provider.Generate(whole())).attempts
    assert first.outcome == "UPSTREAM_UNAVAILABLE"
    assert first.cost_nanousd > 0
    first, _ = (await provider.Generate(whole(None, "o1", "gpt-4o-mini"))).attempts
    assert first.outcome == "UPSTREAM_UNAVAILABLE"
    assert first.cost_nanousd == 0


async def test_our_wrong_key_is_named_and_never_shown(provider: Provider) -> None:
    error = await refused(provider.Generate(whole(None, "gpt-4o")))
    assert error.reason == "UPSTREAM_CREDENTIAL"
    assert "sk-" not in error.message


@pytest.mark.parametrize("model", ["o1", "smollm2-135m-instruct"])
async def test_a_vendor_that_is_gone_gives_way_to_the_next(provider: Provider, model: str) -> None:
    response = await provider.Generate(whole(None, model, "gpt-4o-mini"))
    assert [attempt.outcome for attempt in response.attempts] == ["UPSTREAM_UNAVAILABLE", "ok"]


async def test_all_failed_names_what_was_tried(provider: Provider) -> None:
    error = await refused(provider.Generate(whole(None, "o1", "smollm2-135m-instruct")))
    assert error.reason == "ALL_CANDIDATES_FAILED"
    assert "o1 at gone: UPSTREAM_UNAVAILABLE" in error.message
    assert "smollm2-135m-instruct at our-engine: UPSTREAM_UNAVAILABLE" in error.message


async def test_an_unpriced_model_says_so(provider: Provider) -> None:
    charge = (await provider.Generate(whole(None, "mystery"))).charge
    assert charge.unpriced
    assert not charge.HasField("rates")


@pytest.mark.parametrize("as_stream", [False, True])
async def test_cancelling_hangs_up_at_the_vendor(provider: Provider, vendor: OpenAILike, as_stream: bool) -> None:
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


async def test_the_deadline_ends_a_slow_vendor(provider: Provider, vendor: OpenAILike) -> None:
    vendor.next(Script(delay_s=60))
    error = await refused(provider.Generate(whole(), timeout=0.2))
    assert error.reason == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "vendors:\n  - name: a\n    kind: openai\n    models: {m: m}\n",
            ":2: vendors.0.openai.base_url: Field required",
        ),
        (
            "vendors:\n  - name: a\n    kind: engine\n    adress: x\n    address: y\n    models: {m: m}\n",
            "vendors.0.engine.adress: Extra inputs are not permitted",
        ),
        (
            (
                "vendors:\n  - {name: a, kind: engine, address: x, models: {m: m}}\n"
                "  - name: a\n    kind: engine\n    address: x\n    models: {m: m}\n"
            ),
            ":3: a second vendor is named a",
        ),
        (
            (
                "vendors:\n  - name: a\n    kind: openai\n    base_url: http://x/v1\n    api_key_env: NO_SUCH_KEY\n"
                "    models: {m: m}\n"
            ),
            ":5: the environment variable NO_SUCH_KEY is not set",
        ),
        ("vendors: []\n", ":1: no vendors"),
    ],
)
def test_a_wrong_vendors_file_is_named_by_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "vendors.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_vendors(path)
    assert "vendors.yaml:" in str(caught.value)
    assert expected in str(caught.value)
