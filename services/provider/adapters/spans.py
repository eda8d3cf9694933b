"""Attempts as spans: a CLIENT span `chat {model}` each, with what it cost."""

import structlog
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.common import telemetry
from services.common.money import NANO, Usage
from services.provider.domain.charge import Charge
from services.provider.domain.plan import LOST
from services.provider.domain.prompt_cache import PromptCacheReport
from services.provider.domain.vendor import Completion, Reason

log = structlog.get_logger()

_MAX_NAMES = 1000


class SpanWatch:
    """Opens a span for every attempt below the span of the RPC."""

    def __init__(self) -> None:
        self._not_served: set[str] = set()

    def not_served(self, model: str) -> None:
        """Logs it, once per model."""
        if model not in self._not_served and len(self._not_served) < _MAX_NAMES:
            self._not_served.add(model)
            log.warning("no_vendor_serves_model", model=model)

    def passed_over(self, vendor: str, why: str, wait_s: float) -> None:
        return None  # no attempt, no span

    def attempt(self, model: str, vendor: str, number: int) -> "AttemptSpan":
        """The attempt's span. It is not made current: a generator may be closed from another task."""
        span = trace.get_tracer("llmmesh").start_span(
            f"chat {model}",
            kind=SpanKind.CLIENT,
            attributes={
                telemetry.GEN_AI_OPERATION: "chat",
                telemetry.OPENINFERENCE_KIND: "LLM",
                telemetry.LLM_MODEL: model,
                telemetry.GEN_AI_PROVIDER: vendor,
                telemetry.GEN_AI_REQUEST_MODEL: model,
                telemetry.PROVIDER_VENDOR: vendor,
                telemetry.PROVIDER_ATTEMPT: number,
            },
        )
        return AttemptSpan(span, model, vendor)


class AttemptSpan:
    """One attempt's span."""

    def __init__(self, span: Span, model: str, vendor: str) -> None:
        self._span = span
        self._model = model
        self._vendor = vendor

    @property
    def trace(self) -> tuple[tuple[str, str], ...]:
        return telemetry.inject(self._span)

    def began(self) -> None:
        return None

    def answered(self, completion: Completion, usage: Usage, charge: Charge) -> None:
        self._span.set_attributes(
            {
                telemetry.GEN_AI_RESPONSE_MODEL: completion.model,
                telemetry.GEN_AI_FINISH_REASONS: (completion.finish_reason.value,),
                telemetry.GEN_AI_INPUT_TOKENS: usage.input_tokens,
                telemetry.GEN_AI_OUTPUT_TOKENS: usage.output_tokens,
                telemetry.GEN_AI_CACHE_READ_TOKENS: usage.cache_read_input_tokens,
                telemetry.GEN_AI_CACHE_WRITE_TOKENS: usage.cache_write_input_tokens,
                telemetry.GEN_AI_CACHE_CREATION_TOKENS: usage.cache_write_input_tokens,
                telemetry.LLM_PROMPT_TOKENS: usage.input_tokens,
                telemetry.LLM_COMPLETION_TOKENS: usage.output_tokens,
                telemetry.LLM_TOTAL_TOKENS: usage.input_tokens + usage.output_tokens,
            }
        )
        if not charge.unpriced:
            self._set_cost(charge.cost)

    def kept(self, report: PromptCacheReport) -> None:
        # Where the prefix changed, and not what stands there: prompt text is in no span.
        self._span.set_attribute(telemetry.PROMPT_CACHE_OUTCOME, report.outcome.value)
        if report.static_tokens:
            self._span.set_attribute(telemetry.PROMPT_CACHE_STATIC_TOKENS, report.static_tokens)
        if report.change is not None:
            self._span.set_attribute(telemetry.PROMPT_CACHE_CHANGED_PART, report.change.part)
            self._span.set_attribute(telemetry.PROMPT_CACHE_CHANGED_OFFSET, report.change.offset)
        if report.volatile:
            kinds = dict.fromkeys(one.kind.value for one in report.volatile)
            self._span.set_attribute(telemetry.PROMPT_CACHE_VOLATILE, tuple(kinds))

    def failed(self, reason: Reason, cost_nanousd: int) -> None:
        self._fail(reason.value, cost_nanousd)

    def cancelled(self, cost_nanousd: int, wasted_nanousd: int) -> None:
        # The attempts before it carry their own cost: the sum over the trace is what was wasted.
        self._fail("CANCELLED", cost_nanousd)
        log.info("answer_cancelled", model=self._model, vendor=self._vendor, wasted_nanousd=wasted_nanousd)

    def lost(self, cost_nanousd: int) -> None:
        self._fail(LOST, cost_nanousd)

    def end(self) -> None:
        self._span.end()

    def _fail(self, reason: str, cost_nanousd: int) -> None:
        self._span.set_status(Status(StatusCode.ERROR, reason))
        self._span.set_attribute(telemetry.ERROR_TYPE, reason)
        if cost_nanousd:
            self._set_cost(cost_nanousd)

    def _set_cost(self, nanousd: int) -> None:
        self._span.set_attribute(telemetry.COST_SPAN, nanousd)
        self._span.set_attribute(telemetry.GEN_AI_COST, nanousd / NANO)
        self._span.set_attribute(telemetry.LLM_COST, nanousd / NANO)
