"""Traces and log lines: every name that the mesh emits is declared here, and a test compares it with what a request emits.

Tracing is on when a standard OTEL_EXPORTER_OTLP_ENDPOINT (or ..._TRACES_ENDPOINT) is set. All OTEL_* settings of the SDK
apply. Text of prompts and answers is never an attribute.
"""

import logging
import os
import re
import sys

import structlog
from opentelemetry import trace
from opentelemetry.trace import Span

# OpenTelemetry GenAI conventions (open-telemetry/semantic-conventions-genai, status Development).
GEN_AI_OPERATION = "gen_ai.operation.name"
GEN_AI_PROVIDER = "gen_ai.provider.name"
GEN_AI_REQUEST_MODEL = "gen_ai.request.model"
GEN_AI_RESPONSE_MODEL = "gen_ai.response.model"
GEN_AI_FINISH_REASONS = "gen_ai.response.finish_reasons"
GEN_AI_INPUT_TOKENS = "gen_ai.usage.input_tokens"
GEN_AI_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
GEN_AI_CACHE_READ_TOKENS = "gen_ai.usage.cache_read.input_tokens"
GEN_AI_CACHE_WRITE_TOKENS = "gen_ai.usage.cache_write.input_tokens"
GEN_AI_CACHE_CREATION_TOKENS = "gen_ai.usage.cache_creation.input_tokens"  # older spelling of the line above
GEN_AI_COST = "gen_ai.usage.cost"  # USD as a float, for display only

# OpenInference, which Phoenix reads. On the span of a vendor's call alone: what is counted twice is paid twice.
OPENINFERENCE_KIND = "openinference.span.kind"
LLM_MODEL = "llm.model_name"
LLM_PROMPT_TOKENS = "llm.token_count.prompt"
LLM_COMPLETION_TOKENS = "llm.token_count.completion"
LLM_TOTAL_TOKENS = "llm.token_count.total"
LLM_COST = "llm.cost.total"  # USD as a float, for display only

# The mesh's own.
TENANT = "llmmesh.tenant"
NAMESPACE = "llmmesh.namespace"
ENDPOINT = "llmmesh.endpoint"
REQUEST_ID = "llmmesh.request_id"
OUTCOME = "llmmesh.outcome"
DEGRADED = "llmmesh.degraded"
CACHE_OUTCOME = "llmmesh.cache.outcome"
CACHE_SIMILARITY = "llmmesh.cache.similarity"
CACHE_REASON = "llmmesh.cache.reason"
CACHE_CANDIDATES = "llmmesh.cache.candidates"
CACHE_STORED = "llmmesh.cache.stored"
CACHE_ALIAS = "llmmesh.cache.alias"  # these very words were served that answer before
COALESCED = "llmmesh.coalesced"  # another request's answer, as it was made
SHADOW = "llmmesh.shadow"  # true on a hit that is checked; on the check itself its kind
CHECK_SPAN = "llmmesh.edge.check"  # the name of the span around the check of a hit
BUDGET_NOTICE = "llmmesh.budget.notice"  # a soft budget is used up, and a cheaper tier was asked
ROUTE_TIER = "llmmesh.route.tier"
ROUTE_REASON = "llmmesh.route.reason"
ROUTE_CANDIDATES = "llmmesh.route.candidates"  # "model=nano-USD", best first
COMPRESS_ORIGINAL_TOKENS = "llmmesh.compress.original_tokens"
COMPRESS_KEPT_TOKENS = "llmmesh.compress.kept_tokens"
COMPRESS_REASON = "llmmesh.compress.reason"
EMBED_TEXTS = "llmmesh.embed.texts"
EMBED_BATCH = "llmmesh.embed.batch"
PROVIDER_VENDOR = "llmmesh.provider.vendor"
PROVIDER_ATTEMPT = "llmmesh.provider.attempt"
PROMPT_CACHE_OUTCOME = "llmmesh.prompt_cache.outcome"
PROMPT_CACHE_STATIC_TOKENS = "llmmesh.prompt_cache.static_tokens"  # estimated: tools, system text, earlier turns
PROMPT_CACHE_CHANGED_PART = "llmmesh.prompt_cache.changed_part"  # "tools[3]", "messages[0]"
PROMPT_CACHE_CHANGED_OFFSET = "llmmesh.prompt_cache.changed_offset"  # bytes
PROMPT_CACHE_VOLATILE = "llmmesh.prompt_cache.volatile"  # kinds of volatile fields in the system text
ENGINE_PREFILL_SECONDS = "llmmesh.engine.prefill_seconds"
ENGINE_DECODE_SECONDS = "llmmesh.engine.decode_seconds"
COST_SPAN = "llmmesh.cost.nanousd"  # what this span caused; the sum over a trace is the record's actual cost
COST_ACTUAL = "llmmesh.cost.actual_nanousd"
COST_BASELINE = "llmmesh.cost.baseline_nanousd"
COST_OVERHEAD = "llmmesh.cost.overhead_nanousd"
COST_SAVED = {
    layer: f"llmmesh.cost.saved.{layer}_nanousd"
    for layer in ("cache", "routing", "compression", "prompt_cache", "batch")
}
ERROR_TYPE = "error.type"

ATTRIBUTES = frozenset(
    {value for name, value in list(globals().items()) if name.isupper() and isinstance(value, str)}
    | set(COST_SAVED.values())
)

_TRACEPARENT = "traceparent"
_TRACESTATE = "tracestate"
_HEADER = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:$|-)")


def span() -> Span:
    """The span of the RPC that is being served; a no-op one outside of an RPC."""
    return trace.get_current_span()


def set_cost(cost_nanousd: int) -> None:
    """Notes on the current span what it caused, in nano-USD."""
    span().set_attribute(COST_SPAN, cost_nanousd)


def inject(current: Span) -> tuple[tuple[str, str], ...]:
    """Metadata that continues the trace in the next service (W3C trace context); empty without a trace."""
    context = current.get_span_context()
    if not context.is_valid:
        return ()
    value = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
    if context.trace_state:
        return ((_TRACEPARENT, value), (_TRACESTATE, context.trace_state.to_header()))
    return ((_TRACEPARENT, value),)


def extract(traceparent: str, tracestate: str | None) -> trace.SpanContext | None:
    """The caller's position in its trace, or None for a missing or malformed header."""
    match = _HEADER.match(traceparent)
    if match is None:
        return None
    trace_id, span_id, flags = int(match[2], 16), int(match[3], 16), int(match[4], 16)
    if not trace_id or not span_id or match[1] == "ff":
        return None
    state = trace.TraceState.from_header([tracestate]) if tracestate else None
    return trace.SpanContext(trace_id, span_id, True, trace.TraceFlags(flags), state)


def tracing_wanted() -> bool:
    """Whether the environment names a place to send spans to."""
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return bool(os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))


class Telemetry:
    """The process's tracing, if wanted. `close` sends what is left."""

    def __init__(self, service: str) -> None:
        self._provider = None
        if not tracing_wanted():
            return
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        from services.common.otlp import LeanExporter

        class OneResource(Resource):
            """The exporter asks for its hash at every span, and the SDK's own makes JSON of it each time."""

            def __hash__(self) -> int:
                return id(self)

        described = Resource.create({SERVICE_NAME: f"llmmesh-{service}"})
        self._provider = TracerProvider(resource=OneResource(described.attributes, described.schema_url))
        self._provider.add_span_processor(BatchSpanProcessor(LeanExporter()))
        trace.set_tracer_provider(self._provider)

    def close(self) -> None:
        """Sends the spans that are waiting, within the exporter's own time limit."""
        if self._provider is not None:
            self._provider.shutdown()


def _add_trace_ids(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def configure_logging(service: str, level: str) -> None:
    """JSON lines on stderr with time, level, service, trace_id and span_id; other libraries' warnings join them."""
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace_ids,
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.processors.format_exc_info],
            processor=structlog.processors.JSONRenderer(),
        )
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
