"""Vendors' batches, over the provider's gRPC contract."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from llmmesh.common.v1 import caller_pb2
from llmmesh.provider.v1 import batch_pb2, batch_pb2_grpc
from services.common.chat import Chat
from services.common.chat_pb import Caller, answer_from_pb, caller_to_pb, chat_to_pb, usage_from_pb
from services.common.errors import InvalidInput, StreamCut
from services.edge.adapters.peers import charge_from_pb, named_error, unary
from services.edge.domain.batch import (
    Batch,
    BatchModel,
    ItemAnswer,
    ItemFailure,
    ItemResult,
    Mode,
    Submission,
    VendorState,
)

_SHORT_S, _LONG_S = 90.0, 600.0  # a question to a vendor; a file to or from one
_MODES = {batch_pb2.BATCH_MODE_VENDOR: Mode.VENDOR, batch_pb2.BATCH_MODE_RUN: Mode.RUN}
_STATES = {
    batch_pb2.VENDOR_BATCH_STATE_COMPLETED: VendorState.COMPLETED,
    batch_pb2.VENDOR_BATCH_STATE_EXPIRED: VendorState.EXPIRED,
    batch_pb2.VENDOR_BATCH_STATE_CANCELLED: VendorState.CANCELLED,
    batch_pb2.VENDOR_BATCH_STATE_FAILED: VendorState.FAILED,
    batch_pb2.VENDOR_BATCH_STATE_GONE: VendorState.GONE,
}


class BatchProviderPeer:
    """The provider's BatchService."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = batch_pb2_grpc.BatchServiceStub(channel)

    async def models(self) -> Sequence[BatchModel]:
        request = batch_pb2.ListBatchModelsRequest()
        response = await unary(self._stub.ListBatchModels, request, batch_pb2.ListBatchModelsResponse, _SHORT_S)
        return [BatchModel(row.model, row.vendor, _MODES[row.mode]) for row in response.models if row.mode in _MODES]

    async def submit(
        self, batch: Batch, submission: Submission, chats: Mapping[int, Chat]
    ) -> tuple[str, list[ItemFailure]]:
        request = batch_pb2.SubmitBatchRequest(
            caller=_caller(batch),
            submission_id=submission.id,
            model=submission.model,
            vendor=submission.vendor,
            items=await asyncio.to_thread(_items, chats),
            not_after=_time(submission.not_after),
        )
        response = await unary(self._stub.SubmitBatch, request, batch_pb2.SubmitBatchResponse, _LONG_S)
        return response.vendor_batch_id, [_failure(result) for result in response.refused]

    async def find(self, submission: Submission) -> str:
        request = batch_pb2.FindVendorBatchRequest(
            submission_id=submission.id,
            vendor=submission.vendor,
            since=_time(submission.begun_at),
            not_after=_time(submission.not_after),
            items=len(submission.items),
        )
        response = await unary(self._stub.FindVendorBatch, request, batch_pb2.FindVendorBatchResponse, _LONG_S)
        return response.vendor_batch_id

    async def poll(self, submission: Submission) -> tuple[VendorState, int]:
        request = batch_pb2.PollBatchRequest(vendor=submission.vendor, vendor_batch_id=submission.vendor_batch_id)
        response = await unary(self._stub.PollBatch, request, batch_pb2.PollBatchResponse, _SHORT_S)
        return _STATES.get(response.state, VendorState.RUNNING), response.done_items

    async def results(self, submission: Submission, sent_tokens: Mapping[int, int]) -> AsyncGenerator[ItemResult]:
        request = batch_pb2.FetchBatchResultsRequest(
            submission_id=submission.id,
            model=submission.model,
            vendor=submission.vendor,
            vendor_batch_id=submission.vendor_batch_id,
            items=[
                batch_pb2.SentItem(id=str(index), estimated_input_tokens=tokens)
                for index, tokens in sent_tokens.items()
            ],
        )
        stream = self._stub.FetchBatchResults(request, timeout=_LONG_S)
        try:
            async for result in _results(stream):
                yield result
        finally:
            stream.cancel()

    async def cancel(self, submission: Submission) -> None:
        request = batch_pb2.CancelVendorBatchRequest(
            vendor=submission.vendor, vendor_batch_id=submission.vendor_batch_id
        )
        await unary(self._stub.CancelVendorBatch, request, batch_pb2.CancelVendorBatchResponse, _SHORT_S)

    async def run(
        self, batch: Batch, candidates: Sequence[str], chats: Mapping[int, Chat]
    ) -> AsyncGenerator[ItemResult]:
        request = batch_pb2.RunBatchRequest(
            caller=_caller(batch), candidates=candidates, items=await asyncio.to_thread(_items, chats)
        )
        # Without an end: the last item may be answered long after the first.
        stream = self._stub.RunBatch(request)
        try:
            async for result in _results(stream):
                yield result
        finally:
            stream.cancel()


async def _results(
    stream: AsyncIterable[batch_pb2.FetchBatchResultsResponse] | AsyncIterable[batch_pb2.RunBatchResponse],
) -> AsyncGenerator[ItemResult]:
    try:
        async for response in stream:
            yield _result(response.result)
    except grpc.aio.AioRpcError as error:
        raise named_error(error) from None


def _result(pb: batch_pb2.ItemResult) -> ItemResult:
    if pb.WhichOneof("result") != "answer":
        return _failure(pb)
    charge = charge_from_pb(pb.answer.charge)
    try:
        answer, usage = answer_from_pb(pb.answer.answer), usage_from_pb(pb.answer.usage)
    except (InvalidInput, StreamCut) as error:
        # It was paid for, and it is not the caller's fault.
        message = f"the model's answer is malformed: {error.message}"
        return ItemFailure(int(pb.id), "UPSTREAM_UNAVAILABLE", message, True, charge.cost + charge.wasted)
    return ItemAnswer(int(pb.id), answer, usage, charge, pb.answer.model)


def _failure(pb: batch_pb2.ItemResult) -> ItemFailure:
    failure = pb.failure
    return ItemFailure(int(pb.id), failure.reason, failure.message, failure.retryable, failure.wasted_nanousd)


def _items(chats: Mapping[int, Chat]) -> list[batch_pb2.SubmittedItem]:
    return [batch_pb2.SubmittedItem(id=str(index), chat=chat_to_pb(chat)) for index, chat in chats.items()]


def _caller(batch: Batch) -> caller_pb2.Caller:
    return caller_to_pb(Caller(batch.tenant, batch.namespace, batch.endpoint, batch.user, batch.id))


def _time(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMilliseconds(int(seconds * 1000))
    return stamp
