"""The usage record: what is written down about each request, and how records are summed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NotRequired, Protocol, TypedDict

from services.common.money import Bill, CostItem, Savings, Usage

COMPONENTS = ("provider", "engine", "embedder", "verifier", "router", "compressor")
DIMENSIONS = ("endpoint", "model", "outcome", "tier")
_SEPARATOR = "\x1f"


class RecordJson(TypedDict):
    """A record as a line of the spool. Short keys: it is written once per request."""

    id: str
    rid: str
    ts: float
    tenant: str
    ns: str
    endpoint: str
    user: str
    model: str
    tier: str
    outcome: str
    error: str
    usage: list[int]
    writes: list[tuple[int, int]]
    estimated: bool
    actual: int
    baseline: int
    savings: list[int]
    items: list[tuple[str, str, int, bool]]
    unpriced: bool
    reservation: str
    kind: NotRequired[str]
    budgets: NotRequired[list[str]]


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One request: who, what, tokens, money. `record_id` is the edge's own: a caller may repeat a request id.

    `outcome` is exact_hit, semantic_hit, miss, bypass, canary, coalesced, embedding, shadow or error. `error` names the reason of an error,
    or of a shadow that failed. A shadow is the check of another request's answer: it costs, and is no request.
    `budgets` names the budgets, each with its period, that the cost counts against, and that `reservation_id` is settled in.
    """

    record_id: str
    request_id: str
    at: float
    tenant: str
    namespace: str
    endpoint: str
    user: str
    model: str
    tier: str
    outcome: str
    usage: Usage
    bill: Bill
    error: str = ""
    reservation_id: str = ""
    kind: str = ""
    budgets: tuple[str, ...] = ()

    @property
    def hour(self) -> str:
        """The UTC hour it belongs to, as 2026-01-31T14."""
        return hour_of(self.at)

    def to_json(self) -> RecordJson:
        """For the spool."""
        u, s = self.usage, self.bill.savings
        return {
            "id": self.record_id,
            "rid": self.request_id,
            "ts": self.at,
            "tenant": self.tenant,
            "ns": self.namespace,
            "endpoint": self.endpoint,
            "user": self.user,
            "model": self.model,
            "tier": self.tier,
            "outcome": self.outcome,
            "error": self.error,
            "usage": [
                u.input_tokens,
                u.output_tokens,
                u.cache_read_input_tokens,
                u.cache_write_input_tokens,
                u.reasoning_output_tokens,
            ],
            "writes": list(u.cache_writes),
            "estimated": u.estimated,
            "actual": self.bill.actual,
            "baseline": self.bill.baseline,
            "savings": [s.cache, s.routing, s.compression, s.prompt_cache, s.batch],
            "items": [(i.component, i.model, i.cost, i.overhead) for i in self.bill.items],
            "unpriced": self.bill.unpriced,
            "reservation": self.reservation_id,
            "kind": self.kind,
            "budgets": list(self.budgets),
        }

    @classmethod
    def from_json(cls, line: RecordJson) -> "UsageRecord":
        """Out of the spool. Raises KeyError, TypeError or ValueError for a line that is no record."""
        read, written, reasoning = line["usage"][2:5]
        return cls(
            line["id"],
            line["rid"],
            float(line["ts"]),
            line["tenant"],
            line["ns"],
            line["endpoint"],
            line["user"],
            line["model"],
            line["tier"],
            line["outcome"],
            Usage(
                line["usage"][0],
                line["usage"][1],
                read,
                written,
                tuple((ttl, tokens) for ttl, tokens in line["writes"]),
                reasoning_output_tokens=reasoning,
                estimated=line["estimated"],
            ),
            Bill(
                line["actual"],
                line["baseline"],
                Savings(*line["savings"]),
                tuple(CostItem(*item) for item in line["items"]),
                line["unpriced"],
            ),
            line["error"],
            line["reservation"],
            # Lines of an older version lack these.
            line.get("kind", ""),
            tuple(line.get("budgets", ())),
        )


def hour_of(at: float) -> str:
    """The UTC hour of a time, as 2026-01-31T14."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H")


def increments(record: UsageRecord) -> dict[str, int]:
    """What a record adds to its hour's roll-up: field -> amount. A field is endpoint, model, outcome, tier and a metric."""
    u, b = record.usage, record.bill
    amounts = {
        "requests": int(record.outcome != "shadow"),
        "unpriced": int(b.unpriced),
        "actual": b.actual,
        "baseline": b.baseline,
        "overhead": b.overhead,
        "saved.cache": b.savings.cache,
        "saved.routing": b.savings.routing,
        "saved.compression": b.savings.compression,
        "saved.prompt_cache": b.savings.prompt_cache,
        "saved.batch": b.savings.batch,
        "tokens.input": u.input_tokens,
        "tokens.output": u.output_tokens,
        "tokens.cache_read": u.cache_read_input_tokens,
        "tokens.cache_write": u.cache_write_input_tokens,
        "tokens.reasoning": u.reasoning_output_tokens,
    }
    for item in b.items:
        for metric in (f"cost.{item.component}", *((f"overhead.{item.component}",) if item.overhead else ())):
            amounts[metric] = amounts.get(metric, 0) + item.cost
    who = _SEPARATOR.join((record.endpoint, record.model, record.outcome, record.tier))
    return {f"{who}{_SEPARATOR}{metric}": amount for metric, amount in amounts.items() if amount}


@dataclass(slots=True)
class CostSum:
    """Sums over some records."""

    key: tuple[str, ...] = ()
    amounts: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> int:
        return self.amounts.get(metric, 0)

    def add(self, metric: str, amount: int) -> None:
        """Adds to one metric."""
        self.amounts[metric] = self.amounts.get(metric, 0) + amount

    def bill(self) -> Bill:
        """The money; its items are one per component and kind."""
        items = []
        for component in COMPONENTS:
            overhead = self[f"overhead.{component}"]
            direct = self[f"cost.{component}"] - overhead
            items += [CostItem(component, "", cost, flag) for cost, flag in ((direct, False), (overhead, True)) if cost]
        savings = Savings(*(self[f"saved.{x}"] for x in ("cache", "routing", "compression", "prompt_cache", "batch")))
        return Bill(self["actual"], self["baseline"], savings, tuple(items), bool(self["unpriced"]))

    def usage(self) -> Usage:
        """The tokens."""
        return Usage(
            self["tokens.input"],
            self["tokens.output"],
            self["tokens.cache_read"],
            self["tokens.cache_write"],
            (),
            self["tokens.reasoning"],
        )


def sum_rollups(
    tenant: str, hours: Iterable[tuple[str, dict[str, int]]], group_by: tuple[str, ...]
) -> tuple[list[CostSum], CostSum]:
    """Rows by the wanted dimensions ("endpoint", "model", "outcome", "tier", "hour", "tenant"), dearest first; and the total."""
    rows: dict[tuple[str, ...], CostSum] = {}
    total = CostSum()
    for hour, fields in hours:
        for name, amount in fields.items():
            *values, metric = name.split(_SEPARATOR)
            # Roll-ups of an older version have fewer dimensions.
            known = (
                dict.fromkeys(DIMENSIONS, "")
                | dict(zip(DIMENSIONS, values, strict=False))
                | {"hour": hour, "tenant": tenant}
            )
            key = tuple(known[dimension] for dimension in group_by)
            rows.setdefault(key, CostSum(key)).add(metric, amount)
            total.add(metric, amount)
    return sorted(rows.values(), key=lambda row: (-row["actual"], row.key)), total


class Spool(Protocol):
    """Where records go first: local, append-only, and never blocking on the network."""

    def append(self, record: UsageRecord) -> None:
        """Writes the record down. Returns once a killed process cannot lose it."""
        ...


class Ledger(Protocol):
    """Where records end up."""

    async def write(self, records: list[UsageRecord]) -> None:
        """Adds records, their roll-ups and the settlement of their reservations; one that is there already changes nothing."""
        ...

    async def rollups(self, tenant: str, first_hour: str, end_hour: str) -> list[tuple[str, dict[str, int]]]:
        """Roll-ups of a tenant by hour, from the first hour up to and without the end."""
        ...
