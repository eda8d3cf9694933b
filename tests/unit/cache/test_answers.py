"""Answers that say the same and answers that do not: only what is clear is decided."""

import json
from pathlib import Path

import pytest

from services.cache.domain.answers import Comparison, compare

DATA = Path(__file__).parents[3] / "benchmarks" / "cache_quality" / "data" / "answers.jsonl"
PAIRS = [json.loads(line) for line in DATA.read_text().splitlines()]


@pytest.mark.parametrize("language", ["en", "es"])
def test_decided_pairs_agree_with_people_and_most_are_decided(language):
    pairs = [pair for pair in PAIRS if pair["lang"] == language]
    found = [compare(pair["stored"], pair["fresh"], None) for pair in pairs]
    decided = [(label, pair["same"]) for label, pair in zip(found, pairs, strict=True) if label is not Comparison.DOUBT]
    assert len(pairs) >= 120
    assert sum((label is Comparison.SAME) == same for label, same in decided) >= 0.97 * len(decided)
    assert len(decided) >= 0.6 * len(pairs)


def test_answers_compare_alike_both_ways_round():
    assert all(
        compare(pair["stored"], pair["fresh"], None) == compare(pair["fresh"], pair["stored"], None) for pair in PAIRS
    )


@pytest.mark.parametrize(
    ("stored", "fresh", "expected"),
    [
        ("Refunds take 5 days.", "Refunds  take 5\ndays.", Comparison.SAME),
        ("The trip takes 2 hours by train.", "By train, the trip takes 120 minutes.", Comparison.SAME),
        ("El viaje dura hora y media en tren.", "En tren, el viaje dura 90 minutos.", Comparison.SAME),
        ("Refunds take 24 hours.", "Refunds take three days.", Comparison.DIFFERENT),
        ("Yes, you can return opened items.", "No, opened items are final sale.", Comparison.DIFFERENT),
        ("Sí, se admiten perros.", "No, en el hotel no se admiten perros.", Comparison.DIFFERENT),
        ("The error is E42, a blocked filter.", "The error is E17, a blocked filter.", Comparison.DIFFERENT),
        ("The warranty covers water damage.", "The warranty doesn't cover water damage.", Comparison.DIFFERENT),
        ("Entra en Ajustes y pulsa «Bloquear».", "Entra en Ajustes y pulsa «Eliminar».", Comparison.DIFFERENT),
        ("Open the app and tap Cards.", "Abre la aplicación y toca Tarjetas.", Comparison.DOUBT),
        ("", "Refunds take 5 days.", Comparison.DOUBT),
        ("Refunds take 5 days. " * 500, "Refunds take 7 days. " * 500, Comparison.DOUBT),
        ("Hello! 👋", "Hi there!", Comparison.DOUBT),
    ],
)
def test_amounts_polarity_and_names_decide(stored, fresh, expected):
    assert compare(stored, fresh, None) is expected


def test_greetings_offers_and_markup_are_no_difference():
    plain = "Open the app, go to Cards, choose the lost card and tap Block."
    steps = "1. Open the **app**\n2. Go to Cards\n3. Choose the lost card\n4. Tap Block"
    dressed = f"Hi there!\n\n{steps}\n\nLet me know if you need anything else!"
    assert compare(plain, dressed, None) is Comparison.SAME


def test_answers_that_are_too_unlike_are_not_the_same_and_alike_ones_not_different_for_other_words():
    stored, fresh = "The trip takes 2 hours by train.", "By train, the trip takes 120 minutes."
    assert compare(stored, fresh, 0.2) is Comparison.DOUBT
    assert compare(stored, fresh, 0.7) is Comparison.SAME
    stored, fresh = "Ask the concierge downstairs for spare keys.", "Reception lends duplicates to guests locked out."
    assert compare(stored, fresh, 0.5) is Comparison.DIFFERENT
    assert compare(stored, fresh, 0.9) is Comparison.DOUBT


@pytest.mark.parametrize("text", ["", " ", "1.", "- \n- ", "(", "“", "?" * 50, "a" * 20_000, "\x00", "no", "sí"])
def test_odd_answers_are_compared_without_a_fault(text):
    assert compare(text, "Refunds take 5 days.", None) in Comparison
    assert compare(text, text, None) is Comparison.SAME
