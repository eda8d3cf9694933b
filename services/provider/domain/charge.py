"""What an answer cost, and at which rates."""

from dataclasses import dataclass

from services.common.money import Rates, Usage, batch_discount, price

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
    `batch_discount` is what a batch was spared: `cost` is the price by `rates` less this.
    """

    cost: int
    rates: Rates
    component: str
    unpriced: bool = False
    batch_discount: int = 0


def reported(usage: Usage | None, text: str) -> Usage | None:
    """What a vendor counted, None where it did not: a prompt always has tokens, and so has a text that was written."""
    if usage is None or usage.input_tokens == 0 or (text and usage.output_tokens == 0):
        return None
    return usage


def list_charge(rates: Rates | None, usage: Usage, batch: Rates | None = None) -> Charge:
    """A vendor's charge by the price book; unpriced where the book has no rates.

    `rates` are those of a request of this size; `batch` is what a batch pays of them, None outside of one.
    """
    if rates is None:
        return Charge(0, Rates(), "provider", unpriced=True)
    discount = 0 if batch is None else batch_discount(rates, usage, batch)
    return Charge(price(rates, usage) - discount, rates, "provider", batch_discount=discount)


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
