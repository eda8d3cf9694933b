"""Protobuf to the edge's domain and back."""

import re
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from llmmesh.common.v1 import usage_pb2
from llmmesh.edge.v1 import batch_pb2, costs_pb2, inference_pb2
from services.common.chat_pb import (
    Checker,
    answer_to_pb,
    bill_to_pb,
    chat_from_pb,
    check_names,
    delta_to_pb,
    finish_reason_to_pb,
    usage_to_pb,
)
from services.common.errors import InvalidInput
from services.edge.domain.budgets import BudgetStatus, Mode
from services.edge.domain.ledger import CostQuery, CostSum, UsageRecord
from services.edge.domain.ports import CacheControl, Question
from services.edge.domain.trip import Began, Completed, Ended, Event, Receipt

_OUTCOMES = {
    "exact_hit": inference_pb2.OUTCOME_EXACT_HIT,
    "semantic_hit": inference_pb2.OUTCOME_SEMANTIC_HIT,
    "miss": inference_pb2.OUTCOME_MISS,
    "bypass": inference_pb2.OUTCOME_BYPASS,
    "coalesced": inference_pb2.OUTCOME_COALESCED,
}
_DIMENSIONS = {
    costs_pb2.COST_DIMENSION_ENDPOINT: "endpoint",
    costs_pb2.COST_DIMENSION_MODEL: "model",
    costs_pb2.COST_DIMENSION_OUTCOME: "outcome",
    costs_pb2.COST_DIMENSION_HOUR: "hour",
    costs_pb2.COST_DIMENSION_TIER: "tier",
    costs_pb2.COST_DIMENSION_TENANT: "tenant",
    costs_pb2.COST_DIMENSION_USER: "user",
    costs_pb2.COST_DIMENSION_KIND: "kind",
    costs_pb2.COST_DIMENSION_NAMESPACE: "namespace",
    costs_pb2.COST_DIMENSION_DAY: "day",
}
_TIMES = (costs_pb2.COST_DIMENSION_HOUR, costs_pb2.COST_DIMENSION_DAY)
_BUDGET_MODES = {Mode.HARD: costs_pb2.BUDGET_MODE_HARD, Mode.SOFT: costs_pb2.BUDGET_MODE_SOFT}
MAX_FILTERS = 100
MAX_VALUE = 128
_KIND = re.compile(r"[A-Za-z0-9._/-]{0,64}")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}|\*?")
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
REQUEST_ID_FORM = "1 to 128 visible ASCII characters"
MAX_HOURS = 24 * 366
MAX_AGE_S = 10 * 366 * 86_400
MAX_TIME = 253_402_300_800  # the end of the year 9999, where dates end


def question_from_pb(
    pb: inference_pb2.CompleteRequest | inference_pb2.StreamCompleteRequest, tenant: str, request_id: str
) -> Question:
    """The question of a tenant. Raises InvalidInput with every field that is wrong."""
    check = Checker()
    check_names(check, pb.namespace, pb.endpoint, pb.user)
    check.need(len(pb.model) <= 128, "model", "at most 128 characters")
    check.need(bool(_KIND.fullmatch(pb.kind)), "kind", "at most 64 of A-Z a-z 0-9 . _ - /")
    control = control_from_pb(check, pb)
    try:
        chat = chat_from_pb(pb.chat)
    except InvalidInput as error:
        raise InvalidInput(violations=[*error.violations, *check.violations]) from None
    check.done()
    return Question(
        tenant,
        request_id,
        chat,
        pb.model or "auto",
        pb.namespace or "default",
        pb.endpoint,
        pb.user,
        control,
        pb.chat,
        kind=pb.kind,
    )


def control_from_pb(
    check: Checker,
    pb: inference_pb2.CompleteRequest | inference_pb2.StreamCompleteRequest | batch_pb2.CreateBatchRequest,
) -> CacheControl:
    """What the caller asks of the cache; `check` notes what is wrong with it."""
    if not pb.HasField("cache"):
        return CacheControl()
    cache = pb.cache
    if cache.HasField("min_similarity"):
        check.need(0 <= cache.min_similarity <= 1, "cache.min_similarity", "must be between 0 and 1")
    check.need(
        len(cache.tags) <= 16 and all(0 < len(tag) <= 64 for tag in cache.tags),
        "cache.tags",
        "at most 16 tags of 1 to 64 characters",
    )
    age = _seconds_of(cache.max_age) if cache.HasField("max_age") else None
    in_range = age is None or 0 <= age <= MAX_AGE_S
    check.need(in_range, "cache.max_age", f"must not be negative, at most {MAX_AGE_S} s")
    return CacheControl(
        cache.bypass,
        cache.no_store,
        cache.min_similarity if cache.HasField("min_similarity") else None,
        age,
        tuple(cache.tags),
    )


def feedback_from_pb(pb: inference_pb2.GiveFeedbackRequest) -> tuple[str, str, bool]:
    """Namespace, request id and the word. Raises InvalidInput; no word is none."""
    check = Checker()
    check_names(check, pb.namespace, "", "")
    check.need(bool(REQUEST_ID.fullmatch(pb.request_id)), "request_id", REQUEST_ID_FORM)
    check.need(pb.HasField("right"), "right", "must be set: silence is no judgement")
    check.done()
    return pb.namespace or "default", pb.request_id, pb.right


def receipt_to_pb(receipt: Receipt) -> inference_pb2.Receipt:
    """Where the answer came from."""
    return inference_pb2.Receipt(
        request_id=receipt.request_id,
        outcome=_OUTCOMES.get(receipt.outcome, inference_pb2.OUTCOME_UNSPECIFIED),  # of an item without an answer
        model=receipt.model,
        tier=receipt.tier,
        bill=bill_to_pb(receipt.bill) if receipt.bill else None,
        degraded=receipt.degraded,
        similarity=receipt.similarity,
        cache_reason=receipt.cache_reason,
        route_reason=receipt.route_reason,
        entry_id=receipt.entry_id,
        budget_notice=receipt.budget_notice,
    )


def completed_to_pb(done: Completed) -> inference_pb2.CompleteResponse:
    """A whole answer."""
    return inference_pb2.CompleteResponse(
        answer=answer_to_pb(done.answer), usage=usage_to_pb(done.usage), receipt=receipt_to_pb(done.receipt)
    )


def event_to_pb(event: Event) -> inference_pb2.StreamCompleteResponse:
    """One event of a stream."""
    match event:
        case Began(receipt):
            return inference_pb2.StreamCompleteResponse(started=inference_pb2.Started(receipt=receipt_to_pb(receipt)))
        case Ended(reason, usage, receipt):
            return inference_pb2.StreamCompleteResponse(
                finished=inference_pb2.Finished(
                    finish_reason=finish_reason_to_pb(reason), usage=usage_to_pb(usage), receipt=receipt_to_pb(receipt)
                )
            )
        case _:
            return inference_pb2.StreamCompleteResponse(delta=delta_to_pb(event))


def asked_tenant(
    pb: costs_pb2.QueryCostsRequest | costs_pb2.ExportRecordsRequest | costs_pb2.ListBudgetsRequest,
) -> str:
    """Whose costs are asked for: a tenant, "*" or nothing. Raises InvalidInput for what is no tenant's name."""
    check = Checker()
    check.need(bool(_TENANT.fullmatch(pb.tenant)), "tenant", 'at most 64 of A-Z a-z 0-9 . _ -, or "*"')
    check.done()
    return pb.tenant


def query_from_pb(pb: costs_pb2.QueryCostsRequest, tenant: str | None, now: float) -> CostQuery:
    """Which sums, of a tenant or of all (None). Raises InvalidInput."""
    check = Checker()
    start, end = _stretch(check, pb, now - 86_400, now + 3600)
    check.need(end - start <= MAX_HOURS * 3600, "from", f"at most {MAX_HOURS} hours can be summed at once")
    for i, dimension in enumerate(pb.group_by):
        check.need(dimension in _DIMENSIONS, f"group_by[{i}]", "is not a known dimension")
    check.need(len(set(pb.group_by)) == len(pb.group_by), "group_by", "names a dimension twice")
    check.need(len(pb.where) <= MAX_FILTERS, "where", f"at most {MAX_FILTERS} filters")
    for i, one in enumerate(pb.where):
        known = one.dimension in _DIMENSIONS
        if check.need(known, f"where[{i}].dimension", "is not a known dimension"):
            check.need(one.dimension not in _TIMES, f"where[{i}].dimension", "a time is no filter: use `from` and `to`")
        check.need(len(one.value) <= MAX_VALUE, f"where[{i}].value", f"at most {MAX_VALUE} characters")
    check.done()
    where = tuple((_DIMENSIONS[one.dimension], one.value) for one in pb.where)
    return CostQuery(start, end, tuple(_DIMENSIONS[d] for d in pb.group_by), tenant, where)


def stretch_from_pb(pb: costs_pb2.ExportRecordsRequest, now: float) -> tuple[float, float]:
    """From when up to and without when records are asked for, in unix seconds. Raises InvalidInput."""
    return _stretch(Checker(), pb, now - 86_400, now)


def _stretch(
    check: Checker, pb: costs_pb2.QueryCostsRequest | costs_pb2.ExportRecordsRequest, start: float, end: float
) -> tuple[float, float]:
    # `from` is a keyword, so the field is reached by name.
    times = []
    for name, otherwise in (("from", start), ("to", end)):
        stamp: Timestamp = getattr(pb, name)
        time = _seconds_of(stamp) if pb.HasField(name) else otherwise  # type: ignore[arg-type]
        check.need(0 <= time < MAX_TIME, name, "must lie between the years 1970 and 9999")
        times.append(time)
    check.done()
    check.need(times[0] < times[1], "to", "must be after `from`")
    return times[0], times[1]


def _seconds_of(pb: Timestamp | Duration) -> float:
    # Their own methods raise outside of their range, which is ours to name.
    return pb.seconds + pb.nanos / 1e9


def costs_to_pb(rows: Iterable[CostSum], total: CostSum, pending: int) -> costs_pb2.QueryCostsResponse:
    """The sums."""
    return costs_pb2.QueryCostsResponse(rows=[_row(row) for row in rows], total=_row(total), pending_records=pending)


def _row(row: CostSum) -> costs_pb2.CostRow:
    bill: usage_pb2.Bill = bill_to_pb(row.bill())
    return costs_pb2.CostRow(
        key=row.key,
        requests=row["requests"],
        unpriced_requests=row["unpriced"],
        bill=bill,
        usage=usage_to_pb(row.usage()),
    )


def record_to_pb(record: UsageRecord) -> costs_pb2.UsageRecord:
    """A record, without what it was reserved for."""
    return costs_pb2.UsageRecord(
        record_id=record.record_id,
        request_id=record.request_id,
        at=_stamp(record.at),
        tenant=record.tenant,
        namespace=record.namespace,
        endpoint=record.endpoint,
        user=record.user,
        model=record.model,
        tier=record.tier,
        outcome=record.outcome,
        error=record.error,
        kind=record.kind,
        usage=usage_to_pb(record.usage),
        bill=bill_to_pb(record.bill),
    )


def budget_to_pb(status: BudgetStatus) -> costs_pb2.Budget:
    """How a budget stands."""
    return costs_pb2.Budget(
        name=status.name,
        tenant=status.tenant,
        endpoint=status.endpoint,
        user=status.user,
        namespace=status.namespace,
        period=status.period,
        mode=_BUDGET_MODES[status.mode],
        limit_nanousd=status.limit,
        spent_nanousd=status.spent,
        reserved_nanousd=status.reserved,
        resets_at=_stamp(status.resets_at),
    )


def _stamp(at: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(round(at * 1e6))
    return stamp
