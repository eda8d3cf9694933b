"""Messages that make sense without the conversation before them, and messages that lean on it."""

import json
from pathlib import Path

import pytest

from services.cache.domain.standalone import stands_alone

DATA = Path(__file__).parents[3] / "benchmarks" / "cache_quality" / "data" / "standalone.jsonl"
MESSAGES = [json.loads(line) for line in DATA.read_text().splitlines()]


@pytest.mark.parametrize("language", ["en", "es"])
def test_what_is_let_through_stands_alone(language):
    messages = [message for message in MESSAGES if message["lang"] == language]
    through = [message["alone"] for message in messages if stands_alone(message["text"])]
    assert len(messages) >= 150
    assert sum(through) >= 0.98 * len(through)
    assert sum(through) >= 0.85 * sum(message["alone"] for message in messages)


@pytest.mark.parametrize(
    "text",
    [
        "And in Spain?",
        "¿y si llueve?",
        "Is it refundable on business fares?",
        "¿Cómo lo devuelvo en una tienda física?",
        "¿Eso incluye maletas de mano grandes?",
        "Does the second option include cabin luggage?",
        "As you said, how do I cancel a hotel booking?",
        "¿La tasa que mencionaste incluye maletas facturadas?",
        "no, 5",
        "too expensive",
        "",
        "???",
        "👍",
        "12345",
    ],
)
def test_messages_that_lean_on_the_conversation_are_kept_back(text):
    assert not stands_alone(text)


@pytest.mark.parametrize(
    "text",
    [
        "My phone won't charge. How do I fix it?",
        "He perdido mi tarjeta de débito, ¿cómo la bloqueo?",
        "Is it safe to eat raw eggs during pregnancy?",
        "Hello! How do I cancel my gym membership this month?",
        'Translate "good morning" into French',
    ],
)
def test_pronouns_that_stand_for_something_in_the_message_are_no_hindrance(text):
    assert stands_alone(text)
