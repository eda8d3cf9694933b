"""The stand-in vendor, called through the official SDK."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator

import openai
import pytest

from services.cli.standin.http import serve
from services.cli.standin.vendor import StandIn
from services.common.chat import Chat, FinishReason, TextDelta
from services.common.errors import InvalidInput, Violation
from services.engine.domain.backend import Completed, Piece
from services.engine.domain.engine import Engine
from services.engine.domain.meter import DeviceMeter
from services.engine.domain.tally import Tally

KEY = "sk-standin"


class FakeBackend:
    """Answers three words; `go` holds it back after the first."""

    name = "fake"
    adapters: tuple[str, ...] = ()
    max_context_tokens = 128
    fault: str | None = None
    kv_cache_use: float | None = None

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.chats: list[Chat] = []
        self.left = asyncio.Event()
        self.prompt_tokens = 1500

    def metrics(self) -> dict[str, float]:
        return {}

    async def start(self) -> None:
        pass

    async def generate(self, chat: Chat, adapter: str | None) -> AsyncGenerator[Piece | Completed]:
        self.chats.append(chat)
        self.left.clear()
        if chat.last_user_text == "too long":
            raise InvalidInput(violations=[Violation("chat.messages", "too long")])
        try:
            yield Piece(TextDelta("On"))
            await self.go.wait()
            for word in (" its", " way"):
                yield Piece(TextDelta(word))
            yield Completed(FinishReason.STOP, self.prompt_tokens, 1400, 3)
        finally:
            self.left.set()


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def client(backend: FakeBackend) -> AsyncIterator[openai.AsyncOpenAI]:
    ticks = itertools.count()
    engine = Engine(
        backend,
        DeviceMeter(lambda: next(ticks)),
        Tally(lambda: next(ticks)),
        model="small",
        max_running=1,
        max_waiting=0,
        nanousd_per_device_hour=1,
    )
    await engine.start()
    standin = StandIn(engine, api_key=KEY, max_output_tokens=50)
    async with (
        serve(standin.handle, "127.0.0.1", 0) as port,
        openai.AsyncOpenAI(api_key=KEY, base_url=f"http://127.0.0.1:{port}/v1", max_retries=0) as opened,
    ):
        yield opened


def hello(text: str = "Where is my order?") -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


async def test_any_model_answers_under_the_name_it_was_asked_by(client: openai.AsyncOpenAI) -> None:
    for model in ("gpt-4o", "claude-sonnet"):
        answer = await client.chat.completions.create(model=model, messages=hello())
        assert answer.model == model
        assert answer.choices[0].message.content == "On its way"
        assert answer.choices[0].finish_reason == "stop"


async def test_cached_tokens_are_reported_as_openai_does(client: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    usages = []
    for backend.prompt_tokens in (1500, 1023):
        usages.append((await client.chat.completions.create(model="m", messages=hello())).usage)
    cached = [u.prompt_tokens_details.cached_tokens for u in usages if u and u.prompt_tokens_details]
    assert cached == [1280, 0]


async def test_streams_with_usage_at_the_end(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=hello(), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "On its way"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_the_output_limit_is_capped(client: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    await client.chat.completions.create(model="m", messages=hello(), max_completion_tokens=9)
    await client.chat.completions.create(model="m", messages=hello(), max_completion_tokens=9000)
    await client.chat.completions.create(model="m", messages=hello())
    assert [chat.sampling.max_output_tokens for chat in backend.chats[1:]] == [9, 50, 50]


async def test_errors_have_openais_shape(client: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    with pytest.raises(openai.AuthenticationError) as wrong_key:
        await client.with_options(api_key="sk-other").chat.completions.create(model="m", messages=hello())
    assert wrong_key.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as no_messages:
        await client.chat.completions.create(model="m", messages=[])
    assert no_messages.value.param == "messages"
    with pytest.raises(openai.BadRequestError) as too_long:
        await client.chat.completions.create(model="m", messages=hello("too long"))
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="m", input="x")


async def test_a_busy_model_is_a_rate_limit(client: openai.AsyncOpenAI, backend: FakeBackend) -> None:
    backend.go.clear()
    stream = await client.chat.completions.create(model="m", messages=hello(), stream=True)
    with pytest.raises(openai.RateLimitError) as busy:
        await client.chat.completions.create(model="m", messages=hello())
    assert busy.value.response.headers["retry-after"] == "1"
    backend.go.set()
    assert [chunk async for chunk in stream]


@pytest.mark.parametrize("as_stream", [True, False])
async def test_hanging_up_frees_the_slot(client: openai.AsyncOpenAI, backend: FakeBackend, as_stream: bool) -> None:
    backend.go.clear()
    if as_stream:
        stream = await client.chat.completions.create(model="m", messages=hello(), stream=True)
        await stream.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            await client.chat.completions.create(model="m", messages=hello(), timeout=0.2)
    await backend.left.wait()
    backend.go.set()
    assert (await client.chat.completions.create(model="m", messages=hello())).choices


async def test_lists_its_model(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["small"]
