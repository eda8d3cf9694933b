"""The cache's tools on a running mesh, as a user calls them: warm, explain, feedback, purge, measure."""

import csv
import json
import os
import subprocess
import sys

import pytest

from llmmesh.common.v1 import chat_pb2
from tests.mesh.conftest import ask, chat

SYSTEM = "You answer for a shop of outdoor clothes."
QUESTION = "How do I return a jacket?"
PARAPHRASE = "How can I return a jacket?"
ANSWER = "Send it back with the label in the parcel."
# What a model writes within it is cut, so it is neither long nor stored.
SHORT = chat_pb2.Sampling(temperature=0, max_output_tokens=4)
AS_SENT = ("--system", SYSTEM, "--temperature", "0", "--max-tokens", "4")


@pytest.fixture
def tool(mesh):
    """Runs a command; its output. Errors are for `status`."""

    def run(*command: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "services.cli", *command, "--state", str(mesh.state)],
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


async def asked(client, text: str, request_id: str = ""):
    metadata = (("x-request-id", request_id),) if request_id else ()
    return await ask(client, chat(text, SHORT, system=SYSTEM), metadata=metadata)


async def test_warm_answers_are_served_explained_judged_and_purged(tool, acme, tmp_path):
    file = tmp_path / "faq.jsonl"
    row = {"question": QUESTION, "answer": ANSWER, "tags": ["returns"]}
    file.write_text(f"{json.dumps(row)}\nnonsense\n")
    first = json.loads(tool("warm", str(file), *AS_SENT, "--pin", "--json"))
    assert (first["stored"], first["malformed"], first["problems"][0]["line"]) == (1, 1, 2)
    assert json.loads(tool("warm", str(file), *AS_SENT, "--pin", "--json"))["skipped"] == 1

    exact = await asked(acme, QUESTION)
    assert (exact.outcome, exact.text) == ("exact_hit", ANSWER)
    hit = await asked(acme, PARAPHRASE, "tools-1")
    assert (hit.outcome, hit.text) == ("semantic_hit", ANSWER)
    assert hit.receipt.entry_id == exact.receipt.entry_id

    explained = json.loads(tool("cache", "explain", PARAPHRASE, *AS_SENT, "--json"))
    assert explained["outcome"] == "OUTCOME_SEMANTIC_HIT"
    assert explained["verdict"]["candidates"][0]["question"] == QUESTION
    table = tool("cache", "explain", PARAPHRASE, *AS_SENT)
    assert "served" in table
    assert max(map(len, table.splitlines())) <= 100

    assert "Noted" in tool("feedback", "tools-1", "--right")
    assert "did not count" in tool("feedback", "tools-unknown", "--wrong", status=1)

    assert "1 answer of" in tool("cache", "purge", "--request-id", "tools-1")
    assert "Nothing to remove" in tool("cache", "purge", "--request-id", "tools-1")
    assert (await asked(acme, QUESTION)).outcome == "miss"
    assert (await asked(acme, PARAPHRASE)).outcome == "miss"

    assert json.loads(tool("warm", str(file), *AS_SENT, "--pin", "--json"))["stored"] == 1
    assert "1 answer of" in tool("cache", "purge", "--tag", "returns")


def test_the_ledger_is_written_as_rows_that_add_up(tool, tmp_path):
    lines, table = tmp_path / "ledger.jsonl", tmp_path / "ledger.csv"
    assert "records written" in tool("export", "ledger", "--out", str(lines))
    tool("export", "ledger", "--out", str(table), "--tenant", "acme-shop")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert rows
    for row in rows:
        saved = sum(value for name, value in row.items() if name.startswith("saved_"))
        assert row["actual_nanousd"] == row["baseline_nanousd"] - saved + row["overhead_nanousd"]
        assert row["actual_nanousd"] == sum(value for name, value in row.items() if name.startswith("cost_"))
    of_acme = [row["record_id"] for row in rows if row["tenant"] == "acme-shop"]
    # Records of requests that ended in between are in the second file only.
    assert [row["record_id"] for row in csv.DictReader(table.read_text().splitlines())][: len(of_acme)] == of_acme
    assert "has to end in" in tool("export", "ledger", "--out", str(tmp_path / "ledger.xls"), status=1)


def test_the_record_is_shown(tool):
    shown = json.loads(tool("cache", "measure", "--json"))
    assert shown["error_budget"] == 0.01
    assert shown["advice"]
    assert "error budget" in tool("cache", "measure", "--tenant", "volta-energy")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("cache", "purge"), "exactly one of"),
        (("cache", "purge", "--tag", "a", "--all"), "exactly one of"),
        (("cache", "purge", "--entry", "short"), "64 hexadecimal digits"),
        (("cache", "purge", "--all"), "Aborted"),
        (("cache", "measure", "--tenant", "nobody"), "acme-shop"),
        (("cache", "measure", "--namespace", "nowhere"), "no such namespace"),
        (("cache", "explain", "Hi?", "--key", "wrong"), "no tenant of this mesh has that key"),
    ],
)
def test_errors_are_in_words_and_end_with_status_1(tool, command, said):
    assert said in tool(*command, status=1)
