"""Protobuf to the provider's types and back."""

from llmmesh.provider.v1 import provider_pb2
from services.common.chat import Answer, Delta
from services.common.chat_pb import (
    answer_to_pb,
    caller_from_pb,
    chat_from_pb,
    component_to_pb,
    delta_to_pb,
    finish_reason_to_pb,
    rates_to_pb,
    require,
    usage_to_pb,
)
from services.common.errors import (
    AllCandidatesFailed,
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    RateLimited,
    StreamCut,
    UnknownModel,
    UpstreamCredential,
    UpstreamRejected,
    Violation,
)
from services.provider.domain.dispatch import Finished, Order, Started, UnknownCandidate
from services.provider.domain.plan import Attempt, NoAnswer
from services.provider.domain.prompt_cache import CacheOutcome, PromptCacheReport, VolatileKind
from services.provider.domain.prompt_cache.tally import Row

MAX_CANDIDATES = 16
MAX_ATTEMPTS = 16

_OUTCOMES = {
    CacheOutcome.HIT: provider_pb2.PROMPT_CACHE_OUTCOME_HIT,
    CacheOutcome.FIRST: provider_pb2.PROMPT_CACHE_OUTCOME_FIRST,
    CacheOutcome.TOO_SHORT: provider_pb2.PROMPT_CACHE_OUTCOME_TOO_SHORT,
    CacheOutcome.CHANGED: provider_pb2.PROMPT_CACHE_OUTCOME_CHANGED,
    CacheOutcome.EXPIRED: provider_pb2.PROMPT_CACHE_OUTCOME_EXPIRED,
    CacheOutcome.SWITCHED: provider_pb2.PROMPT_CACHE_OUTCOME_SWITCHED,
    CacheOutcome.UNREPORTED: provider_pb2.PROMPT_CACHE_OUTCOME_UNREPORTED,
    CacheOutcome.OFF: provider_pb2.PROMPT_CACHE_OUTCOME_OFF,
}
_VOLATILE = {
    VolatileKind.TIMESTAMP: provider_pb2.VOLATILE_KIND_TIMESTAMP,
    VolatileKind.UUID: provider_pb2.VOLATILE_KIND_UUID,
    VolatileKind.ID: provider_pb2.VOLATILE_KIND_ID,
    VolatileKind.COUNTER: provider_pb2.VOLATILE_KIND_COUNTER,
}

Request = provider_pb2.GenerateRequest | provider_pb2.StreamGenerateRequest


def order_from(request: Request, *, streaming: bool, deadline: float | None) -> Order:
    """What to generate. Raises InvalidInput."""
    caller = caller_from_pb(request.caller)
    chat = chat_from_pb(request.chat)
    count = len(request.candidates)
    require(1 <= count <= MAX_CANDIDATES, "candidates", f"1 to {MAX_CANDIDATES} models, got {count}")
    max_attempts = request.max_attempts if request.HasField("max_attempts") else None
    if max_attempts is not None:
        require(1 <= max_attempts <= MAX_ATTEMPTS, "max_attempts", f"must be between 1 and {MAX_ATTEMPTS}")
    return Order(
        chat,
        caller,
        tuple(request.candidates),
        streaming,
        deadline,
        max_attempts,
        request.hedge,
    )


def event_to_pb(event: Started | Delta | Finished) -> provider_pb2.StreamGenerateResponse:
    """One event of a stream."""
    match event:
        case Started(model, vendor, component):
            return provider_pb2.StreamGenerateResponse(
                started=provider_pb2.Started(model=model, vendor=vendor, component=component_to_pb(component))
            )
        case Finished():
            return provider_pb2.StreamGenerateResponse(
                finished=provider_pb2.Finished(
                    finish_reason=finish_reason_to_pb(event.finish_reason),
                    usage=usage_to_pb(event.usage),
                    charge=_charge_to_pb(event),
                    attempts=[_attempt_to_pb(a) for a in event.attempts],
                    prompt_cache=_report_to_pb(event.prompt_cache),
                )
            )
        case delta:
            return provider_pb2.StreamGenerateResponse(delta=delta_to_pb(delta))


def answer_response(started: Started, answer: Answer, finished: Finished) -> provider_pb2.GenerateResponse:
    """A whole answer."""
    return provider_pb2.GenerateResponse(
        answer=answer_to_pb(answer),
        usage=usage_to_pb(finished.usage),
        charge=_charge_to_pb(finished),
        model=started.model,
        vendor=started.vendor,
        attempts=[_attempt_to_pb(a) for a in finished.attempts],
        prompt_cache=_report_to_pb(finished.prompt_cache),
    )


def models_response(models: list[tuple[str, str]]) -> provider_pb2.ListModelsResponse:
    """The configured models."""
    return provider_pb2.ListModelsResponse(
        models=[provider_pb2.Model(model=model, vendor=vendor) for model, vendor in models]
    )


def stats_response(rows: list[Row]) -> provider_pb2.PromptCacheStatsResponse:
    """What prompt caches brought."""
    return provider_pb2.PromptCacheStatsResponse(rows=[_row_to_pb(row) for row in rows])


DOMAIN_ERRORS = (UnknownCandidate, NoAnswer)


def error_of(error: Exception) -> MeshError:
    """What the caller gets to see of an error of the domain. `wasted_nanousd` is what the failed `attempts` cost."""
    match error:
        case UnknownCandidate():
            return UnknownModel(str(error), field="candidates")
        case NoAnswer(reason=reason, message=message):
            metadata = {"wasted_nanousd": str(error.wasted), "attempts": str(error.attempts)}
            if reason == InvalidInput.reason:
                refused = InvalidInput(violations=(Violation(error.field, message),))
                refused.metadata = metadata
                return refused
            kinds = (StreamCut, RateLimited, UpstreamRejected, UpstreamCredential, DeadlineExceeded)
            kind = next((kind for kind in kinds if kind.reason == reason), AllCandidatesFailed)
            return kind(message, retry_after_s=error.retry_after_s, metadata=metadata)
    raise AssertionError(f"not an error of the domain: {error!r}")


def _charge_to_pb(finished: Finished) -> provider_pb2.Charge:
    charge = finished.charge
    pb = provider_pb2.Charge(
        component=component_to_pb(charge.component), unpriced=charge.unpriced, wasted_nanousd=finished.wasted
    )
    if not charge.unpriced:
        pb.cost_nanousd = charge.cost
        pb.rates.CopyFrom(rates_to_pb(charge.rates))
        pb.batch_discount_nanousd = charge.batch_discount
    return pb


def _attempt_to_pb(attempt: Attempt) -> provider_pb2.Attempt:
    return provider_pb2.Attempt(
        model=attempt.model,
        vendor=attempt.vendor,
        outcome=attempt.outcome,
        cost_nanousd=attempt.cost_nanousd,
        duration_ms=attempt.duration_ms,
    )


def _report_to_pb(report: PromptCacheReport) -> provider_pb2.PromptCacheReport:
    pb = provider_pb2.PromptCacheReport(
        outcome=_OUTCOMES[report.outcome],
        static_tokens=report.static_tokens,
        read_tokens=report.read_tokens,
        written_tokens=report.written_tokens,
        volatile_fields=[
            provider_pb2.VolatileField(kind=_VOLATILE[one.kind], part=one.part, offset=one.offset, moved=one.moved)
            for one in report.volatile
        ],
    )
    if (change := report.change) is not None:
        pb.change.CopyFrom(provider_pb2.PromptChange(part=change.part, offset=change.offset, excerpt=change.excerpt))
    return pb


def _row_to_pb(row: Row) -> provider_pb2.PromptCacheRow:
    return provider_pb2.PromptCacheRow(
        tenant=row.tenant,
        endpoint=row.endpoint,
        model=row.model,
        vendor=row.vendor,
        requests=row.requests,
        hits=row.outcomes[CacheOutcome.HIT],
        input_tokens=row.input_tokens,
        read_tokens=row.read_tokens,
        written_tokens=row.written_tokens,
        saved_nanousd=row.saved,
        volatile_requests=row.volatile,
        outcomes=[
            provider_pb2.PromptCacheOutcomeCount(outcome=number, requests=row.outcomes[outcome])
            for outcome, number in _OUTCOMES.items()
            if row.outcomes[outcome]
        ],
    )
