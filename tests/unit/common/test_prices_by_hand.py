"""What calls cost, computed by hand to the nano-USD and compared with what is charged.

A price of d dollars per million tokens is d * 1,000 nano-USD per token: $2.50 is 2,500. Every record is of a day, so that a newer
price in the book does not change it.
"""

from datetime import date

import pytest
from openai.types import CompletionUsage

from services.common.chat import Chat, Message, Role, TextPart
from services.common.money import Usage
from services.common.prices import PriceBook
from services.provider.adapters.openai import usage_of
from services.provider.domain.charge import Charge, list_charge, reported
from services.provider.domain.dispatch import estimated_usage

BOOK = PriceBook.load()
NOVEMBER = date(2026, 11, 1)
FIVE_MINUTES, HOUR = 300, 3600


def charged(model: str, usage: Usage, day: date = NOVEMBER, *, batch: bool = False) -> Charge:
    size = usage.input_tokens
    reduced = BOOK.batch_rates(model, day, size) if batch else None
    return list_charge(BOOK.rates(model, day, size), usage, reduced)


def test_openai_cached_reads_are_part_of_the_prompt():
    vendor = CompletionUsage.model_validate(
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920},
        }
    )
    usage = usage_of(vendor)
    # plain  2,006 - 1,920 = 86 x 2,500   =   215,000
    # cached         1,920 x 1,250        = 2,400,000
    # output           300 x 10,000       = 3,000,000
    assert charged("gpt-4o", usage).cost == 5_615_000


def test_openai_reasoning_is_part_of_the_output_and_not_paid_twice():
    vendor = CompletionUsage.model_validate(
        {
            "prompt_tokens": 75,
            "completion_tokens": 1186,
            "total_tokens": 1261,
            "completion_tokens_details": {"reasoning_tokens": 1024},
        }
    )
    usage = usage_of(vendor)
    assert usage.reasoning_output_tokens == 1024
    # input     75 x 15,000 =  1,125,000
    # output 1,186 x 60,000 = 71,160,000
    assert charged("o1", usage).cost == 72_285_000


def test_openai_writes_for_half_an_hour_and_for_twelve():
    usage = Usage(10_000, 100, 6_000, 3_000, ((1800, 2_000), (12 * HOUR, 1_000)))
    # plain  10,000 - 6,000 - 3,000 = 1,000 x 4,000  =  4,000,000
    # read                            6,000 x   400  =  2,400,000
    # written for 30 minutes          2,000 x 5,000  = 10,000,000
    # written for 12 hours            1,000 x 10,000 = 10,000,000
    # output                            100 x 20,000 =  2,000,000
    assert charged("gpt-5.6-sol", usage).cost == 28_400_000


def test_anthropic_writes_for_five_minutes_and_for_an_hour_and_reads():
    # The vendor says: input_tokens 50, cache_creation 1,456 (5m 456, 1h 1,000), cache_read 10,000, output_tokens 250.
    usage = Usage(50 + 1_456 + 10_000, 250, 10_000, 1_456, ((FIVE_MINUTES, 456), (HOUR, 1_000)))
    # plain                50 x  3,000 =   150,000
    # read             10,000 x    300 = 3,000,000
    # written, 5m         456 x  3,750 = 1,710,000
    # written, 1h       1,000 x  6,000 = 6,000,000
    # output              250 x 15,000 = 3,750,000
    assert charged("claude-sonnet-4.5", usage).cost == 14_610_000


def test_anthropic_writes_that_are_not_told_apart_have_the_price_of_five_minutes():
    usage = Usage(2_000, 0, 0, 1_000)
    # plain 1,000 x 15,000 = 15,000,000; written 1,000 x 18,750 = 18,750,000
    assert charged("claude-opus", usage).cost == 33_750_000


def test_gemini_thoughts_are_output():
    # The vendor says: promptTokenCount 1,200 of which cachedContentTokenCount 1,024, candidates 80, thoughts 620.
    usage = Usage(1_200, 80 + 620, 1_024, reasoning_output_tokens=620)
    # plain  1,200 - 1,024 = 176 x   300 =    52,800
    # cached               1,024 x    30 =    30,720
    # output, thoughts too   700 x 2,500 = 1,750,000
    assert charged("gemini-2.5-flash", usage).cost == 1_833_520


def test_gemini_long_context_begins_above_its_step_and_holds_for_every_token():
    # 200,000 x 1,250 = 250,000,000; 1,000 x 10,000 = 10,000,000
    assert charged("gemini-2.5-pro", Usage(200_000, 1_000)).cost == 260_000_000
    # 200,001 x 2,500 = 500,002,500; 1,000 x 15,000 = 15,000,000
    assert charged("gemini-2.5-pro", Usage(200_001, 1_000)).cost == 515_002_500


def test_anthropic_long_context_counts_cached_input_into_the_size():
    usage = Usage(250_000, 2_000, 240_000, 9_000, ((FIVE_MINUTES, 9_000),))
    # plain       1,000 x  6,000 =   6,000,000
    # read      240,000 x    600 = 144,000,000
    # written     9,000 x  7,500 =  67,500,000
    # output      2,000 x 22,500 =  45,000,000
    assert charged("claude-sonnet-4.5", usage, date(2025, 12, 1)).cost == 262_500_000
    # From 2026-04-30 on size makes no difference: half of all input, two thirds of the output.
    # 3,000,000 + 72,000,000 + 33,750,000 + 30,000,000
    assert charged("claude-sonnet-4.5", usage, date(2026, 4, 30)).cost == 138_750_000


def test_openai_batch_is_half():
    usage = Usage(1_001, 333)
    # 1,001 x 250 = 250,250; 333 x 2,000 = 666,000: 916,250 by the list
    assert charged("gpt-5-mini", usage).cost == 916_250
    charge = charged("gpt-5-mini", usage, batch=True)
    assert (charge.cost, charge.batch_discount) == (458_125, 458_125)
    assert charge.rates == BOOK.rates("gpt-5-mini", NOVEMBER)


def test_openai_batch_before_gpt_5_pays_cached_input_in_full():
    charge = charged("gpt-4o", Usage(1_000, 100, 512), batch=True)
    # list:  488 x 2,500 = 1,220,000; 512 x 1,250 = 640,000; 100 x 10,000 = 1,000,000: 2,860,000
    # batch: 488 x 1,250 =   610,000; 512 x 1,250 = 640,000; 100 x  5,000 =   500,000: 1,750,000
    assert (charge.cost, charge.batch_discount) == (1_750_000, 1_110_000)


def test_anthropic_batch_halves_reads_and_writes_too():
    charge = charged("claude-haiku-4.5", Usage(6_100, 200, 5_000, 1_000, ((FIVE_MINUTES, 1_000),)), batch=True)
    # list: 100 x 1,000 = 100,000; 5,000 x 100 = 500,000; 1,000 x 1,250 = 1,250,000; 200 x 5,000 = 1,000,000: 2,850,000
    assert (charge.cost, charge.batch_discount) == (1_425_000, 1_425_000)


def test_a_long_request_in_a_batch():
    charge = charged("gpt-5.4", Usage(300_000, 10), batch=True)
    # list:  300,000 x 5,000 = 1,500,000,000; 10 x 22,500 = 225,000
    # batch: 300,000 x 2,500 =   750,000,000; 10 x 11,250 = 112,500
    assert (charge.cost, charge.batch_discount) == (750_112_500, 750_112_500)


def test_fractions_of_a_nano_dollar_are_rounded_half_up_once():
    # 1 x 75 + 1 x 18.75 = 93.75; 1 x 75 + 2 x 18.75 = 112.5
    assert charged("gemini-flash", Usage(2, 0, 1)).cost == 94
    assert charged("gemini-flash", Usage(3, 0, 2)).cost == 113


@pytest.mark.parametrize(
    "vendor",
    [
        None,
        {"prompt_tokens": 1200},
        {"completion_tokens": 80, "total_tokens": 80},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": 12, "completion_tokens": 0, "total_tokens": 12},
    ],
)
def test_a_missing_usage_field_is_an_estimate_with_a_flag_and_never_free(vendor):
    answer = "Paris is the capital of France."
    chat = Chat((Message(Role.USER, (TextPart("What is the capital of France?"),)),))
    counted = reported(usage_of(None if vendor is None else CompletionUsage.model_construct(**vendor)), answer)
    assert counted is None
    usage = estimated_usage(chat, answer)
    charge = charged("gpt-4o", usage)
    assert usage.estimated
    assert charge.cost == usage.input_tokens * 2_500 + usage.output_tokens * 10_000 > 0
    assert not charge.unpriced


def test_what_a_vendor_counted_is_taken_as_it_is():
    assert reported(Usage(5, 0), "") == Usage(5, 0)
    assert reported(Usage(5, 1), "x") == Usage(5, 1)


@pytest.mark.parametrize(("model", "day"), [("no-such-model", NOVEMBER), ("gpt-4o", date(2020, 1, 1))])
@pytest.mark.parametrize("batch", [False, True])
def test_an_unknown_price_is_unpriced_and_never_free(model, day, batch):
    charge = charged(model, Usage(1_000, 100), day, batch=batch)
    assert charge.unpriced
    assert charge.cost == charge.batch_discount == 0
    assert not charged("gpt-4o", Usage(1_000, 100), batch=batch).unpriced
