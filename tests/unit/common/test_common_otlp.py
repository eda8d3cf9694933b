"""The lean exporter sends what the SDK's own would send."""

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from services.common.otlp import LeanExporter


@pytest.fixture
def memory():
    return InMemorySpanExporter()


@pytest.fixture
def provider(memory):
    provider = TracerProvider(resource=Resource.create({"service.name": "x"}), span_limits=SpanLimits(max_attributes=8))
    provider.add_span_processor(SimpleSpanProcessor(memory))
    yield provider
    provider.shutdown()


@pytest.fixture
def exporter():
    exporter = LeanExporter(endpoint="http://127.0.0.1:1", insecure=True)
    yield exporter
    exporter.shutdown()


def spans_of(request) -> dict[bytes, tuple[bytes, str, bytes]]:
    """Span id -> (resource, scope, span), however they are grouped."""
    return {
        span.span_id: (group.resource.SerializeToString(), scope.scope.name, span.SerializeToString(deterministic=True))
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    }


def make_spans(provider: TracerProvider, memory: InMemorySpanExporter) -> tuple[ReadableSpan, ...]:
    tracer = provider.get_tracer("llmmesh")
    state = TraceState([("vendor", "1")])
    remote = SpanContext(7, 9, True, TraceFlags(1), state)
    other = SpanContext(7, 10, True, TraceFlags(1))
    below_state = set_span_in_context(NonRecordingSpan(remote))
    below = set_span_in_context(NonRecordingSpan(other))
    tracer.start_span("first").end()
    tracer.start_span("root", kind=SpanKind.SERVER).end()
    tracer.start_span("of a remote parent", context=below, kind=SpanKind.SERVER).end()
    tracer.start_span("with a state", context=below_state).end()
    with tracer.start_as_current_span("parent", kind=SpanKind.CLIENT):
        tracer.start_span("child").end()
    tracer.start_span("attributes", attributes={"s": "Grüße", "i": -3, "f": 0.5, "b": True, "empty": ""}).end()
    tracer.start_span("a list", attributes={"list": ["a", "b"]}).end()
    tracer.start_span("too many", attributes={str(i): i for i in range(20)}).end()
    tracer.start_span("linked", links=[Link(other)]).end()
    failed = tracer.start_span("failed", kind=SpanKind.PRODUCER)
    failed.set_status(Status(StatusCode.ERROR, "NOT_READY"))
    failed.end()
    fine = tracer.start_span("fine", kind=SpanKind.CONSUMER)
    fine.set_status(Status(StatusCode.OK))
    fine.end()
    event = tracer.start_span("event")
    event.add_event("happened", {"n": 1})
    event.end()
    provider.get_tracer("another").start_span("of another scope").end()
    return memory.get_finished_spans()


def test_every_kind_of_span_is_encoded_as_the_sdk_encodes_it(provider, memory, exporter):
    spans = make_spans(provider, memory)

    lean = exporter._translate_data(spans)

    assert spans_of(lean) == spans_of(encode_spans(spans))
    assert len(spans_of(lean)) == len(spans)


def test_plain_spans_share_one_resource_and_scope(provider, memory, exporter):
    tracer = provider.get_tracer("llmmesh")
    for _ in range(4):
        tracer.start_span("plain", attributes={"n": 1}).end()
    provider.get_tracer("llmmesh").start_span("of the same scope, asked for again").end()

    request = exporter._translate_data(memory.get_finished_spans())

    assert [len(scope.spans) for group in request.resource_spans for scope in group.scope_spans] == [5]


def test_a_value_that_protobuf_refuses_costs_itself_only(provider, memory, exporter, caplog):
    tracer = provider.get_tracer("llmmesh")
    for attributes in ({"n": 1}, {"n": 2, "model": "lone \ud800"}, {"n": 2**70, "m": 3}):
        tracer.start_span("plain", attributes=attributes).end()

    request = exporter._translate_data(memory.get_finished_spans())

    spans = [s for group in request.resource_spans for scope in group.scope_spans for s in scope.spans]
    assert [[a.key for a in span.attributes] for span in spans] == [["n"], ["n"], ["m"]]
