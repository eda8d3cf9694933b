"""Errors as OpenAI's clients understand them: status, type, code, the parameter, and whether to try again."""

from typing import Any

import grpc

from services.common.errors import BudgetExceeded, MeshError, TooLarge, UnknownModel
from services.edge.http.openai_request import param_of

_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
    grpc.StatusCode.PERMISSION_DENIED: (403, "permission_error"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    grpc.StatusCode.UNAVAILABLE: (503, "server_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "server_error"),
    grpc.StatusCode.UNIMPLEMENTED: (501, "server_error"),
}
_CODES = {
    "UNAUTHENTICATED": "invalid_api_key",
    "UNKNOWN_MODEL": "model_not_found",
    "BUDGET_EXCEEDED": "insufficient_quota",
}


def status_of(error: MeshError) -> int:
    """The HTTP status."""
    if isinstance(error, UnknownModel):
        return 404
    return 413 if isinstance(error, TooLarge) else _STATUS.get(error.status, (500, ""))[0]


def body_of(error: MeshError) -> dict[str, Any]:
    """The JSON body."""
    kind = (
        "insufficient_quota" if isinstance(error, BudgetExceeded) else _STATUS.get(error.status, (0, "server_error"))[1]
    )
    first = error.violations[0] if error.violations else None
    message = error.message
    if error.violations:
        message = "; ".join(f"{param_of(v.field)}: {v.description}" for v in error.violations)
    return {
        "error": {
            "message": message,
            "type": kind,
            "param": param_of(first.field) if first else None,
            "code": _CODES.get(error.reason, error.reason.lower()),
        }
    }


def headers_of(error: MeshError) -> dict[str, str]:
    """When and whether to try again; OpenAI's clients obey both."""
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if isinstance(resets := error.metadata.get("resets_at"), str):
        headers["x-llmmesh-resets-at"] = resets
    return headers
