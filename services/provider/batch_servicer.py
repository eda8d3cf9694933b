"""BatchService of the provider."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

import grpc

from llmmesh.provider.v1 import batch_pb2, batch_pb2_grpc
from services.common.chat_pb import caller_from_pb, require
from services.provider import batch_convert as convert
from services.provider.convert import MAX_CANDIDATES
from services.provider.domain.batch import BatchDesk

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]


class BatchServicer(batch_pb2_grpc.BatchServiceServicer):
    """Vendors' batch APIs."""

    def __init__(self, desk: BatchDesk) -> None:
        self._desk = desk

    async def ListBatchModels(
        self, request: batch_pb2.ListBatchModelsRequest, context: Context
    ) -> batch_pb2.ListBatchModelsResponse:
        return convert.models_response(self._desk.modes)

    async def SubmitBatch(
        self, request: batch_pb2.SubmitBatchRequest, context: Context
    ) -> batch_pb2.SubmitBatchResponse:
        caller_from_pb(request.caller)
        submission_id = convert.submission_from(request.submission_id)
        not_after = convert.time_from(request.not_after, "not_after")
        # Off the loop: checking thousands of chats would hold up everybody else.
        items = await asyncio.to_thread(convert.items_from, request.items, convert.MAX_ITEMS)
        submitting = self._desk.submit(submission_id, request.vendor, request.model, items, not_after)
        batch_id, refused = await _told(submitting)
        results = [convert.result_to_pb(failure) for failure in refused]
        return batch_pb2.SubmitBatchResponse(vendor_batch_id=batch_id, refused=results)

    async def FindVendorBatch(
        self, request: batch_pb2.FindVendorBatchRequest, context: Context
    ) -> batch_pb2.FindVendorBatchResponse:
        found = await _told(self._desk.find(request.vendor, convert.sought_from(request)))
        return batch_pb2.FindVendorBatchResponse(vendor_batch_id=found or "")

    async def PollBatch(self, request: batch_pb2.PollBatchRequest, context: Context) -> batch_pb2.PollBatchResponse:
        require(bool(request.vendor_batch_id), "vendor_batch_id", "must be set")
        state, done = await _told(self._desk.poll(request.vendor, request.vendor_batch_id))
        return convert.poll_response(state, done)

    async def FetchBatchResults(
        self, request: batch_pb2.FetchBatchResultsRequest, context: Context
    ) -> AsyncIterator[batch_pb2.FetchBatchResultsResponse]:
        require(bool(request.vendor_batch_id), "vendor_batch_id", "must be set")
        submission_id, sent = convert.submission_from(request.submission_id), convert.sent_from(request.items)
        found = self._desk.results(submission_id, request.vendor, request.model, request.vendor_batch_id, sent)
        try:
            async with aclosing(found) as results:
                async for result in results:
                    yield batch_pb2.FetchBatchResultsResponse(result=convert.result_to_pb(result))
        except convert.BATCH_ERRORS as error:
            raise convert.batch_error_of(error) from error

    async def CancelVendorBatch(
        self, request: batch_pb2.CancelVendorBatchRequest, context: Context
    ) -> batch_pb2.CancelVendorBatchResponse:
        require(bool(request.vendor_batch_id), "vendor_batch_id", "must be set")
        await _told(self._desk.cancel(request.vendor, request.vendor_batch_id))
        return batch_pb2.CancelVendorBatchResponse()

    async def RunBatch(
        self, request: batch_pb2.RunBatchRequest, context: Context
    ) -> AsyncIterator[batch_pb2.RunBatchResponse]:
        caller = caller_from_pb(request.caller)
        count = len(request.candidates)
        require(1 <= count <= MAX_CANDIDATES, "candidates", f"1 to {MAX_CANDIDATES} models, got {count}")
        items = await asyncio.to_thread(convert.items_from, request.items, convert.MAX_RUN_ITEMS)
        try:
            async with aclosing(self._desk.run(caller, request.candidates, items)) as results:
                async for result in results:
                    yield batch_pb2.RunBatchResponse(result=convert.result_to_pb(result))
        except convert.BATCH_ERRORS as error:
            raise convert.batch_error_of(error) from error


async def _told(call: Awaitable[T]) -> T:
    try:
        return await call
    except convert.BATCH_ERRORS as error:
        raise convert.batch_error_of(error) from error
