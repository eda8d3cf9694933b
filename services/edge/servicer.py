"""RPC to walk. Who asks comes from the metadata, never from the message."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from llmmesh.edge.v1 import costs_pb2, costs_pb2_grpc, inference_pb2, inference_pb2_grpc
from services.common import telemetry
from services.common.clock import Clock
from services.common.deadline import remaining, set_remaining
from services.common.errors import DeadlineExceeded, InvalidInput, Unauthenticated, Violation
from services.common.money import NANO
from services.edge.adapters.keys import KeyFile
from services.edge.adapters.spool import FileSpool
from services.edge.convert import (
    REQUEST_ID,
    REQUEST_ID_FORM,
    completed_to_pb,
    costs_to_pb,
    event_to_pb,
    feedback_from_pb,
    query_from_pb,
    question_from_pb,
)
from services.edge.domain.ledger import Ledger, sum_rollups
from services.edge.domain.ports import Question
from services.edge.domain.trip import Ended, Receipt
from services.edge.domain.walk import Walk

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The public API."""

    def __init__(self, walk: Walk, keys: KeyFile, default_timeout: float) -> None:
        self._walk = walk
        self._keys = keys
        self._default_timeout = default_timeout

    async def Complete(
        self, request: inference_pb2.CompleteRequest, context: Context
    ) -> inference_pb2.CompleteResponse:
        question = self._question(request, context)
        try:
            async with asyncio.timeout(remaining(keep=0.02)):
                done = await self._walk.complete(question)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was complete") from None
        _describe(done.receipt)
        return completed_to_pb(done)

    async def StreamComplete(
        self, request: inference_pb2.StreamCompleteRequest, context: Context
    ) -> AsyncIterator[inference_pb2.StreamCompleteResponse]:
        question = self._question(request, context)
        async with aclosing(self._walk.stream(question)) as events:
            async for event in events:
                if isinstance(event, Ended):
                    _describe(event.receipt)
                yield event_to_pb(event)

    async def GiveFeedback(
        self, request: inference_pb2.GiveFeedbackRequest, context: Context
    ) -> inference_pb2.GiveFeedbackResponse:
        authorization, _ = headers_of(context)
        tenant = self._keys.tenant(authorization)
        namespace, request_id, right = feedback_from_pb(request)
        if context.time_remaining() is None:
            set_remaining(self._default_timeout)
        counted = await self._walk.feedback(tenant, namespace, request_id, right)
        return inference_pb2.GiveFeedbackResponse(counted=counted)

    def _question(
        self, request: inference_pb2.CompleteRequest | inference_pb2.StreamCompleteRequest, context: Context
    ) -> Question:
        authorization, request_id = headers_of(context)
        tenant = self._keys.tenant(authorization)
        if request_id is not None and not REQUEST_ID.fullmatch(request_id):
            raise InvalidInput(violations=(Violation("metadata.x-request-id", REQUEST_ID_FORM),))
        question = question_from_pb(request, tenant, request_id or uuid.uuid4().hex)
        if context.time_remaining() is None:
            set_remaining(self._default_timeout)
        span = telemetry.span()
        if span.is_recording():
            attributes = {
                telemetry.TENANT: tenant,
                telemetry.NAMESPACE: question.namespace,
                telemetry.REQUEST_ID: question.request_id,
                telemetry.GEN_AI_OPERATION: "chat",
                telemetry.GEN_AI_REQUEST_MODEL: question.model,
            }
            if question.endpoint:
                attributes[telemetry.ENDPOINT] = question.endpoint
            span.set_attributes(attributes)
        return question


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


def _describe(receipt: Receipt) -> None:
    """The totals, on the root span."""
    span = telemetry.span()
    if not span.is_recording():
        return
    attributes: dict[str, str | int | float | bool | list[str]] = {
        telemetry.OUTCOME: receipt.outcome,
        telemetry.GEN_AI_RESPONSE_MODEL: receipt.model,
        telemetry.ROUTE_TIER: receipt.tier,
    }
    if receipt.degraded:
        attributes[telemetry.DEGRADED] = list(receipt.degraded)
    if receipt.similarity is not None:
        attributes[telemetry.CACHE_SIMILARITY] = receipt.similarity
    told = (
        (telemetry.COALESCED, receipt.outcome == "coalesced"),
        (telemetry.CACHE_ALIAS, receipt.alias),
        (telemetry.SHADOW, receipt.checked),
    )
    attributes |= {name: True for name, holds in told if holds}
    bill = receipt.bill
    if bill is not None:
        saved = bill.savings
        attributes |= {
            telemetry.COST_ACTUAL: bill.actual,
            telemetry.COST_BASELINE: bill.baseline,
            telemetry.COST_OVERHEAD: bill.overhead,
            telemetry.GEN_AI_COST: bill.actual / NANO,
        }
        layers = (
            ("cache", saved.cache),
            ("routing", saved.routing),
            ("compression", saved.compression),
            ("prompt_cache", saved.prompt_cache),
            ("batch", saved.batch),
        )
        # Every attribute costs time on the way to the collector: a layer that saved nothing is left out.
        attributes |= {telemetry.COST_SAVED[layer]: amount for layer, amount in layers if amount}
    span.set_attributes(attributes)


class CostServicer(costs_pb2_grpc.CostServiceServicer):
    """What was spent and saved."""

    def __init__(self, ledger: Ledger, spool: FileSpool, keys: KeyFile, clock: Clock) -> None:
        self._ledger = ledger
        self._spool = spool
        self._keys = keys
        self._clock = clock

    async def QueryCosts(self, request: costs_pb2.QueryCostsRequest, context: Context) -> costs_pb2.QueryCostsResponse:
        authorization, _ = headers_of(context)
        tenant = self._keys.tenant(authorization)
        first, end, group_by = query_from_pb(request, self._clock.now())
        # What this replica still holds belongs into the sums; without Redis the query fails just below.
        await self._spool.flush()
        rows, total = sum_rollups(tenant, await self._ledger.rollups(tenant, first, end), group_by)
        return costs_to_pb(rows, total, self._spool.pending)
