"""Attempts as numbers."""

import pytest

from services.common import metrics
from services.common.chat import FinishReason
from services.common.money import Rates, Usage
from services.provider.adapters.metrics import CountingWatch, watch_breakers
from services.provider.adapters.spans import SpanWatch
from services.provider.domain.breaker import Breaker
from services.provider.domain.charge import Charge
from services.provider.domain.plan import Candidate
from services.provider.domain.prompt_cache import CacheOutcome, PromptCacheReport
from services.provider.domain.slots import Slots
from services.provider.domain.vendor import Completion, Reason

USAGE = Usage(100, 10)
DONE = Completion(FinishReason.STOP, USAGE, "m")
CHARGE = Charge(5, Rates(), "provider")


@pytest.fixture
def vendor(request):
    """A vendor of this test alone, since counters outlive tests."""
    return request.node.name


def value(name: str, **labels: str) -> float:
    return metrics.registry_of("provider").get_sample_value(name, labels) or 0.0


def test_every_end_of_an_attempt_is_counted_by_its_outcome(vendor):
    watch = CountingWatch(SpanWatch())
    watch.attempt("m", vendor, 1).failed(Reason.RATE_LIMITED, 0)
    watch.attempt("m", vendor, 2).cancelled(3, 3)
    watch.attempt("m", vendor, 3).lost(3)
    answered = watch.attempt("m", vendor, 4)
    answered.began()
    answered.answered(DONE, USAGE, CHARGE)
    answered.end()
    for outcome in ("RATE_LIMITED", "CANCELLED", "HEDGED_LOST", "ok"):
        assert value("llmmesh_provider_attempts_total", vendor=vendor, model="m", outcome=outcome) == 1
    assert value("llmmesh_provider_retries_total", vendor=vendor) == 3
    assert value("llmmesh_provider_attempt_seconds_count", vendor=vendor, model="m") == 1
    assert value("llmmesh_provider_first_token_seconds_count", vendor=vendor, model="m") == 1


def test_a_vendor_that_was_passed_over_is_counted_by_why(vendor):
    watch = CountingWatch(SpanWatch())
    watch.passed_over(vendor, "limits", 2.5)
    watch.passed_over(vendor, "slots", 0.0)
    assert value("llmmesh_provider_limit_waits_total", vendor=vendor, why="limits") == 1
    assert value("llmmesh_provider_limit_waits_total", vendor=vendor, why="slots") == 1
    assert value("llmmesh_provider_limit_wait_seconds_total", vendor=vendor) == 2.5


@pytest.mark.parametrize(
    ("outcome", "missed"),
    [(CacheOutcome.HIT, 0), (CacheOutcome.OFF, 0), (CacheOutcome.CHANGED, 900), (CacheOutcome.EXPIRED, 900)],
)
def test_a_prefix_that_was_not_read_is_missed_by_why(vendor, outcome, missed):
    report = PromptCacheReport(outcome, static_tokens=900, read_tokens=700, written_tokens=200)
    CountingWatch(SpanWatch()).attempt("m", vendor, 1).kept(report)
    assert value("llmmesh_prompt_cache_requests_total", vendor=vendor, outcome=outcome.value) == 1
    assert value("llmmesh_prompt_cache_tokens_total", vendor=vendor, type="read") == 700
    assert value("llmmesh_prompt_cache_tokens_total", vendor=vendor, type="written") == 200
    assert value("llmmesh_prompt_cache_missed_tokens_total", vendor=vendor, reason=outcome.value) == missed


def test_a_breaker_is_told_as_it_stands_at_the_scrape(vendor):
    breaker = Breaker(1, 10.0, lambda: 0.0)
    watch_breakers([Candidate("m", vendor, "m", None, breaker, 1.0, 1.0, Slots(1, 1, 1.0))])  # type: ignore[arg-type]
    assert value("llmmesh_provider_breaker_open", vendor=vendor, model="m") == 0
    entry = breaker.enter()
    assert entry is not None
    breaker.failed(entry)
    assert value("llmmesh_provider_breaker_open", vendor=vendor, model="m") == 1
