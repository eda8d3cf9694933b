from datetime import UTC, datetime

import pytest
from openai.types import CompletionUsage

from services.common.chat import Chat, Message, Role, Sampling, TextPart, ToolChoice
from services.common.money import Usage
from services.provider.adapters.openai import request_of, retry_after, usage_of

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
