"""The five services that the walk calls, over gRPC. A failure of any becomes the MeshError that it raised."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import caller_pb2, chat_pb2, usage_pb2, vector_pb2
from llmmesh.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from llmmesh.router.v1 import router_pb2, router_pb2_grpc
from services.common.channels import outgoing_metadata, remaining
from services.common.chat import Answer, Chat, Delta
from services.common.chat_pb import (
    Caller,
    answer_from_pb,
    answer_to_pb,
    caller_to_pb,
    chat_from_pb,
    chat_to_pb,
    component_from_pb,
    delta_from_pb,
    delta_to_pb,
    finish_reason_from_pb,
    finish_reason_to_pb,
    rates_from_pb,
    usage_from_pb,
    usage_to_pb,
)
from services.common.errors import (
    InvalidInput,
    MeshError,
    NotReady,
    StreamCut,
    UnknownModel,
    UpstreamUnavailable,
    from_rpc_error,
)
from services.common.money import Usage
from services.edge.domain.ports import (
    AnswerEnd,
    CacheControl,
    Charge,
    Compressed,
    Embedded,
    Found,
    Generated,
    Lease,
    LessonKind,
    Question,
    Route,
    StreamFinished,
    StreamStarted,
    Vector,
)
from services.edge.domain.upkeep import Quality, Review, Verdict

R = TypeVar("R")

UPKEEP_TIMEOUT_S = 5.0  # people wait for it

LEARN_TIMEOUT_S = 10.0  # nobody waits for it
LEASE = Duration(seconds=5)  # how long others wait for an edge that hangs; one that dies is noticed at once
_LESSON_KINDS = {
    LessonKind.MISS: cache_pb2.LESSON_KIND_MISS,
    LessonKind.SHADOW: cache_pb2.LESSON_KIND_SHADOW,
    LessonKind.STALENESS: cache_pb2.LESSON_KIND_STALENESS,
}
_REVIEW_KINDS = {
    None: cache_pb2.REVIEW_KIND_UNSPECIFIED,
    True: cache_pb2.REVIEW_KIND_HIT,
    False: cache_pb2.REVIEW_KIND_NEAR_MISS,
}
_VERDICTS = {
    cache_pb2.REVIEW_VERDICT_RIGHT: Verdict.RIGHT,
    cache_pb2.REVIEW_VERDICT_WRONG: Verdict.WRONG,
    cache_pb2.REVIEW_VERDICT_DOUBTFUL: Verdict.DOUBTFUL,
}


async def unary(method: Any, request: Any, kind: type[R], at_most: float | None = None) -> R:
    """One unary call with trace context and deadline. Raises MeshError."""
    try:
        response: R = await method(request, metadata=outgoing_metadata(), timeout=remaining(keep=0.05, at_most=at_most))
    except grpc.aio.AioRpcError as error:
        raise named_error(error) from None
    return response


def named_error(error: grpc.aio.AioRpcError) -> MeshError:
    """What the peer raised, in the words of our own request."""
    named = from_rpc_error(error)
    if isinstance(named, UnknownModel):
        return UnknownModel(named.message)
    return named


def _caller(question: Question) -> caller_pb2.Caller:
    return caller_to_pb(
        Caller(question.tenant, question.namespace, question.endpoint, question.user, question.request_id)
    )


def _chat_to_pb(question: Question, chat: Chat) -> chat_pb2.Chat:
    """The chat on the wire: as it came unless another one is meant. It was checked on arrival, and its reader checks again."""
    if chat is question.chat and isinstance(question.wire, chat_pb2.Chat):
        return question.wire
    return chat_to_pb(chat)


def _vector_to_pb(vector: Vector | None) -> vector_pb2.Vector | None:
    if vector is None:
        return None
    return vector_pb2.Vector(values=vector.values, model_id=vector.model_id, dimensions=vector.dimensions)


def _controls(control: CacheControl) -> cache_pb2.Controls | None:
    if control.min_similarity is None and control.max_age_s is None:
        return None
    controls = cache_pb2.Controls(min_similarity=control.min_similarity)
    if control.max_age_s is not None:
        controls.max_age.FromNanoseconds(int(control.max_age_s * 1e9))
    return controls


class EmbedderPeer:
    """The embedder."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._embed = embedder_pb2_grpc.EmbedderServiceStub(channel).Embed
        self._timeout = timeout

    async def embed(self, text: str) -> Embedded:
        request = embedder_pb2.EmbedRequest(texts=[text])
        response = await unary(self._embed, request, embedder_pb2.EmbedResponse, self._timeout)
        if len(response.vectors) != 1:
            raise NotReady("the embedder did not answer with one vector")
        vector = response.vectors[0]
        return Embedded(
            Vector(vector.values, vector.model_id, vector.dimensions),
            response.cost_nanousd,
            any(response.truncated),
        )


class CachePeer:
    """The cache."""

    def __init__(self, channel: grpc.aio.Channel, lookup_timeout: float, store_timeout: float) -> None:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        self._lookup, self._store, self._learn, self._feedback = stub.Lookup, stub.Store, stub.Learn, stub.Feedback
        self._lookup_timeout, self._store_timeout = lookup_timeout, store_timeout

    async def lookup(self, question: Question, vector: Vector | None) -> Found:
        request = cache_pb2.LookupRequest(
            caller=_caller(question),
            chat=_chat_to_pb(question, question.chat),
            requested_model=question.model,
            vector=_vector_to_pb(vector),
            controls=_controls(question.control),
            skip_exact=vector is not None,
        )
        response = await unary(self._lookup, request, cache_pb2.LookupResponse, self._lookup_timeout)
        reason = response.verdict.reason
        similarity = response.verdict.candidates[0].similarity if response.verdict.candidates else None
        if response.outcome not in (cache_pb2.OUTCOME_EXACT_HIT, cache_pb2.OUTCOME_SEMANTIC_HIT):
            return Found(
                reason=reason,
                similarity=similarity,
                verifier_cost=response.verifier_cost_nanousd,
                semantic_unavailable=response.semantic_unavailable,
                namespace_version=response.namespace_version,
                exact_key=response.exact_key,
                lesson=response.lesson,
            )
        entry = response.entry
        semantic = response.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT
        return Found(
            answer=answer_from_pb(entry.answer),
            semantic=semantic,
            entry_id=entry.entry_id,
            model=entry.model,
            tier=entry.tier,
            usage=usage_from_pb(entry.usage),
            similarity=similarity if semantic else None,
            reason=reason,
            verifier_cost=response.verifier_cost_nanousd,
            input_token_delta=response.input_token_delta,
            namespace_version=response.namespace_version,
            alias=response.verdict.alias,
            exact_key=response.exact_key,
            lesson=response.lesson,
        )

    async def learn(self, question: Question, lesson: bytes, answer: Answer, kind: LessonKind) -> None:
        request = cache_pb2.LearnRequest(
            caller=_caller(question), lesson=lesson, answer=answer_to_pb(answer), kind=_LESSON_KINDS[kind]
        )
        await unary(self._learn, request, cache_pb2.LearnResponse, LEARN_TIMEOUT_S)

    async def feedback(self, tenant: str, namespace: str, request_id: str, right: bool) -> bool:
        caller = caller_to_pb(Caller(tenant, namespace, "", "", ""))
        request = cache_pb2.FeedbackRequest(caller=caller, request_id=request_id, right=right)
        response = await unary(self._feedback, request, cache_pb2.FeedbackResponse, self._store_timeout)
        return response.counted

    async def store(
        self,
        question: Question,
        vector: Vector | None,
        answer: Answer,
        usage: Usage,
        model: str,
        tier: str,
        namespace_version: int | None,
    ) -> str:
        request = cache_pb2.StoreRequest(
            caller=_caller(question),
            chat=_chat_to_pb(question, question.chat),
            requested_model=question.model,
            vector=_vector_to_pb(vector),
            answer=answer_to_pb(answer),
            usage=usage_to_pb(usage),
            model=model,
            tier=tier,
            tags=question.control.tags,
            namespace_version=namespace_version,
        )
        response = await unary(self._store, request, cache_pb2.StoreResponse, self._store_timeout)
        return response.entry_id if response.stored else ""


class UpkeepPeer:
    """The cache, for those who look after it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        self._namespaces, self._measure, self._reviews = stub.ListNamespaces, stub.Measure, stub.ListReviews
        self._feedback, self._invalidate = stub.Feedback, stub.Invalidate

    async def namespaces(self, tenant: str) -> list[str]:
        request = cache_pb2.ListNamespacesRequest(caller=caller_pb2.Caller(tenant=tenant))
        response = await unary(self._namespaces, request, cache_pb2.ListNamespacesResponse, UPKEEP_TIMEOUT_S)
        return list(response.namespaces)

    async def quality(self, tenant: str, namespace: str) -> Quality:
        request = cache_pb2.MeasureRequest(caller=caller_pb2.Caller(tenant=tenant, namespace=namespace))
        found = await unary(self._measure, request, cache_pb2.MeasureResponse, UPKEEP_TIMEOUT_S)
        return Quality(
            lookups=found.lookups,
            exact_hits=found.exact_hits,
            semantic_hits=found.semantic_hits,
            near_misses=found.near_misses,
            checked=found.checked,
            wrong=found.wrong,
            doubtful=found.doubtful,
            wrong_low=found.wrong_rate_low,
            wrong_high=found.wrong_rate_high,
            error_budget=found.error_budget,
            state=found.state,
            threshold=found.threshold,
        )

    async def reviews(
        self, tenant: str, namespace: str, *, hits: bool | None, unsettled: bool, token: str
    ) -> tuple[list[Review], str]:
        request = cache_pb2.ListReviewsRequest(
            caller=caller_pb2.Caller(tenant=tenant, namespace=namespace),
            kind=_REVIEW_KINDS[hits],
            unsettled_only=unsettled,
            page_token=token,
        )
        found = await unary(self._reviews, request, cache_pb2.ListReviewsResponse, UPKEEP_TIMEOUT_S)
        return [_review(pb) for pb in found.reviews], found.next_page_token

    async def judge(self, tenant: str, namespace: str, request_id: str, *, right: bool) -> bool:
        caller = caller_pb2.Caller(tenant=tenant, namespace=namespace)
        request = cache_pb2.FeedbackRequest(caller=caller, request_id=request_id, right=right)
        return (await unary(self._feedback, request, cache_pb2.FeedbackResponse, UPKEEP_TIMEOUT_S)).counted

    async def purge(self, tenant: str, namespace: str, entry_id: str) -> bool:
        caller = caller_pb2.Caller(tenant=tenant, namespace=namespace)
        request = cache_pb2.InvalidateRequest(caller=caller, entry_id=entry_id)
        return (await unary(self._invalidate, request, cache_pb2.InvalidateResponse, UPKEEP_TIMEOUT_S)).removed > 0


def _review(pb: cache_pb2.Review) -> Review:
    return Review(
        hit=pb.kind == cache_pb2.REVIEW_KIND_HIT,
        verdict=_VERDICTS.get(pb.verdict, Verdict.UNCHECKED),
        at=pb.at.ToMilliseconds() / 1000,
        request_id=pb.request_id,
        entry_id=pb.entry_id,
        asked=pb.asked,
        stored=pb.stored,
        answer=pb.answer,
        similarity=pb.similarity,
        probability=pb.probability if pb.HasField("probability") else None,
        reason=pb.reason,
    )


class LeasePeer:
    """The cache's leases."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        stub = cache_pb2_grpc.CacheServiceStub(channel)
        self._acquire, self._publish, self._follow = stub.AcquireLease, stub.PublishLease, stub.FollowLease
        self._timeout = timeout

    async def acquire(self, question: Question, key: bytes, holder: str, *, keep_only: bool = False) -> Lease:
        request = cache_pb2.AcquireLeaseRequest(
            caller=_caller(question), exact_key=key, holder=holder, ttl=LEASE, keep_only=keep_only
        )
        response = await unary(self._acquire, request, cache_pb2.AcquireLeaseResponse, self._timeout)
        return Lease(response.acquired, response.fencing_token, response.followed)

    async def publish(
        self, question: Question, key: bytes, token: int, batches: AsyncGenerator[tuple[Delta, ...] | AnswerEnd]
    ) -> None:
        call = self._publish(metadata=outgoing_metadata(), timeout=remaining(keep=0))
        request = cache_pb2.PublishLeaseRequest(caller=_caller(question), exact_key=key, fencing_token=token)
        try:
            async for batch in batches:
                if isinstance(batch, AnswerEnd):
                    request.MergeFrom(_release(batch))
                else:
                    request.deltas.extend(delta_to_pb(delta) for delta in batch)
                await call.write(request)
                request = cache_pb2.PublishLeaseRequest()  # the others need not name the lease
            await call.done_writing()
            await call
        except grpc.aio.AioRpcError as error:
            raise named_error(error) from None
        except asyncio.InvalidStateError:  # the call ended before our last word
            raise await _why(call) from None
        finally:
            call.cancel()

    async def follow(self, question: Question, key: bytes) -> AsyncGenerator[Delta | AnswerEnd]:
        request = cache_pb2.FollowLeaseRequest(caller=_caller(question), exact_key=key)
        call = self._follow(request, metadata=outgoing_metadata(), timeout=remaining(keep=0))
        try:
            async for response in call:
                kind = response.WhichOneof("event")
                if kind == "delta":
                    yield delta_from_pb(response.delta)
                elif kind == "entry":
                    entry = response.entry
                    reason = finish_reason_from_pb(entry.answer.finish_reason)
                    yield AnswerEnd(reason, usage_from_pb(entry.usage), entry.model, entry.tier, entry.entry_id)
                    return
                else:
                    return
        except grpc.aio.AioRpcError as error:
            raise named_error(error) from None
        finally:
            call.cancel()


def _release(end: AnswerEnd) -> cache_pb2.PublishLeaseRequest:
    return cache_pb2.PublishLeaseRequest(
        release=True,
        entry_id=end.entry_id,
        entry=cache_pb2.Entry(
            entry_id=end.entry_id,
            answer=chat_pb2.Answer(finish_reason=finish_reason_to_pb(end.finish_reason)),
            usage=usage_to_pb(end.usage),
            model=end.model,
            tier=end.tier,
        ),
    )


async def _why(call: Any) -> MeshError:
    """What ended a call that took no more."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return named_error(error)
    return NotReady("the cache ended the call")


class RouterPeer:
    """The router."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._route = router_pb2_grpc.RouterServiceStub(channel).Route
        self._timeout = timeout

    async def route(self, question: Question, vector: Vector | None) -> Route:
        request = router_pb2.RouteRequest(
            caller=_caller(question),
            chat=_chat_to_pb(question, question.chat),
            requested_model=question.model,
            vector=_vector_to_pb(vector),
            batch=question.batch,
        )
        response = await unary(self._route, request, router_pb2.RouteResponse, self._timeout)
        return Route(
            tuple(candidate.model for candidate in response.candidates),
            response.tier,
            response.reason,
            response.cost_nanousd,
        )


class CompressorPeer:
    """The compressor."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._compress = compressor_pb2_grpc.CompressorServiceStub(channel).Compress
        self._timeout = timeout

    async def compress(self, chat: Chat, rate: float, min_block_tokens: int) -> Compressed:
        request = compressor_pb2.CompressRequest(chat=chat_to_pb(chat), rate=rate, min_block_tokens=min_block_tokens)
        response = await unary(self._compress, request, compressor_pb2.CompressResponse, self._timeout)
        return Compressed(
            chat_from_pb(response.chat) if response.applied else chat,
            response.original_tokens,
            response.kept_tokens,
            response.applied,
            response.cost_nanousd,
        )


class ProviderPeer:
    """The provider."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub = provider_pb2_grpc.ProviderServiceStub(channel)
        self._generate, self._stream = stub.Generate, stub.StreamGenerate

    async def generate(
        self, question: Question, chat: Chat, candidates: Sequence[str], *, hedge: bool = False
    ) -> Generated:
        request = provider_pb2.GenerateRequest(
            caller=_caller(question), chat=_chat_to_pb(question, chat), candidates=candidates, hedge=hedge
        )
        response = await unary(self._generate, request, provider_pb2.GenerateResponse)
        charge = charge_from_pb(response.charge)
        try:
            answer, usage = answer_from_pb(response.answer), usage_from_pb(response.usage)
        except InvalidInput as error:
            # It was paid for, and it is not the caller's fault.
            paid = {"wasted_nanousd": str(charge.cost + charge.wasted)}
            raise UpstreamUnavailable(f"the model's answer is malformed: {error.message}", metadata=paid) from None
        return Generated(answer, usage, charge, response.model, response.vendor)

    async def stream(
        self, question: Question, chat: Chat, candidates: Sequence[str], *, hedge: bool = False
    ) -> AsyncGenerator[StreamStarted | Delta | StreamFinished, None]:
        request = provider_pb2.StreamGenerateRequest(
            caller=_caller(question), chat=_chat_to_pb(question, chat), candidates=candidates, hedge=hedge
        )
        call = self._stream(request, metadata=outgoing_metadata(), timeout=remaining(keep=0.05))
        began = False
        try:
            async for response in call:
                kind = response.WhichOneof("event")
                if kind == "delta":
                    yield delta_from_pb(response.delta)
                elif kind == "started":
                    began = True
                    started = response.started
                    yield StreamStarted(started.model, started.vendor, component_from_pb(started.component))
                elif kind == "finished":
                    done = response.finished
                    yield StreamFinished(
                        finish_reason_from_pb(done.finish_reason),
                        usage_from_pb(done.usage),
                        charge_from_pb(done.charge),
                    )
        except grpc.aio.AioRpcError as error:
            named = named_error(error)
            if began and error.code() is grpc.StatusCode.UNAVAILABLE and not isinstance(named, StreamCut):
                raise StreamCut("the answer broke off before it was finished") from None
            raise named from None
        finally:
            call.cancel()


def charge_from_pb(pb: provider_pb2.Charge) -> Charge:
    """What an answer cost."""
    return Charge(
        pb.cost_nanousd,
        rates_from_pb(pb.rates),
        component_from_pb(pb.component or usage_pb2.COST_COMPONENT_PROVIDER),
        pb.unpriced,
        pb.wasted_nanousd,
        pb.batch_discount_nanousd,
    )
