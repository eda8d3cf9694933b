"""The compressor behind a real channel."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from llmmesh.common.v1 import chat_pb2
from llmmesh.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from services.common.errors import InvalidInput, from_rpc_error
from services.common.testing import serve
from services.compressor.app import build
from services.compressor.settings import CompressorSettings

FACT = "The kudzu vine was introduced to the United States in 1876."
CONTEXT = "\n\n".join(
    [*(f"Region {n} has weather of its own. People there grow plants of kind {n}." for n in range(40)), FACT]
    + [f"City {n} has a port. Ships of size {n} come and go." for n in range(40)]
)
QUESTION = "When was kudzu introduced?"


@pytest.fixture
async def compressor():
    async with AsyncExitStack() as stack:
        channel = await stack.enter_async_context(serve(await build(CompressorSettings(max_characters=20_000), stack)))
        yield compressor_pb2_grpc.CompressorServiceStub(channel)


def order(*texts: str, **fields) -> compressor_pb2.CompressRequest:
    messages = [chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)]) for text in texts]
    return compressor_pb2.CompressRequest(chat=chat_pb2.Chat(messages=messages), **fields)


def text_of(response: compressor_pb2.CompressResponse, index: int = 0) -> str:
    return response.chat.messages[index].parts[0].text


async def test_a_long_context_comes_back_shorter_with_the_answer_in_it(compressor):
    response = await compressor.Compress(order(f"{CONTEXT}\n\n{QUESTION}"))
    assert response.applied
    assert FACT in text_of(response)
    assert text_of(response).endswith(QUESTION)
    assert response.kept_tokens < 0.6 * response.original_tokens
    assert [(block.message_index, block.method) for block in response.blocks] == [(0, "extractive")]
    assert response.cost_nanousd == 0


async def test_a_rate_below_the_floor_is_raised_to_it(compressor):
    lowest = await compressor.Compress(order(CONTEXT, QUESTION, rate=0.33))
    lower = await compressor.Compress(order(CONTEXT, QUESTION, rate=0.01))
    assert lower == lowest


async def test_protected_messages_and_short_blocks_stay(compressor):
    protected = await compressor.Compress(order(CONTEXT, QUESTION, protected_messages=1))
    short = await compressor.Compress(order(CONTEXT, QUESTION, min_block_tokens=100_000))
    assert not protected.applied
    assert not short.applied
    assert text_of(protected) == text_of(short) == CONTEXT


async def test_a_text_over_the_limit_comes_back_as_it_was(compressor):
    response = await compressor.Compress(order(CONTEXT * 10, QUESTION))
    assert not response.applied
    assert text_of(response) == CONTEXT * 10


async def test_many_at_once_are_all_answered(compressor):
    responses = await asyncio.gather(*(compressor.Compress(order(f"{CONTEXT}\n\n{QUESTION}")) for _ in range(8)))
    assert all(response == responses[0] for response in responses)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rate": 0.0}, "rate"),
        ({"rate": 1.5}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"protected_messages": -1}, "protected_messages"),
        ({"min_block_tokens": -1}, "min_block_tokens"),
    ],
)
async def test_bad_requests_name_the_field(compressor, fields, field):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await compressor.Compress(order(QUESTION, **fields))
    error = from_rpc_error(failure.value)
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == field


async def test_an_empty_chat_is_refused(compressor):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await compressor.Compress(compressor_pb2.CompressRequest())
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
