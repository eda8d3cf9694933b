"""Where a text may be cut, and where never."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.domain.units import paragraphs_of


def units(text: str) -> list[str]:
    return [unit.text for paragraph in paragraphs_of(text) for unit in paragraph.units]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One is here. Two is there! Is three?", ["One is here.", "Two is there!", "Is three?"]),
        ("¿Vienes hoy? ¡Claro! Nos vemos.", ["¿Vienes hoy?", "¡Claro!", "Nos vemos."]),
        (
            "Pi is 3.14159 and e is 2.718. Both are irrational.",
            ["Pi is 3.14159 and e is 2.718.", "Both are irrational."],
        ),
        ("See https://example.org/a.b?c=d. Then stop.", ["See https://example.org/a.b?c=d.", "Then stop."]),
        ("Dr. Smith met Mr. Jones. They left.", ["Dr. Smith met Mr. Jones.", "They left."]),
        ("La Sra. López llegó. El núm. 5 ganó.", ["La Sra. López llegó.", "El núm. 5 ganó."]),
        ("J. K. Rowling wrote it. E.g. this one.", ["J. K. Rowling wrote it.", "E.g. this one."]),
        ('He said "Go. Now. Run!" and left. She stayed.', ['He said "Go. Now. Run!" and left.', "She stayed."]),
        ("Dijo «Vete. Ya.» y salió. Fin.", ["Dijo «Vete. Ya.» y salió.", "Fin."]),
        ("Call `a.b(). C` first. Then rest.", ["Call `a.b(). C` first.", "Then rest."]),
        ("The version is v1.2.3-rc.1. Use it.", ["The version is v1.2.3-rc.1.", "Use it."]),
        ("It was the U.S. Army. It won.", ["It was the U.S. Army.", "It won."]),
        ("ends with lower case. then goes on", ["ends with lower case. then goes on"]),
    ],
)
def test_sentences_end_where_they_end(text, expected):
    assert units(text) == expected


def test_lines_of_a_log_are_units():
    lines = [f"2026-01-0{day} ERROR disk {day} failed" for day in range(1, 6)]
    assert units("\n".join(lines)) == lines


def test_wrapped_prose_is_not_cut_at_line_ends():
    assert units("The quick brown fox\njumps over the lazy\ndog. The end came\nsoon.") == [
        "The quick brown fox\njumps over the lazy\ndog.",
        "The end came\nsoon.",
    ]


def test_bullets_are_units():
    assert units("- first thing\n- second thing\n- third") == ["- first thing", "- second thing", "- third"]


def test_fenced_code_is_one_verbatim_unit_even_with_blank_lines_in_it():
    code = "```python\nx = 1\n\n\ny = 2\n```"
    paragraphs = paragraphs_of(f"Look here. It is code.\n\n{code}\n\nDone. Really.")
    assert [paragraph.verbatim for paragraph in paragraphs] == [False, True, False]
    assert paragraphs[1].units[0].text == code


def test_a_fence_that_is_never_closed_runs_to_the_end():
    paragraphs = paragraphs_of("Text. More.\n~~~\ncode. Code\n\nmore code")
    assert [paragraph.verbatim for paragraph in paragraphs] == [False, True]


def test_code_without_a_fence_is_verbatim():
    code = "def f(x):\n    if x:\n        return 1\n    return 2"
    assert [paragraph.verbatim for paragraph in paragraphs_of(code)] == [True]


@pytest.mark.parametrize("indent", [None, 2])
def test_json_on_lines_of_its_own_is_verbatim(indent):
    value = json.dumps({"a": [1, 2, {"b": "x. Y"}], "c": "one\ntwo"}, indent=indent)
    paragraphs = paragraphs_of(f"Before it. Yes.\n{value}\nAfter it. Yes.")
    assert [paragraph.units[0].text for paragraph in paragraphs if paragraph.verbatim] == [value]


def test_a_footnote_mark_is_not_json():
    assert units("[1] is a mark. Nothing more.") == ["[1] is a mark.", "Nothing more."]


def test_the_head_of_a_table_is_its_title():
    table = "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |"
    (paragraph,) = paragraphs_of(table)
    assert paragraph.titled
    assert [unit.text for unit in paragraph.units] == ["| a | b |\n|---|---|", "| 1 | 2 |", "| 3 | 4 |"]


def test_a_short_first_line_is_a_title():
    (paragraph,) = paragraphs_of("Kudzu\nKudzu is a vine. It came in 1876.")
    assert paragraph.titled
    assert paragraph.units[0].text == "Kudzu"


pieces = st.sampled_from(
    [
        "One. ",
        "two, ",
        "3.14 ",
        '"Q. R." ',
        "\n",
        "\n\n",
        "```\n",
        "- item\n",
        '{"a": 1}\n',
        "[",
        "{",
        "¿Qué? ",
        "| x |\n",
        "x();\n",
        " ",
    ]
)


@settings(deadline=None)
@given(st.lists(pieces, max_size=40).map("".join) | st.text(max_size=200))
def test_nothing_is_lost_but_white_space(text):
    joined = "\n\n".join(paragraph.text for paragraph in paragraphs_of(text))
    assert joined.split() == text.split()


@settings(deadline=None)
@given(st.lists(pieces, max_size=40).map("".join))
def test_every_unit_stands_in_the_text_word_for_word_and_in_order(text):
    position = 0
    for unit in units(text):
        position = text.index(unit, position) + len(unit)


@pytest.mark.parametrize(
    "text", ["!" * 50_000, "“" * 50_000, "[\n" * 20_000, "{ " * 20_000, "[" * 20_000, "A. " * 20_000, " " * 50_000]
)
def test_hostile_texts_are_read_in_linear_time(text):
    paragraphs_of(text)  # quadratic time would run into the test's time limit
