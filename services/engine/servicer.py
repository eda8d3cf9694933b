"""EngineService."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from llmmesh.engine.v1 import engine_pb2, engine_pb2_grpc
from services.common import telemetry
from services.common.chat import AnswerBuilder
from services.common.chat_pb import caller_from_pb, chat_from_pb
from services.engine import convert
from services.engine.domain.backend import Piece
from services.engine.domain.engine import Engine, Finished, Started

Context = grpc.aio.ServicerContext[Any, Any]


class EngineServicer(engine_pb2_grpc.EngineServiceServicer):
    """Answers out of one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Generate(self, request: engine_pb2.GenerateRequest, context: Context) -> engine_pb2.GenerateResponse:
        answer = AnswerBuilder()
        model = ""
        async with aclosing(self._events(request)) as events:
            async for event in events:
                match event:
                    case Started(model):
                        pass
                    case Piece(delta):
                        answer.add(delta)
                    case Finished(finish_reason):
                        return convert.answer_response(model, answer.build(finish_reason), event)
        raise AssertionError("an engine's stream ends with Finished or an error")

    async def StreamGenerate(
        self, request: engine_pb2.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[engine_pb2.StreamGenerateResponse]:
        async with aclosing(self._events(request)) as events:
            async for event in events:
                yield convert.event_to_pb(event)

    async def GetStatus(self, request: engine_pb2.GetStatusRequest, context: Context) -> engine_pb2.GetStatusResponse:
        return convert.status_response(self._engine.status())

    async def _events(
        self, request: engine_pb2.GenerateRequest | engine_pb2.StreamGenerateRequest
    ) -> AsyncGenerator[Started | Piece | Finished]:
        caller_from_pb(request.caller)
        chat = chat_from_pb(request.chat)
        try:
            async with aclosing(self._engine.stream(chat, request.model)) as events:
                async for event in events:
                    if isinstance(event, Finished):
                        _describe(event)
                    yield event
        except convert.DOMAIN_ERRORS as error:
            raise convert.error_of(error) from None


def _describe(finished: Finished) -> None:
    telemetry.span().set_attributes(
        {
            telemetry.GEN_AI_INPUT_TOKENS: finished.usage.input_tokens,
            telemetry.GEN_AI_OUTPUT_TOKENS: finished.usage.output_tokens,
            telemetry.GEN_AI_CACHE_READ_TOKENS: finished.usage.cache_read_input_tokens,
            telemetry.ENGINE_PREFILL_SECONDS: finished.compute.prefill_ns / 1e9,
            telemetry.ENGINE_DECODE_SECONDS: finished.compute.decode_ns / 1e9,
        }
    )
