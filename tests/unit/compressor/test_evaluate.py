"""`llmmesh evaluate compressor` on files of one's own."""

import gzip
import json

import pytest

from services.cli.evaluate.compressor import run
from services.common.yaml_file import ConfigError

FACT = "The kudzu vine came to the United States in 1876."
PARAGRAPHS = [*(f"Region {n} has weather of its own. People there grow plants of kind {n}." for n in range(20)), FACT]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(**fields):
    return {
        "id": "q1",
        "question": "When did kudzu come to the United States?",
        "paragraphs": PARAGRAPHS,
        "answers": ["1876"],
        **fields,
    }


def test_counts_answers_that_survive_and_writes_what_was_kept(tmp_path):
    file = write(tmp_path / "rows.jsonl", row(), row(id=2, answers=["not in there"]), row(id="q3", answers=[]))
    summary = run(file, 0.25, tmp_path / "out.jsonl")
    assert (summary["rows"], summary["labelled"], summary["answer_kept"], summary["compressed"]) == (3, 2, 0.5, 3)
    assert 0.1 < summary["kept_share"] <= 0.25
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["q1", "2", "q3"]
    assert [line["survived"] for line in lines] == [True, False, None]
    assert all(FACT in line["kept"] and line["kept_tokens"] < line["original_tokens"] for line in lines)


def test_reads_documents_plain_contexts_and_gzip(tmp_path):
    documents = row(paragraphs=[], docs=[{"title": f"Title {n}", "text": text} for n, text in enumerate(PARAGRAPHS)])
    plain = row(paragraphs=[], context="\n\n".join(PARAGRAPHS))
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, (documents, plain))).encode()))
    assert run(file, 0.5)["answer_kept"] == 1


def test_without_labels_there_is_no_share_of_answers(tmp_path):
    assert run(write(tmp_path / "rows.jsonl", row(answers=[])), 0.5)["answer_kept"] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"question": ""}\n', r"rows\.jsonl:1: question"), ("\n{]\n", r"rows\.jsonl:2"), ("", "no rows")],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, content, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        run(file, 0.5)


def test_a_missing_file_and_a_wrong_rate_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.jsonl"):
        run(tmp_path / "none.jsonl", 0.5)
    with pytest.raises(ConfigError, match="rate"):
        run(tmp_path / "none.jsonl", 0)
