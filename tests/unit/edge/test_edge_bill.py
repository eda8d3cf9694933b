"""The identity of every bill: baseline - savings + overhead = actual, to the nano-USD."""

from hypothesis import given
from hypothesis import strategies as st

from services.common.money import CostItem, Rates, Savings, Usage, price
from services.edge.domain.bill import answer_bill, failure_bill, hit_bill
from services.edge.domain.ports import Charge

per_million = st.integers(0, 100_000 * 10**9)
rates = st.builds(Rates, per_million, per_million, per_million, per_million, per_million)
nano = st.integers(0, 10**12)
overhead = st.lists(
    st.builds(CostItem, st.sampled_from(["embedder", "verifier", "router"]), st.just("m"), nano, st.just(True)),
    max_size=5,
)


@st.composite
def usages(draw):
    read, written, plain = (draw(st.integers(0, 2_000_000)) for _ in range(3))
    long = draw(st.integers(0, written))
    return Usage(
        plain + read + written,
        draw(st.integers(0, 200_000)),
        read,
        written,
        ((300, written - long), (3600, long)),
    )


@st.composite
def charges(draw):
    """Charges as they come: by list price, measured and so never quite at any rate, with waste and a batch discount."""
    return Charge(
        draw(nano),
        draw(rates),
        draw(st.sampled_from(["provider", "engine"])),
        False,
        draw(nano),
        draw(nano),
    )


@given(rates, usages(), overhead)
def test_a_hit_saves_the_baseline_and_costs_what_finding_it_cost(baseline, usage, items):
    bill = hit_bill(baseline, usage, items)
    assert bill.identity_holds
    assert bill.savings == Savings(cache=bill.baseline)
    assert bill.actual == bill.overhead == sum(item.cost for item in items)
    assert not bill.unpriced


@given(rates, usages(), charges(), st.integers(0, 1_000_000), overhead)
def test_an_answers_bill_adds_up(baseline, usage, charge, removed, items):
    bill = answer_bill(baseline, "model", usage, charge, removed, items)
    assert bill.identity_holds
    assert bill.actual == charge.cost + charge.wasted + sum(item.cost for item in items)
    assert bill.overhead == charge.wasted + sum(item.cost for item in items)
    assert bill.baseline == price(baseline, Usage(usage.input_tokens + removed, usage.output_tokens))
    assert bill.savings.cache == 0
    assert bill.savings.batch == charge.batch_discount


@given(rates, usages(), charges(), overhead)
def test_compression_saves_nothing_where_nothing_was_removed(baseline, usage, charge, items):
    assert answer_bill(baseline, "model", usage, charge, 0, items).savings.compression == 0


@given(rates, st.integers(0, 10**6), st.integers(0, 10**6), charges())
def test_a_prompt_cache_saves_nothing_where_no_token_was_cached(baseline, tokens_in, tokens_out, charge):
    usage = Usage(tokens_in, tokens_out)
    assert answer_bill(baseline, "model", usage, charge, 0, ()).savings.prompt_cache == 0


@given(rates, usages(), nano)
def test_an_answer_of_the_baseline_model_at_list_price_saves_nothing(baseline, usage, waste):
    plain = Usage(usage.input_tokens, usage.output_tokens)
    charge = Charge(price(baseline, plain), baseline, wasted=waste)
    bill = answer_bill(baseline, "model", plain, charge, 0, ())
    assert bill.savings == Savings()
    assert bill.actual == bill.baseline + waste


@given(rates, usages(), nano, overhead)
def test_an_unpriced_answer_claims_no_savings(baseline, usage, wasted, items):
    bill = answer_bill(baseline, "model", usage, Charge(0, Rates(), unpriced=True, wasted=wasted), 5, items)
    assert bill.identity_holds
    assert bill.unpriced
    assert bill.baseline == 0
    assert bill.savings == Savings()
    assert bill.actual == wasted + sum(item.cost for item in items)


@given(overhead)
def test_a_failure_saves_nothing_and_costs_what_was_tried(items):
    bill = failure_bill(items)
    assert bill.identity_holds
    assert bill.baseline == bill.savings.total == 0
    assert bill.actual == sum(item.cost for item in items)
