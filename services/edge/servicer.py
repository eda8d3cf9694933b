"""RPC to walk. Who asks comes from the metadata, never from the message."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from llmmesh.edge.v1 import inference_pb2, inference_pb2_grpc
from services.common.errors import Unauthenticated
from services.edge.convert import completed_to_pb, event_to_pb, feedback_from_pb
from services.edge.domain.ports import Question
from services.edge.domain.trip import Ended
from services.edge.door import Door, InferenceRequest, describe

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The public API."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def Complete(
        self, request: inference_pb2.CompleteRequest, context: Context
    ) -> inference_pb2.CompleteResponse:
        return completed_to_pb(await self._door.complete(await self._question(request, context)))

    async def StreamComplete(
        self, request: inference_pb2.StreamCompleteRequest, context: Context
    ) -> AsyncIterator[inference_pb2.StreamCompleteResponse]:
        question = await self._question(request, context)
        async with aclosing(self._door.walk.stream(question)) as events:
            async for event in events:
                if isinstance(event, Ended):
                    describe(event.receipt)
                yield event_to_pb(event)

    async def GiveFeedback(
        self, request: inference_pb2.GiveFeedbackRequest, context: Context
    ) -> inference_pb2.GiveFeedbackResponse:
        authorization, _ = headers_of(context)
        tenant = self._door.identify(authorization).tenant
        namespace, request_id, right = feedback_from_pb(request)
        self._door.keep_time(context.time_remaining())
        counted = await self._door.walk.feedback(tenant, namespace, request_id, right)
        return inference_pb2.GiveFeedbackResponse(counted=counted)

    async def _question(self, request: InferenceRequest, context: Context) -> Question:
        authorization, request_id = headers_of(context)
        key = await self._door.admit(authorization)
        return self._door.question(request, key.tenant, request_id, context.time_remaining())


def headers_of(context: Context) -> tuple[str | None, str | None]:
    """`authorization` and `x-request-id`. Raises Unauthenticated for two keys: which of them counts is not for us to guess."""
    authorization, request_id = None, None
    for key, value in context.invocation_metadata() or ():
        if key == "authorization":
            if authorization not in (None, str(value)):
                raise Unauthenticated("two different keys: send one")
            authorization = str(value)
        elif key == "x-request-id":
            request_id = str(value)
    return authorization, request_id
