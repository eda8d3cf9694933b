"""An audit of whole and damaged logs: every dollar is claimed once, and nothing that can be read is lost."""

import gzip
import json
from collections import Counter

import pytest
from typer.testing import CliRunner

from benchmarks.audit.traffic import lines
from services.cli.__main__ import app

COUNT = 400
SAMPLE = 100


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    file = tmp_path_factory.mktemp("audit") / "log.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines(COUNT, seed=3)), encoding="utf-8")
    return file


def audit(file, *options: str) -> dict:
    done = CliRunner().invoke(app, ["audit", str(file), "--sample", str(SAMPLE), "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_every_dollar_is_claimed_once(log, tmp_path):
    claims = tmp_path / "claims.jsonl"
    found = audit(log, "--out", str(claims))
    assert found["requests"] == COUNT
    assert found["avoidable_nanousd"] + found["remaining_nanousd"] == found["spend_nanousd"]
    assert sum(saving["nanousd"] for saving in found["waste"]) == found["avoidable_nanousd"]
    rows = [json.loads(line) for line in claims.read_text().splitlines()]
    assert rows
    assert all(row["nanousd"] > 0 for row in rows)
    assert max(Counter((row["line"], row["waste"]) for row in rows).values()) == 1


def test_the_same_log_gives_the_same_figures(log):
    assert audit(log) == audit(log)


def test_damaged_lines_are_counted_and_shown(log, tmp_path):
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text(log.read_text(encoding="utf-8") + 'nonsense\n{"request": {"model": "gp', encoding="utf-8")
    found = audit(damaged)
    assert (found["requests"], found["malformed"]) == (COUNT, 2)


def test_what_a_cut_off_archive_holds_is_read(log, tmp_path):
    packed = gzip.compress(log.read_bytes())
    (tmp_path / "whole.jsonl.gz").write_bytes(packed)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    assert audit(tmp_path / "whole.jsonl.gz")["spend_nanousd"] == audit(log)["spend_nanousd"]
    cut = audit(tmp_path / "cut.jsonl.gz")
    assert 0 < cut["requests"] < COUNT
    assert cut["malformed"] >= 1


def test_no_text_of_the_log_is_shown_unless_asked_for(log, tmp_path):
    page, bold = tmp_path / "page.html", tmp_path / "bold.html"
    printed = json.dumps(audit(log, "--html", str(page)))
    audit(log, "--html", str(bold), "--show-texts")
    asked = {json.loads(line)["request"]["messages"][-1]["content"] for line in lines(COUNT, seed=3)}
    shown = [text for text in asked if len(text) > 30 and text in page.read_text(encoding="utf-8") + printed]
    assert not shown
    assert len(bold.read_text(encoding="utf-8")) > len(page.read_text(encoding="utf-8"))


def test_an_empty_log_is_refused_in_words(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    done = CliRunner().invoke(app, ["audit", str(empty)])
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert str(empty.name) in done.output
