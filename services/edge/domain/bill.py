"""Who saved what: the waterfall from the baseline to what was spent. Integers; each step is a difference, so it adds up.

baseline     the baseline model, uncompressed, nothing cached, this answer's length
- routing    the model that answered, same tokens
- compression  its prompt as it was sent
- prompt cache with the vendor's cached prices
- batch      with the batch discount
+ overhead   what the mesh spent on the way
= actual
"""

from collections.abc import Sequence

from services.common.money import Bill, CostItem, Rates, Savings, Usage, price
from services.edge.domain.ports import Charge


def hit_bill(baseline: Rates, usage: Usage, overhead: Sequence[CostItem]) -> Bill:
    """A hit saves all of the baseline and costs what was spent on finding it."""
    would_be = price(baseline, Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens))
    items = tuple(item for item in overhead if item.cost)
    return Bill(sum(i.cost for i in items), would_be, Savings(cache=would_be), items)


def answer_bill(
    baseline: Rates, model: str, usage: Usage, charge: Charge, removed_tokens: int, overhead: Sequence[CostItem]
) -> Bill:
    """The bill of a generated answer. `removed_tokens` are the prompt tokens that compression took away."""
    items = [item for item in overhead if item.cost]
    if charge.wasted:
        items.append(CostItem(charge.component, model, charge.wasted, overhead=True))
    spent_on_the_way = sum(item.cost for item in items)
    if charge.unpriced:
        # What the answer cost is not known: nothing may be claimed as saved.
        return Bill(spent_on_the_way, 0, Savings(), tuple(items), unpriced=True)
    sent = Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    whole = Usage(input_tokens=usage.input_tokens + removed_tokens, output_tokens=usage.output_tokens)
    would_be = price(baseline, whole)
    before_batch = charge.cost + charge.batch_discount
    # Without cached tokens there is nothing to tell apart (and no rounding of measured rates to be mistaken for savings).
    cached = usage.cache_read_input_tokens or usage.cache_write_input_tokens
    uncached = price(charge.rates, sent) if cached else before_batch
    uncompressed = uncached + price(charge.rates, whole) - price(charge.rates, sent)
    savings = Savings(
        routing=would_be - uncompressed,
        compression=uncompressed - uncached,
        prompt_cache=uncached - before_batch,
        batch=charge.batch_discount,
    )
    items.append(CostItem(charge.component, model, charge.cost))
    return Bill(charge.cost + spent_on_the_way, would_be, savings, tuple(items))


def shadow_bill(model: str, charge: Charge, overhead: Sequence[CostItem]) -> Bill:
    """An answer that was made only to check another one saves nothing: all that it cost is overhead."""
    made = CostItem(charge.component, model, charge.cost + charge.wasted, overhead=True)
    return failure_bill((*overhead, made), charge.unpriced)


def failure_bill(overhead: Sequence[CostItem], unpriced: bool = False) -> Bill:
    """A request without an answer saved nothing and cost what was spent on trying, as far as prices are known."""
    items = tuple(item for item in overhead if item.cost)
    return Bill(sum(i.cost for i in items), 0, Savings(), items, unpriced)
