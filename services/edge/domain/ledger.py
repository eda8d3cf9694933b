"""The usage record: what is written down about each request, and how records are summed.

Records are summed twice an hour's roll-up: by all dimensions but the user, and for requests that name a user by all of them.
The first sum is the truth; what users' rows do not account for had no user. So any sum over any dimensions is exact.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NotRequired, Protocol, TypedDict

from services.common.money import Bill, CostItem, Savings, Usage

COMPONENTS = ("provider", "engine", "embedder", "verifier", "router", "compressor")
DIMENSIONS = ("endpoint", "model", "outcome", "tier", "kind", "namespace", "user")
"""What a roll-up tells apart. Rows without users have all but the last; those of older versions only the first few."""
OTHERS = "(others)"
"""In place of a value for which an hour's roll-up has no room left."""
METRICS = (
    "records",
    "requests",
    "unpriced",
    "actual",
    "baseline",
    "overhead",
    "saved.cache",
    "saved.routing",
    "saved.compression",
    "saved.prompt_cache",
    "saved.batch",
    "tokens.input",
    "tokens.output",
    "tokens.cache_read",
    "tokens.cache_write",
    "tokens.reasoning",
    *(f"cost.{component}" for component in COMPONENTS),
    *(f"overhead.{component}" for component in COMPONENTS),
)
"""What is summed, in the order in which a roll-up has it: new ones come last."""
SEPARATOR = "\x1f"
_INDEX = {metric: index for index, metric in enumerate(METRICS)}
_COST = {component: _INDEX[f"cost.{component}"] for component in COMPONENTS}
_OVERHEAD = {component: _INDEX[f"overhead.{component}"] for component in COMPONENTS}
_USER = DIMENSIONS.index("user")

Rows = dict[tuple[str, ...], list[int]]
"""An hour's sums: amounts as METRICS has them, by values as DIMENSIONS has them."""


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

    `outcome` is exact_hit, semantic_hit, miss, bypass, canary, coalesced, embedding, shadow or error. `error` names the reason
    of an error, or of a shadow that failed. A shadow is the check of another request's answer: it costs, and is no request.
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


def day_of(hour: str) -> str:
    """The day of an hour, as 2026-01-31."""
    return hour.partition("T")[0]


def row_of(record: UsageRecord) -> str:
    """The roll-up's row that a record belongs to: its values of all dimensions but the user."""
    return SEPARATOR.join((record.endpoint, record.model, record.outcome, record.tier, record.kind, record.namespace))


def row_of_others(record: UsageRecord) -> str:
    """Its row where there is no room for more: what callers choose freely is left out, the rest comes from the policy."""
    return SEPARATOR.join((OTHERS, record.model, record.outcome, record.tier, OTHERS, record.namespace))


def amounts(record: UsageRecord) -> list[int]:
    """What a record adds to its row, in the order of METRICS."""
    u, b, s = record.usage, record.bill, record.bill.savings
    added = [
        1,
        int(record.outcome != "shadow"),
        int(b.unpriced),
        b.actual,
        b.baseline,
        0,
        s.cache,
        s.routing,
        s.compression,
        s.prompt_cache,
        s.batch,
        u.input_tokens,
        u.output_tokens,
        u.cache_read_input_tokens,
        u.cache_write_input_tokens,
        u.reasoning_output_tokens,
        *_NOTHING,
    ]
    for item in b.items:
        added[_COST[item.component]] += item.cost
        if item.overhead:
            added[_OVERHEAD[item.component]] += item.cost
            added[_INDEX["overhead"]] += item.cost
    return added


_NOTHING = (0,) * (2 * len(COMPONENTS))


def packed(sums: Iterable[int]) -> str:
    """Amounts as a roll-up has them."""
    return ",".join(map(str, sums))


def rows_of(fields: Mapping[str, str]) -> Rows:
    """The rows of a roll-up as it is stored: a field is a row, its value packed amounts.

    In one of an older version a field is a row and a metric, its value one amount.
    """
    rows: Rows = {}
    for name, value in fields.items():
        # The user is anybody's text, and comes last: what looks like a separator in it is none.
        values = name.split(SEPARATOR, _USER)
        if "," in value:
            added = list(map(int, value.split(",")))
        else:
            metric = _INDEX.get(values.pop())
            if metric is None:
                continue
            added = [0] * metric + [int(value)]
            values += [""] * (_USER - len(values))
        added += [0] * (len(METRICS) - len(added))
        row = tuple(values)
        sums = rows.get(row)
        rows[row] = added if sums is None else _sum(sums, added)
    return rows


def with_users(rows: Rows, by_user: Rows) -> Rows:
    """The rows told apart by users; what is left of a row had no user."""
    split: Rows = {}
    left = dict(rows)
    for row, sums in by_user.items():
        whole = row[:_USER]
        split[row] = sums
        left[whole] = [a - b for a, b in zip(left.get(whole, [0] * len(METRICS)), sums, strict=True)]
    for row, sums in left.items():
        if any(sums):
            split[(*row, "")] = sums
    return split


def _sum(one: Sequence[int], other: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(one, other, strict=True)]


@dataclass(slots=True)
class CostSum:
    """Sums over some records."""

    key: tuple[str, ...] = ()
    amounts: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, metric: str) -> int:
        return self.amounts.get(metric, 0)

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


@dataclass(frozen=True, slots=True)
class CostQuery:
    """Which sums: from an hour up to and without another (unix seconds), of a tenant or of all (None).

    `group_by` names DIMENSIONS, "hour", "day" or "tenant". `where` holds pairs of a dimension and a value; several of one
    dimension are alternatives.
    """

    start: float
    end: float
    group_by: tuple[str, ...] = ()
    tenant: str | None = None
    where: tuple[tuple[str, str], ...] = ()

    @property
    def by_user(self) -> bool:
        """Whether it takes the users' rows."""
        return "user" in self.group_by or any(dimension == "user" for dimension, _ in self.where)


class Sums:
    """Adds roll-ups up, as a query wants them."""

    def __init__(self, group_by: Sequence[str], where: Iterable[tuple[str, str]] = ()) -> None:
        self._group_by = tuple(group_by)
        self._where: dict[str, set[str]] = {}
        for dimension, value in where:
            self._where.setdefault(dimension, set()).add(value)
        self._rows: Rows = {}

    def add(self, tenant: str, hour: str, rows: Rows) -> None:
        """Adds an hour of a tenant."""
        told = {"tenant": tenant, "hour": hour, "day": day_of(hour)}
        for values, amounts_ in rows.items():
            known = dict(zip(DIMENSIONS, values, strict=False)) | told
            if any(known[dimension] not in wanted for dimension, wanted in self._where.items()):
                continue
            key = tuple(known[dimension] for dimension in self._group_by)
            sums = self._rows.get(key)
            self._rows[key] = amounts_ if sums is None else _sum(sums, amounts_)

    def result(self) -> tuple[list[CostSum], CostSum]:
        """Rows, dearest first, and their total."""
        total = [0] * len(METRICS)
        for sums in self._rows.values():
            total = _sum(total, sums)
        rows = [_cost_sum(key, sums) for key, sums in self._rows.items()]
        return sorted(rows, key=lambda row: (-row["actual"], row.key)), _cost_sum((), total)


def _cost_sum(key: tuple[str, ...], sums: Sequence[int]) -> CostSum:
    return CostSum(key, {metric: amount for metric, amount in zip(METRICS, sums, strict=True) if amount})


def sum_rollups(
    tenant: str, hours: Iterable[tuple[str, Rows]], group_by: Sequence[str]
) -> tuple[list[CostSum], CostSum]:
    """Rows by the wanted dimensions, dearest first; and the total."""
    sums = Sums(group_by)
    for hour, rows in hours:
        sums.add(tenant, hour, rows)
    return sums.result()


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


class LedgerReader(Protocol):
    """What the ledger knows. Raises NotReady while it cannot be reached."""

    async def tenants(self) -> list[str]:
        """All that ever wrote something, by name."""
        ...

    async def hours(self, tenant: str, first_hour: str, end_hour: str) -> list[str]:
        """The hours of which there is something, from the first up to and without the end, in order."""
        ...

    def rollups(
        self, tenant: str, first_hour: str, end_hour: str, *, by_user: bool = False
    ) -> AsyncIterator[tuple[str, Rows]]:
        """The roll-ups of these hours, in order; with `by_user` told apart by users."""
        ...

    def records(self, tenant: str, hour: str) -> AsyncIterator[UsageRecord]:
        """The records of an hour, in any order, some maybe twice."""
        ...
