"""Spans that are no RPC's."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context as otel_context
from opentelemetry import trace

from services.common import telemetry
from services.edge.domain.ports import LessonKind, Question


@contextmanager
def check_span(question: Question, kind: LessonKind) -> Iterator[None]:
    """Around the check of a hit. A trace of its own: what it costs is no part of what the hit cost."""
    tracer = trace.get_tracer("llmmesh")
    attributes = {
        telemetry.SHADOW: kind.value,
        telemetry.TENANT: question.tenant,
        telemetry.NAMESPACE: question.namespace,
        telemetry.REQUEST_ID: question.request_id,
    }
    with tracer.start_as_current_span(telemetry.CHECK_SPAN, context=otel_context.Context(), attributes=attributes):
        yield
