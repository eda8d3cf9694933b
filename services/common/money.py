"""Tokens and money. Money is an integer count of nano-USD; rates are nano-USD per million tokens."""

from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Protocol

NANO = 1_000_000_000
LONG_TTL_S = 3600


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one model call. `input_tokens` includes what was read from and written to a prompt cache.

    `cache_writes` holds (lifetime in seconds, tokens) where the vendor tells lifetimes apart.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_write_input_tokens: int = 0
    cache_writes: tuple[tuple[int, int], ...] = ()
    reasoning_output_tokens: int = 0
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices of one model in nano-USD per million tokens, all at least 0."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_long: int = 0


class RatesOf(Protocol):
    """Answers what a model costs, by the price book's name of it."""

    def __call__(self, model: str, *, input_tokens: int = 0) -> Rates | None:
        """Today's rates for a request of this size; None where no price is known, which is never the same as free."""
        ...


@dataclass(frozen=True, slots=True)
class Tariff:
    """What one model costs on one day, and what a batch pays.

    `long` holds for the whole of a request of more than `long_from` input tokens; None where size makes no difference.
    """

    rates: Rates
    batch: Rates
    long: "Tariff | None" = None
    long_from: int = 0

    def at(self, input_tokens: int) -> "Tariff":
        """What holds for a request of this size."""
        return self if self.long is None or input_tokens <= self.long_from else self.long


def price(rates: Rates, usage: Usage) -> int:
    """What a call costs in nano-USD, rounded half up once over the sum."""
    long_writes = sum(tokens for ttl, tokens in usage.cache_writes if ttl >= LONG_TTL_S)
    short_writes = usage.cache_write_input_tokens - long_writes
    plain = usage.input_tokens - usage.cache_read_input_tokens - usage.cache_write_input_tokens
    total = (
        plain * rates.input
        + usage.cache_read_input_tokens * rates.cache_read
        + short_writes * rates.cache_write
        + long_writes * rates.cache_write_long
        + usage.output_tokens * rates.output
    )
    return (total + 500_000) // 1_000_000


def batch_rates(rates: Rates, factor: Decimal) -> Rates:
    """Rates of which a batch pays `factor` (above 0, up to 1), each rounded half up."""

    def share(rate: int) -> int:
        return int((rate * factor).to_integral_value(ROUND_HALF_UP))

    return Rates(
        input=share(rates.input),
        output=share(rates.output),
        cache_read=share(rates.cache_read),
        cache_write=share(rates.cache_write),
        cache_write_long=share(rates.cache_write_long),
    )


def batch_discount(rates: Rates, usage: Usage, batch: Rates) -> int:
    """What a batch is spared on a call: price(rates, usage) less this is price(batch, usage), to the nano-USD."""
    return price(rates, usage) - price(batch, usage)


@dataclass(frozen=True, slots=True)
class Savings:
    """What each layer saved, in nano-USD; a layer may be negative."""

    cache: int = 0
    routing: int = 0
    compression: int = 0
    prompt_cache: int = 0
    batch: int = 0

    @property
    def total(self) -> int:
        """The sum over the layers."""
        return self.cache + self.routing + self.compression + self.prompt_cache + self.batch


@dataclass(frozen=True, slots=True)
class CostItem:
    """A part of the actual cost; `overhead` marks what did not directly make the answer."""

    component: str
    model: str
    cost: int
    overhead: bool = False


@dataclass(frozen=True, slots=True)
class Bill:
    """The money side of one request: baseline - savings + overhead = actual, always."""

    actual: int
    baseline: int
    savings: Savings = field(default_factory=Savings)
    items: tuple[CostItem, ...] = ()
    unpriced: bool = False

    @property
    def overhead(self) -> int:
        """What the mesh itself spent on the way."""
        return sum(item.cost for item in self.items if item.overhead)

    @property
    def identity_holds(self) -> bool:
        """The waterfall adds up, and the items add up to what was spent."""
        return (
            self.baseline - self.savings.total + self.overhead == self.actual
            and sum(item.cost for item in self.items) == self.actual
        )


def usd(nanousd: int) -> str:
    """For people: dollars with as many digits as small sums need."""
    dollars = nanousd / NANO
    return (
        f"${dollars:,.2f}" if abs(dollars) >= 100 else f"${dollars:.4f}" if abs(dollars) >= 0.01 else f"${dollars:.6f}"
    )
