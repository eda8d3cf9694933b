"""Channels to the other services: client-side balancing, quick reconnection, trace context and deadline on each call."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from services.common import telemetry
from services.common.deadline import remaining

__all__ = ["open_channel", "outgoing_metadata", "remaining"]

MAX_MESSAGE_BYTES = 32 * 1024 * 1024

_OPTIONS = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Not shared between channels: a failure of another's, on a port that was reused, is none of ours.
    ("grpc.use_local_subchannel_pool", 1),
    # A service that comes back is used again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In spite of its name: how long one attempt to connect may take. A busy machine needs more than a moment.
    ("grpc.min_reconnect_backoff_ms", 3000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Retries are decided in one place, the provider service; never behind our back.
    ("grpc.enable_retries", 0),
]


@asynccontextmanager
async def open_channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to `host:port` or `dns:///name:port`. Connects when first used; calls fail fast while there is no one."""
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        yield channel


def outgoing_metadata() -> tuple[tuple[str, str], ...]:
    """Metadata for a call to another service of the mesh: the trace goes on there."""
    return telemetry.inject(telemetry.span())
