"""The OTLP exporter with a faster way for plain spans: encoding them costs the SDK more than making them does."""

from collections.abc import Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, SpanFlags
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanPb
from opentelemetry.proto.trace.v1.trace_pb2 import Status as StatusPb
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

_FIELDS = {str: "string_value", bool: "bool_value", int: "int_value", float: "double_value"}
_KINDS = {
    SpanKind.INTERNAL: SpanPb.SPAN_KIND_INTERNAL,
    SpanKind.SERVER: SpanPb.SPAN_KIND_SERVER,
    SpanKind.CLIENT: SpanPb.SPAN_KIND_CLIENT,
    SpanKind.PRODUCER: SpanPb.SPAN_KIND_PRODUCER,
    SpanKind.CONSUMER: SpanPb.SPAN_KIND_CONSUMER,
}
_STATUSES = {StatusCode.OK: StatusPb.STATUS_CODE_OK, StatusCode.ERROR: StatusPb.STATUS_CODE_ERROR}
_NO_REMOTE_PARENT = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE_PARENT = _NO_REMOTE_PARENT | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


class LeanExporter(OTLPSpanExporter):
    """Sends what the SDK's exporter sends, with its settings. Spans with events, links or lists are left to the SDK's encoder."""

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        try:
            return self._encode(data)
        except (ValueError, TypeError):  # text or a number that protobuf refuses: the SDK leaves it out and says so
            return super()._translate_data(data)

    def _encode(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        first = data[0]
        scope = first.instrumentation_scope
        request = super()._translate_data(data[:1])  # with the resource and the scope
        together = request.resource_spans[0].scope_spans[0]
        for span in data[1:]:
            same = span.resource is first.resource and (
                span.instrumentation_scope is scope or span.instrumentation_scope == scope
            )
            if same and span.context is not None and _is_plain(span, span.context):
                _add(together, span, span.context)
            else:
                request.MergeFrom(super()._translate_data([span]))
        return request


def _is_plain(span: ReadableSpan, context: SpanContext) -> bool:
    return (
        not (span.events or span.links or span.dropped_attributes or span.dropped_events or span.dropped_links)
        and not context.trace_state
        and all(type(value) in _FIELDS for value in (span.attributes or {}).values())
    )


def _add(spans: ScopeSpans, span: ReadableSpan, context: SpanContext) -> None:
    parent = span.parent
    pb = spans.spans.add(
        trace_id=context.trace_id.to_bytes(16, "big"),
        span_id=context.span_id.to_bytes(8, "big"),
        parent_span_id=parent.span_id.to_bytes(8, "big") if parent else None,
        name=span.name,
        kind=_KINDS[span.kind],
        start_time_unix_nano=span.start_time,
        end_time_unix_nano=span.end_time,
        flags=_REMOTE_PARENT if parent and parent.is_remote else _NO_REMOTE_PARENT,
    )
    if not span.status.is_unset:
        pb.status.code = _STATUSES[span.status.status_code]
        pb.status.message = span.status.description or ""
    else:
        pb.status.SetInParent()
    add = pb.attributes.add
    for key, value in (span.attributes or {}).items():
        setattr(add(key=key).value, _FIELDS[type(value)], value)
