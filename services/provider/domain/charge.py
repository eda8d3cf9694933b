"""What an answer cost, and at which rates."""

from dataclasses import dataclass

from services.common.money import Rates, Usage, price

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Compute:
    """Measured cost of our own engine in nano-USD; `cost` includes `prefill_cost`."""

    cost: int
    prefill_cost: int


@dataclass(frozen=True, slots=True)
class Charge:
    """Cost of the call that answered, in nano-USD, and the rates by which it can be computed again.

    `component` is "provider" or "engine". An unpriced charge has neither cost nor rates: it is never the same as free.
    """

    cost: int
    rates: Rates
    component: str
    unpriced: bool = False


def list_charge(rates: Rates | None, usage: Usage) -> Charge:
    """A vendor's charge by the price book; unpriced where the book has no rates."""
    if rates is None:
        return Charge(0, Rates(), "provider", unpriced=True)
    return Charge(price(rates, usage), rates, "provider")


def measured_charge(compute: Compute, usage: Usage) -> Charge:
    """The engine's charge. Up to a million tokens, `price(rates, usage)` gives the measured cost to the nano-USD.

    Prefill is shared by the computed input tokens (cached ones cost nothing), decode by the output tokens.
    """
    computed = usage.input_tokens - usage.cache_read_input_tokens
    prefill, decode = compute.prefill_cost, compute.cost - compute.prefill_cost
    if computed == 0:
        prefill, decode = 0, compute.cost
    elif usage.output_tokens == 0:
        prefill, decode = compute.cost, 0
    rates = Rates(input=_per_million(prefill, computed), output=_per_million(decode, usage.output_tokens))
    return Charge(compute.cost, rates, "engine")


def _per_million(cost: int, tokens: int) -> int:
    return (cost * MILLION + tokens // 2) // tokens if tokens else 0
