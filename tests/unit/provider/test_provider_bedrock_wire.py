"""What Bedrock's adapter says and understands, without a connection."""

from collections.abc import Iterator
from typing import Any

import pytest
from botocore.eventstream import EventStreamBuffer
from botocore.exceptions import ClientError, EventStreamError
from hypothesis import given
from hypothesis import strategies as st

from services.common.chat import (
    Chat,
    Delta,
    ImagePart,
    Message,
    ReasoningDelta,
    ResponseFormat,
    Role,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from services.common.chat_pb import Caller
from services.common.money import Usage
from services.provider.adapters.bedrock import _StreamReading, refusal_of, request_of, usage_of
from services.provider.domain.prompt_cache import LONG_TTL_S, Breakpoint, CacheHints
from services.provider.domain.vendor import Call, Reason, VendorError
from tests.vendors.bedrock_like import event_frame, frame

HI = Message(Role.USER, (TextPart("Hi"),))
ASKED = Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "weather", '{"city": "Turin"}'),))
TOLD = Message(Role.TOOL, (TextPart("sunny"),), tool_call_id="c1")
WEATHER = Tool("weather")
OPEN = {"json": {"type": "object"}}


def sent(*messages: Message, hints: CacheHints | None = None, **fields: Any) -> dict[str, Any]:
    chat = Chat(messages or (HI,), **fields)
    return request_of(Call("m", chat, Caller("acme"), False, 1.0, hints=hints or CacheHints()))


def invalid(*messages: Message, **fields: Any) -> VendorError:
    with pytest.raises(VendorError) as caught:
        sent(*messages, **fields)
    assert caught.value.reason is Reason.INVALID_INPUT
    return caught.value


def test_what_is_unset_is_not_sent() -> None:
    assert sent() == {"modelId": "m", "messages": [{"role": "user", "content": [{"text": "Hi"}]}]}


def test_what_converse_does_not_know_is_left_out() -> None:
    sampling = Sampling(seed=7, presence_penalty=1.0, frequency_penalty=1.0)
    thought = Message(Role.ASSISTANT, (TextPart("Hello."),), reasoning="Unsigned.")
    assert sent(HI, thought, sampling=sampling) == {
        "modelId": "m",
        "messages": [
            {"role": "user", "content": [{"text": "Hi"}]},
            {"role": "assistant", "content": [{"text": "Hello."}]},
        ],
    }


def test_zero_is_a_temperature() -> None:
    assert sent(sampling=Sampling(temperature=0.0))["inferenceConfig"] == {"temperature": 0.0}


@pytest.mark.parametrize("temperature", [-0.1, 1.1])
def test_a_temperature_out_of_range_is_refused(temperature: float) -> None:
    assert invalid(sampling=Sampling(temperature=temperature)).field == "chat.sampling.temperature"


def test_system_messages_go_in_front_and_turns_of_one_role_are_one() -> None:
    rule, more = (Message(Role.SYSTEM, (TextPart(text),)) for text in ("Be brief.", "Be kind."))
    request = sent(rule, HI, HI, more, ASKED, TOLD, HI)
    assert request["system"] == [{"text": "Be brief."}, {"text": "Be kind."}]
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user"]
    assert request["messages"][0]["content"] == [{"text": "Hi"}, {"text": "Hi"}]
    assert [next(iter(block)) for block in request["messages"][2]["content"]] == ["toolResult", "text"]


def test_blank_text_is_left_out() -> None:
    nothing = Message(Role.ASSISTANT, (TextPart(" \n"),))
    silent = Message(Role.TOOL, (TextPart(""),), tool_call_id="c1")
    request = sent(HI, nothing, ASKED, silent)
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user"]
    assert request["messages"][2]["content"] == [{"toolResult": {"toolUseId": "c1", "content": []}}]


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (ToolChoice(), None),
        (ToolChoice("auto"), {"auto": {}}),
        (ToolChoice("required"), {"any": {}}),
        (ToolChoice("named", "weather"), {"tool": {"name": "weather"}}),
    ],
)
def test_tool_choices_have_their_own_names(choice: ToolChoice, told: object) -> None:
    config = sent(tools=(WEATHER,), tool_choice=choice)["toolConfig"]
    assert config["tools"] == [{"toolSpec": {"name": "weather", "inputSchema": OPEN}}]
    assert config.get("toolChoice") == told


def test_no_tool_is_offered_where_none_may_be_called() -> None:
    assert "toolConfig" not in sent(tools=(WEATHER,), tool_choice=ToolChoice("none"))


def test_tools_stay_where_the_conversation_has_used_them() -> None:
    left_out: dict[str, Any] = {"tools": (WEATHER,), "tool_choice": ToolChoice("none")}
    for fields in (left_out, {}):
        config = sent(HI, ASKED, TOLD, **fields)["toolConfig"]
        assert config == {"tools": [{"toolSpec": {"name": "weather", "inputSchema": OPEN}}]}


def test_a_foreign_id_of_a_tool_call_is_replaced_alike_in_call_and_result() -> None:
    id_ = "call/ü" * 20
    call = Message(Role.ASSISTANT, tool_calls=(ToolCall(id_, "weather", ""),))
    _, asked, told = sent(HI, call, Message(Role.TOOL, (TextPart("sunny"),), tool_call_id=id_))["messages"]
    given = asked["content"][0]["toolUse"]
    assert given["toolUseId"] == told["content"][0]["toolResult"]["toolUseId"]
    assert len(given["toolUseId"]) <= 64
    assert given["toolUseId"].isascii()
    assert given["input"] == {}


def test_json_without_a_schema_is_asked_for_in_words() -> None:
    request = sent(response_format=ResponseFormat("json_object"), tools=(WEATHER,))
    assert "JSON" in request["system"][-1]["text"]
    assert "outputConfig" not in request


def test_a_schema_and_an_effort_are_output_config() -> None:
    form = ResponseFormat("json_schema", "", '{"type": "object"}')
    assert sent(response_format=form, sampling=Sampling(reasoning_effort="high"))["outputConfig"] == {
        "effort": "high",
        "textFormat": {
            "type": "json_schema",
            "structure": {"jsonSchema": {"name": "answer", "schema": '{"type": "object"}'}},
        },
    }


@pytest.mark.parametrize(
    "part", [ImagePart(url="https://example.com/a.png"), ImagePart(data=b"x", media_type="image/tiff")]
)
def test_a_picture_must_be_bytes_of_a_known_form(part: ImagePart) -> None:
    assert invalid(HI, Message(Role.USER, (part,))).field == "chat.messages[1].parts"


def test_a_picture_in_a_system_message_is_refused() -> None:
    invalid(Message(Role.SYSTEM, (ImagePart(data=b"x", media_type="image/png"),)), HI)


def test_a_tool_may_answer_with_a_picture() -> None:
    seen = Message(Role.TOOL, (ImagePart(data=b"x", media_type="image/jpeg"),), tool_call_id="c1")
    result = sent(HI, ASKED, seen)["messages"][2]["content"][0]["toolResult"]
    assert result["content"] == [{"image": {"format": "jpeg", "source": {"bytes": b"x"}}}]


@pytest.mark.parametrize("number", ["NaN", "1e999", '"\\ud800"'])
def test_what_json_cannot_hold_is_the_requests_fault(number: str) -> None:
    invalid(tools=(Tool("f", parameters_json_schema=f'{{"const": {number}}}'),))
    invalid(HI, Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "f", f'{{"a": {number}}}'),)))


def test_cache_points_follow_what_is_kept() -> None:
    system = Message(Role.SYSTEM, (TextPart("Rules."),))
    hints = CacheHints((Breakpoint(None, LONG_TTL_S), Breakpoint(0, LONG_TTL_S), Breakpoint(1), Breakpoint(3)))
    request = sent(system, HI, ASKED, TOLD, HI, tools=(WEATHER,), hints=hints)
    long, short = {"cachePoint": {"type": "default", "ttl": "1h"}}, {"cachePoint": {"type": "default"}}
    assert request["toolConfig"]["tools"][1:] == [long]
    assert request["system"][1:] == [long]
    assert request["messages"][0]["content"][1:] == [short]
    kinds = [next(iter(block)) for block in request["messages"][2]["content"]]
    assert kinds == ["toolResult", "cachePoint", "text"]


def test_cache_points_without_a_block_before_them_are_left_out() -> None:
    blank, late = Message(Role.SYSTEM, (TextPart(" "),)), Message(Role.SYSTEM, (TextPart("Be kind."),))
    hints = CacheHints((Breakpoint(None), Breakpoint(0), Breakpoint(2)))
    assert "cachePoint" not in str(sent(blank, HI, late, hints=hints))


@pytest.mark.parametrize(
    ("reported", "normalised"),
    [
        ({"inputTokens": 9, "outputTokens": 2, "totalTokens": 11}, Usage(9, 2)),
        (
            {
                "inputTokens": 9,
                "outputTokens": 2,
                "cacheReadInputTokens": 100,
                "cacheWriteInputTokens": 60,
                "cacheDetails": [{"ttl": "1h", "inputTokens": 40}, {"ttl": "5m", "inputTokens": 20}],
            },
            Usage(169, 2, 100, 60, ((3600, 40), (300, 20))),
        ),
        ({"inputTokens": 9, "outputTokens": 2, "cacheWriteInputTokens": 60}, Usage(69, 2, 0, 60)),
        # Lifetimes that are more than the whole would make other writes negative; unknown ones are plain writes.
        (
            {
                "inputTokens": 9,
                "outputTokens": 2,
                "cacheWriteInputTokens": 5,
                "cacheDetails": [{"ttl": "1h", "inputTokens": 40}, {"ttl": "7d", "inputTokens": 1}],
            },
            Usage(49, 2, 0, 40, ((3600, 40),)),
        ),
        ({"inputTokens": 9, "outputTokens": 2, "cacheReadInputTokens": -1, "cacheDetails": None}, Usage(9, 2)),
    ],
)
def test_usage_is_normalised(reported: dict[str, Any], normalised: Usage) -> None:
    assert usage_of(reported) == normalised


@pytest.mark.parametrize(
    "reported", [None, {}, {"inputTokens": 9}, {"outputTokens": 9}, {"inputTokens": True, "outputTokens": 1}]
)
def test_half_a_usage_is_none(reported: dict[str, Any] | None) -> None:
    assert usage_of(reported) is None


def refusal(status: int, code: str, message: str = "secret", **headers: str) -> ClientError:
    about = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": about}
    return ClientError(response, "Converse")


def in_stream(code: str, message: str = "secret") -> EventStreamError:
    response: Any = {"Error": {"Code": code, "Message": message}}
    return EventStreamError(response, "ConverseStream")


@pytest.mark.parametrize(
    ("error", "reason", "billed"),
    [
        (refusal(429, "ThrottlingException"), Reason.RATE_LIMITED, False),
        (refusal(400, "ThrottlingException"), Reason.RATE_LIMITED, False),
        (refusal(408, "ModelTimeoutException"), Reason.UNAVAILABLE, False),
        (refusal(424, "ModelErrorException"), Reason.UNAVAILABLE, False),
        (refusal(500, "InternalServerException"), Reason.UNAVAILABLE, False),
        (refusal(502, "502"), Reason.UNAVAILABLE, False),
        (refusal(400, "ValidationException"), Reason.REJECTED, False),
        (refusal(400, "ValidationException", "Input is too long"), Reason.INVALID_INPUT, False),
        (refusal(404, "ResourceNotFoundException"), Reason.REJECTED, False),
        (refusal(403, "AccessDeniedException"), Reason.CREDENTIAL, False),
        (refusal(400, "ExpiredToken"), Reason.CREDENTIAL, False),
        (in_stream("throttlingException"), Reason.RATE_LIMITED, False),
        (in_stream("validationException"), Reason.REJECTED, False),
        (in_stream("modelStreamErrorException"), Reason.UNAVAILABLE, True),
        (in_stream("internalServerException"), Reason.UNAVAILABLE, True),
        (in_stream("somethingNew"), Reason.UNAVAILABLE, True),
        (in_stream(""), Reason.UNAVAILABLE, True),
    ],
    ids=repr,
)
def test_refusals_have_a_reason_and_no_secrets(error: ClientError, reason: Reason, billed: bool) -> None:
    told = refusal_of("aws", error)
    assert (told.reason, told.billed) == (reason, billed)
    assert "secret" not in told.message


def test_refusals_name_status_code_and_pause() -> None:
    told = refusal_of("aws", refusal(429, "ThrottlingException", **{"retry-after": "7"}))
    assert (told.message, told.retry_after_s) == ("aws answered 429 (ThrottlingException)", 7.0)
    assert refusal_of("aws", refusal(502, "502")).message == "aws answered 502"
    assert refusal_of("aws", refusal(400, "a b: prompt")).message == "aws answered 400"


def read(*events: dict[str, Any]) -> Iterator[Delta]:
    reading = _StreamReading()
    for event in events:
        yield from reading.read(event)


def test_pieces_of_several_blocks_are_told_apart() -> None:
    def start(block: int, id_: str) -> dict[str, Any]:
        return {
            "contentBlockStart": {"contentBlockIndex": block, "start": {"toolUse": {"toolUseId": id_, "name": "f"}}}
        }

    def delta(block: int, what: dict[str, Any]) -> dict[str, Any]:
        return {"contentBlockDelta": {"contentBlockIndex": block, "delta": what}}

    deltas = list(
        read(
            delta(0, {"reasoningContent": {"text": "Think."}}),
            delta(0, {"reasoningContent": {"signature": "x"}}),
            delta(1, {"text": "I look."}),
            start(3, "c1"),
            start(5, "c2"),
            delta(5, {"toolUse": {"input": '{"a":'}}),
            delta(5, {"toolUse": {"input": "1}"}}),
            delta(3, {"toolUse": {"input": ""}}),
            {"messageStop": {"stopReason": "tool_use"}},
        )
    )
    assert deltas == [
        ReasoningDelta("Think."),
        TextDelta("I look."),
        ToolCallDelta(0, "c1", "f"),
        ToolCallDelta(1, "c2", "f"),
        ToolCallDelta(1, arguments_json='{"a":'),
        ToolCallDelta(1, arguments_json="1}"),
        ToolCallDelta(0, arguments_json="{}"),
    ]


def test_arguments_of_no_tool_are_nonsense() -> None:
    with pytest.raises(LookupError):
        list(read({"contentBlockDelta": {"contentBlockIndex": 0, "delta": {"toolUse": {"input": "{}"}}}}))


@given(
    headers=st.dictionaries(st.from_regex(r"[a-z:-]{1,20}", fullmatch=True), st.text(max_size=40), max_size=4),
    payload=st.binary(max_size=200),
    size=st.integers(1, 50),
)
def test_frames_are_what_botocore_reads(headers: dict[str, str], payload: bytes, size: int) -> None:
    data = frame(headers, payload) + event_frame("contentBlockStop", {"contentBlockIndex": 0})
    buffer = EventStreamBuffer()
    messages: list[Any] = []
    for at in range(0, len(data), size):
        buffer.add_data(data[at : at + size])
        messages += buffer
    assert (messages[0].headers, messages[0].payload) == (headers, payload)
    assert messages[1].headers[":event-type"] == "contentBlockStop"
