"""Labelled data: JSONL or CSV, plain or gzip, with errors that name file and line."""

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from services.common.yaml_file import ConfigError

M = TypeVar("M", bound=BaseModel)

csv.field_size_limit(16 * 1024 * 1024)


def read_rows(file: Path, kind: type[M]) -> Iterator[M]:
    """One `kind` per line of a JSONL file, or per row of a CSV file (by its header). Raises ConfigError naming the line."""
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            if ".csv" in file.suffixes:
                for number, row in enumerate(csv.DictReader(lines), 2):
                    yield _validated(kind, row, file, number)
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    try:
                        yield _validated(kind, json.loads(line), file, number)
                    except json.JSONDecodeError as error:
                        raise ConfigError(f"{file}:{number}: {error.msg}") from None
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise ConfigError(f"{file}: {error}") from None


def _validated(kind: type[M], row: object, file: Path, number: int) -> M:
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{file}:{number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def write_rows(out: Path, rows: Sequence[object]) -> None:
    """One JSON object per line."""
    out.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
