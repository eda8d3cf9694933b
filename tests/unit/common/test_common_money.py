"""Prices are exact, rounded once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.money import Rates, Usage, price, usd

tokens = st.integers(0, 10**7)
rate = st.integers(0, 10**14)


@pytest.mark.parametrize(
    ("nanousd_per_mtok", "count", "expected"),
    [(499_999, 1, 0), (500_000, 1, 1), (1_499_999, 1, 1), (1_500_000, 1, 2), (150_000_000, 1, 150), (1, 500_000, 1)],
)
def test_half_a_nano_dollar_is_rounded_up(nanousd_per_mtok, count, expected):
    assert price(Rates(input=nanousd_per_mtok), Usage(input_tokens=count)) == expected


def test_rounding_happens_once_over_the_sum():
    assert price(Rates(input=400_000, output=400_000), Usage(1, 1)) == 1
    assert price(Rates(input=400_000), Usage(1)) + price(Rates(output=400_000), Usage(0, 1)) == 0


def test_each_kind_of_token_has_its_price():
    rates = Rates(
        input=1_000_000, output=10_000_000, cache_read=100_000, cache_write=1_250_000, cache_write_long=2_000_000
    )
    usage = Usage(1000, 10, 400, 300, ((300, 100), (3600, 200)))
    assert price(rates, usage) == 300 * 1 + 10 * 10 + 40 + 125 + 400


def test_writes_without_a_lifetime_have_the_short_price():
    rates = Rates(cache_write=1_000_000, cache_write_long=9_000_000)
    assert price(rates, Usage(input_tokens=5, cache_write_input_tokens=5)) == 5


@given(rate, rate, tokens, tokens)
def test_a_dollar_price_is_exact_to_the_nano_dollar(input_rate, output_rate, count_in, count_out):
    exact = input_rate * count_in + output_rate * count_out
    found = price(Rates(input_rate, output_rate), Usage(count_in, count_out))
    assert abs(found * 1_000_000 - exact) <= 500_000


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "$0.000000"), (1_000, "$0.000001"), (12_345_678, "$0.0123"), (1_234_567_890_000, "$1,234.57")],
)
def test_people_see_as_many_digits_as_small_sums_need(nano, text):
    assert usd(nano) == text
