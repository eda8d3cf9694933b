"""Every error that a caller can see, in one table: status, reason, whether a retry can help, public message.

Raise these anywhere; the server interceptor turns them into a gRPC status with `ErrorInfo` (domain `llmmesh`), `BadRequest`
and `RetryInfo` details. Any other exception reaches the caller as a bare INTERNAL and our log as a traceback.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "llmmesh"


@dataclass(frozen=True)
class Violation:
    """One field that is wrong: its path in the request, and what is expected of it."""

    field: str
    description: str


class MeshError(Exception):
    """An error with a name. `message` is public: it holds no prompt text, secret or internal address."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        retry_after_s: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.metadata = metadata or {}


class InvalidInput(MeshError):
    """The request itself is wrong; `violations` names the fields."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_INPUT"

    def __init__(self, message: str = "", *, violations: Sequence[Violation]) -> None:
        first = "; ".join(f"{v.field}: {v.description}" for v in violations[:3])
        super().__init__(message or f"invalid request: {first}", violations=violations)


class UnknownModel(MeshError):
    """Neither the policy nor the price book has this model."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "UNKNOWN_MODEL"

    def __init__(self, message: str, *, field: str = "model") -> None:
        super().__init__(message, violations=(Violation(field, message),))


class UnknownBatch(MeshError):
    """The tenant has no such batch, or has it no more."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_BATCH"


class Unauthenticated(MeshError):
    """No credential, or one that is not known."""

    status = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class PermissionDenied(MeshError):
    """The key is known and lacks the right; the message names the scope."""

    status = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class UnknownKey(MeshError):
    """No key has this id."""

    status = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_KEY"


class BudgetExceeded(MeshError):
    """The tenant's budget is spent; `metadata` says when it resets."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "BUDGET_EXCEEDED"


class RateLimited(MeshError):
    """We or a vendor limit the caller; `retry_after_s` says for how long where it is known."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMITED"
    retryable = True


class TooLarge(MeshError):
    """The request exceeds a size limit that no field names."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    reason = "TOO_LARGE"


class NotReady(MeshError):
    """A part of the service is missing or still loading."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "NOT_READY"
    retryable = True


class FailedPrecondition(MeshError):
    """The service is not set up for this."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"


class VerifierNotLoaded(FailedPrecondition):
    """Pairs were to be scored and no verifier model is loaded."""

    reason = "VERIFIER_NOT_LOADED"


class ModelNotLoaded(FailedPrecondition):
    """The named embedding model is not loaded here."""

    reason = "MODEL_NOT_LOADED"


class UpstreamUnavailable(MeshError):
    """A vendor could not be reached, timed out, answered 5xx or answered nonsense."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "UPSTREAM_UNAVAILABLE"
    retryable = True


class UpstreamRejected(MeshError):
    """A vendor refused the request as it stands; another attempt there cannot help."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPSTREAM_REJECTED"


class UpstreamCredential(MeshError):
    """A vendor refused our key."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPSTREAM_CREDENTIAL"


class AllCandidatesFailed(MeshError):
    """No candidate answered; the message names what was tried."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "ALL_CANDIDATES_FAILED"
    retryable = True


class StreamCut(MeshError):
    """The answer broke off after it had begun."""

    status = grpc.StatusCode.UNAVAILABLE
    reason = "STREAM_CUT"
    retryable = True


class DeadlineExceeded(MeshError):
    """The caller's deadline passed."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    retryable = True


class Unimplemented(MeshError):
    """The method is part of the contract, and this version of the service does not have it."""

    status = grpc.StatusCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


def _subclasses(kind: type[MeshError]) -> list[type[MeshError]]:
    return [kind, *(deep for sub in kind.__subclasses__() for deep in _subclasses(sub))]


def table() -> dict[str, type[MeshError]]:
    """All errors by reason."""
    return {kind.reason: kind for kind in _subclasses(MeshError)}


def of_reason(reason: str, message: str) -> MeshError:
    """The error of that reason; a bare MeshError for one that is not in the table."""
    kind = table().get(reason, MeshError)
    error = kind.__new__(kind)
    MeshError.__init__(error, message)
    return error


def to_status(error: MeshError) -> status_pb2.Status:
    """The rich status that travels in the trailing metadata."""
    details: list[any_pb2.Any] = []

    def add(message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo) -> None:
        packed = any_pb2.Any()
        packed.Pack(message)
        details.append(packed)

    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    info.metadata["retryable"] = "true" if error.retryable else "false"
    add(info)
    if error.violations:
        # The trailer has a size limit: name the first few fields.
        add(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                    for v in error.violations[:16]
                ]
            )
        )
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        add(error_details_pb2.RetryInfo(retry_delay=delay))
    code: int = error.status.value[0]
    return status_pb2.Status(code=code, message=error.message, details=details)


STATUS_TRAILER = "grpc-status-details-bin"


def from_rpc_error(error: grpc.aio.AioRpcError) -> MeshError:
    """The error that a peer of the mesh raised, or the nearest one for a transport failure."""
    for key, value in error.trailing_metadata() or ():
        if key == STATUS_TRAILER and isinstance(value, bytes):
            # A proxy on the way may have put anything there.
            with suppress(DecodeError):
                rebuilt = _from_status(status_pb2.Status.FromString(value))
                if rebuilt is not None:
                    return rebuilt
    code = error.code()
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded("the deadline passed")
    # A server that stops cancels what it did not begin and, once its grace is over, what it did not end.
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return NotReady("the service cannot be reached")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooLarge("a message exceeds the size limit")
    return MeshError("a service of the mesh failed")


def _from_status(status: status_pb2.Status) -> MeshError | None:
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    for detail in status.details:
        for target in (info, bad, retry):
            detail.Unpack(target)
    kind = table().get(info.reason)
    if kind is None or info.domain != DOMAIN:
        return None
    error = kind.__new__(kind)
    MeshError.__init__(
        error,
        status.message,
        violations=[Violation(v.field, v.description) for v in bad.field_violations],
        retry_after_s=retry.retry_delay.ToNanoseconds() / 1e9 if retry.HasField("retry_delay") else None,
        metadata={k: v for k, v in info.metadata.items() if k != "retryable"},
    )
    return error
