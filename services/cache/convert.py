"""Protobuf to the cache's domain and back."""

import re

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from llmmesh.cache.v1 import cache_pb2
from llmmesh.common.v1 import caller_pb2, chat_pb2, vector_pb2
from services.cache.domain import learning
from services.cache.domain.answers import Comparison
from services.cache.domain.learning import Measured
from services.cache.domain.ports import CacheRules, Controls, Found, Fresh, Question, Removed, Stored, Vector
from services.cache.domain.reviews import Kind, Page, Review, Standing
from services.cache.domain.verdict import Judged, Verdict
from services.common.chat import Answer
from services.common.chat_pb import Caller, Checker, answer_from_pb, caller_from_pb, chat_from_pb, usage_from_pb
from services.common.errors import InvalidInput, Violation
from services.common.policy import Policy, TtlClass
from services.common.vector_pb import vector_from_pb

MAX_TAGS = 16
MAX_TAG = 64
MAX_MODEL = 256
MAX_CANDIDATES = 10
MAX_REQUEST_ID = 128
MAX_REVIEWS = 200
REVIEWS = 50
MAX_TOKEN = 64

_TTL_CLASSES = {
    cache_pb2.TTL_CLASS_UNSPECIFIED: "",
    cache_pb2.TTL_CLASS_REALTIME: TtlClass.REALTIME.value,
    cache_pb2.TTL_CLASS_USER: TtlClass.USER.value,
    cache_pb2.TTL_CLASS_FAQ: TtlClass.FAQ.value,
    cache_pb2.TTL_CLASS_STATIC: TtlClass.STATIC.value,
    cache_pb2.TTL_CLASS_ARCHIVE: TtlClass.ARCHIVE.value,
}
_ENTRY_ID = re.compile(r"[0-9a-f]{64}")


def rules_of(policy: Policy) -> dict[str, CacheRules]:
    """The cache's part of the policy, by namespace."""
    rules = {}
    for name, namespace in policy.namespaces.items():
        cache = namespace.cache
        ttl = {kind.value: policy.ttl(kind) for kind in TtlClass}
        user = {TtlClass.USER.value}
        rules[name] = CacheRules(
            exact=cache.exact,
            semantic=cache.semantic,
            floor=cache.floor,
            thresholds=dict(cache.thresholds),
            ttl={**ttl, "": ttl[cache.ttl_class.value]},
            user_classes=frozenset(user | {""} if cache.ttl_class is TtlClass.USER else user),
            max_temperature=cache.max_temperature,
            cross_language=cache.allow_cross_language,
            store_tool_calls=cache.store_tool_calls,
            error_budget=cache.error_budget,
            verifier=cache.verifier,
            judge=cache.judge,
            judge_ms=cache.judge_ms,
            learn=cache.learn,
            standalone=cache.standalone,
            review=cache.review,
        )
    return rules


def rules_for(caller: Caller, rules: dict[str, CacheRules]) -> CacheRules:
    """The rules of the caller's namespace. Raises InvalidInput for one that the policy does not have."""
    found = rules.get(caller.namespace)
    if found is None:
        raise InvalidInput(violations=(Violation("caller.namespace", "the policy has no such namespace"),))
    return found


def caller(pb: caller_pb2.Caller) -> Caller:
    """The caller, checked."""
    return caller_from_pb(pb)


def question_from(
    request: cache_pb2.LookupRequest | cache_pb2.StoreRequest | cache_pb2.ExplainRequest,
    caller: Caller,
    dimensions: dict[str, int],
) -> Question:
    """The question. Raises InvalidInput for a bad chat, model name or vector."""
    check = Checker()
    check.need(len(request.requested_model) <= MAX_MODEL, "requested_model", f"at most {MAX_MODEL} characters")
    check.done()
    return Question(
        tenant=caller.tenant,
        namespace=caller.namespace,
        user=caller.user,
        request_id=caller.request_id,
        requested_model=request.requested_model,
        chat=chat_from_pb(request.chat),
        vector=_vector(request.vector, dimensions) if request.HasField("vector") else None,
    )


def _vector(pb: vector_pb2.Vector, dimensions: dict[str, int]) -> Vector:
    embedding = vector_from_pb(pb)
    known = dimensions.get(embedding.model_id)
    check = Checker()
    check.need(
        known is None or known == len(embedding.values),
        "vector.dimensions",
        f"{embedding.model_id} has {known} dimensions, got {len(embedding.values)}",
    )
    check.done()
    return Vector(embedding.values, embedding.model_id)


def controls_from(request: cache_pb2.LookupRequest) -> Controls:
    """What the caller tightens. Raises InvalidInput for values outside their range."""
    pb = request.controls
    check = Checker()
    minimum = pb.min_similarity if pb.HasField("min_similarity") else -1.0
    check.need(
        not pb.HasField("min_similarity") or 0 <= minimum <= 1, "controls.min_similarity", "must be between 0 and 1"
    )
    max_age = _seconds(pb.max_age) if pb.HasField("max_age") else None
    check.need(max_age is None or max_age >= 0, "controls.max_age", "must not be negative")
    check.done()
    return Controls(minimum, max_age, pb.exact_only, request.skip_exact)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9


def fresh_from(request: cache_pb2.StoreRequest) -> Fresh:
    """The answer to store. Raises InvalidInput for a malformed answer, an unknown lifetime class or bad tags."""
    check = Checker()
    ttl_class = _TTL_CLASSES.get(request.ttl_class)
    check.need(ttl_class is not None, "ttl_class", "is not a known class")
    check.need(len(request.tags) <= MAX_TAGS, "tags", f"at most {MAX_TAGS} tags")
    for index, tag in enumerate(request.tags[:MAX_TAGS]):
        check.need(0 < len(tag) <= MAX_TAG, f"tags[{index}]", f"1 to {MAX_TAG} characters")
    check.done()
    answer = answer_from_pb(request.answer) if _is_whole(request.answer) else answer_from_pb(_emptied(request.answer))

    def payload(entry_id: str, created_at: float, expires_at: float | None) -> bytes:
        entry = cache_pb2.Entry(
            entry_id=entry_id,
            answer=request.answer,
            usage=request.usage,
            model=request.model,
            tier=request.tier,
            created_at=_timestamp(created_at),
            expires_at=None if expires_at is None else _timestamp(expires_at),
            pinned=expires_at is None,
        )
        return entry.SerializeToString()

    return Fresh(
        answer,
        payload,
        ttl_class or "",
        tuple(dict.fromkeys(request.tags)),
        request.pinned,
        request.namespace_version if request.HasField("namespace_version") else None,
        request.model,
        usage_from_pb(request.usage),
    )


def _is_whole(answer: chat_pb2.Answer) -> bool:
    return bool(answer.message.parts or answer.message.tool_calls)


def _emptied(answer: chat_pb2.Answer) -> chat_pb2.Answer:
    """An answer without content is not malformed, it is one that is not stored: empty text says so."""
    message = chat_pb2.Message()
    message.CopyFrom(answer.message)
    message.parts.add(text="")
    return chat_pb2.Answer(message=message, finish_reason=answer.finish_reason)


def _timestamp(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds), nanos=int(seconds % 1 * 1e9))


def lookup_response(found: Found) -> cache_pb2.LookupResponse:
    """What was found, on the wire."""
    response = cache_pb2.LookupResponse(
        outcome=_outcome(found),
        exact_key=found.exact_key,
        scope_key=found.scope_key,
        semantic_unavailable=found.semantic_unavailable,
        input_token_delta=found.token_delta,
        namespace_version=found.version,
        verifier_cost_nanousd=found.verifier_cost,
        lesson=found.lesson,
    )
    if found.payload is not None:
        response.entry.ParseFromString(found.payload)
    if found.verdict is not None:
        response.verdict.CopyFrom(_verdict(found.verdict, explain=False))
    return response


def explain_response(found: Found) -> cache_pb2.ExplainResponse:
    """The explanation on the wire."""
    verdict = None if found.verdict is None else _verdict(found.verdict, explain=True)
    return cache_pb2.ExplainResponse(outcome=_outcome(found), verdict=verdict)


def _outcome(found: Found) -> cache_pb2.Outcome.ValueType:
    if found.payload is None:
        return cache_pb2.OUTCOME_MISS
    return cache_pb2.OUTCOME_SEMANTIC_HIT if found.semantic else cache_pb2.OUTCOME_EXACT_HIT


def _verdict(verdict: Verdict, *, explain: bool) -> cache_pb2.Verdict:
    return cache_pb2.Verdict(
        reason=verdict.reason,
        threshold=verdict.threshold,
        candidates=[_candidate(judged, explain) for judged in verdict.judged[:MAX_CANDIDATES]],
        alias=verdict.alias,
    )


def _candidate(judged: Judged, explain: bool) -> cache_pb2.Candidate:
    return cache_pb2.Candidate(
        entry_id=judged.entry_id,
        similarity=judged.similarity,
        reason=judged.reason,
        question=judged.question if explain else "",
        detail=judged.detail if explain else "",
        probability=judged.probability,
        verifier=judged.verifier,
        signals=judged.signals if explain else (),
    )


def store_response(stored: Stored) -> cache_pb2.StoreResponse:
    """What became of an answer, on the wire."""
    return cache_pb2.StoreResponse(
        stored=not stored.reason,
        entry_id=stored.entry_id,
        reason=stored.reason,
        semantic_unavailable=stored.semantic_unavailable,
    )


def selector_from(request: cache_pb2.InvalidateRequest) -> tuple[str, str]:
    """Which entries: the selector's name and value. Raises InvalidInput where none or a malformed one is set."""
    kind = request.WhichOneof("selector") or ""
    check = Checker()
    check.need(bool(kind), "selector", "one of whole_namespace, tag, entry_id, request_id must be set")
    if kind == "whole_namespace":
        check.need(request.whole_namespace, "whole_namespace", "must be true")
    elif kind == "tag":
        check.need(0 < len(request.tag) <= MAX_TAG, "tag", f"1 to {MAX_TAG} characters")
    elif kind == "entry_id":
        check.need(bool(_ENTRY_ID.fullmatch(request.entry_id)), "entry_id", "must be 64 hexadecimal digits")
    elif kind == "request_id":
        check.need(0 < len(request.request_id) <= MAX_REQUEST_ID, "request_id", f"1 to {MAX_REQUEST_ID} characters")
    check.done()
    return kind, {"tag": request.tag, "entry_id": request.entry_id, "request_id": request.request_id}.get(kind, "")


def invalidate_response(removed: Removed) -> cache_pb2.InvalidateResponse:
    """What was removed, on the wire."""
    return cache_pb2.InvalidateResponse(removed=removed.count, namespace_version=removed.version)


_KINDS = {
    cache_pb2.LESSON_KIND_MISS: learning.MISS,
    cache_pb2.LESSON_KIND_SHADOW: learning.SHADOW,
    cache_pb2.LESSON_KIND_STALENESS: learning.STALENESS,
}
_COMPARISONS = {
    Comparison.SAME: cache_pb2.COMPARISON_SAME,
    Comparison.DIFFERENT: cache_pb2.COMPARISON_DIFFERENT,
    Comparison.DOUBT: cache_pb2.COMPARISON_DOUBT,
}


def answer_text(payload: bytes) -> str:
    """The answer of a stored entry as text, for comparisons."""
    return _text(answer_from_pb(cache_pb2.Entry.FromString(payload).answer))


def _text(answer: Answer) -> str:
    calls = (f"{call.name} {call.arguments_json}" for call in answer.message.tool_calls)
    return "\n".join(filter(None, (answer.message.text, *calls)))


def lesson_from(request: cache_pb2.LearnRequest) -> tuple[str, str]:
    """The fresh answer as text, and why it was made. Raises InvalidInput for a malformed answer or no reason."""
    check = Checker()
    check.need(request.kind in _KINDS, "kind", "must be one of MISS, SHADOW, STALENESS")
    check.done()
    return _text(answer_from_pb(request.answer)), _KINDS[request.kind]


def learn_response(found: Comparison | None) -> cache_pb2.LearnResponse:
    """What was learned, on the wire."""
    unknown = cache_pb2.COMPARISON_UNSPECIFIED
    return cache_pb2.LearnResponse(comparison=unknown if found is None else _COMPARISONS[found])


def word_from(request: cache_pb2.FeedbackRequest) -> tuple[str, bool]:
    """The request that is judged, and whether its answer was right. Raises InvalidInput where either is missing."""
    check = Checker()
    check.need(0 < len(request.request_id) <= MAX_REQUEST_ID, "request_id", f"1 to {MAX_REQUEST_ID} characters")
    check.need(request.HasField("right"), "right", "must be set: silence is no judgement")
    check.done()
    return request.request_id, request.right


def measure_response(measured: Measured) -> cache_pb2.MeasureResponse:
    """A namespace's record, on the wire."""
    record = measured.record
    return cache_pb2.MeasureResponse(
        lookups=round(record.lookups),
        exact_hits=round(record.exact_hits),
        semantic_hits=round(record.semantic_hits),
        checked=round(record.checked),
        wrong=round(record.wrong),
        wrong_rate_low=measured.wrong_low,
        wrong_rate_high=measured.wrong_high,
        error_budget=measured.error_budget,
        alias_hits=round(record.alias_hits),
        near_misses=round(record.near_misses),
        doubtful=round(record.doubtful),
        learned=round(record.learned),
        stale_checked=round(record.stale_checked),
        stale=round(record.stale),
        feedback_right=round(record.feedback_right),
        feedback_wrong=round(record.feedback_wrong),
        state=record.state,
        threshold=measured.threshold,
        judged=round(record.judged),
    )


_REVIEW_KINDS = {Kind.HIT: cache_pb2.REVIEW_KIND_HIT, Kind.NEAR_MISS: cache_pb2.REVIEW_KIND_NEAR_MISS}
_STANDINGS = {
    Standing.UNCHECKED: cache_pb2.REVIEW_VERDICT_UNCHECKED,
    Standing.DOUBTFUL: cache_pb2.REVIEW_VERDICT_DOUBTFUL,
    Standing.RIGHT: cache_pb2.REVIEW_VERDICT_RIGHT,
    Standing.WRONG: cache_pb2.REVIEW_VERDICT_WRONG,
}


def review_filter_from(request: cache_pb2.ListReviewsRequest) -> tuple[Kind | None, int]:
    """The kind that is wanted, None for both, and how many. Raises InvalidInput for what is out of range."""
    check = Checker()
    kinds = {number: kind for kind, number in _REVIEW_KINDS.items()}
    unset = request.kind == cache_pb2.REVIEW_KIND_UNSPECIFIED
    check.need(unset or request.kind in kinds, "kind", "is not a known kind")
    check.need(0 <= request.page_size <= MAX_REVIEWS, "page_size", f"0 to {MAX_REVIEWS}")
    check.need(len(request.page_token) <= MAX_TOKEN, "page_token", "is none of ours")
    check.done()
    return kinds.get(request.kind), request.page_size or REVIEWS


def reviews_response(page: Page) -> cache_pb2.ListReviewsResponse:
    """Pairs to look through, on the wire."""
    return cache_pb2.ListReviewsResponse(
        reviews=[_review(review) for review in page.reviews], next_page_token=page.next_token
    )


def _review(review: Review) -> cache_pb2.Review:
    return cache_pb2.Review(
        kind=_REVIEW_KINDS[review.kind],
        verdict=_STANDINGS[review.standing],
        at=_timestamp(review.at),
        request_id=review.request_id,
        entry_id=review.entry_id,
        asked=review.asked,
        stored=review.stored,
        answer=review.answer,
        similarity=review.similarity,
        probability=review.probability,
        reason=review.reason,
    )
