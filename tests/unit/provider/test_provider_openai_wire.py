from datetime import UTC, datetime

import httpx2
import openai
import pytest
from openai.types import CompletionUsage

from services.common.chat import Chat, Message, Role, Sampling, TextPart, Tool, ToolChoice
from services.common.chat_pb import Caller
from services.common.money import Usage
from services.provider.adapters.openai import OpenAI, encoded, request_of, usage_of
from services.provider.adapters.wire import retry_after
from services.provider.domain.vendor import Call, Reason, VendorError

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Mon, 23 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after-ms": "inf"}, None),
        ({"retry-after": "9" * 300}, 604_800.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("reported", "normalised"),
    [
        ({"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}, Usage(9, 2)),
        (
            {
                "prompt_tokens": 2000,
                "completion_tokens": 50,
                "total_tokens": 2050,
                "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 512},
                "completion_tokens_details": {"reasoning_tokens": 40},
            },
            Usage(2000, 50, 1024, 512, (), 40),
        ),
        # Parts that exceed their whole would make plain input negative: the whole is what is believed.
        (
            {
                "prompt_tokens": 10,
                "completion_tokens": 0,
                "total_tokens": 10,
                "prompt_tokens_details": {"cached_tokens": 99},
            },
            Usage(10, 0, 10),
        ),
    ],
)
def test_usage_is_normalised(reported: dict[str, object], normalised: Usage) -> None:
    assert usage_of(CompletionUsage.model_validate(reported)) == normalised


def test_missing_usage_stays_missing() -> None:
    assert usage_of(None) is None


@pytest.mark.parametrize(
    "reported",
    [
        {},
        {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
        {"total_tokens": 11},
        {"prompt_tokens": 9, "total_tokens": 11},
        {"completion_tokens": 2},
        {"prompt_tokens": "9", "completion_tokens": 2},
        {"prompt_tokens": 9, "completion_tokens": -1},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
    ],
)
def test_half_a_usage_is_none(reported: dict[str, object]) -> None:
    assert usage_of(CompletionUsage.construct(None, **reported)) is None


def test_details_that_are_nonsense_are_left_out() -> None:
    reported: dict[str, object] = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": "all"},
        "completion_tokens_details": "none",
    }
    assert usage_of(CompletionUsage.construct(None, **reported)) == Usage(9, 2)


@pytest.mark.parametrize("number", ["NaN", "1e999", '"\\ud800"'])
def test_what_json_cannot_hold_is_the_requests_fault(number: str) -> None:
    tool = Tool("f", parameters_json_schema=f'{{"const": {number}}}')
    chat = Chat((Message(Role.USER, (TextPart("Hi"),)),), (tool,))
    with pytest.raises(VendorError) as caught:
        encoded(Call("m", chat, Caller("acme"), False, 1.0), "max_tokens")
    assert caught.value.reason is Reason.INVALID_INPUT


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
async def test_only_what_the_vendor_got_is_billed(cause: Exception, billed: bool) -> None:
    timed_out = isinstance(cause, httpx2.TimeoutException)
    kind = openai.APITimeoutError if timed_out else openai.APIConnectionError
    error = kind(request=httpx2.Request("POST", "http://vendor"))
    error.__cause__ = cause
    vendor = OpenAI("acme", base_url="http://vendor", api_key="none", output_limit_field="max_tokens")
    told = vendor._vendor_error(error)
    await vendor.close()
    assert (told.reason, told.billed) == (Reason.UNAVAILABLE, billed)


def test_what_is_unset_is_not_sent() -> None:
    chat = Chat((Message(Role.USER, (TextPart("Hi"),)),))
    assert request_of(chat, "max_tokens") == {"messages": [{"role": "user", "content": "Hi"}]}


def test_an_older_api_gets_the_limit_in_its_own_field() -> None:
    chat = Chat(
        (Message(Role.USER, (TextPart("Hi"),)),),
        tool_choice=ToolChoice("none"),
        sampling=Sampling(max_output_tokens=5, temperature=0),
    )
    body = request_of(chat, "max_tokens")
    assert (body["max_tokens"], body["temperature"], body["tool_choice"]) == (5, 0, "none")
