"""Protobuf to the provider's batches and back."""

import re
from collections.abc import Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from llmmesh.provider.v1 import batch_pb2, provider_pb2
from services.common.chat import Chat
from services.common.chat_pb import (
    Checker,
    answer_to_pb,
    chat_from_pb,
    component_to_pb,
    rates_to_pb,
    require,
    usage_to_pb,
)
from services.common.errors import FailedPrecondition, MeshError, NotReady, UnknownModel, UpstreamUnavailable, table
from services.provider.convert import DOMAIN_ERRORS, error_of
from services.provider.domain.batch import (
    BatchMode,
    BatchState,
    CannotTellError,
    ItemAnswer,
    ItemResult,
    SentItem,
    Sought,
    TooLateError,
    UnknownVendor,
)
from services.provider.domain.vendor import VendorError

MAX_ITEMS = 10_000
MAX_RUN_ITEMS = 1_000
_SUBMISSION = re.compile(r"[A-Za-z0-9]{8,40}")
_ITEM = re.compile(r"[A-Za-z0-9]{1,16}")
_STATES = {
    BatchState.RUNNING: batch_pb2.VENDOR_BATCH_STATE_RUNNING,
    BatchState.COMPLETED: batch_pb2.VENDOR_BATCH_STATE_COMPLETED,
    BatchState.EXPIRED: batch_pb2.VENDOR_BATCH_STATE_EXPIRED,
    BatchState.CANCELLED: batch_pb2.VENDOR_BATCH_STATE_CANCELLED,
    BatchState.FAILED: batch_pb2.VENDOR_BATCH_STATE_FAILED,
    BatchState.GONE: batch_pb2.VENDOR_BATCH_STATE_GONE,
}
_MODES = {BatchMode.VENDOR: batch_pb2.BATCH_MODE_VENDOR, BatchMode.RUN: batch_pb2.BATCH_MODE_RUN}

BATCH_ERRORS = (VendorError, CannotTellError, TooLateError, UnknownVendor, *DOMAIN_ERRORS)


def submission_from(value: str) -> str:
    """The id of a submission. Raises InvalidInput."""
    require(bool(_SUBMISSION.fullmatch(value)), "submission_id", "8 to 40 of A-Z a-z 0-9")
    return value


def items_from(items: Sequence[batch_pb2.SubmittedItem], at_most: int) -> dict[str, Chat]:
    """Chats by item. Raises InvalidInput."""
    _check_ids([item.id for item in items], at_most)
    return {item.id: chat_from_pb(item.chat, f"items[{i}].chat") for i, item in enumerate(items)}


def sent_from(items: Sequence[batch_pb2.SentItem]) -> list[SentItem]:
    """The items whose results are wanted. Raises InvalidInput."""
    _check_ids([item.id for item in items], MAX_ITEMS)
    return [SentItem(item.id, max(item.estimated_input_tokens, 0)) for item in items]


def sought_from(pb: batch_pb2.FindVendorBatchRequest) -> Sought:
    """The submission to look for. Raises InvalidInput."""
    since, until = time_from(pb.since, "since"), time_from(pb.not_after, "not_after")
    return Sought(submission_from(pb.submission_id), since, until, pb.items)


def time_from(pb: Timestamp, field: str) -> float:
    """Seconds since the Unix epoch. Raises InvalidInput for a time that is not set."""
    require(pb.seconds > 0, field, "must be set")
    return pb.seconds + pb.nanos / 1e9


def models_response(models: Sequence[tuple[str, str, BatchMode]]) -> batch_pb2.ListBatchModelsResponse:
    """How each model takes batches."""
    return batch_pb2.ListBatchModelsResponse(
        models=[batch_pb2.BatchModel(model=model, vendor=vendor, mode=_MODES[mode]) for model, vendor, mode in models]
    )


def poll_response(state: BatchState, done: int) -> batch_pb2.PollBatchResponse:
    """How far a vendor's batch is."""
    return batch_pb2.PollBatchResponse(state=_STATES[state], done_items=done)


def result_to_pb(result: ItemResult) -> batch_pb2.ItemResult:
    """The result of an item."""
    if not isinstance(result, ItemAnswer):
        failure = batch_pb2.ItemFailure(
            reason=result.reason,
            message=result.message,
            retryable=result.retryable,
            wasted_nanousd=result.wasted,
        )
        return batch_pb2.ItemResult(id=result.id, failure=failure)
    charge = result.charge
    pb = provider_pb2.Charge(
        component=component_to_pb(charge.component), unpriced=charge.unpriced, wasted_nanousd=result.wasted
    )
    if not charge.unpriced:
        pb.cost_nanousd = charge.cost
        pb.batch_discount_nanousd = charge.batch_discount
        pb.rates.CopyFrom(rates_to_pb(charge.rates))
    answer = batch_pb2.ItemAnswer(
        answer=answer_to_pb(result.answer), usage=usage_to_pb(result.usage), charge=pb, model=result.model
    )
    return batch_pb2.ItemResult(id=result.id, answer=answer)


def batch_error_of(error: Exception) -> MeshError:
    """What the caller gets to see. UNAVAILABLE with UPSTREAM_UNAVAILABLE leaves open what the vendor did."""
    match error:
        case UnknownVendor():
            return UnknownModel(str(error), field="vendor")
        case CannotTellError():
            return NotReady("the vendor cannot tell yet whether it has this submission")
        case TooLateError():
            return FailedPrecondition("the submission came too late to be sent")
        case VendorError():
            kind = table().get(error.reason.value, UpstreamUnavailable)
            if kind.reason in ("INVALID_INPUT", "STREAM_CUT"):
                kind = table()["UPSTREAM_REJECTED"] if kind.reason == "INVALID_INPUT" else UpstreamUnavailable
            return kind(error.message, retry_after_s=error.retry_after_s)
    return error_of(error)


def _check_ids(ids: Sequence[str], at_most: int) -> None:
    require(1 <= len(ids) <= at_most, "items", f"1 to {at_most} items, got {len(ids)}")
    check = Checker()
    for i, id_ in enumerate(ids):
        check.need(bool(_ITEM.fullmatch(id_)), f"items[{i}].id", "1 to 16 of A-Z a-z 0-9")
    check.need(len(set(ids)) == len(ids), "items", "ids must be unique")
    check.done()
