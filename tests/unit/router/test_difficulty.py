"""How hard a request is judged to be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.chat import Chat, ImagePart, Message, Role, Sampling, TextPart, Tool
from services.router.domain.difficulty import LONG_CONTEXT_TOKENS, assess, judge_text
from services.router.domain.tiers import Tier


def chat(text: str, **fields) -> Chat:
    return Chat((Message(Role.USER, (TextPart(text),)),), **fields)


@pytest.mark.parametrize(
    ("text", "tier"),
    [
        ("Hi", Tier.SIMPLE),
        ("¡Gracias!", Tier.SIMPLE),
        ("What is the capital of France?", Tier.SIMPLE),
        ("¿Qué es un servidor?", Tier.SIMPLE),
        ("How do I reset my password?", Tier.SIMPLE),
        ("¿Cómo puedo cambiar mi contraseña?", Tier.SIMPLE),
        ("Translate 'compiler' to Vietnamese", Tier.SIMPLE),
        ("Can I cancel after 48 hours?", Tier.MEDIUM),
        ("¿Puedo cancelar después de 48 horas?", Tier.MEDIUM),
        ("Explain how a hash map works", Tier.MEDIUM),
        ("Explica cómo funciona una cola de mensajes", Tier.MEDIUM),
        ("Write a Python function that parses an ISO date", Tier.MEDIUM),
        ("Summarize the key points of this report", Tier.MEDIUM),
        ("Design a multi-tenant SaaS platform with isolation, billing, audit logs, and failover.", Tier.COMPLEX),
        (
            "Diseña un sistema de reservas con pagos, colas, alta disponibilidad y trazas. Debe soportar varias regiones.",
            Tier.COMPLEX,
        ),
        ("Prove that the square root of 2 is irrational.", Tier.REASONING),
        ("Demuestra por inducción que la suma de los n primeros impares es n².", Tier.REASONING),
        ("Derive the closed form of the Fibonacci recurrence, show each step.", Tier.REASONING),
    ],
)
def test_wording_decides_the_tier(text, tier):
    assert judge_text(text).tier is tier


def test_a_question_about_money_with_many_figures_is_for_reasoning():
    text = (
        "My basket comes to £72.40 and I have a 15% code plus a £30 gift card. The code applies before the gift card, and"
        " shipping is £3.95 unless the discounted total is over £60. How much will I end up paying?"
    )
    assert judge_text(text).tier is Tier.REASONING


def test_the_reason_names_the_signals_and_they_add_up():
    judged = judge_text("Prove that the greedy algorithm is optimal.")
    assert "proof" in judged.reason
    assert judged.score == pytest.approx(0.12 + sum(signal.weight for signal in judged.signals))


def test_much_to_build_is_complex_and_not_reasoning():
    text = (
        "Design a platform with "
        + ", ".join(f"part {name}" for name in "abcdefghij")
        + ". It must be fast and must not fail."
    )
    assert judge_text(text).tier is Tier.COMPLEX


def test_accents_and_case_do_not_matter():
    assert (
        judge_text("DEMUÉSTRALO: demuestra que n² es par").score
        == judge_text("demuestralo: demuestra que n² es par").score
    )


def test_images_make_a_request_complex():
    message = Message(Role.USER, (TextPart("What is this?"), ImagePart(url="https://example.org/a.png")))
    judged = assess(Chat((message,)), prompt_tokens=800)
    assert judged.tier is Tier.COMPLEX
    assert "image" in judged.reason


def test_tools_make_a_request_at_least_medium():
    assert assess(chat("hello", tools=(Tool("lookup"),)), prompt_tokens=20).tier is Tier.MEDIUM


def test_a_long_context_makes_a_request_at_least_medium():
    assert assess(chat("hello"), prompt_tokens=LONG_CONTEXT_TOKENS).tier is Tier.MEDIUM
    assert assess(chat("hello"), prompt_tokens=LONG_CONTEXT_TOKENS - 1).tier is Tier.SIMPLE


def test_a_high_reasoning_effort_is_a_wish_for_a_reasoning_model():
    assert assess(chat("hello", sampling=Sampling(reasoning_effort="high")), prompt_tokens=5).tier is Tier.REASONING


def test_only_the_last_user_message_is_judged():
    history = (
        Message(Role.USER, (TextPart("Prove the theorem by induction."),)),
        Message(Role.ASSISTANT, (TextPart("…"),)),
        Message(Role.USER, (TextPart("Thanks!"),)),
    )
    assert assess(Chat(history), prompt_tokens=40).tier is Tier.SIMPLE


def test_the_middle_of_a_long_message_is_context_and_not_instruction():
    text = (
        "What is this about?\n" + "a plain line. " * 500 + "prove the theorem. " + "a plain line. " * 500 + "\nThanks."
    )
    assert "proof" not in judge_text(text).reason


@settings(deadline=None)
@given(st.text(max_size=400))
def test_any_text_has_a_score_within_bounds_that_fits_its_tier(text):
    judged = judge_text(text)
    assert 0 <= judged.score <= 1
    assert judged.tier.lowest_score <= judged.score
    assert judged.tier is Tier.of(judged.score)


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(0, 5000), st.booleans())
def test_floors_only_ever_raise(text, tokens, tools):
    plain = judge_text(text)
    lifted = assess(chat(text, tools=(Tool("t"),) if tools else ()), prompt_tokens=tokens)
    assert lifted.score >= plain.score
