"""Attempts as numbers, beside what another watch makes of them."""

import time
from collections.abc import Sequence
from functools import partial

from services.common import metrics
from services.common.money import Usage
from services.provider.domain.breaker import Breaker
from services.provider.domain.charge import Charge
from services.provider.domain.plan import LOST, Candidate
from services.provider.domain.prompt_cache import CacheOutcome, PromptCacheReport
from services.provider.domain.vendor import AttemptWatch, Completion, Reason, Watch

_NOT_MISSED = frozenset({CacheOutcome.HIT, CacheOutcome.OFF, CacheOutcome.UNREPORTED})


class CountingWatch:
    """Counts what it sees and passes it on. Vendors and models are those of the vendors file: few."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def not_served(self, model: str) -> None:
        self._watch.not_served(model)

    def passed_over(self, vendor: str, why: str, wait_s: float) -> None:
        metrics.LIMIT_WAITS.labels(vendor, why).inc()
        metrics.LIMIT_WAIT_SECONDS.labels(vendor).inc(wait_s)
        self._watch.passed_over(vendor, why, wait_s)

    def attempt(self, model: str, vendor: str, number: int) -> "CountingAttempt":
        if number > 1:
            metrics.RETRIES.labels(vendor).inc()
        return CountingAttempt(self._watch.attempt(model, vendor, number), model, vendor)


class CountingAttempt:
    """One attempt."""

    def __init__(self, watch: AttemptWatch, model: str, vendor: str) -> None:
        self._watch = watch
        self._model = model
        self._vendor = vendor
        self._since = time.perf_counter()

    @property
    def trace(self) -> tuple[tuple[str, str], ...]:
        return self._watch.trace

    def began(self) -> None:
        metrics.ATTEMPT_FIRST_TOKEN.labels(self._vendor, self._model).observe(time.perf_counter() - self._since)
        self._watch.began()

    def answered(self, completion: Completion, usage: Usage, charge: Charge) -> None:
        self._ended("ok")
        metrics.ATTEMPT_SECONDS.labels(self._vendor, self._model).observe(time.perf_counter() - self._since)
        self._watch.answered(completion, usage, charge)

    def kept(self, report: PromptCacheReport) -> None:
        metrics.PROMPT_CACHE_REQUESTS.labels(self._vendor, report.outcome.value).inc()
        metrics.PROMPT_CACHE_TOKENS.labels(self._vendor, "read").inc(report.read_tokens)
        metrics.PROMPT_CACHE_TOKENS.labels(self._vendor, "written").inc(report.written_tokens)
        if report.outcome not in _NOT_MISSED and report.static_tokens:
            metrics.PROMPT_CACHE_MISSED.labels(self._vendor, report.outcome.value).inc(report.static_tokens)
        self._watch.kept(report)

    def failed(self, reason: Reason, cost_nanousd: int) -> None:
        self._ended(reason.value)
        self._watch.failed(reason, cost_nanousd)

    def cancelled(self, cost_nanousd: int, wasted_nanousd: int) -> None:
        self._ended("CANCELLED")
        self._watch.cancelled(cost_nanousd, wasted_nanousd)

    def lost(self, cost_nanousd: int) -> None:
        self._ended(LOST)
        self._watch.lost(cost_nanousd)

    def end(self) -> None:
        self._watch.end()

    def _ended(self, outcome: str) -> None:
        metrics.ATTEMPTS.labels(self._vendor, self._model, outcome).inc()


def watch_breakers(candidates: Sequence[Candidate]) -> None:
    """Tells of the candidates' breakers at each scrape."""
    for candidate in candidates:
        gauge = metrics.BREAKER_OPEN.labels(candidate.vendor, candidate.model)
        gauge.set_function(partial(_open, candidate.breaker))


def _open(breaker: Breaker) -> float:
    return float(breaker.open_for_s > 0)
