"""What every door of the edge does with a request: who asks, what, until when; and what the span tells of it."""

import asyncio
import uuid

from llmmesh.edge.v1 import inference_pb2
from services.common import telemetry
from services.common.deadline import remaining, set_remaining
from services.common.errors import DeadlineExceeded, InvalidInput, Violation
from services.common.money import NANO
from services.edge.convert import REQUEST_ID, REQUEST_ID_FORM, question_from_pb
from services.edge.domain.keys import Key, Keys, Limits, Scope
from services.edge.domain.ports import Question
from services.edge.domain.trip import Completed, Receipt
from services.edge.domain.walk import Walk

InferenceRequest = inference_pb2.CompleteRequest | inference_pb2.StreamCompleteRequest


class Door:
    """Lets requests in. One instance per process, shared by gRPC and HTTP."""

    def __init__(self, walk: Walk, keys: Keys, limits: Limits, default_timeout: float) -> None:
        """`default_timeout` is the deadline, in seconds, of a call that brings none."""
        self.walk = walk
        self._keys = keys
        self._limits = limits
        self._default_timeout = default_timeout

    def identify(self, authorization: str | None, scope: Scope = Scope.INFERENCE) -> Key:
        """The key that asks. Raises Unauthenticated or PermissionDenied."""
        return self._keys.identify(authorization, scope)

    async def admit(self, authorization: str | None) -> Key:
        """The key that asks a model, counted against its limit. Raises also RateLimited."""
        key = self.identify(authorization)
        await self._limits.admit(key)
        return key

    def question(
        self, request: InferenceRequest, tenant: str, request_id: str | None, seconds_left: float | None
    ) -> Question:
        """The question, with its deadline set and its span described. Raises InvalidInput."""
        if request_id is not None and not REQUEST_ID.fullmatch(request_id):
            raise InvalidInput(violations=(Violation("metadata.x-request-id", REQUEST_ID_FORM),))
        question = question_from_pb(request, tenant, request_id or uuid.uuid4().hex)
        self.keep_time(seconds_left)
        span = telemetry.span()
        if span.is_recording():
            attributes = {
                telemetry.TENANT: tenant,
                telemetry.NAMESPACE: question.namespace,
                telemetry.REQUEST_ID: question.request_id,
                telemetry.GEN_AI_OPERATION: "chat",
                telemetry.OPENINFERENCE_KIND: "CHAIN",
                telemetry.GEN_AI_REQUEST_MODEL: question.model,
            }
            if question.endpoint:
                attributes[telemetry.ENDPOINT] = question.endpoint
            span.set_attributes(attributes)
        return question

    def keep_time(self, seconds_left: float | None) -> None:
        """Gives a call without a deadline the default one."""
        if seconds_left is None:
            set_remaining(self._default_timeout)

    async def complete(self, question: Question) -> Completed:
        """The whole answer. Raises DeadlineExceeded a little before the caller gives up."""
        try:
            async with asyncio.timeout(remaining(keep=0.02)):
                done = await self.walk.complete(question)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the answer was complete") from None
        describe(done.receipt)
        return done


def describe(receipt: Receipt) -> None:
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
    if receipt.budget_notice:
        attributes[telemetry.BUDGET_NOTICE] = receipt.budget_notice
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
