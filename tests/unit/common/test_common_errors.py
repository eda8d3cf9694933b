"""The error table: every error travels as itself."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from services.common.errors import (
    STATUS_TRAILER,
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    NotReady,
    RateLimited,
    TooLarge,
    UnknownModel,
    Violation,
    from_rpc_error,
    table,
    to_status,
)

KINDS = sorted(table().values(), key=lambda kind: kind.reason)


def raised(status: status_pb2.Status | bytes, code=grpc.StatusCode.UNKNOWN) -> grpc.aio.AioRpcError:
    value = status if isinstance(status, bytes) else status.SerializeToString()
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata((STATUS_TRAILER, value)))


def make(kind: type[MeshError]) -> MeshError:
    if kind is InvalidInput:
        return InvalidInput(violations=[Violation("chat.messages", "is empty"), Violation("model", "is odd")])
    if kind is UnknownModel:
        return UnknownModel("no model is named x", field="model")
    return kind("it failed", retry_after_s=2.5, metadata={"wasted_nanousd": "12"})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.reason)
def test_an_error_arrives_as_it_was_raised(kind):
    error = make(kind)
    back = from_rpc_error(raised(to_status(error)))
    assert type(back) is kind
    assert back.message == error.message
    assert back.violations == error.violations
    assert back.retry_after_s == error.retry_after_s
    assert back.metadata == error.metadata
    # And once more, as it does from hop to hop.
    assert to_status(back) == to_status(error)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.reason)
def test_a_status_says_code_reason_and_whether_to_retry(kind):
    status = to_status(make(kind))
    assert status.code == kind.status.value[0] != 0
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain) == (kind.reason, "llmmesh")
    assert info.metadata["retryable"] == ("true" if kind.retryable else "false")


def test_a_status_fits_into_a_trailer():
    error = InvalidInput(violations=[Violation(f"chat.messages[{n}].parts[{n}].text", "is empty") for n in range(1000)])
    assert len(to_status(error).SerializeToString()) < 6000


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.UNAVAILABLE, NotReady),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, TooLarge),
        (grpc.StatusCode.INTERNAL, MeshError),
        (grpc.StatusCode.UNKNOWN, MeshError),
        (grpc.StatusCode.UNIMPLEMENTED, MeshError),
    ],
)
def test_a_failure_of_the_transport_becomes_the_nearest_error(code, kind):
    error = from_rpc_error(
        grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="10.0.0.1:7 down")
    )
    assert type(error) is kind
    assert "10.0.0.1" not in error.message


def test_details_that_are_not_ours_are_not_believed():
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason="RATE_LIMITED", domain="elsewhere"))
    foreign = status_pb2.Status(code=8, message="slow down", details=[info])
    assert type(from_rpc_error(raised(foreign, grpc.StatusCode.UNAVAILABLE))) is NotReady
    assert type(from_rpc_error(raised(b"\xff\xff\xff", grpc.StatusCode.UNAVAILABLE))) is NotReady


def test_a_wait_is_optional():
    assert from_rpc_error(raised(to_status(RateLimited("slow down")))).retry_after_s is None
