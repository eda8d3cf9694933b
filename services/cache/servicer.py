"""gRPC door of the cache."""

import grpc.aio

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from services.cache import convert
from services.cache.domain.learning import Learning
from services.cache.domain.lookup import SemanticCache
from services.cache.domain.ports import CacheRules, Found
from services.cache.domain.reviews import Reviews
from services.cache.lease_servicer import LeaseServicer
from services.cache.unreachable import store_errors
from services.common import telemetry

_OUTCOMES = {
    cache_pb2.OUTCOME_MISS: "miss",
    cache_pb2.OUTCOME_EXACT_HIT: "exact_hit",
    cache_pb2.OUTCOME_SEMANTIC_HIT: "semantic_hit",
}


class CacheServicer(LeaseServicer, cache_pb2_grpc.CacheServiceServicer):
    """Turns calls into the domain's."""

    def __init__(
        self,
        cache: SemanticCache,
        learning: Learning,
        reviews: Reviews,
        rules: dict[str, CacheRules],
        dimensions: dict[str, int],
    ) -> None:
        """`rules` by namespace; `dimensions` by embedding model."""
        self._cache = cache
        self._learning = learning
        self._reviews = reviews
        self._rules = rules
        self._dimensions = dimensions

    async def Lookup(
        self,
        request: cache_pb2.LookupRequest,
        context: grpc.aio.ServicerContext[cache_pb2.LookupRequest, cache_pb2.LookupResponse],
    ) -> cache_pb2.LookupResponse:
        """Looks up an answer."""
        caller = convert.caller(request.caller)
        rules = convert.rules_for(caller, self._rules)
        question = convert.question_from(request, caller, self._dimensions)
        with store_errors():
            found = await self._cache.lookup(question, rules, convert.controls_from(request))
        response = convert.lookup_response(found)
        _describe(found, _OUTCOMES[response.outcome])
        return response

    async def Store(
        self,
        request: cache_pb2.StoreRequest,
        context: grpc.aio.ServicerContext[cache_pb2.StoreRequest, cache_pb2.StoreResponse],
    ) -> cache_pb2.StoreResponse:
        """Stores an answer."""
        caller = convert.caller(request.caller)
        rules = convert.rules_for(caller, self._rules)
        question = convert.question_from(request, caller, self._dimensions)
        with store_errors():
            stored = await self._cache.store(question, convert.fresh_from(request), rules)
        span = telemetry.span()
        span.set_attribute(telemetry.CACHE_STORED, not stored.reason)
        if stored.reason:
            span.set_attribute(telemetry.CACHE_REASON, stored.reason)
        return convert.store_response(stored)

    async def Invalidate(
        self,
        request: cache_pb2.InvalidateRequest,
        context: grpc.aio.ServicerContext[cache_pb2.InvalidateRequest, cache_pb2.InvalidateResponse],
    ) -> cache_pb2.InvalidateResponse:
        """Removes answers."""
        caller = convert.caller(request.caller)
        convert.rules_for(caller, self._rules)
        kind, value = convert.selector_from(request)
        tenant, namespace = caller.tenant, caller.namespace
        with store_errors():
            match kind:
                case "whole_namespace":
                    removed = await self._cache.invalidate_namespace(tenant, namespace)
                case "tag":
                    removed = await self._cache.invalidate_tag(tenant, namespace, value)
                case "entry_id":
                    removed = await self._cache.invalidate_entry(tenant, namespace, value)
                case _:
                    removed = await self._cache.invalidate_request(tenant, namespace, value)
        return convert.invalidate_response(removed)

    async def Explain(
        self,
        request: cache_pb2.ExplainRequest,
        context: grpc.aio.ServicerContext[cache_pb2.ExplainRequest, cache_pb2.ExplainResponse],
    ) -> cache_pb2.ExplainResponse:
        """Tells how a lookup would end."""
        caller = convert.caller(request.caller)
        rules = convert.rules_for(caller, self._rules)
        question = convert.question_from(request, caller, self._dimensions)
        with store_errors():
            found = await self._cache.explain(question, rules)
        return convert.explain_response(found)

    async def Learn(
        self,
        request: cache_pb2.LearnRequest,
        context: grpc.aio.ServicerContext[cache_pb2.LearnRequest, cache_pb2.LearnResponse],
    ) -> cache_pb2.LearnResponse:
        """Compares a fresh answer with a stored one."""
        caller = convert.caller(request.caller)
        rules = convert.rules_for(caller, self._rules)
        fresh, kind = convert.lesson_from(request)
        with store_errors():
            found = await self._learning.learn(caller.tenant, caller.namespace, rules, request.lesson, fresh, kind)
        return convert.learn_response(found)

    async def Feedback(
        self,
        request: cache_pb2.FeedbackRequest,
        context: grpc.aio.ServicerContext[cache_pb2.FeedbackRequest, cache_pb2.FeedbackResponse],
    ) -> cache_pb2.FeedbackResponse:
        """Takes a caller's word."""
        caller = convert.caller(request.caller)
        convert.rules_for(caller, self._rules)
        request_id, right = convert.word_from(request)
        with store_errors():
            counted = await self._learning.feedback(caller.tenant, request_id, right)
        return cache_pb2.FeedbackResponse(counted=counted)

    async def Measure(
        self,
        request: cache_pb2.MeasureRequest,
        context: grpc.aio.ServicerContext[cache_pb2.MeasureRequest, cache_pb2.MeasureResponse],
    ) -> cache_pb2.MeasureResponse:
        """Reports a namespace's record."""
        caller = convert.caller(request.caller)
        rules = convert.rules_for(caller, self._rules)
        with store_errors():
            measured = await self._learning.measure(caller.tenant, caller.namespace, rules)
        return convert.measure_response(measured)

    async def ListReviews(
        self,
        request: cache_pb2.ListReviewsRequest,
        context: grpc.aio.ServicerContext[cache_pb2.ListReviewsRequest, cache_pb2.ListReviewsResponse],
    ) -> cache_pb2.ListReviewsResponse:
        """Lists pairs for people to look through."""
        caller = convert.caller(request.caller)
        convert.rules_for(caller, self._rules)
        kind, size = convert.review_filter_from(request)
        with store_errors():
            page = await self._reviews.page(
                caller.tenant,
                caller.namespace,
                kind=kind,
                unsettled=request.unsettled_only,
                size=size,
                token=request.page_token,
            )
        return convert.reviews_response(page)

    async def ListNamespaces(
        self,
        request: cache_pb2.ListNamespacesRequest,
        context: grpc.aio.ServicerContext[cache_pb2.ListNamespacesRequest, cache_pb2.ListNamespacesResponse],
    ) -> cache_pb2.ListNamespacesResponse:
        """Lists the tenant's namespaces."""
        caller = convert.caller(request.caller)
        with store_errors():
            names = await self._reviews.namespaces(caller.tenant)
        return cache_pb2.ListNamespacesResponse(namespaces=[name for name in names if name in self._rules])


def _describe(found: Found, outcome: str) -> None:
    span = telemetry.span()
    span.set_attribute(telemetry.CACHE_OUTCOME, outcome)
    if found.verdict is not None:
        span.set_attribute(telemetry.CACHE_REASON, found.verdict.reason)
        span.set_attribute(telemetry.CACHE_CANDIDATES, len(found.verdict.judged))
        if found.verdict.judged:
            span.set_attribute(telemetry.CACHE_SIMILARITY, found.verdict.judged[0].similarity)
    elif found.semantic_unavailable:
        span.set_attribute(telemetry.CACHE_REASON, "semantic_unavailable")
