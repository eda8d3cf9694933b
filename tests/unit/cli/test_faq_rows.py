"""Files of questions and answers: every line is read or named, and nothing stops the rest."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cli.cache import faq
from services.cli.cache.faq import Done, digest_of, read
from services.common.yaml_file import ConfigError

GOOD = {"question": "Where is my order?", "answer": "Open Orders."}


def lines(tmp_path, *rows: object) -> list[faq.Line]:
    file = tmp_path / "faq.jsonl"
    raw = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    file.write_bytes(b"\n".join(raw))
    return list(read(file))


def test_a_row_is_read_with_all_its_fields(tmp_path):
    row = {**GOOD, "system": "Be kind.", "tags": ["orders"], "ttl_class": "static", "also": ["Track my order"], "id": 7}
    (line,) = lines(tmp_path, row)
    assert (line.number, line.problem) == (1, "")
    assert line.row == faq.FaqRow(**{key: value for key, value in row.items() if key != "id"})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("not json", "not JSON"),
        ('{"question": "cut', "not JSON"),
        ([1, 2], "not a JSON object"),
        ('"text"', "not a JSON object"),
        ({"question": "Q"}, "answer: Field required"),
        ({**GOOD, "question": "  "}, "question: is empty"),
        ({**GOOD, "answer": ""}, "answer: is empty"),
        ({**GOOD, "answer": None}, "answer: "),
        ({**GOOD, "answer": "\ud800"}, "answer: holds half a character"),
        ({**GOOD, "tags": "orders"}, "tags: "),
        ({**GOOD, "tags": ["x" * 65]}, "tags.0: "),
        ({**GOOD, "tags": ["x"] * 17}, "tags: "),
        ({**GOOD, "ttl_class": "forever"}, "ttl_class: "),
        ({**GOOD, "ttl_class": "user"}, "ttl_class: "),
        ({**GOOD, "also": [" "]}, "also.0: is empty"),
        (b'{"question": "\xff", "answer": "x"}', "not UTF-8 text"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_malformed_line_is_named_and_the_others_are_read(tmp_path, row, problem):
    first, bad, last = lines(tmp_path, GOOD, row, GOOD)
    assert (bad.number, bad.row) == (2, None)
    assert bad.problem.startswith(problem)
    assert first.row is not None
    assert last.row is not None


def test_empty_lines_count_but_hold_nothing(tmp_path):
    assert [line.number for line in lines(tmp_path, "", GOOD, "   ", GOOD, "")] == [2, 4]


def test_a_byte_order_mark_is_no_problem(tmp_path):
    (line,) = lines(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert line.row is not None


def test_a_line_beyond_all_measure_is_skipped_without_being_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(faq, "MAX_LINE_BYTES", 1000)
    long = {**GOOD, "answer": "x" * 5000}
    first, bad, last = lines(tmp_path, GOOD, long, GOOD)
    assert (first.problem, last.problem) == ("", "")
    assert bad.problem.startswith("longer than")
    assert (bad.number, last.number) == (2, 3)


@given(st.binary(max_size=200))
def test_no_bytes_stop_the_reading(tmp_path_factory, raw):
    file = tmp_path_factory.mktemp("faq") / "faq.jsonl"
    file.write_bytes(raw)
    assert all((line.row is None) == bool(line.problem) for line in read(file))


def test_what_was_stored_is_known_to_the_next_run(tmp_path):
    file = tmp_path / "faq.jsonl"
    done = Done(file)
    assert digest_of("a") not in done
    done.add([digest_of("a")])
    assert digest_of("a") in done
    done.close()
    again = Done(file)
    assert digest_of("a") in again
    assert digest_of("b") not in again
    again.close()


def test_a_note_that_was_cut_counts_as_none(tmp_path):
    file = tmp_path / "faq.jsonl"
    whole, cut = digest_of("a"), digest_of("b")
    (tmp_path / "faq.jsonl.done").write_text(f"{whole}\n{cut[:20]}")
    done = Done(file)
    assert whole in done
    assert cut not in done
    done.add([cut])
    done.close()
    again = Done(file)
    assert whole in again
    assert cut in again
    again.close()


def test_a_folder_that_takes_no_notes_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConfigError, match="copy the file to a folder of yours"):
        Done(tmp_path / "nowhere" / "faq.jsonl")


def test_digests_differ_in_every_part():
    assert len({digest_of("a", "b"), digest_of("ab"), digest_of("b", "a"), digest_of("a", "b", None)}) == 4
