"""What surrounds every RPC, in one layer for all four shapes: span, deadline, errors, malformed bytes.

One layer and not four, because on the hot path each costs more than the cache lookup it surrounds.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import cache
from typing import Any, Protocol, cast

import grpc
import structlog
from google.protobuf.message import DecodeError
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanKind, Status, StatusCode, Tracer

from services.common import metrics, telemetry
from services.common.deadline import set_remaining
from services.common.errors import STATUS_TRAILER, InvalidInput, MeshError, Unimplemented, Violation, to_status

log = structlog.get_logger()

DEFAULT_DEADLINE_S = 600.0  # of a call that brings none

Context = grpc.aio.ServicerContext[Any, Any]


class _Handler(Protocol):
    request_streaming: bool
    response_streaming: bool
    request_deserializer: Callable[[bytes], Any] | None
    response_serializer: Callable[[Any], bytes] | None
    unary_unary: Callable[[Any, Context], Awaitable[Any]] | None
    unary_stream: Callable[[Any, Context], AsyncIterator[Any]] | None
    stream_unary: Callable[[Any, Context], Awaitable[Any]] | None
    stream_stream: Callable[[Any, Context], AsyncIterator[Any]] | None


class Registrar:
    """Stands in for the server where a stub's `add_…_to_server` registers handlers, and puts everything around each of them.

    gRPC's own interceptors would be asked at every call; a handler is wrapped once. Health and reflection need none of it.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _handlers: Sequence[Any]) -> None:
        """Nothing: the stubs register the same handlers by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Registers the handlers of a service, wrapped."""
        wrapped = {method: _wrap(handler, f"{service}/{method}") for method, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, wrapped)


def _wrap(handler: _Handler, name: str) -> Any:
    """The handler with everything around it. It deserialises itself, so that malformed bytes are a named error."""
    parse = handler.request_deserializer or (lambda data: data)
    tracer = trace.get_tracer("llmmesh")

    async def unary_unary(data: bytes, context: Context) -> Any:
        async with _Scope(tracer, name, context):
            return await cast(Any, handler.unary_unary)(_parse(parse, data), context)

    async def unary_stream(data: bytes, context: Context) -> AsyncIterator[Any]:
        # Closed with the call, not when the collector comes by: a cancelled answer settles its cost at once.
        async with (
            _Scope(tracer, name, context),
            aclosing(cast(Any, handler.unary_stream)(_parse(parse, data), context)) as responses,
        ):
            async for response in responses:
                yield response

    async def stream_unary(stream: AsyncIterator[bytes], context: Context) -> Any:
        async with _Scope(tracer, name, context):
            return await cast(Any, handler.stream_unary)((_parse(parse, data) async for data in stream), context)

    async def stream_stream(stream: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        async with _Scope(tracer, name, context):
            requests = (_parse(parse, data) async for data in stream)
            async with aclosing(cast(Any, handler.stream_stream)(requests, context)) as responses:
                async for response in responses:
                    yield response

    serializer = handler.response_serializer
    if handler.request_streaming:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(cast(Any, stream_stream), None, serializer)
        return grpc.stream_unary_rpc_method_handler(cast(Any, stream_unary), None, serializer)
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(cast(Any, unary_stream), None, serializer)
    return grpc.unary_unary_rpc_method_handler(cast(Any, unary_unary), None, serializer)


def _parse(parse: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError:
        description = "is not a valid message of this type: malformed protobuf or text that is not UTF-8"
        raise InvalidInput(violations=(Violation("request", description),)) from None


class _Scope:
    """One RPC: its span is current inside, its deadline is set, and what it raises becomes a status."""

    __slots__ = ("_began", "_code", "_context", "_method", "_span", "_token", "_tracer")

    def __init__(self, tracer: Tracer, method: str, context: Context) -> None:
        self._tracer = tracer
        self._method = method
        self._context = context

    async def __aenter__(self) -> None:
        parent, state = None, None
        for key, value in self._context.invocation_metadata() or ():
            if key == "traceparent":
                parent = value
            elif key == "tracestate":
                state = value
        remote = telemetry.extract(str(parent), None if state is None else str(state)) if parent else None
        above = trace.set_span_in_context(NonRecordingSpan(remote)) if remote else otel_context.Context()
        self._span: Span = self._tracer.start_span(self._method, context=above, kind=SpanKind.SERVER)
        self._token = otel_context.attach(trace.set_span_in_context(self._span, above))
        self._began, self._code = time.perf_counter(), "OK"
        left = self._context.time_remaining()
        set_remaining(DEFAULT_DEADLINE_S if left is None else left)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: object) -> None:
        try:
            if error is None:
                return
            if isinstance(error, grpc.aio.AbortError | GeneratorExit):
                self._code = "CANCELLED" if isinstance(error, GeneratorExit) else "ABORTED"
                return
            named = error if isinstance(error, MeshError) else None
            if isinstance(error, NotImplementedError):
                named = Unimplemented("this version of the service does not have this method")
            reason = named.reason if named else "CANCELLED" if not isinstance(error, Exception) else "INTERNAL"
            self._span.set_status(Status(StatusCode.ERROR, reason))
            self._span.set_attribute(telemetry.ERROR_TYPE, reason)
            if named is None and isinstance(error, Exception):
                log.error("unexpected_error", method=self._method, exc_info=error)
                named = MeshError("an internal error occurred; its trace id finds it in the log")
            self._code = named.status.name if named else "CANCELLED"
            if named is not None:
                await _abort(self._context, named)
        finally:
            _took(self._method, self._code)(time.perf_counter() - self._began)
            self._span.end()
            _detach(self._token)


@cache
def _took(method: str, code: str) -> Callable[[float], None]:
    return metrics.RPC_SECONDS.labels(method, code).observe


def _detach(token: Any) -> None:
    # A cancelled stream's generator may be closed from another task, whose context never held our span.
    with suppress(ValueError):
        otel_context._RUNTIME_CONTEXT.detach(token)


async def _abort(context: Context, error: MeshError) -> None:
    """Ends the RPC with the error's status, message and details."""
    trailer = ((STATUS_TRAILER, to_status(error).SerializeToString()),)
    await context.abort(error.status, error.message, trailer)
