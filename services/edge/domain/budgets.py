"""Budgets: which limits a request counts against, in which window of time each, and what happens when one is used up.

A budget of the policy has one window for each period, and one for each value of the dimensions that it tells apart. A window's
name says all of that, as `per-user:alice:2026-11-24`; a record carries the names of those that its cost counts against.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Protocol
from urllib.parse import quote, unquote

from services.common.errors import BudgetExceeded
from services.common.money import usd
from services.edge.domain.ports import Route

RESERVATION_S = 900.0  # a request that takes longer has been lost
EACH = "*"
_NOT_ESCAPED = "/@"


class Mode(StrEnum):
    """What happens when a budget is used up: requests are refused, or go to a cheaper tier."""

    HARD = "hard"
    SOFT = "soft"


class Period(StrEnum):
    """How long a budget lasts; both begin at midnight UTC."""

    DAY = "day"
    MONTH = "month"

    def label(self, now: float) -> str:
        """The period that runs: 2026-01-31 for a day, 2026-01 for a month."""
        return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d" if self is Period.DAY else "%Y-%m")


@lru_cache(maxsize=64)
def _end_of(label: str) -> float:
    if len(label) == len("2026-01"):
        first = date.fromisoformat(f"{label}-01")
        after = (first + timedelta(days=31)).replace(day=1)
    else:
        after = date.fromisoformat(label) + timedelta(days=1)
    return datetime(after.year, after.month, after.day, tzinfo=UTC).timestamp()


def end_of(window: str) -> float:
    """When a window of that name ends, in seconds since the Unix epoch. Raises ValueError for what is no name of one."""
    return _end_of(_label_of(window))


def _label_of(window: str) -> str:
    return window.rpartition(":")[2]


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit of the policy, in nano-USD, that holds within a tenant: "*" gives every tenant one of its own.

    Of the other dimensions "*" means one budget for each value (that of requests without one is empty), a value that it is for
    these requests alone, and None that they all share it. `degrade_to` is the tier of a soft one.
    """

    name: str
    limit: int
    period: Period
    mode: Mode = Mode.HARD
    tenant: str = EACH
    endpoint: str | None = None
    user: str | None = None
    namespace: str | None = None
    degrade_to: str = ""

    @property
    def dimensions(self) -> tuple[str | None, str | None, str | None]:
        """Endpoint, user and namespace."""
        return self.endpoint, self.user, self.namespace


@dataclass(frozen=True, slots=True)
class Window:
    """A budget in one period, for one value of each dimension that it tells apart."""

    name: str
    budget: Budget
    resets_at: float
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BudgetStatus:
    """A tenant's budget in the period that runs; money in nano-USD. What all values share is empty."""

    name: str
    tenant: str
    endpoint: str
    user: str
    namespace: str
    period: str
    mode: Mode
    limit: int
    spent: int
    reserved: int
    resets_at: float


class Spender(Protocol):
    """Who spends: a request, or a batch of them."""

    @property
    def tenant(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def namespace(self) -> str: ...


@dataclass(frozen=True, slots=True)
class BudgetBook:
    """The policy's budgets."""

    budgets: tuple[Budget, ...] = ()

    def windows(self, spender: Spender, now: float) -> tuple[Window, ...]:
        """All that the spender's costs count against now."""
        asked = (spender.endpoint, spender.user, spender.namespace)
        return tuple(
            _window(
                budget, tuple(value for want, value in zip(budget.dimensions, asked, strict=True) if want == EACH), now
            )
            for budget in self.budgets
            if budget.tenant in (EACH, spender.tenant)
            and all(want in (None, EACH, value) for want, value in zip(budget.dimensions, asked, strict=True))
        )

    def shared(self, tenant: str, now: float) -> tuple[Window, ...]:
        """The tenant's windows that are there before anybody asks: those of budgets that tell nothing apart."""
        return tuple(
            _window(budget, (), now)
            for budget in self.budgets
            if budget.tenant in (EACH, tenant) and EACH not in budget.dimensions
        )

    def window(self, tenant: str, name: str) -> Window | None:
        """The window of that name; None where the policy has no such budget for the tenant (any more)."""
        budget_name, *values, label = name.split(":")
        for budget in self.budgets:
            if budget.name == budget_name and budget.tenant in (EACH, tenant):
                if len(values) != budget.dimensions.count(EACH) or len(label) != len(budget.period.label(0.0)):
                    return None
                return Window(name, budget, end_of(name), tuple(map(unquote, values)))
        return None

    @property
    def tenants(self) -> frozenset[str]:
        """Those that budgets name."""
        return frozenset(budget.tenant for budget in self.budgets if budget.tenant != EACH)


def _window(budget: Budget, values: tuple[str, ...], now: float) -> Window:
    label = budget.period.label(now)
    name = ":".join((budget.name, *(quote(value, safe=_NOT_ESCAPED) for value in values), label))
    return Window(name, budget, end_of(name), values)


def status_of(window: Window, tenant: str, spent: int, reserved: int) -> BudgetStatus:
    """How a window stands."""
    values = iter(window.values)
    endpoint, user, namespace = (next(values) if want == EACH else want or "" for want in window.budget.dimensions)
    return BudgetStatus(
        window.budget.name,
        tenant,
        endpoint,
        user,
        namespace,
        _label_of(window.name),
        window.budget.mode,
        window.budget.limit,
        spent,
        reserved,
        window.resets_at,
    )


def exceeded(tenant: str, window: Window, spent: int, reserved: int, amount: int, now: float) -> BudgetExceeded:
    """The refusal of a request that may cost `amount`."""
    budget = window.budget
    return BudgetExceeded(
        f"the budget {budget.name} of {usd(budget.limit)} a {budget.period} is used up: {usd(spent)} spent, "
        f"{usd(reserved)} reserved, and this request may cost {usd(amount)}; it resets at {_utc(window):%Y-%m-%d %H:%M} UTC",
        retry_after_s=max(window.resets_at - now, 0.0),
        metadata={
            "tenant": tenant,
            "budget": budget.name,
            "period": _label_of(window.name),
            "limit_nanousd": str(budget.limit),
            "spent_nanousd": str(spent),
            "reserved_nanousd": str(reserved),
            "resets_at": _utc(window).isoformat(),
        },
    )


def notice(overdrawn: Sequence[Window], asked: Route, gets: Route) -> str:
    """What the caller is told where soft budgets are used up."""
    names = " and ".join(
        f"the budget {w.budget.name} of {usd(w.budget.limit)} a {w.budget.period} is used up until {_utc(w):%Y-%m-%d %H:%M} UTC"
        for w in overdrawn
    )
    if gets == asked:
        return f"{names}: this request is as cheap as it gets"
    return f"{names}: {_called(gets)} in place of {_called(asked)}"


def _called(route: Route) -> str:
    return f"tier {route.tier}" if route.tier else route.candidates[0]


def _utc(window: Window) -> datetime:
    return datetime.fromtimestamp(window.resets_at, UTC)


def degraded(route: Route, tier: str, candidates: Sequence[str], price_of: Callable[[str], int | None]) -> Route:
    """The tier's way in place of the route: without any model dearer than the one that the route prefers.

    Where all of the tier's are, what the route has of cheaper ones. `price_of` tells what a model would cost, None where no
    price is known. A route that is that cheap already stays as it is.
    """
    if route.tier == tier:
        return route
    most = price_of(route.candidates[0])

    def fits(model: str) -> bool:
        cost = price_of(model)
        return cost is not None and (most is None or cost <= most)

    cheaper = tuple(model for model in candidates if fits(model))
    if not cheaper:
        tier, cheaper = route.tier, tuple(m for m in route.candidates if m == route.candidates[0] or fits(m))
    if cheaper == route.candidates:
        return route
    return replace(route, candidates=cheaper, tier=tier, reason="a soft budget is used up", cost=0)


class Budgets(Protocol):
    """Spending limits, exact over replicas."""

    async def reserve(
        self,
        tenant: str,
        windows: Sequence[Window],
        amount: int,
        reservation_id: str,
        *,
        past_soft: bool = False,
        for_s: float = RESERVATION_S,
    ) -> tuple[Window, ...]:
        """Sets `amount` nano-USD aside in all windows or in none, for `for_s` seconds at most.

        Gives the soft windows that have no room; then nothing is reserved, unless with `past_soft`, for which they have room
        always. Raises BudgetExceeded when a hard one has none. The same reservation again takes the place of the first one.
        """
        ...

    async def release(self, tenant: str, windows: Sequence[str], reservation_id: str) -> None:
        """Gives a reservation back that led to no cost. `windows` are names."""
        ...

    def settle(self, tenant: str, windows: Sequence[str], reservation_id: str, actual: int) -> None:
        """Notes what a reservation came to. The ledger settles those in the shared store; this is for those made without it."""
        ...


class BudgetReader(Protocol):
    """How budgets stand."""

    async def status(self, tenant: str | None) -> list[BudgetStatus]:
        """The budgets that hold for a tenant, None for every tenant, the fullest first. Raises NotReady."""
        ...
