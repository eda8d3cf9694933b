"""`llmmesh prices`: a table that fits, and every mistake with file, line and what to do."""

import json
from datetime import date

import pytest
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.prices.check import Problem, problems_in

TODAY = date(2026, 6, 1)
PRICES = """models:
  gpt-a:
    source: a list
    prices:
      - {valid_from: 2024-01-01, input: 1, output: 4, cache_read: 0.5, batch_factor: 0.5}
      - valid_from: 2025-01-01
        input: 2
        output: 4
        batch_factor: 0.5
        long_context: {from_tokens: 9, input: 4, output: 8}
  own:
    source: our own
    prices:
      - {valid_from: 2024-01-01, input: 1, output: 4, cache_read: 0}
"""
POLICY = """baseline: gpt-a
tiers:
  medium:
    candidates: [gpt-a, own]
namespaces:
  default:
    cache:
      judge: gpt-a
"""
VENDORS = """vendors:
  - name: v
    kind: openai
    base_url: http://v/v1
    api_key_env: NOT_SET_ANYWHERE
    models:
      gpt-a: a
      own: o
"""


@pytest.fixture
def files(tmp_path):
    for name, text in (("prices", PRICES), ("policy", POLICY), ("vendors", VENDORS)):
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def check(files, name: str = "", old: str = "", new: str = "") -> list[Problem]:
    if name:
        path = files / f"{name}.yaml"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))
    return problems_in(files / "prices.yaml", files / "policy.yaml", files / "vendors.yaml", TODAY)


def test_good_files_have_no_problems(files):
    assert check(files) == []


@pytest.mark.parametrize(
    ("name", "old", "new", "line", "says", "to_do"),
    [
        ("prices", "cache_read: 0.5", "cached_read: 0.5", 5, "Extra inputs", "write cache_read"),
        ("prices", "from_tokens: 9", "from_tokens: 9, xyz: 1", 10, "Extra inputs", "remove it"),
        ("prices", "2024-01-01, input: 1, output: 4, cache_read: 0}", "2026-07-01, input: 1, output: 4}", 11,
         "own: no price holds today", "add the price that holds now"),
        ("prices", "2025-01-01", "2024-01-01", 6, "two prices begin on 2024-01-01", "keep one"),
        ("prices", "2025-01-01", "2023-01-01", 6, "stands behind", "oldest first"),
        ("prices", "cache_read: 0.5", "cache_read: 1.5", 5, "dearer than input", "compare both"),
        ("prices", "cache_read: 0.5", "cache_read: 0.5, batch_cache_read: 2", 5, "dearer than input", "compare both"),
        ("prices", "output: 8}", "output: 8, cache_read: 5}", 10, "dearer than input", "compare both"),
        ("prices", "input: 4, output: 8", "input: 1, output: 8", 10, "cheaper than short ones", "compare both"),
        ("prices", "        batch_factor: 0.5\n", "", 6, "OpenAI has a batch API", "set it"),
        ("prices", "input: 2\n", "input: 0\n", 7, "input costs nothing", "leave the model out"),
        ("prices", "output: 8", "output: 0", 10, "output costs nothing", "leave the model out"),
        ("prices", "    source: a list\n", "", 2, "nothing says whose price", "add `source`"),
        ("prices", "  own:", "  gpt-a:", 11, "stands twice", "correct the line"),
        ("policy", "[gpt-a, own]", "[gpt-a, gone]", 4, "no price is known for model 'gone'", "add the model"),
        ("policy", "baseline: gpt-a", "baseline: gone", 1, "no price is known for model 'gone'", "add the model"),
        ("vendors", "      own: o\n", "      gpt-a-b: o\n      own: o\n", 8, "no price is known", "add the model"),
        ("vendors", "      own: o\n", "", 4, "no vendor serves 'own'", "add it to a vendor's models"),
        ("vendors", "      gpt-a: a\n", "", 8, "judge: no vendor serves 'gpt-a'", "add it to a vendor's models"),
        ("vendors", "kind: openai", "kind: opnai", 2, "does not match", "correct the line"),
    ],
)  # fmt: skip
def test_a_mistake_names_file_and_line_and_what_to_do(files, name, old, new, line, says, to_do):
    found = check(files, name, old, new)
    rows = [(p.line, p.what, p.to_do) for p in found]
    assert any(row[0] == line and says in row[1] and to_do in row[2] for row in rows), rows
    assert all(p.file.parent == files for p in found)


def test_several_problems_are_told_at_once(files):
    check(files, "prices", "cache_read: 0.5", "cache_read: 1.5")
    assert len(check(files, "vendors", "      own: o\n", "")) == 2


def test_without_a_vendors_file_nobody_is_asked_who_serves_what(files):
    assert problems_in(files / "prices.yaml", files / "policy.yaml", None, TODAY) == []


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["prices", *map(str, arguments)], env={"COLUMNS": "100"})
    return done.exit_code, done.output


def test_the_shipped_files_pass_the_check():
    status, said = run("check")
    assert (status, "no problems" in said) == (0, True)
    assert json.loads(run("check", "--json")[1]) == {"ok": True, "problems": []}


def test_problems_end_with_status_1(files):
    check(files, "prices", "cache_read: 0.5", "cache_read: 1.5")
    arguments = ("check", "--file", files / "prices.yaml", "--policy", files / "policy.yaml")
    status, said = run(*arguments)
    assert status == 1
    assert f"{files / 'prices.yaml'}:5: gpt-a: cache_read (1.5) is dearer than input (1)" in said
    status, said = run(*arguments, "--json")
    assert status == 1
    (problem,) = json.loads(said)["problems"]
    assert (problem["line"], problem["file"]) == (5, str(files / "prices.yaml"))


def test_the_table_fits_a_hundred_columns_and_loses_nothing():
    status, said = run("list")
    assert status == 0
    assert max(map(len, said.splitlines())) <= 100
    assert "…" not in said
    rows = [line.split() for line in said.splitlines()]
    gpt_4o = next(row for row in rows if row[:1] == ["gpt-4o"])
    assert gpt_4o[1:7] == ["2.5", "10", "1.25", "-", "-", "50%"]
    at = next(i for i, row in enumerate(rows) if row[:1] == ["gemini-2.5-pro"])
    assert rows[at + 1][:5] == ["above", "200,000", "in", "2.5", "15"]


def test_the_list_as_json_has_what_the_file_has(files):
    status, said = run("list", "--file", files / "prices.yaml", "--json")
    assert status == 0
    model = json.loads(said)["models"]["gpt-a"]
    assert model["source"] == "a list"
    assert model["price"] == {
        "valid_from": "2025-01-01",
        "input": 2.0,
        "output": 4.0,
        "batch_factor": 0.5,
        "long_context": {"from_tokens": 9, "input": 4.0, "output": 8.0},
    }


def test_a_list_of_a_broken_file_is_an_error_in_words(files):
    (files / "prices.yaml").write_text("models: [")
    status, _ = run("list", "--file", files / "prices.yaml")
    assert status == 1
