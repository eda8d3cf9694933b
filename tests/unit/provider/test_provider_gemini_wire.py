from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import httpx2
import pytest
from google.genai import types

from services.common.chat import Chat, ImagePart, Message, ResponseFormat, Role, Sampling, TextPart, Tool, ToolCall
from services.common.chat_pb import Caller
from services.common.money import Rates, Usage
from services.provider.adapters.gemini import Gemini, request_of, thinking_of, usage_of
from services.provider.domain.vendor import Call, Reason, VendorError
from tests.vendors.gemini_like import GeminiLike, Script

HI = Chat((Message(Role.USER, (TextPart("Hi"),)),))
Reported = types.GenerateContentResponseUsageMetadata


@pytest.mark.parametrize(
    ("reported", "normalised"),
    [
        ({"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 11}, Usage(9, 2)),
        (
            {
                "promptTokenCount": 2000,
                "cachedContentTokenCount": 1024,
                "candidatesTokenCount": 50,
                "thoughtsTokenCount": 40,
                "toolUsePromptTokenCount": 5,
                "totalTokenCount": 2095,
            },
            Usage(2005, 90, 1024, reasoning_output_tokens=40),
        ),
        # Thoughts took all of the output limit.
        (
            {"promptTokenCount": 9, "thoughtsTokenCount": 40, "totalTokenCount": 49},
            Usage(9, 40, reasoning_output_tokens=40),
        ),
        # A refused prompt.
        ({"promptTokenCount": 9, "totalTokenCount": 9}, Usage(9, 0)),
        ({"promptTokenCount": 9, "totalTokenCount": 11}, Usage(9, 2)),
        # A part that exceeds its whole would make plain input negative: the whole is what is believed.
        ({"promptTokenCount": 10, "candidatesTokenCount": 0, "cachedContentTokenCount": 99}, Usage(10, 0, 10)),
    ],
)
def test_usage_is_normalised(reported: dict[str, int], normalised: Usage) -> None:
    assert usage_of(Reported.model_validate(reported)) == normalised


@pytest.mark.parametrize(
    "reported",
    [
        None,
        {},
        {"totalTokenCount": 11},
        {"promptTokenCount": 9},
        {"candidatesTokenCount": 2, "totalTokenCount": 11},
        {"promptTokenCount": 9, "totalTokenCount": 8},
        {"promptTokenCount": 9, "candidatesTokenCount": -1},
        {"promptTokenCount": 10**30, "candidatesTokenCount": 1},
    ],
)
def test_half_a_usage_is_none(reported: dict[str, int] | None) -> None:
    assert usage_of(None if reported is None else Reported.model_validate(reported)) is None


@pytest.mark.parametrize(
    ("model", "effort", "budget", "level"),
    [
        ("gemini-2.5-flash", "low", 1024, None),
        ("models/gemini-2.5-pro", "medium", 8192, None),
        ("gemini-2.5-flash-lite", "high", 24_576, None),
        ("gemini-3-pro", "low", None, types.ThinkingLevel.LOW),
        ("gemini-3.8-flash", "medium", None, types.ThinkingLevel.MEDIUM),
        ("gemini-flash-latest", "high", None, types.ThinkingLevel.HIGH),
    ],
)
def test_an_effort_is_a_budget_or_a_level(
    model: str, effort: str, budget: int | None, level: types.ThinkingLevel | None
) -> None:
    thinking = thinking_of(model, effort)
    assert thinking == types.ThinkingConfig(include_thoughts=True, thinking_budget=budget, thinking_level=level)


@pytest.mark.parametrize(
    ("model", "effort"), [("gemini-3-pro", ""), ("gemini-1.5-pro", "low"), ("gemini-2.0-flash", "high")]
)
def test_models_that_do_not_think_are_not_asked_to(model: str, effort: str) -> None:
    assert thinking_of(model, effort) is None


def test_what_is_unset_is_not_sent() -> None:
    contents, config = request_of("gemini-2.5-flash", HI)
    assert [content.model_dump(exclude_none=True) for content in contents] == [
        {"role": "user", "parts": [{"text": "Hi"}]}
    ]
    # What remains speaks to the SDK alone: it runs no tools and sends no further requests.
    assert set(config.model_dump(exclude_none=True)) == {"automatic_function_calling", "automatic_continuation"}


def test_all_system_messages_are_the_instruction_and_empty_messages_are_left_out() -> None:
    messages = (
        Message(Role.SYSTEM, (TextPart("Be brief."),)),
        Message(Role.USER, (TextPart("Hi"),)),
        Message(Role.ASSISTANT, (TextPart(""),)),
        Message(Role.SYSTEM, (TextPart("Be kind."),)),
        Message(Role.USER, (TextPart("Well?"),)),
    )
    contents, config = request_of("gemini-2.5-flash", Chat(messages))
    assert isinstance(config.system_instruction, types.Content)
    assert [part.text for part in config.system_instruction.parts or ()] == ["Be brief.", "Be kind."]
    assert [[part.text for part in content.parts or ()] for content in contents] == [["Hi"], ["Well?"]]


@pytest.mark.parametrize(("model", "signed"), [("gemini-2.5-pro", False), ("gemini-3-pro", True)])
def test_earlier_tool_calls_bear_the_signature_that_the_model_demands(model: str, signed: bool) -> None:
    call = Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "f", ""),))
    contents, _ = request_of(model, Chat((*HI.messages, call)))
    parts = contents[1].parts
    assert parts
    assert (parts[0].thought_signature is not None) is signed


LONE = Message(Role.TOOL, (TextPart("4"),), tool_call_id="c9")
CALLED = Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "f", "{}"),))
PICTURED = Message(Role.TOOL, (ImagePart(url="https://example.com/a.png"),), tool_call_id="c1")


@pytest.mark.parametrize(
    ("chat", "field"),
    [
        (Chat((Message(Role.SYSTEM, (TextPart("Be brief."),)),)), "chat.messages"),
        (Chat((Message(Role.USER, (ImagePart(url="http://example.com/a.png"),)),)), "chat.messages"),
        (Chat((*HI.messages, LONE)), "chat.messages[1]"),
        (Chat((*HI.messages, CALLED, PICTURED)), "chat.messages[2]"),
        (Chat((*HI.messages, Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "f", "[]"),)))), "chat"),
        (Chat(HI.messages, (Tool("f", parameters_json_schema='{"const": NaN}'),)), "chat"),
        (Chat(HI.messages, (Tool("f", parameters_json_schema='{"const": 1e999}'),)), "chat"),
        (Chat(HI.messages, response_format=ResponseFormat("json_schema", "a", '{"const": "\\ud800"}')), "chat"),
    ],
)
def test_what_the_api_cannot_hold_is_the_requests_fault(chat: Chat, field: str) -> None:
    with pytest.raises(VendorError) as caught:
        request_of("gemini-2.5-flash", chat)
    assert (caught.value.reason, caught.value.field) == (Reason.INVALID_INPUT, field)


def test_a_tools_name_may_stand_in_its_own_message() -> None:
    result = Message(Role.TOOL, (TextPart("4"),), name="sum", tool_call_id="c9")
    contents, _ = request_of("gemini-2.5-flash", Chat((*HI.messages, result)))
    parts = contents[1].parts
    assert parts
    assert parts[0].function_response == types.FunctionResponse(id="c9", name="sum", response={"output": "4"})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("cause", "billed"),
    [
        (httpx2.ConnectTimeout("x"), False),
        (httpx2.PoolTimeout("x"), False),
        (httpx2.WriteTimeout("x"), False),
        (httpx2.ConnectError("x"), False),
        (httpx2.ReadTimeout("x"), True),
        (httpx2.ReadError("x"), True),
        (httpx2.RemoteProtocolError("x"), True),
    ],
)
async def test_only_what_the_vendor_got_is_billed_and_nothing_is_tried_twice(
    monkeypatch: pytest.MonkeyPatch, cause: Exception, billed: bool, streaming: bool
) -> None:
    limits: list[dict[str, float]] = []

    async def fail(_: httpx2.AsyncHTTPTransport, request: httpx2.Request) -> httpx2.Response:
        limits.append(request.extensions["timeout"])
        raise cause

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", fail)
    vendor = Gemini("google", base_url="http://vendor", api_key="none")
    with pytest.raises(VendorError) as caught:
        await anext(vendor.call(Call("gemini-2.5-flash", HI, Caller("acme"), streaming, 60.0)))
    await vendor.close()
    assert (caught.value.reason, caught.value.billed) == (Reason.UNAVAILABLE, billed)
    assert limits == [{"connect": 5.0, "pool": 5.0, "read": 60.0, "write": 60.0}]


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
async def vendor() -> AsyncIterator[tuple[GeminiLike, Gemini, Clock]]:
    clock = Clock()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(GeminiLike(clock=clock))
        adapter = Gemini("google", base_url=server.url, api_key="none")
        stack.push_async_callback(adapter.close)
        yield server, adapter, clock


async def ask(vendor: Gemini, model: str, *texts: str) -> None:
    parts = tuple(TextPart(text) for text in texts)
    call = Call(model, Chat((Message(Role.USER, parts),), sampling=Sampling()), Caller("acme"), False, 5.0)
    async for _ in vendor.call(call):
        pass


async def test_the_vendor_like_server_keeps_prefixes_for_an_hour_by_model(
    vendor: tuple[GeminiLike, Gemini, Clock],
) -> None:
    server, adapter, clock = vendor
    long, short = "a" * 4 * 1300, "b" * 4 * 1000
    for at, model, text in [
        (0.0, "m", long),
        (1.0, "m", long),
        (2.0, "other", long),
        (3.0, "m", short),
        (4.0, "m", short),
        (3600.0, "m", long),
        (7200.0, "m", long),
    ]:
        clock.seconds = at
        await ask(adapter, model, text, f"asked at {at}")
    cached = [usage.get("cachedContentTokenCount", 0) for _, usage in server.charged]
    # 1,300 tokens hold ten blocks of 128; a thousand are fewer than the vendor keeps.
    assert cached == [0, 1280, 0, 0, 0, 1280, 0]


async def test_the_vendor_like_server_writes_an_invoice(vendor: tuple[GeminiLike, Gemini, Clock]) -> None:
    server, adapter, _ = vendor
    counts = {"promptTokenCount": 2001, "candidatesTokenCount": 3, "totalTokenCount": 2011}
    more = {"cachedContentTokenCount": 1024, "thoughtsTokenCount": 5, "toolUsePromptTokenCount": 2}
    server.next(Script(usage=counts | more), Script(usage=counts), Script(status=500))
    await ask(adapter, "gemini-2.5-flash", "Hi")
    await ask(adapter, "gemini-3-pro", "Hi")
    with pytest.raises(VendorError):
        await ask(adapter, "gemini-3-pro", "Hi")
    flash, pro = Rates(300_000_000, 2_500_000_000, 30_000_000), Rates(2_000_000_500, 12_000_000_000)
    # 979 fresh, 1,024 cached, 8 written; then 2,001 fresh at 2,000.0005 each, half up, and 3 written.
    expected = 979 * 300 + 1024 * 30 + 8 * 2500 + (4_002_001 + 3 * 12_000)
    assert server.invoice({"gemini-2.5-flash": flash, "gemini-3-pro": pro}) == expected
