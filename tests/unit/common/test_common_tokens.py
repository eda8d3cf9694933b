"""Token estimates."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.chat import Chat, ImagePart, Message, ResponseFormat, Role, TextPart, Tool
from services.common.tokens import estimate_chat_tokens, estimate_tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("   ", 0),
        ("Hello", 1),
        ("Hello, world!", 4),
        ("1234567", 3),
        ("¿Dónde está?", 4),
        ("internationalization", 4),
    ],
)
def test_examples(text, tokens):
    assert estimate_tokens(text) == tokens


@given(st.text(max_size=200), st.text(max_size=200))
def test_a_line_break_between_texts_adds_them_up(a, b):
    assert estimate_tokens(f"{a} \n {b}") == estimate_tokens(f"{a} ") + 1 + estimate_tokens(f" {b}")


@given(st.text(max_size=500))
def test_it_is_at_most_one_a_character(text):
    assert 0 <= estimate_tokens(text) <= len(text)


def test_a_long_text_takes_no_longer_than_its_length():
    """Quadratic reading of any of these would not end within the test's time limit."""
    for piece in ("a", "1", "_", "\n", "!", "é", " ", "a1_"):
        assert estimate_tokens(piece * (1_000_000 // len(piece))) <= 1_000_000


def test_another_process_counts_the_same():
    """Not so where a count depended on hash seeds."""
    text = "The order 1234-567 was déjà shipped; track it at https://x.example/t?id=9"
    code = f"from services.common.tokens import estimate_tokens; print(estimate_tokens({text!r}))"
    counts = {
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert counts == {f"{estimate_tokens(text)}\n".encode()}


def test_everything_that_is_sent_counts():
    plain = Chat((Message(Role.USER, (TextPart("Hello there"),)),))
    count = estimate_chat_tokens(plain)
    picture = Message(Role.USER, (TextPart("Hello there"), ImagePart(url="https://x.example/a.png")))
    for longer in (
        Chat((*plain.messages, *plain.messages)),
        Chat((picture,)),
        Chat(plain.messages, tools=(Tool("find", "finds", '{"type": "object"}'),)),
        Chat(plain.messages, response_format=ResponseFormat("json_schema", "x", '{"type": "object"}')),
    ):
        assert estimate_chat_tokens(longer) > count
