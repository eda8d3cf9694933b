"""Records as rows."""

import csv
import io
import json

import pyarrow.parquet
import pytest

from llmmesh.common.v1 import usage_pb2
from llmmesh.edge.v1 import costs_pb2
from services.cli.export.ledger import COLUMNS, Format, format_of, row_of, writing
from services.cli.mesh import MeshError


def record(**fields) -> costs_pb2.UsageRecord:
    bill = usage_pb2.Bill(
        actual_nanousd=130,
        baseline_nanousd=400,
        savings=usage_pb2.Savings(cache_nanousd=200, routing_nanousd=100),
        overhead_nanousd=30,
        items=[
            usage_pb2.CostItem(component=usage_pb2.COST_COMPONENT_PROVIDER, cost_nanousd=60),
            usage_pb2.CostItem(component=usage_pb2.COST_COMPONENT_PROVIDER, cost_nanousd=40),
            usage_pb2.CostItem(component=usage_pb2.COST_COMPONENT_EMBEDDER, cost_nanousd=30, overhead=True),
        ],
    )
    found = costs_pb2.UsageRecord(record_id="1", bill=bill, usage=usage_pb2.Usage(input_tokens=7), **fields)
    found.at.FromMilliseconds(1_700_000_000_500)
    return found


def written(form: Format, *some: costs_pb2.UsageRecord) -> bytes:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
    with writing(file, form) as write:
        write(map(row_of, some))
    file.flush()
    return raw.getvalue()


def test_a_row_is_flat_and_adds_up():
    row = row_of(record(tenant="acme"))
    assert (row["at"], row["tenant"], row["input_tokens"]) == ("2023-11-14T22:13:20.500+00:00", "acme", 7)
    assert (row["cost_provider_nanousd"], row["cost_embedder_nanousd"], row["cost_router_nanousd"]) == (100, 30, 0)
    assert row["actual_nanousd"] == 400 - row["saved_cache_nanousd"] - row["saved_routing_nanousd"] + 30
    assert tuple(row) == COLUMNS


def test_no_record_still_names_the_columns():
    assert written(Format.CSV).decode() == ",".join(COLUMNS) + "\n"
    assert pyarrow.parquet.read_table(io.BytesIO(written(Format.PARQUET))).column_names == list(COLUMNS)


@pytest.mark.parametrize("user", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\tx"])
def test_a_table_holds_no_formula(user):
    (row,) = csv.DictReader(io.StringIO(written(Format.CSV, record(user=user)).decode()))
    assert row["user"] == f"'{user}"
    assert row["overhead_nanousd"] == "30"


def test_lines_keep_words_as_they_were():
    kept = record(user="=José")
    assert json.loads(written(Format.JSONL, kept)) == row_of(kept)
    table = pyarrow.parquet.read_table(io.BytesIO(written(Format.PARQUET, kept)))
    assert table.to_pylist() == [row_of(kept)]


def test_the_name_says_the_format(tmp_path):
    assert format_of(tmp_path / "a.CSV") is Format.CSV
    with pytest.raises(MeshError, match="has to end in"):
        format_of(tmp_path / "a.xlsx")
