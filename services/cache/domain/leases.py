"""Leases: who may generate the answer of an exact key, and what the holder has generated so far.

A holder is a request at an edge. It publishes the pieces of its answer; others follow them from the first on. Each new holder
gets a greater token, and what comes with another token than the current one is refused.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

DEFAULT_TTL_S = 10.0
MAX_TTL_S = 60.0
KEY_BYTES = 32
MAX_HOLDER = 128


class LeaseLost(Exception):
    """The token is not the current one."""


class Release(StrEnum):
    """Why a lease is given up, if it is."""

    NOT_YET = ""
    STORED = "stored"  # who asks in the next moments, having missed it, is led to the answer
    UNSTORED = "unstored"  # complete, for those who follow already
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Lease:
    """Who may generate. `holder` and `token` are the current ones, empty and 0 without any.

    `followed`: somebody follows, or did so seconds ago.
    """

    acquired: bool
    holder: str = ""
    token: int = 0
    followed: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """What a holder published at once, opaque here; None: the holder is gone."""

    payload: bytes | None
    token: int


class Leases(Protocol):
    """Where leases are kept. Every method raises StoreUnavailable when it cannot be asked."""

    async def acquire(self, tenant: str, key: bytes, holder: str, ttl_s: float, *, keep_only: bool) -> Lease:
        """Takes a lease that nobody has, renews the holder's own; `keep_only` takes none."""
        ...

    async def publish(self, tenant: str, key: bytes, token: int, payload: bytes, release: Release) -> None:
        """Adds to what is published (nothing, where the payload is empty) and renews the lease, or gives it up.

        Raises LeaseLost.
        """
        ...

    def follow(self, tenant: str, key: bytes) -> AsyncGenerator[Published]:
        """What the current holder published, from the first on, and what it goes on to publish.

        Does not end by itself but after a payload of None.
        """
        ...
