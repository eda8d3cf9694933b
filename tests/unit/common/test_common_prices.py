"""The price book: integers, one rate per size, and a batch that adds up."""

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import prices as module
from services.common.money import NANO, Rates, Tariff, Usage, batch_discount, batch_rates, price
from services.common.prices import PriceBook
from services.common.yaml_file import ConfigError

DAY = date(2026, 6, 1)
FIELDS = ("input", "output", "cache_read", "cache_write", "cache_write_long")

rates = st.builds(Rates, *[st.integers(0, 10**14)] * 5)
tokens = st.integers(0, 10**6)
factors = st.decimals(Decimal("0.01"), 1, places=3)


@st.composite
def usages(draw) -> Usage:
    plain, read, short, long = (draw(tokens) for _ in range(4))
    return Usage(plain + read + short + long, draw(tokens), read, short + long, ((300, short), (3600, long)))


def book(**price: object) -> PriceBook:
    return PriceBook.model_validate({"models": {"m": {"prices": [{"valid_from": date(2024, 1, 1), **price}]}}})


@given(rates, usages(), factors)
def test_price_less_discount_is_the_batch_price_exactly(rates, usage, factor):
    reduced = batch_rates(rates, factor)
    discount = batch_discount(rates, usage, reduced)
    assert 0 <= discount <= price(rates, usage)
    assert price(rates, usage) - discount == price(reduced, usage)


@given(rates, factors)
def test_every_rate_of_a_batch_is_its_share_rounded_half_up(rates, factor):
    reduced = batch_rates(rates, factor)
    for field in FIELDS:
        assert abs(getattr(reduced, field) - getattr(rates, field) * factor) <= Decimal("0.5")
    assert batch_rates(rates, Decimal(1)) == rates


def test_half_a_nano_dollar_of_a_rate_is_rounded_up():
    assert batch_rates(Rates(input=3), Decimal("0.5")).input == 2


@given(rates, rates, st.integers(1, 10**6), st.integers(0, 2 * 10**6))
def test_long_rates_hold_for_exactly_the_requests_above_the_step(short, long, step, size):
    tariff = Tariff(short, short, Tariff(long, long), step)
    assert tariff.at(size).rates == (long if size > step else short)


dollars = st.decimals(0, 1000, places=6)


@given(dollars, dollars, tokens, tokens)
def test_dollars_of_the_file_become_nano_dollars_without_loss(dollars_in, dollars_out, count_in, count_out):
    cost = book(input=dollars_in, output=dollars_out).price("m", Usage(count_in, count_out))
    exact = (dollars_in * count_in + dollars_out * count_out) * NANO / 1_000_000
    assert isinstance(cost, int)
    assert abs(cost - exact) <= Decimal("0.5")


LONG = {
    "input": 1,
    "output": 4,
    "cache_read": "0.1",
    "batch_factor": "0.5",
    "long_context": {"from_tokens": 200_000, "input": 2, "output": 6, "cache_read": "0.2"},
}


def test_the_whole_of_a_long_request_has_the_long_price():
    one = book(**LONG)
    assert one.price("m", Usage(200_000, 10)) == 200_000 * 1000 + 10 * 4000
    assert one.price("m", Usage(200_001, 10)) == 200_001 * 2000 + 10 * 6000
    assert one.price("m", Usage(300_000, 10, 250_000)) == 50_000 * 2000 + 250_000 * 200 + 10 * 6000
    assert one.rates("m", DAY) == one.rates("m", DAY, 200_000) != one.rates("m", DAY, 200_001)


def test_a_long_price_without_cached_prices_of_its_own_takes_none_over():
    odd = book(**{**LONG, "long_context": {"from_tokens": 10, "input": 2, "output": 6}})
    assert odd.rates("m", DAY, 11).cache_read == 2 * NANO


def test_a_batch_pays_its_share_of_long_prices_too():
    one = book(**LONG)
    assert one.batch_rates("m", DAY).cache_read == 50_000_000
    assert one.batch_rates("m", DAY, 200_001) == batch_rates(one.rates("m", DAY, 200_001), Decimal("0.5"))


def test_a_batch_may_pay_cached_input_in_full():
    one = book(input=1, output=4, cache_read="0.25", batch_factor="0.5", batch_cache_read="0.25")
    assert one.batch_rates("m", DAY).cache_read == one.rates("m", DAY).cache_read == 250_000_000
    assert one.batch_rates("m", DAY).input == 500_000_000


def test_without_a_batch_price_a_batch_pays_what_everybody_pays():
    assert book(input=1, output=4).batch_rates("m", DAY) == book(input=1, output=4).rates("m", DAY)


def test_an_unknown_model_has_no_price_at_all():
    one = book(input=1, output=4)
    assert one.price("other", Usage(1, 1)) is None
    assert one.batch_rates("other") is None
    assert one.tariff("m", date(2023, 12, 31)) is None


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("long_context: {input: 1, output: 1}", 5, "Field required"),
        ("long_context: {from_tokens: 0, input: 1, output: 1}", 5, "greater than or equal to 1"),
        ("long_context: {from_token: 9, from_tokens: 9, input: 1, output: 1}", 5, "Extra inputs"),
        ("batch_factor: 0", 5, "greater than 0"),
        ("batch_factor: 1.5", 5, "less than or equal to 1"),
    ],
)
def test_a_mistake_in_the_newer_fields_names_file_and_line(tmp_path, text, line, says):
    path = tmp_path / "prices.yaml"
    path.write_text(f"models:\n  m:\n    prices:\n      - valid_from: 2024-01-01\n        {text}\n        input: 1\n")
    with pytest.raises(ConfigError) as caught:
        PriceBook.load(path)
    assert any(f":{line}: " in row and says in row for row in str(caught.value).splitlines()), caught.value


SHIPPED = PriceBook.load(module.SHIPPED)


@pytest.mark.parametrize("model", SHIPPED.models)
def test_the_shipped_prices_are_in_order_and_say_where_they_are_from(model):
    entry = SHIPPED.models[model]
    days = [price.valid_from for price in entry.prices]
    assert entry.source
    assert days == sorted(set(days))


@pytest.mark.parametrize(
    ("model", "dollars_in", "dollars_out"),
    [
        ("o1", "15", "60"),
        ("claude-opus", "15", "75"),
        ("gpt-4o", "2.50", "10"),
        ("claude-sonnet", "3", "15"),
        ("gemini-1.5-pro", "1.25", "5"),
        ("llama-3-70b-groq", ".59", ".79"),
        ("mixtral-8x22b-together", ".90", ".90"),
        ("claude-haiku", ".25", "1.25"),
        ("gpt-4o-mini", ".15", ".60"),
        ("deepseek-v3", ".14", ".28"),
        ("gemini-flash", ".075", ".30"),
    ],
)
def test_the_prices_of_the_case_study_are_in_the_book(model, dollars_in, dollars_out):
    found = SHIPPED.rates(model, DAY)
    assert (found.input, found.output) == (Decimal(dollars_in) * NANO, Decimal(dollars_out) * NANO)
