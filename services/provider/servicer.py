"""ProviderService."""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.chat import AnswerBuilder, Delta
from services.common.deadline import remaining
from services.provider import convert
from services.provider.domain.dispatch import Dispatcher, Finished, Started

Context = grpc.aio.ServicerContext[Any, Any]


class ProviderServicer(provider_pb2_grpc.ProviderServiceServicer):
    """Answers by calling vendors."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def Generate(self, request: provider_pb2.GenerateRequest, context: Context) -> provider_pb2.GenerateResponse:
        started, answer = Started("", ""), AnswerBuilder()
        async with aclosing(self._events(request, streaming=False)) as events:
            async for event in events:
                match event:
                    case Started():
                        started = event
                    case Finished():
                        return convert.answer_response(started, answer.build(event.finish_reason), event)
                    case delta:
                        answer.add(delta)
        raise AssertionError("an answer ends with Finished or an error")

    async def StreamGenerate(
        self, request: provider_pb2.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[provider_pb2.StreamGenerateResponse]:
        async with aclosing(self._events(request, streaming=True)) as events:
            async for event in events:
                yield convert.event_to_pb(event)

    async def ListModels(
        self, request: provider_pb2.ListModelsRequest, context: Context
    ) -> provider_pb2.ListModelsResponse:
        return convert.models_response(self._dispatcher.models)

    async def PromptCacheStats(
        self, request: provider_pb2.PromptCacheStatsRequest, context: Context
    ) -> provider_pb2.PromptCacheStatsResponse:
        endpoint = request.endpoint if request.HasField("endpoint") else None
        return convert.stats_response(self._dispatcher.prompts.rows(request.tenant, endpoint))

    async def _events(self, request: convert.Request, *, streaming: bool) -> AsyncGenerator[Started | Delta | Finished]:
        left = remaining()
        deadline = None if left is None else time.monotonic() + left
        order = convert.order_from(request, streaming=streaming, deadline=deadline)
        try:
            async with aclosing(self._dispatcher.answer(order)) as events:
                async for event in events:
                    yield event
        except convert.DOMAIN_ERRORS as error:
            raise convert.error_of(error) from error
