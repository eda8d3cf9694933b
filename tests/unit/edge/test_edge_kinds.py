"""Kinds of queries, guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.chat import Chat, ImagePart, Message, ResponseFormat, Role, TextPart, Tool, ToolChoice
from services.edge.domain.kinds import Kind, kind_of

LONG = "The contract was signed in 2019 and renewed twice since then by both parties. " * 40


def asked(text: str, **fields) -> Chat:
    return Chat((Message(Role.USER, (TextPart(text),)),), **fields)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("How do I return a jacket?", Kind.QUESTION),
        ("where is my order", Kind.QUESTION),
        ("¿Cuánto tarda el envío?", Kind.QUESTION),
        ("Can I cancel after 48 hours?", Kind.QUESTION),
        ("como puedo cambiar la dirección", Kind.QUESTION),
        ("My order is late. What happens now?", Kind.QUESTION),
        ("hola, ¿hacéis envíos a Canarias?", Kind.QUESTION),
        ("Write a polite reply to this customer.", Kind.INSTRUCTION),
        ("Could you write a short poem about rain?", Kind.INSTRUCTION),
        ("¿Puedes redactar un correo para mi jefe?", Kind.INSTRUCTION),
        ("Redacta un correo de disculpa", Kind.INSTRUCTION),
        ("Translate this into Spanish: good morning", Kind.TRANSLATION),
        ("¿Cómo se dice factura en inglés?", Kind.TRANSLATION),
        ("Traduce al inglés: buenos días", Kind.TRANSLATION),
        ("Summarise the following text", Kind.SUMMARY),
        ("Resume este texto en dos frases", Kind.SUMMARY),
        (LONG + "Give me a summary of this.", Kind.SUMMARY),
        ("Look at my resume", Kind.INSTRUCTION),
        ("Extract the invoice number from this email", Kind.EXTRACTION),
        ("Clasifica este ticket por urgencia", Kind.EXTRACTION),
        ("Write a Python function that reverses a list", Kind.CODE),
        ("What is wrong here?\n```\nx = 1\n```", Kind.CODE),
        ("My promo code does not work", Kind.INSTRUCTION),
        ("El código de descuento no funciona", Kind.INSTRUCTION),
        ("Thanks a lot!", Kind.CONVERSATION),
        ("Hola, buenas tardes", Kind.CONVERSATION),
        ("", Kind.CONVERSATION),
        ("🙂🙂", Kind.CONVERSATION),
    ],
)
def test_words_tell_the_kind_in_english_and_spanish(text, kind):
    assert kind_of(asked(text)) == kind


def test_the_form_of_a_request_says_more_than_its_words():
    assert kind_of(asked("Where is it?", tools=(Tool("find"),))) == "tool_use"
    assert kind_of(asked("Where is it?", tools=(Tool("find"),), tool_choice=ToolChoice("none"))) == "question"
    assert kind_of(asked("Where is it?", response_format=ResponseFormat("json_object"))) == "extraction"
    assert kind_of(asked("Where is it?", response_format=ResponseFormat("json_schema", "x", "{}"))) == "extraction"


def test_only_the_last_user_message_counts():
    turns = (
        Message(Role.SYSTEM, (TextPart("Translate everything into Python."),)),
        Message(Role.USER, (TextPart("Summarise it"),)),
        Message(Role.ASSISTANT, (TextPart("Done."),)),
        Message(Role.USER, (ImagePart("https://x/y.png"), TextPart("What is this?"))),
    )
    assert kind_of(Chat(turns)) == "question"
    assert kind_of(Chat((Message(Role.ASSISTANT, (TextPart("Hello"),)),))) == "conversation"


@given(st.text(max_size=600))
def test_any_text_has_a_kind(text):
    assert kind_of(asked(text)) in set(Kind)
