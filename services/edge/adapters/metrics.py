"""What the edge counts: records on their way to the ledger, and how long requests take."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import ClassVar

from prometheus_client import Counter
from redis.asyncio import Redis

from services.common import metrics
from services.common.clock import Clock
from services.common.errors import MeshError
from services.common.metrics import NONE, Capped, Following
from services.common.money import NANO
from services.edge.adapters.redis import RedisLedger
from services.edge.adapters.spool import FileSpool
from services.edge.domain.budgets import Window
from services.edge.domain.ledger import Spool, UsageRecord
from services.edge.domain.ports import Question
from services.edge.domain.trip import Began, Completed, Ended, Event
from services.edge.domain.walk import Walk

_HITS = frozenset({"exact_hit", "semantic_hit", "coalesced"})
_RESULTS = (*sorted(_HITS), "miss", "bypass", "canary")
_KINDS = ("input", "output", "cache_read", "cache_write", "reasoning")
_LAYERS = ("cache", "routing", "compression", "prompt_cache", "batch")


class _Sum:
    """A total of integers that a counter is told before scrapes: to add to it costs next to nothing."""

    __slots__ = ("_follow", "total")

    def __init__(self, add: Callable[[float], None], unit: int) -> None:
        self.total = 0
        self._follow = Following(add, unit)

    def tell(self) -> None:
        self._follow(self.total)


class _Who:
    """What records of one endpoint, namespace, model, tier and outcome add to, looked up once."""

    def __init__(
        self, sums: "RecordMetrics", endpoint: str, namespace: str, model: str, tier: str, outcome: str
    ) -> None:
        tokens = metrics.TOKENS_SPARED if outcome in _HITS else metrics.TOKENS
        answered = outcome not in ("error", "shadow", "embedding")
        self.requests = [
            *([sums.of(metrics.REQUESTS, endpoint, namespace, outcome)] if outcome != "shadow" else ()),
            *([sums.of(metrics.CACHE_REQUESTS, outcome)] if answered else ()),
            *([sums.of(metrics.ROUTED, tier or NONE, model)] if answered and outcome not in _HITS else ()),
        ]
        self.query_tokens = sums.of(metrics.QUERY_TOKENS, endpoint) if answered else None
        self.tokens = [sums.of(tokens, kind, model) for kind in _KINDS]
        self.cost = sums.of(metrics.COST, model, endpoint, unit=NANO)
        self.baseline = sums.of(metrics.BASELINE, endpoint, unit=NANO)


class RecordMetrics:
    """Counts usage records. `tenants`: also by tenant."""

    def __init__(self, *, tenants: bool = False) -> None:
        self._tenants = tenants
        self._endpoint, self._model, self._tenant = Capped(), Capped(), Capped()
        self._sums: dict[tuple[Counter, tuple[str, ...]], _Sum] = {}
        self._who: dict[tuple[str, str, str, str, str], _Who] = {}
        self._saved = [self.of(metrics.SAVINGS, layer, unit=NANO) for layer in _LAYERS]
        self._lost = [self.of(metrics.LOSSES, layer, unit=NANO) for layer in _LAYERS]
        for outcome in _RESULTS:  # no hit yet is a hit rate of zero, and not an unknown one
            self.of(metrics.CACHE_REQUESTS, outcome)
        metrics.before_scrapes(self._tell)

    def of(self, counter: Counter, *labels: str, unit: int = 1) -> _Sum:
        """The sum behind one of a counter's series, `unit` of the sum's ones for one of the counter's."""
        key = counter, labels
        known = self._sums.get(key)
        if known is None:
            known = self._sums[key] = _Sum(counter.labels(*labels).inc, unit)
        return known

    def count(self, record: UsageRecord) -> None:
        """Adds a record. A shadow costs, and is no request."""
        endpoint, model = self._endpoint(record.endpoint), self._model(record.model)
        key = (endpoint, record.namespace, model, record.tier, record.outcome)
        who = self._who.get(key)
        if who is None:
            who = self._who[key] = _Who(self, *key)
        bill, usage = record.bill, record.usage
        for requests in who.requests:
            requests.total += 1
        if who.query_tokens is not None:
            who.query_tokens.total += usage.input_tokens
        who.tokens[0].total += usage.input_tokens
        who.tokens[1].total += usage.output_tokens
        who.tokens[2].total += usage.cache_read_input_tokens
        who.tokens[3].total += usage.cache_write_input_tokens
        who.tokens[4].total += usage.reasoning_output_tokens
        if bill.actual:
            who.cost.total += bill.actual
            for item in bill.items:
                self.of(metrics.COMPONENT_COST, item.component, unit=NANO).total += item.cost
                if item.overhead:
                    self.of(metrics.OVERHEAD, item.component, unit=NANO).total += item.cost
        if bill.baseline:
            who.baseline.total += bill.baseline
            saved = bill.savings
            self._save(0, saved.cache)
            self._save(1, saved.routing)
            self._save(2, saved.compression)
            self._save(3, saved.prompt_cache)
            self._save(4, saved.batch)
        if bill.unpriced:
            self.of(metrics.UNPRICED, model).total += 1
        if record.error and record.outcome != "shadow":
            self.of(metrics.ERRORS, record.error).total += 1
        if self._tenants:
            tenant = self._tenant(record.tenant)
            if record.outcome != "shadow":
                self.of(metrics.TENANT_REQUESTS, tenant, record.outcome).total += 1
            self.of(metrics.TENANT_COST, tenant, unit=NANO).total += bill.actual

    def _save(self, layer: int, amount: int) -> None:
        if amount > 0:
            self._saved[layer].total += amount
        elif amount:
            self._lost[layer].total -= amount

    def _tell(self) -> None:
        for known in list(self._sums.values()):
            known.tell()


class MeteredSpool:
    """A spool whose records are counted."""

    def __init__(self, spool: Spool, records: RecordMetrics) -> None:
        self._spool = spool
        self._records = records

    def append(self, record: UsageRecord) -> None:
        self._spool.append(record)
        self._records.count(record)


class MeteredLedger(RedisLedger):
    """A ledger for those who write to it without a spool; what they write is counted."""

    def __init__(self, redis: Redis, records: RecordMetrics) -> None:
        super().__init__(redis)
        self._records = records

    async def write(self, records: list[UsageRecord]) -> None:
        await super().write(records)
        for record in records:
            self._records.count(record)


class MeteredWalk(Walk):
    """A walk that notes how long its answers take."""

    _endpoint = Capped()
    _observers: ClassVar[dict[tuple[str, str], Callable[[float], None]]] = {}

    async def complete(self, question: Question) -> Completed:
        began, outcome = time.perf_counter(), "error"
        try:
            done = await super().complete(question)
            outcome = done.receipt.outcome
            if done.receipt.alias:
                metrics.ALIASES.inc()
            return done
        finally:
            self._took(question, outcome, began)

    async def stream(self, question: Question) -> AsyncGenerator[Event, None]:
        began, outcome, first = time.perf_counter(), "error", ""
        try:
            async with aclosing(super().stream(question)) as events:
                async for event in events:
                    if isinstance(event, Began):
                        first = event.receipt.outcome
                    elif isinstance(event, Ended):
                        outcome = event.receipt.outcome
                        if event.receipt.alias:
                            metrics.ALIASES.inc()
                    elif first:
                        metrics.FIRST_TOKEN.labels(first).observe(time.perf_counter() - began)
                        first = ""
                    yield event
        finally:
            self._took(question, outcome, began)

    def _took(self, question: Question, outcome: str, began: float) -> None:
        key = self._endpoint(question.endpoint), outcome
        observe = self._observers.get(key)
        if observe is None:
            observe = self._observers[key] = metrics.LATENCY.labels(*key).observe
        observe(time.perf_counter() - began)


class BudgetUse:
    """The fullest window of each budget, as far as this replica has seen them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._fullest: dict[str, tuple[tuple[str, str], float, float]] = {}

    def saw(self, tenant: str, window: Window, used: int) -> None:
        """So much of a window is spent and reserved, in nano-USD."""
        budget, holder = window.budget, (tenant, window.name)
        ratio = used / budget.limit if budget.limit else 1.0
        fullest = self._fullest.get(budget.name)
        if fullest is not None and fullest[0] != holder and ratio <= fullest[1] and self._clock.now() < fullest[2]:
            return
        self._fullest[budget.name] = holder, ratio, window.resets_at
        if fullest is None:
            metrics.BUDGET_USED.labels(budget.name, budget.period).set_function(partial(self._ratio, budget.name))

    def _ratio(self, budget: str) -> float:
        _, ratio, resets_at = self._fullest[budget]
        return ratio if self._clock.now() < resets_at else 0.0


def watch_spool(spool: FileSpool, now: Callable[[], float]) -> None:
    """Tells of the spool at each scrape."""
    metrics.SPOOL_RECORDS.set_function(lambda: spool.pending)
    metrics.SPOOL_AGE.set_function(
        lambda: max(now() - oldest, 0.0) if (oldest := spool.oldest_at()) is not None else 0.0
    )


def counted(on_degraded: Callable[[str, MeshError], None]) -> Callable[[str, MeshError], None]:
    """The same, and counts it."""

    def note(service: str, error: MeshError) -> None:
        metrics.DEGRADED.labels(service).inc()
        on_degraded(service, error)

    return note
