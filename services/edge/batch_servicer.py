"""BatchService of the edge."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable

from llmmesh.edge.v1 import batch_pb2, batch_pb2_grpc
from services.common.clock import Clock
from services.common.errors import UnknownBatch
from services.edge import batch_convert as convert
from services.edge.adapters.redis_batches import RedisBatches
from services.edge.domain.batch import Batch, Ref
from services.edge.domain.keys import Key, Keys, Limits, Scope
from services.edge.servicer import Context, headers_of

FOLLOW_S = 1.0  # between two looks for more results
PAGE = 100  # results that are read at once


class BatchServicer(batch_pb2_grpc.BatchServiceServicer):
    """Takes batches on, and tells what became of them. Who goes on with them is the worker."""

    def __init__(
        self,
        store: RedisBatches,
        keys: Keys,
        limits: Limits,
        clock: Clock,
        check_namespace: Callable[[str], object],
        wake: Callable[[], None],
    ) -> None:
        """`check_namespace` raises InvalidInput for one that the policy lacks; `wake` hears that there is a new batch."""
        self._store = store
        self._keys = keys
        self._limits = limits
        self._clock = clock
        self._check_namespace = check_namespace
        self._wake = wake

    async def CreateBatch(
        self, request: batch_pb2.CreateBatchRequest, context: Context
    ) -> batch_pb2.CreateBatchResponse:
        key = self._key(context)
        # One request, whatever the number of its items: those wait for their turn anyway.
        await self._limits.admit(key)
        tenant, batch_id = key.tenant, f"batch_{uuid.uuid4().hex}"
        # Off the loop: checking thousands of chats would hold up everybody else.
        batch, items = await asyncio.to_thread(convert.batch_from_pb, request, tenant, batch_id, self._clock.now())
        self._check_namespace(batch.namespace)
        made = await self._store.create(batch, items)
        self._wake()
        return batch_pb2.CreateBatchResponse(batch=convert.batch_to_pb(made))

    async def GetBatch(self, request: batch_pb2.GetBatchRequest, context: Context) -> batch_pb2.GetBatchResponse:
        _, batch = await self._find(request.id, context)
        return batch_pb2.GetBatchResponse(batch=convert.batch_to_pb(batch))

    async def ListBatches(
        self, request: batch_pb2.ListBatchesRequest, context: Context
    ) -> batch_pb2.ListBatchesResponse:
        tenant = self._key(context).tenant
        size, after = convert.page_from_pb(request)
        return convert.page_to_pb(await self._store.page(tenant, size, after), size)

    async def StreamBatchResults(
        self, request: batch_pb2.StreamBatchResultsRequest, context: Context
    ) -> AsyncIterator[batch_pb2.StreamBatchResultsResponse]:
        ref, batch = await self._find(request.id, context)
        sent: set[int] = set()
        while True:
            fresh = [index for index in await self._store.ended(ref) if index not in sent]
            for start in range(0, len(fresh), PAGE):
                for result in await self._store.results(ref, fresh[start : start + PAGE]):
                    yield result
            sent.update(fresh)
            # Its status was read before the results: what came between is seen in the next round.
            if batch.status.ended or not request.follow or context.cancelled():
                return
            await asyncio.sleep(FOLLOW_S)
            batch = await self._known(ref)

    async def CancelBatch(
        self, request: batch_pb2.CancelBatchRequest, context: Context
    ) -> batch_pb2.CancelBatchResponse:
        ref, _ = await self._find(request.id, context)
        batch = await self._store.cancel(ref) or await self._known(ref)
        self._wake()
        return batch_pb2.CancelBatchResponse(batch=convert.batch_to_pb(batch))

    async def _find(self, batch_id: str, context: Context) -> tuple[Ref, Batch]:
        """A batch of whoever asks. Raises UnknownBatch."""
        ref = Ref(self._key(context).tenant, convert.id_from(batch_id))
        return ref, await self._known(ref)

    async def _known(self, ref: Ref) -> Batch:
        batch = await self._store.get(ref)
        if batch is None:
            raise UnknownBatch("there is no such batch, or it ended more than 7 days ago")
        return batch

    def _key(self, context: Context) -> Key:
        authorization, _ = headers_of(context)
        return self._keys.identify(authorization, Scope.INFERENCE)
