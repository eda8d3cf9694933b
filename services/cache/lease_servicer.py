"""The lease RPCs of the cache."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc

from llmmesh.cache.v1 import cache_pb2
from llmmesh.common.v1 import caller_pb2
from services.cache.domain.leases import (
    DEFAULT_TTL_S,
    KEY_BYTES,
    MAX_HOLDER,
    MAX_TTL_S,
    LeaseLost,
    Leases,
    Release,
)
from services.cache.domain.ports import StoreUnavailable
from services.cache.unreachable import store_errors
from services.common.chat_pb import Checker, caller_from_pb
from services.common.errors import FailedPrecondition, NotReady

Context = grpc.aio.ServicerContext[Any, Any]


class LeaseServicer:
    """AcquireLease, PublishLease and FollowLease over `leases`, which the composition root sets."""

    leases: Leases

    async def AcquireLease(
        self, request: cache_pb2.AcquireLeaseRequest, context: Context
    ) -> cache_pb2.AcquireLeaseResponse:
        """Takes or keeps a lease."""
        tenant = _tenant(request.caller, request.exact_key)
        ttl_s = request.ttl.seconds + request.ttl.nanos / 1e9 if request.HasField("ttl") else DEFAULT_TTL_S
        check = Checker()
        check.need(0 < len(request.holder) <= MAX_HOLDER, "holder", f"1 to {MAX_HOLDER} characters")
        check.need(0.001 <= ttl_s <= MAX_TTL_S, "ttl", f"must be between 1 ms and {MAX_TTL_S:.0f} s")
        check.done()
        with store_errors():
            lease = await self.leases.acquire(
                tenant, request.exact_key, request.holder, ttl_s, keep_only=request.keep_only
            )
        return cache_pb2.AcquireLeaseResponse(
            acquired=lease.acquired, holder=lease.holder, fencing_token=lease.token, followed=lease.followed
        )

    async def PublishLease(
        self, request_iterator: AsyncIterator[cache_pb2.PublishLeaseRequest], context: Context
    ) -> cache_pb2.PublishLeaseResponse:
        """Passes a holder's pieces on. A holder that leaves without a word has failed: its followers hear of it at once."""
        lease: tuple[str, bytes, int] | None = None
        given_up = False
        try:
            async for request in request_iterator:
                if lease is None:
                    tenant = _tenant(request.caller, request.exact_key)
                    lease = (tenant, request.exact_key, request.fencing_token)
                release = _release_of(request)
                await self.leases.publish(*lease, _payload_of(request), release)
                if release:
                    given_up = True
                    break
        except LeaseLost:
            given_up = True
            raise FailedPrecondition("the lease is not held with this token any more") from None
        except StoreUnavailable:
            raise NotReady("the cache's store cannot be reached", retry_after_s=1.0) from None
        finally:
            if lease is not None and not given_up:
                # We may be here because the holder's process died: that must not cancel its last words.
                await asyncio.shield(self._fail(*lease))
        return cache_pb2.PublishLeaseResponse()

    async def FollowLease(
        self, request: cache_pb2.FollowLeaseRequest, context: Context
    ) -> AsyncIterator[cache_pb2.FollowLeaseResponse]:
        """The holder's pieces, then how the answer ended, or that the holder is gone."""
        tenant = _tenant(request.caller, request.exact_key)
        position = 0
        with store_errors():
            async with aclosing(self.leases.follow(tenant, request.exact_key)) as published:
                async for item in published:
                    said = cache_pb2.PublishLeaseRequest(release=item.payload is None)
                    if item.payload is not None:
                        said.ParseFromString(item.payload)
                    for delta in said.deltas:
                        yield cache_pb2.FollowLeaseResponse(delta=delta, position=position, fencing_token=item.token)
                        position += 1
                    if said.release:
                        last = cache_pb2.FollowLeaseResponse(position=position, fencing_token=item.token)
                        if said.HasField("entry"):
                            last.entry.CopyFrom(said.entry)
                        else:
                            last.leader_lost = True
                        yield last
                        return

    async def _fail(self, tenant: str, key: bytes, token: int) -> None:
        lost = cache_pb2.PublishLeaseRequest(release=True).SerializeToString()
        try:
            await self.leases.publish(tenant, key, token, lost, Release.FAILED)
        except (LeaseLost, StoreUnavailable):
            return  # it ends by itself


def _tenant(caller: caller_pb2.Caller, key: bytes) -> str:
    """On whose behalf. Raises InvalidInput for that or for a key that is none."""
    tenant = caller_from_pb(caller).tenant
    check = Checker()
    check.need(len(key) == KEY_BYTES, "exact_key", f"must be {KEY_BYTES} bytes")
    check.done()
    return tenant


def _release_of(request: cache_pb2.PublishLeaseRequest) -> Release:
    """Whether the lease is given up, and why. Raises InvalidInput for an entry without its end."""
    complete = request.HasField("entry")
    check = Checker()
    check.need(request.release or not complete, "entry", "comes with the release")
    check.need(complete or not request.entry_id, "entry_id", "comes with the entry")
    check.done()
    if not request.release:
        return Release.NOT_YET
    if not complete:
        return Release.FAILED
    return Release.STORED if request.entry_id else Release.UNSTORED


def _payload_of(request: cache_pb2.PublishLeaseRequest) -> bytes:
    """What followers get; empty when it says no more than that the holder lives."""
    if not (request.deltas or request.release):
        return b""
    return cache_pb2.PublishLeaseRequest(
        deltas=request.deltas,
        release=request.release,
        entry=request.entry if request.HasField("entry") else None,
    ).SerializeToString()
