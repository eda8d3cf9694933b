from hypothesis import assume, given
from hypothesis import strategies as st

from services.common.money import Rates, Usage, price
from services.provider.domain.charge import Compute, list_charge, measured_charge


@given(
    st.integers(0, 400_000),
    st.integers(0, 400_000),
    st.integers(0, 100_000),
    st.integers(0, 10**12),
    st.integers(0, 10**12),
)
def test_measured_rates_give_the_measured_cost_back(
    computed: int, cached: int, output: int, prefill: int, decode: int
) -> None:
    assume(computed + output > 0)
    usage = Usage(input_tokens=computed + cached, cache_read_input_tokens=cached, output_tokens=output)
    charge = measured_charge(Compute(prefill + decode, prefill), usage)
    assert charge.cost == prefill + decode
    assert price(charge.rates, usage) == charge.cost
    assert charge.rates.cache_read == 0


def test_cached_tokens_cost_nothing_and_computed_ones_carry_the_prefill() -> None:
    usage = Usage(input_tokens=1000, cache_read_input_tokens=900, output_tokens=10)
    rates = measured_charge(Compute(cost=3_000, prefill_cost=1_000), usage).rates
    assert (rates.input, rates.output) == (1_000 * 10_000, 2_000 * 100_000)


def test_a_listed_model_costs_its_price() -> None:
    rates = Rates(input=2_500_000_000, output=10_000_000_000, cache_read=1_250_000_000)
    usage = Usage(input_tokens=1_000, cache_read_input_tokens=400, output_tokens=100)
    charge = list_charge(rates, usage)
    assert charge.cost == 600 * 2_500 + 400 * 1_250 + 100 * 10_000
    assert (charge.rates, charge.unpriced, charge.component) == (rates, False, "provider")


def test_a_model_without_price_is_unpriced() -> None:
    assert list_charge(None, Usage(10, 10)).unpriced
