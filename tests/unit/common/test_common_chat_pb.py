"""Chats on the wire: what comes in is checked, what goes out comes back."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmmesh.common.v1 import caller_pb2, chat_pb2, usage_pb2
from services.common import chat_pb
from services.common.chat import (
    Answer,
    AnswerBuilder,
    Chat,
    FinishReason,
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
    deltas_of,
)
from services.common.chat_pb import (
    MAX_JSON_DEPTH,
    MAX_MESSAGES,
    MAX_TOOLS,
    Caller,
    answer_from_pb,
    answer_to_pb,
    caller_from_pb,
    caller_to_pb,
    chat_from_pb,
    chat_to_pb,
    delta_from_pb,
    delta_to_pb,
    rates_from_pb,
    rates_to_pb,
    usage_from_pb,
    usage_to_pb,
)
from services.common.errors import InvalidInput
from services.common.money import Rates, Usage

text = st.text(st.characters(codec="utf-8"), max_size=30)
words = text.filter(str.strip)
name = st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True)
json_object = st.dictionaries(
    text, st.recursive(st.none() | st.integers() | text, st.lists, max_leaves=5), max_size=4
).map(json.dumps)
image = st.builds(ImagePart, url=st.just("https://x.example/a.png")) | st.builds(
    ImagePart, data=st.binary(min_size=1, max_size=20), media_type=st.just("image/png")
)
parts = st.lists(st.builds(TextPart, words) | image, min_size=1, max_size=3).map(tuple)
call = st.builds(ToolCall, words, words, json_object)
messages = st.one_of(
    st.builds(Message, st.sampled_from([Role.USER, Role.SYSTEM]), parts, text),
    st.builds(Message, st.just(Role.ASSISTANT), parts, text, st.lists(call, max_size=2).map(tuple), st.just(""), text),
    st.builds(Message, st.just(Role.TOOL), parts, text, st.just(()), words),
)
tools = st.lists(
    st.builds(Tool, name, text, st.just("") | json_object, st.booleans()), max_size=3, unique_by=lambda t: t.name
).map(tuple)
finite = st.floats(-2, 2)


@st.composite
def chats(draw):
    offered = draw(tools)
    modes = ["", "auto", "none", "required"]
    choice = ToolChoice(draw(st.sampled_from(modes)))
    if offered and draw(st.booleans()):
        choice = ToolChoice("named", offered[0].name)
    last = Message(Role.USER, draw(parts))
    form = draw(
        st.sampled_from([ResponseFormat(), ResponseFormat("json_object")])
        | st.builds(ResponseFormat, st.just("json_schema"), text, json_object)
    )
    sampling = draw(
        st.builds(
            Sampling,
            st.none() | st.floats(0, 2),
            st.none() | st.floats(0, 1, exclude_min=True),
            st.none() | st.integers(1, chat_pb.MAX_OUTPUT_TOKENS),
            st.lists(words, max_size=8).map(tuple),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | finite,
            st.none() | finite,
            st.sampled_from(["", "low", "medium", "high"]),
        )
    )
    return Chat((*draw(st.lists(messages, max_size=4)), last), offered, choice, form, sampling)


@given(chats())
def test_a_chat_comes_back_as_it_was_sent(chat):
    assert chat_from_pb(chat_pb2.Chat.FromString(chat_to_pb(chat).SerializeToString())) == chat


@given(st.builds(Message, st.just(Role.ASSISTANT), st.just(()) | parts, text, st.lists(call, max_size=2).map(tuple)),
       st.sampled_from(FinishReason))  # fmt: skip
def test_an_answer_comes_back_as_it_was_sent(message, reason):
    answer = Answer(message, reason)
    assert answer_from_pb(chat_pb2.Answer.FromString(answer_to_pb(answer).SerializeToString())) == answer


@given(text, text, st.lists(call, max_size=3))
def test_the_pieces_of_an_answer_make_the_answer(said, thought, calls):
    message = Message(Role.ASSISTANT, (TextPart(said),) if said else (), tool_calls=tuple(calls), reasoning=thought)
    builder = AnswerBuilder()
    for delta in deltas_of(Answer(message, FinishReason.STOP)):
        builder.add(delta_from_pb(chat_pb2.Delta.FromString(delta_to_pb(delta).SerializeToString())))
    assert builder.build(FinishReason.STOP).message == message


@pytest.mark.parametrize("delta", [TextDelta(""), TextDelta("a"), ReasoningDelta("b"), ToolCallDelta(3, "i", "n", "{")])
def test_a_piece_comes_back_as_it_was_sent(delta):
    assert delta_from_pb(delta_to_pb(delta)) == delta


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.booleans())
def test_usage_comes_back_as_it_was_sent(plain, read, written, out, estimated):
    usage = Usage(plain + read + written, out, read, written, ((300, written),), out // 2, estimated)
    assert usage_from_pb(usage_to_pb(usage)) == usage


@pytest.mark.parametrize(
    ("usage", "field"),
    [
        (usage_pb2.Usage(input_tokens=-1), "usage.input_tokens"),
        (usage_pb2.Usage(output_tokens=-1), "usage.output_tokens"),
        (usage_pb2.Usage(input_tokens=5, cache_read_input_tokens=6), "usage.input_tokens"),
        (usage_pb2.Usage(input_tokens=5, cache_read_input_tokens=3, cache_write_input_tokens=3), "usage.input_tokens"),
    ],
)
def test_usage_that_cannot_be_names_its_field(usage, field):
    assert fields_of(usage_from_pb, usage) == {field}


def test_rates_come_back_as_they_were_sent():
    assert rates_from_pb(rates_to_pb(Rates(1, 2, 3, 4, 5))) == Rates(1, 2, 3, 4, 5)


def fields_of(parse, pb) -> set[str]:
    with pytest.raises(InvalidInput) as caught:
        parse(pb)
    return {violation.field for violation in caught.value.violations}


def user(said: str = "Hi") -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=said)])


def valid(**fields) -> chat_pb2.Chat:
    return chat_pb2.Chat(messages=[user()], **fields)


def sampling(**fields) -> chat_pb2.Chat:
    return valid(sampling=chat_pb2.Sampling(**fields))


def tool(**fields) -> chat_pb2.Tool:
    return chat_pb2.Tool(**({"name": "find"} | fields))


def message(role: int, **fields) -> chat_pb2.Chat:
    return chat_pb2.Chat(messages=[chat_pb2.Message(role=role, **fields), user()])


def picture(**fields) -> chat_pb2.Chat:
    return message(chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(image=chat_pb2.Image(**fields))])


NAN, INF = math.nan, math.inf
DEEP = '{"a":' * (MAX_JSON_DEPTH + 1) + "1" + "}" * (MAX_JSON_DEPTH + 1)
BAD = {
    "no messages": (chat_pb2.Chat(), "chat.messages"),
    "too many messages": (chat_pb2.Chat(messages=[user()] * (MAX_MESSAGES + 1)), "chat.messages"),
    "10,000 messages": (chat_pb2.Chat(messages=[user()] * 10_000), "chat.messages"),
    "empty text": (chat_pb2.Chat(messages=[user("")]), "chat.messages[0].parts"),
    "blank text": (chat_pb2.Chat(messages=[user(" \n\t\u3000")]), "chat.messages[0].parts"),
    "no parts": (message(chat_pb2.ROLE_USER), "chat.messages[0].parts"),
    "empty system": (message(chat_pb2.ROLE_SYSTEM), "chat.messages[0].parts"),
    "empty assistant": (message(chat_pb2.ROLE_ASSISTANT), "chat.messages[0].parts"),
    "hollow part": (message(chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart()]), "chat.messages[0].parts[0]"),
    "10 MB": (chat_pb2.Chat(messages=[user("x" * 10_000_000)]), "chat.messages[0].parts[0].text"),
    "no role": (message(0), "chat.messages[0].role"),
    "future role": (message(99), "chat.messages[0].role"),
    "last is the assistant": (
        chat_pb2.Chat(messages=[user(), chat_pb2.Message(role=3, parts=[chat_pb2.ContentPart(text="x")])]),
        "chat.messages[1].role",
    ),
    "tool without a call": (message(chat_pb2.ROLE_TOOL), "chat.messages[0].tool_call_id"),
    "call without id": (
        message(chat_pb2.ROLE_ASSISTANT, tool_calls=[chat_pb2.ToolCall(name="f", arguments_json="{}")]),
        "chat.messages[0].tool_calls[0]",
    ),
    "call without arguments": (
        message(chat_pb2.ROLE_ASSISTANT, tool_calls=[chat_pb2.ToolCall(id="1", name="f")]),
        "chat.messages[0].tool_calls[0].arguments_json",
    ),
    "call with a list": (
        message(chat_pb2.ROLE_ASSISTANT, tool_calls=[chat_pb2.ToolCall(id="1", name="f", arguments_json="[]")]),
        "chat.messages[0].tool_calls[0].arguments_json",
    ),
    "picture without source": (picture(), "chat.messages[0].parts[0].image.data"),
    "picture from a file": (picture(url="file:///etc/passwd"), "chat.messages[0].parts[0].image.url"),
    "picture without type": (picture(data=b"x"), "chat.messages[0].parts[0].image.media_type"),
    "picture of another type": (
        picture(data=b"x", media_type="text/html"),
        "chat.messages[0].parts[0].image.media_type",
    ),
    "picture too large": (
        picture(data=b"x" * (8 * 2**20 + 1), media_type="image/png"),
        "chat.messages[0].parts[0].image.data",
    ),
    "too many tools": (valid(tools=[tool(name=f"t{n}") for n in range(MAX_TOOLS + 1)]), "chat.tools"),
    "two of a name": (valid(tools=[tool(), tool()]), "chat.tools"),
    "tool without name": (valid(tools=[tool(name="")]), "chat.tools[0].name"),
    "tool with a space": (valid(tools=[tool(name="a b")]), "chat.tools[0].name"),
    "tool with a line break": (valid(tools=[tool(name="a\n")]), "chat.tools[0].name"),
    "endless schemas": (
        valid(tools=[tool(name=f"t{n}", parameters_json_schema='{"a": "' + "x" * 300_000 + '"}') for n in range(2)]),
        "chat.tools",
    ),
    "schema not JSON": (valid(tools=[tool(parameters_json_schema="{")]), "chat.tools[0].parameters_json_schema"),
    "schema no object": (valid(tools=[tool(parameters_json_schema="[]")]), "chat.tools[0].parameters_json_schema"),
    "schema with NaN": (
        valid(tools=[tool(parameters_json_schema='{"a": NaN}')]),
        "chat.tools[0].parameters_json_schema",
    ),
    "schema with half a pair": (
        valid(tools=[tool(parameters_json_schema='{"a": "\\ud800"}')]),
        "chat.tools[0].parameters_json_schema",
    ),
    "schema too deep": (valid(tools=[tool(parameters_json_schema=DEEP)]), "chat.tools[0].parameters_json_schema"),
    "schema far too deep": (
        valid(tools=[tool(parameters_json_schema='{"a":' + "[" * 500_000)]),
        "chat.tools[0].parameters_json_schema",
    ),
    "schema with an endless number": (
        valid(tools=[tool(parameters_json_schema='{"a": ' + "9" * 10_000 + "}")]),
        "chat.tools[0].parameters_json_schema",
    ),
    "choice of a future mode": (valid(tool_choice=chat_pb2.ToolChoice(mode=99)), "chat.tool_choice.mode"),
    "choice of no tool": (valid(tool_choice=chat_pb2.ToolChoice(mode=4, name="x")), "chat.tool_choice.name"),
    "future format": (valid(response_format=chat_pb2.ResponseFormat(kind=99)), "chat.response_format.kind"),
    "format without schema": (
        valid(response_format=chat_pb2.ResponseFormat(kind=3)),
        "chat.response_format.json_schema",
    ),
    "temperature -1": (sampling(temperature=-1), "chat.sampling.temperature"),
    "temperature 2.1": (sampling(temperature=2.1), "chat.sampling.temperature"),
    "temperature NaN": (sampling(temperature=NAN), "chat.sampling.temperature"),
    "temperature inf": (sampling(temperature=INF), "chat.sampling.temperature"),
    "top_p 0": (sampling(top_p=0), "chat.sampling.top_p"),
    "top_p NaN": (sampling(top_p=NAN), "chat.sampling.top_p"),
    "no output": (sampling(max_output_tokens=0), "chat.sampling.max_output_tokens"),
    "negative output": (sampling(max_output_tokens=-5), "chat.sampling.max_output_tokens"),
    "endless output": (sampling(max_output_tokens=2**31 - 1), "chat.sampling.max_output_tokens"),
    "nine stops": (sampling(stop=["x"] * 9), "chat.sampling.stop"),
    "empty stop": (sampling(stop=[""]), "chat.sampling.stop"),
    "long stop": (sampling(stop=["x" * 257]), "chat.sampling.stop"),
    "penalty NaN": (sampling(presence_penalty=NAN), "chat.sampling.presence_penalty"),
    "penalty 3": (sampling(frequency_penalty=3), "chat.sampling.frequency_penalty"),
    "effort": (sampling(reasoning_effort="extreme"), "chat.sampling.reasoning_effort"),
}


@pytest.mark.parametrize(("pb", "field"), BAD.values(), ids=BAD.keys())
def test_bad_input_names_its_field(pb, field):
    assert field in fields_of(chat_from_pb, pb)


def test_all_that_is_wrong_is_told_at_once_up_to_a_limit():
    pb = chat_pb2.Chat(messages=[chat_pb2.Message()] * 900, sampling=chat_pb2.Sampling(temperature=-1))
    with pytest.raises(InvalidInput) as caught:
        chat_from_pb(pb)
    assert len(caught.value.violations) == 16


def test_limits_are_inclusive():
    chat_from_pb(chat_pb2.Chat(messages=[user()] * MAX_MESSAGES))
    chat_from_pb(valid(tools=[tool(name=f"t{n}") for n in range(MAX_TOOLS)]))
    chat_from_pb(chat_pb2.Chat(messages=[user("x" * chat_pb.MAX_TEXT_BYTES)]))
    chat_from_pb(valid(tools=[tool(parameters_json_schema=DEEP[5:-1])]))


def test_brackets_within_texts_are_not_depth():
    schema = json.dumps({"description": '{["\\' * 200, "type": "object"})
    assert chat_from_pb(valid(tools=[tool(parameters_json_schema=schema)])).tools[0].parameters_json_schema == schema


def test_arguments_that_a_model_made_up_are_its_answer():
    calls = [chat_pb2.ToolCall(id="1", name="f", arguments_json='{"city": "Par')]
    pb = chat_pb2.Answer(message=chat_pb2.Message(role=3, tool_calls=calls), finish_reason=3)
    assert answer_from_pb(pb).message.tool_calls[0].arguments_json == '{"city": "Par'


def test_an_answer_without_reason_or_of_somebody_else_is_refused():
    assert fields_of(answer_from_pb, chat_pb2.Answer(message=user())) == {"answer.finish_reason", "answer.message.role"}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tenant": ""}, "caller.tenant"),
        ({"tenant": "a b"}, "caller.tenant"),
        ({"tenant": "a}:{b"}, "caller.tenant"),
        ({"tenant": "a\n"}, "caller.tenant"),
        ({"tenant": "ñ"}, "caller.tenant"),
        ({"tenant": "a" * 65}, "caller.tenant"),
        ({"namespace": "a/b"}, "caller.namespace"),
        ({"endpoint": "a b"}, "caller.endpoint"),
        ({"endpoint": "a\x1fb"}, "caller.endpoint"),
        ({"user": "u" * 129}, "caller.user"),
        ({"request_id": "r" * 129}, "caller.request_id"),
    ],
)
def test_a_malformed_caller_names_its_field(fields, field):
    assert fields_of(caller_from_pb, caller_pb2.Caller(**({"tenant": "acme"} | fields))) == {field}


def test_a_caller_comes_back_as_it_was_sent():
    caller = Caller("acme", "documents", "a/b", "Zoë", "r-1")
    assert caller_from_pb(caller_to_pb(caller)) == caller
    assert caller_from_pb(caller_pb2.Caller(tenant="acme")).namespace == "default"
