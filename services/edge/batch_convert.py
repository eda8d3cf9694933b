"""Protobuf to the edge's batches and back."""

import hashlib
from collections.abc import Sequence

from llmmesh.common.v1 import usage_pb2
from llmmesh.edge.v1 import batch_pb2
from services.common.chat_pb import Checker, answer_to_pb, chat_from_pb, check_names, usage_to_pb
from services.common.errors import InvalidInput, Violation
from services.edge.convert import REQUEST_ID, REQUEST_ID_FORM, control_from_pb, receipt_to_pb
from services.edge.domain.batch import Batch, BatchItem, BatchStatus, Outcome

MAX_ITEMS = 10_000
MAX_BYTES = 24 * 1024 * 1024
MAX_PAGE = 100
PAGE = 20
_STATUS = {
    BatchStatus.IN_PROGRESS: batch_pb2.BATCH_STATUS_IN_PROGRESS,
    BatchStatus.CANCELLING: batch_pb2.BATCH_STATUS_CANCELLING,
    BatchStatus.COMPLETED: batch_pb2.BATCH_STATUS_COMPLETED,
    BatchStatus.CANCELLED: batch_pb2.BATCH_STATUS_CANCELLED,
    BatchStatus.EXPIRED: batch_pb2.BATCH_STATUS_EXPIRED,
}


def batch_from_pb(
    pb: batch_pb2.CreateBatchRequest, tenant: str, batch_id: str, now: float
) -> tuple[Batch, list[BatchItem]]:
    """A new batch. Raises InvalidInput with the first fields that are wrong. Slow for a large one: call it off the loop."""
    check = Checker()
    count, size = len(pb.items), pb.ByteSize()
    check.need(1 <= count <= MAX_ITEMS, "items", f"1 to {MAX_ITEMS} items, got {count}")
    check.need(size <= MAX_BYTES, "items", f"at most {MAX_BYTES} bytes in all, got {size}")
    check.done()
    check_names(check, pb.namespace, pb.endpoint, pb.user)
    control = control_from_pb(check, pb)
    key = pb.idempotency_key
    check.need(not key or bool(REQUEST_ID.fullmatch(key)), "idempotency_key", "at most 128 visible ASCII characters")
    seen: dict[str, int] = {}
    items = []
    for i, item in enumerate(pb.items):
        check.need(bool(REQUEST_ID.fullmatch(item.custom_id)), f"items[{i}].custom_id", REQUEST_ID_FORM)
        first = seen.setdefault(item.custom_id, i)
        check.need(first == i, f"items[{i}].custom_id", f"is that of items[{first}] too")
        check.need(len(item.model) <= 128, f"items[{i}].model", "at most 128 characters")
        try:
            items.append(
                BatchItem(item.custom_id, chat_from_pb(item.chat, f"items[{i}].chat"), item.model or "auto", item.chat)
            )
        except InvalidInput as error:
            for violation in error.violations:
                check.need(False, violation.field, violation.description)
    check.done()
    batch = Batch(
        batch_id,
        tenant,
        count,
        now,
        pb.namespace or "default",
        pb.endpoint,
        pb.user,
        control,
        key,
        hashlib.sha256(pb.SerializeToString(deterministic=True)).hexdigest() if key else "",
    )
    return batch, items


def batch_to_pb(batch: Batch) -> batch_pb2.Batch:
    """A batch as it stands."""
    tally = batch.tally
    saved = dict(zip(("cache", "routing", "compression", "prompt_cache", "batch"), tally.savings, strict=True))
    pb = batch_pb2.Batch(
        id=batch.id,
        status=_STATUS[batch.status],
        namespace=batch.namespace,
        endpoint=batch.endpoint,
        counts=batch_pb2.BatchCounts(
            total=batch.total,
            answered=tally.answered,
            cached=tally.cached,
            failed=tally.failed,
            cancelled=tally.cancelled,
        ),
        bill=usage_pb2.Bill(
            actual_nanousd=tally.actual,
            baseline_nanousd=tally.baseline,
            savings=usage_pb2.Savings(**{f"{layer}_nanousd": amount for layer, amount in saved.items()}),
            overhead_nanousd=tally.overhead,
            unpriced=bool(tally.unpriced),
        ),
    )
    pb.created_at.FromMilliseconds(int(batch.created_at * 1000))
    pb.expires_at.FromMilliseconds(int(batch.expires_at * 1000))
    if batch.ended_at is not None:
        pb.ended_at.FromMilliseconds(int(batch.ended_at * 1000))
    return pb


def page_from_pb(pb: batch_pb2.ListBatchesRequest) -> tuple[int, str]:
    """Size and begin of a page. Raises InvalidInput."""
    check = Checker()
    check.need(0 <= pb.page_size <= MAX_PAGE, "page_size", f"1 to {MAX_PAGE}")
    check.need(not pb.page_token or bool(REQUEST_ID.fullmatch(pb.page_token)), "page_token", "is none of ours")
    check.done()
    return pb.page_size or PAGE, pb.page_token


def page_to_pb(batches: Sequence[Batch], size: int) -> batch_pb2.ListBatchesResponse:
    """A page of the tenant's batches."""
    more = batches[-1].id if len(batches) == size else ""
    return batch_pb2.ListBatchesResponse(batches=[batch_to_pb(batch) for batch in batches], next_page_token=more)


def id_from(value: str) -> str:
    """A batch's id. Raises InvalidInput."""
    if not REQUEST_ID.fullmatch(value):
        raise InvalidInput(violations=(Violation("id", REQUEST_ID_FORM),))
    return value


def outcome_to_pb(outcome: Outcome) -> batch_pb2.StreamBatchResultsResponse:
    """How an item ended."""
    pb = batch_pb2.StreamBatchResultsResponse(
        custom_id=outcome.custom_id,
        index=outcome.index,
        usage=usage_to_pb(outcome.usage),
        receipt=receipt_to_pb(outcome.receipt),
    )
    if outcome.answer is not None:
        pb.answer.CopyFrom(answer_to_pb(outcome.answer))
    else:
        reason, message = outcome.error
        pb.error.CopyFrom(batch_pb2.BatchItemError(reason=reason, message=message))
    return pb
