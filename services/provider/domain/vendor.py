"""What the provider asks of a vendor, and what it tells those who watch."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from services.common.chat import Chat, Delta, FinishReason
from services.common.chat_pb import Caller
from services.common.money import Usage
from services.provider.domain.charge import Charge, Compute
from services.provider.domain.prompt_cache import NO_HINTS, CacheHints, PromptCacheReport


class Reason(StrEnum):
    """Why an attempt failed. The values are the reasons of the error table."""

    RATE_LIMITED = "RATE_LIMITED"
    UNAVAILABLE = "UPSTREAM_UNAVAILABLE"
    REJECTED = "UPSTREAM_REJECTED"
    INVALID_INPUT = "INVALID_INPUT"
    CREDENTIAL = "UPSTREAM_CREDENTIAL"
    CUT = "STREAM_CUT"
    DEADLINE = "DEADLINE_EXCEEDED"

    @property
    def may_pass(self) -> bool:
        """Whether the same vendor may answer the same request later."""
        return self in (Reason.RATE_LIMITED, Reason.UNAVAILABLE, Reason.CUT, Reason.DEADLINE)

    @property
    def is_fault(self) -> bool:
        """Whether it says that the vendor is ill."""
        return self in (Reason.UNAVAILABLE, Reason.CUT)


class VendorError(Exception):
    """An attempt failed. The message is public: it names no key, no address and nothing of the prompt.

    `billed`: the vendor has probably computed, and will charge for, what it did not deliver.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after_s: float | None = None,
        field: str = "chat",
        billed: bool = False,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.field = field
        self.billed = billed


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a vendor: `model` is the vendor's id; `trace` holds the headers that continue the trace.

    `timeout_s` is how long a stream may be silent, or how long a whole answer may take; `deadline_s` is when the caller's
    deadline passes, None without one. Both are in seconds from the call's begin. `hints` say what the vendor may keep.
    """

    model: str
    chat: Chat
    caller: Caller
    streaming: bool
    timeout_s: float
    deadline_s: float | None = None
    trace: tuple[tuple[str, str], ...] = ()
    hints: CacheHints = NO_HINTS


@dataclass(frozen=True, slots=True)
class Completion:
    """The vendor's answer is whole. `usage` is None where it reports none; `compute` is set by our own engine."""

    finish_reason: FinishReason
    usage: Usage | None
    model: str
    compute: Compute | None = None


class Vendor(Protocol):
    """A place where models answer."""

    def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        """The pieces of the answer, then `Completion`. Without streaming the pieces come when all is there.

        Closing the generator cancels the call at the vendor. Raises VendorError; a stream that was cut raises it too and
        never yields `Completion`.
        """
        ...


class AttemptWatch(Protocol):
    """Sees one attempt from begin to end."""

    @property
    def trace(self) -> tuple[tuple[str, str], ...]:
        """Headers that continue the trace below the attempt."""
        ...

    def began(self) -> None:
        """The first piece of an answer came."""
        ...

    def answered(self, completion: Completion, usage: Usage, charge: Charge) -> None:
        """The attempt gave the answer."""
        ...

    def kept(self, report: PromptCacheReport) -> None:
        """What came of the prompt's prefix, after the answer."""
        ...

    def failed(self, reason: Reason, cost_nanousd: int) -> None:
        """The attempt failed, having cost this much."""
        ...

    def cancelled(self, cost_nanousd: int, wasted_nanousd: int) -> None:
        """The caller left. The attempt cost about this much, and with the failed ones before it `wasted_nanousd`."""
        ...

    def lost(self, cost_nanousd: int) -> None:
        """Another candidate was faster, and this one was cancelled, having cost about this much."""
        ...

    def end(self) -> None:
        """The attempt is over."""
        ...


class Watch(Protocol):
    """Sees all attempts."""

    def attempt(self, model: str, vendor: str, number: int) -> AttemptWatch:
        """An attempt begins, the `number`-th of its request, from 1."""
        ...

    def passed_over(self, vendor: str, why: str, wait_s: float) -> None:
        """A vendor was not called though it was its turn, and may be in `wait_s` seconds. `why`: "slots" or "limits"."""
        ...

    def not_served(self, model: str) -> None:
        """A candidate was passed over because no vendor serves it."""
        ...
