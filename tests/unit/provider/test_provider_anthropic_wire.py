import json
from dataclasses import replace
from typing import Any

import pytest
from anthropic.types import MessageDeltaUsage
from anthropic.types import Usage as Reported
from anthropic.types.message_create_params import MessageCreateParamsBase

from services.common.chat import (
    Chat,
    ImagePart,
    Message,
    ResponseFormat,
    Role,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from services.common.chat_pb import Caller
from services.common.money import Rates, Usage
from services.provider.adapters.anthropic import usage_of
from services.provider.adapters.anthropic_request import (
    DEFAULT_MAX_TOKENS,
    Generation,
    encoded,
    generation_of,
    request_of,
)
from services.provider.domain.prompt_cache import NO_HINTS, Breakpoint, CacheHints
from services.provider.domain.vendor import Call, Reason, VendorError
from tests.vendors.anthropic_cache import Count, PromptCache, Refused, bill
from tests.vendors.anthropic_like import FIELDS

CURRENT, OLDER = "claude-sonnet-5-5", "claude-sonnet-4-5"
USER = Message(Role.USER, (TextPart("Hi"),))
CALLED = Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "weather", "{}"),))
RESULT = Message(Role.TOOL, (TextPart("sunny"),), tool_call_id="c1")
TOOL = Tool("weather")
THINKS = Sampling(reasoning_effort="medium")


def text(role: Role, words: str) -> Message:
    return Message(role, (TextPart(words),))


def body(chat: Chat, model: str = CURRENT, *breakpoints: Breakpoint) -> dict[str, Any]:
    return request_of(model, chat, CacheHints(breakpoints))


def refused(chat: Chat, model: str = CURRENT) -> VendorError:
    with pytest.raises(VendorError) as caught:
        request_of(model, chat, NO_HINTS)
    assert caught.value.reason is Reason.INVALID_INPUT
    return caught.value


def test_a_plain_chat_is_a_plain_request() -> None:
    assert body(Chat((USER,))) == {
        "model": CURRENT,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}],
        "max_tokens": DEFAULT_MAX_TOKENS,
    }


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-3-5-sonnet-20241022", Generation(sampling=True, budget=True)),
        ("claude-2.1", Generation(sampling=True, budget=True)),
        ("claude-opus-4-20250514", Generation(sampling=True, budget=True)),
        ("anthropic.claude-haiku-4-5-20251001-v1:0", Generation(sampling=True, budget=True)),
        ("claude-opus-4-6", Generation(sampling=True, budget=False)),
        ("claude-opus-4-7", Generation(sampling=False, budget=False)),
        ("claude-sonnet-5", Generation(sampling=False, budget=False)),
        ("claude-haiku-5-5", Generation(sampling=False, budget=False)),
        ("claude-mythos-preview", Generation(sampling=False, budget=False)),
        ("our-own-name", Generation(sampling=False, budget=False)),
    ],
)
def test_what_a_model_takes_is_read_from_its_id(model: str, expected: Generation) -> None:
    assert generation_of(model) == expected


@pytest.mark.parametrize("model", [CURRENT, OLDER])
def test_a_temperature_above_one_is_the_requests_fault(model: str) -> None:
    error = refused(Chat((USER,), sampling=Sampling(temperature=1.5)), model)
    assert (error.field, error.message) == ("chat.sampling.temperature", "must be between 0 and 1")


@pytest.mark.parametrize(
    ("model", "sampling", "sent"),
    [
        (OLDER, Sampling(temperature=0, top_p=0.5), {"temperature": 0}),
        (OLDER, Sampling(top_p=0.5), {"top_p": 0.5}),
        (OLDER, Sampling(temperature=0.2, reasoning_effort="low"), {}),
        (CURRENT, Sampling(temperature=0, top_p=0.5), {}),
        (CURRENT, Sampling(seed=7, presence_penalty=1, frequency_penalty=1), {}),
    ],
)
def test_only_sampling_that_the_model_takes_is_sent(model: str, sampling: Sampling, sent: dict[str, object]) -> None:
    request = body(Chat((USER,), sampling=sampling), model)
    names = ("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty")
    assert {name: request[name] for name in names if name in request} == sent


def test_a_stop_sequence_of_blanks_is_the_requests_fault() -> None:
    assert refused(Chat((USER,), sampling=Sampling(stop=("END", "\n")))).field == "chat.sampling.stop"


def test_an_older_model_thinks_by_budget_within_the_limit() -> None:
    request = body(Chat((USER,), sampling=THINKS), OLDER)
    assert request["thinking"] == {"type": "enabled", "budget_tokens": 8192}
    assert request["max_tokens"] == DEFAULT_MAX_TOKENS + 8192
    assert "output_config" not in request
    request = body(Chat((USER,), sampling=replace(THINKS, max_output_tokens=4000)), OLDER)
    assert (request["thinking"]["budget_tokens"], request["max_tokens"]) == (3000, 4000)


def test_a_current_model_thinks_by_effort() -> None:
    request = body(Chat((USER,), sampling=THINKS))
    assert request["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert request["output_config"] == {"effort": "medium"}


@pytest.mark.parametrize("model", [CURRENT, OLDER])
@pytest.mark.parametrize(
    "chat",
    [
        Chat((USER,)),
        Chat((USER, CALLED, RESULT), (TOOL,), sampling=THINKS),
        Chat((USER, CALLED, RESULT, USER), (TOOL,), sampling=THINKS),
        Chat((USER,), (TOOL,), ToolChoice("required"), sampling=THINKS),
        Chat((USER,), (TOOL,), ToolChoice("named", "weather"), sampling=THINKS),
        Chat((USER,), sampling=replace(THINKS, max_output_tokens=1300)),
    ],
    ids=["unasked", "results", "results-and-words", "forced", "named", "small limit"],
)
def test_no_thinking_where_the_api_takes_none(model: str, chat: Chat) -> None:
    assert "thinking" not in body(chat, model)


def test_thinking_comes_back_with_the_next_question() -> None:
    answered = Chat((USER, CALLED, RESULT, text(Role.ASSISTANT, "Sunny."), USER), (TOOL,), sampling=THINKS)
    assert "thinking" in body(answered)


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (ToolChoice("auto"), {"type": "auto"}),
        (ToolChoice("none"), {"type": "none"}),
        (ToolChoice("required"), {"type": "any"}),
        (ToolChoice("named", "weather"), {"type": "tool", "name": "weather"}),
        (ToolChoice(), None),
    ],
)
def test_tool_choices_have_their_names_there(choice: ToolChoice, sent: dict[str, str] | None) -> None:
    assert body(Chat((USER,), (TOOL,), choice)).get("tool_choice") == sent


def test_a_tool_choice_without_tools_is_not_sent() -> None:
    assert "tool_choice" not in body(Chat((USER,), tool_choice=ToolChoice("none")))


def test_parallel_results_are_one_turn_with_what_the_user_adds() -> None:
    calls = (ToolCall("c1", "weather", '{"city": "Turin"}'), ToolCall("a.b:2", "time", "{}"))
    chat = Chat(
        (
            USER,
            Message(Role.ASSISTANT, (TextPart(" "),), tool_calls=calls),
            RESULT,
            Message(Role.TOOL, tool_call_id="a.b:2"),
            text(Role.USER, "And?"),
        )
    )
    assert body(chat)["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Turin"}},
                {"type": "tool_use", "id": "a_2e_b_3a_2", "name": "time", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "tool_result", "tool_use_id": "a_2e_b_3a_2"},
                {"type": "text", "text": "And?"},
            ],
        },
    ]


def test_system_messages_stand_apart_wherever_they_are() -> None:
    request = body(Chat((text(Role.SYSTEM, "Be brief."), USER, text(Role.SYSTEM, "Be kind."), USER)))
    assert [block["text"] for block in request["system"]] == ["Be brief.", "Be kind."]
    assert [(turn["role"], len(turn["content"])) for turn in request["messages"]] == [("user", 2)]


def test_a_picture_in_a_system_message_is_the_requests_fault() -> None:
    chat = Chat((Message(Role.SYSTEM, (ImagePart(url="https://example.com/a.png"),)), USER))
    assert refused(chat).field == "chat.messages[0].parts"


def test_a_schema_is_sent_as_the_sdk_converts_it() -> None:
    schema = '{"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"]}'
    request = body(Chat((USER,), response_format=ResponseFormat("json_schema", "answer", schema)))
    assert request["output_config"] == {
        "format": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"n": {"type": "integer", "description": "{minimum: 1}"}},
                "required": ["n"],
                "additionalProperties": False,
            },
        }
    }


@pytest.mark.parametrize(
    "schema", ['{"type": ["string", "null"]}', '{"properties": 5}', '{"type": "object", "$defs": 1}']
)
def test_a_schema_that_the_sdk_cannot_convert_is_the_vendors_to_judge(schema: str) -> None:
    request = body(Chat((USER,), response_format=ResponseFormat("json_schema", "", schema)))
    assert request["output_config"]["format"]["schema"] == json.loads(schema)


def test_any_json_is_asked_for_in_words_behind_the_system_text() -> None:
    request = body(Chat((text(Role.SYSTEM, "Be brief."), USER), response_format=ResponseFormat("json_object")))
    assert "JSON object" in request["system"][1]["text"]
    assert "output_config" not in request


@pytest.mark.parametrize("number", ["NaN", "1e999", '"\\ud800"'])
def test_what_json_cannot_hold_is_the_requests_fault(number: str) -> None:
    chat = Chat((USER,), (Tool("f", parameters_json_schema=f'{{"const": {number}}}'),))
    with pytest.raises(VendorError) as caught:
        encoded(Call(CURRENT, chat, Caller("acme"), False, 1.0))
    assert caught.value.reason is Reason.INVALID_INPUT


def test_breakpoints_stand_on_the_last_block_of_what_they_name() -> None:
    chat = Chat(
        (text(Role.SYSTEM, "Be brief."), Message(Role.USER, (TextPart("a"), TextPart("b"))), CALLED, RESULT, USER),
        (Tool("a"), Tool("b")),
    )
    request = body(chat, CURRENT, Breakpoint(None, 3600), Breakpoint(0, 3600), Breakpoint(1), Breakpoint(3))
    hour, minutes = {"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral", "ttl": "5m"}
    assert [tool.get("cache_control") for tool in request["tools"]] == [None, hour]
    assert [block.get("cache_control") for block in request["system"]] == [hour]
    marks = [[block.get("cache_control") for block in turn["content"]] for turn in request["messages"]]
    assert marks == [[None, minutes], [None], [minutes, None]]


def test_breakpoints_on_nothing_and_too_many_of_them_are_left_out() -> None:
    chat = Chat(tuple(text(role, "x") for role in (Role.USER, Role.ASSISTANT) * 4))
    request = body(chat, CURRENT, Breakpoint(None), *(Breakpoint(i) for i in range(7)))
    marked = [index for index, turn in enumerate(request["messages"]) if "cache_control" in turn["content"][0]]
    assert marked == [0, 1, 2]


def test_a_long_lifetime_never_stands_behind_a_short_one() -> None:
    chat = Chat((USER, text(Role.SYSTEM, "Be brief."), USER))
    request = body(chat, CURRENT, Breakpoint(0, 3600), Breakpoint(1))
    assert request["system"][0]["cache_control"]["ttl"] == "5m"
    assert request["messages"][0]["content"][0]["cache_control"]["ttl"] == "5m"


COUNTS: dict[str, object] = {"input_tokens": 9, "output_tokens": 2}
SPLIT = {"ephemeral_5m_input_tokens": 300, "ephemeral_1h_input_tokens": 200}


@pytest.mark.parametrize(
    ("reported", "normalised"),
    [
        (COUNTS, Usage(9, 2)),
        (COUNTS | {"cache_read_input_tokens": 1000}, Usage(1009, 2, 1000)),
        (COUNTS | {"cache_creation_input_tokens": None, "cache_read_input_tokens": None}, Usage(9, 2)),
        (
            COUNTS
            | {"cache_creation_input_tokens": 500, "cache_read_input_tokens": 1000, "cache_creation": SPLIT}
            | {"output_tokens_details": {"thinking_tokens": 1}},
            Usage(1509, 2, 1000, 500, ((300, 300), (3600, 200)), 1),
        ),
        # Without the lifetimes, or with ones that do not add up, the sum is what is believed.
        (COUNTS | {"cache_creation_input_tokens": 500}, Usage(509, 2, 0, 500)),
        (COUNTS | {"cache_creation_input_tokens": 501, "cache_creation": SPLIT}, Usage(510, 2, 0, 501)),
    ],
)
def test_usage_is_normalised(reported: dict[str, object], normalised: Usage) -> None:
    assert usage_of(Reported.model_validate(reported)) == normalised


@pytest.mark.parametrize(
    "reported",
    [
        {},
        {"input_tokens": 9},
        {"output_tokens": 2},
        {"input_tokens": None, "output_tokens": 2},
        {"input_tokens": "9", "output_tokens": 2},
        {"input_tokens": 9, "output_tokens": -1},
        {"input_tokens": 10**30, "output_tokens": 1},
        {"input_tokens": True, "output_tokens": 1},
        {"input_tokens": 9, "output_tokens": 2, "cache_read_input_tokens": "all"},
        {"input_tokens": 9, "output_tokens": 2, "cache_creation_input_tokens": -1},
    ],
)
def test_half_a_usage_is_none(reported: dict[str, object]) -> None:
    assert usage_of(Reported.construct(None, **reported)) is None


def test_a_streams_end_knows_better_than_its_begin() -> None:
    begin = Reported.model_validate(COUNTS | {"cache_creation_input_tokens": 500, "cache_creation": SPLIT})
    end = MessageDeltaUsage.model_validate({"output_tokens": 70, "input_tokens": 11})
    assert usage_of(begin, end) == Usage(511, 70, 0, 500, ((300, 300), (3600, 200)))


def test_the_begin_of_a_stream_does_not_know_the_output() -> None:
    assert usage_of(Reported.model_validate(COUNTS), MessageDeltaUsage.construct(None)) is None
    assert usage_of(None, None) is None


def test_the_vendor_like_server_knows_the_fields_of_the_sdk() -> None:
    assert set(MessageCreateParamsBase.__annotations__) | {"stream", "temperature", "top_p", "top_k"} == FIELDS


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


MINUTES, HOUR = {"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}


def block(tokens: int, mark: dict[str, str] | None = None, letter: str = "x") -> dict[str, Any]:
    return {"type": "text", "text": letter * 4 * tokens} | ({"cache_control": mark} if mark else {})


def asked(*content: dict[str, Any], system: tuple[dict[str, Any], ...] = (), **fields: Any) -> dict[str, Any]:
    return {"model": "m", "system": list(system), "messages": [{"role": "user", "content": list(content)}]} | fields


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(clock: Clock) -> PromptCache:
    return PromptCache(100, clock)


def test_a_prefix_is_written_once_and_read_until_it_expires(kept: PromptCache, clock: Clock) -> None:
    request = asked(block(7), system=(block(200, MINUTES),))
    assert kept.count(request) == Count(7, written_5m=200)
    clock.now = 299
    assert kept.count(request) == Count(7, read=200)
    clock.now = 598
    assert kept.count(request) == Count(7, read=200)
    clock.now = 898
    assert kept.count(request) == Count(7, written_5m=200)


def test_lifetimes_are_counted_apart(kept: PromptCache, clock: Clock) -> None:
    request = asked(block(50, MINUTES), block(7), system=(block(200, HOUR),))
    assert kept.count(request) == Count(7, written_5m=50, written_1h=200)
    clock.now = 3599
    assert kept.count(request) == Count(7, read=200, written_5m=50)
    assert kept.count(request) == Count(7, read=250)


def test_what_is_shorter_than_the_minimum_is_plain(kept: PromptCache) -> None:
    request = asked(block(1), system=(block(99, MINUTES),))
    assert [kept.count(request), kept.count(request)] == [Count(100), Count(100)]


def test_what_changes_before_a_breakpoint_is_written_anew(kept: PromptCache) -> None:
    system = (block(200, MINUTES), block(100, MINUTES))
    kept.count(asked(block(7), system=system))
    changed = (system[0], block(100, MINUTES, "y"))
    assert kept.count(asked(block(7), system=changed)) == Count(7, read=200, written_5m=100)
    assert kept.count(asked(block(7), system=system, model="n")) == Count(7, written_5m=300)


def test_another_tool_choice_keeps_the_system_and_loses_the_messages(kept: PromptCache) -> None:
    request = asked(block(50, MINUTES), system=(block(200, MINUTES),))
    kept.count(request)
    other = kept.count(request | {"tool_choice": {"type": "any"}})
    assert other == Count(0, read=200, written_5m=50)


@pytest.mark.parametrize(("added", "read"), [(19, 200), (20, 0)])
def test_a_breakpoint_looks_back_twenty_positions(kept: PromptCache, added: int, read: int) -> None:
    kept.count(asked(block(200, MINUTES)))
    more = [block(1) for _ in range(added - 1)]
    count = kept.count(asked(block(200), *more, block(1, MINUTES)))
    assert (count.read, count.total) == (read, 200 + added)


def test_automatic_caching_moves_with_the_conversation(kept: PromptCache) -> None:
    first = asked(block(200), cache_control=MINUTES)
    assert kept.count(first) == Count(0, written_5m=200)
    longer = asked(block(200), block(30), cache_control=HOUR)
    assert kept.count(longer) == Count(0, read=200, written_1h=30)


@pytest.mark.parametrize(
    "request_",
    [
        asked(*(block(200, MINUTES) for _ in range(5))),
        asked(*(block(200, MINUTES) for _ in range(4)), block(1), cache_control=MINUTES),
        asked(block(200, MINUTES), block(200, HOUR)),
        asked(block(200, MINUTES), cache_control=HOUR),
        asked(block(200, {"type": "ephemeral", "ttl": "2h"})),
        asked(block(200, {"type": "eternal"})),
    ],
    ids=["five", "four and automatic", "long behind short", "two lifetimes", "unknown lifetime", "unknown type"],
)
def test_breakpoints_against_the_rules_are_refused(kept: PromptCache, request_: dict[str, Any]) -> None:
    with pytest.raises(Refused):
        kept.count(request_)


def test_the_bill_is_rounded_half_up_once() -> None:
    rates = Rates(input=3_000_000_000, output=15_000_000_000, cache_read=300_000_000, cache_write=3_750_000_000)
    assert bill(rates, Count(10, 1000, 200, 0), 5) == 10 * 3000 + 1000 * 300 + 200 * 3750 + 5 * 15_000
    assert bill(Rates(input=500_000), Count(1), 0) == 1
    assert bill(Rates(input=499_999), Count(1), 0) == 0
