"""Where the question is, and whether it allows to leave something out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.domain.question import needs_whole_text, split_question

CONTEXT = "\n\n".join(
    f"Paragraph {n} tells a story of some length about the number {n}. It goes on for a while." for n in range(30)
)


def test_a_short_text_is_all_question():
    split = split_question("When was it built?")
    assert (split.before, split.context, split.after) == ("When was it built?", "", "")
    assert split.question == "When was it built?"


@pytest.mark.parametrize(
    "question",
    [
        "When was it built?",
        "Question: when was it built",
        "tell me when it was built",
        "¿Cuándo se construyó?",
        "golden gate opening date",
    ],
)
def test_a_question_after_the_context(question):
    split = split_question(f"{CONTEXT}\n\n{question}")
    assert split.question == question
    assert split.context == CONTEXT


@pytest.mark.parametrize("question", ["When was it built?", "Answer from this text:", "Explica qué pasó en 1999"])
def test_a_question_before_the_context(question):
    split = split_question(f"{question}\n\n{CONTEXT}")
    assert split.question == question
    assert split.context.strip() == CONTEXT


def test_a_question_on_the_last_line():
    assert split_question(f"{CONTEXT}\nWhen was it built?").question == "When was it built?"


def test_a_question_in_the_last_sentence():
    text = "The tower is old. " * 200 + "When was it built?"
    assert split_question(text).question == "When was it built?"


def test_an_instruction_on_both_sides():
    split = split_question(f"Use this text:\n\n{CONTEXT}\n\nWhen was it built?")
    assert split.question == "When was it built?"
    assert split.context.strip() == CONTEXT


def test_a_text_without_an_instruction_is_all_context():
    split = split_question(CONTEXT)
    assert (split.before, split.after, split.question) == ("", "", "")


@settings(deadline=None)
@given(st.text(max_size=50), st.text(max_size=50))
def test_the_pieces_are_the_text(before, after):
    text = f"{before}\n\n{CONTEXT}\n\n{after}"
    split = split_question(text)
    assert split.before + split.context + split.after == text


@pytest.mark.parametrize(
    "question",
    ["Summarize this", "TL;DR", "Translate it to Spanish", "Resume el texto", "List all the names", "¿De qué trata?"],
)
def test_some_work_needs_the_whole_text(question):
    assert needs_whole_text(question, "")


def test_an_application_that_translates_needs_the_whole_text():
    assert needs_whole_text("When was it built?", "You translate what the user sends.")


@pytest.mark.parametrize("question", ["When was it built?", "¿Quién ganó en 1999?", "Which port does the server use?"])
def test_a_question_of_fact_does_not(question):
    assert not needs_whole_text(question, "You are a helpful assistant.")
