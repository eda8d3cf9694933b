"""Request logs as files: JSON lines, a JSON array, or CSV, plain or gzip. One line after the other, in bounded memory."""

import codecs
import csv
import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from services.cli.logs.forms import Form, Row, Unusable, form_of_row, read_row
from services.cli.logs.record import LogRecord, Malformed
from services.common.yaml_file import ConfigError

__all__ = ["Form", "Progress", "form_of", "read_log"]

MAX_LINE_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 1024 * 1024
LOOKED_AT = 50
TOLD_EVERY = 1_000

Progress = Callable[[int, int], None]
_Rows = Iterator[tuple[int, Row | str]]

_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}

csv.field_size_limit(MAX_LINE_BYTES)


def read_log(path: Path, on_progress: Progress | None = None) -> Iterator[LogRecord | Malformed]:
    """Every model call of a log, in the file's order; lines that cannot be used come as Malformed.

    `on_progress` hears the position in the file and its size, in bytes, now and then. Raises ConfigError when the file cannot be
    opened or is, by its first lines, no request log at all.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            rows = _rows(_lines(file))
            first = list(islice(rows, LOOKED_AT))
            _told(path, first)
            for count, (number, row) in enumerate(chain(first, rows)):
                if on_progress is not None and count % TOLD_EVERY == 0:
                    on_progress(file.tell(), size)
                if isinstance(row, str):
                    yield Malformed(number, row)
                    continue
                try:
                    record = read_row(row, number)
                except Unusable as error:
                    yield Malformed(number, str(error))
                    continue
                if record is not None:
                    yield record
            if on_progress is not None:
                on_progress(file.tell(), size)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def form_of(path: Path) -> Form:
    """Whose export a log is, by its first lines; an empty one is OpenAI-style. Raises ConfigError like read_log."""
    try:
        with path.open("rb") as file:
            return _told(path, list(islice(_rows(_lines(file)), LOOKED_AT)))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def _told(path: Path, first: list[tuple[int, Row | str]]) -> Form:
    """The form that most of the first lines have."""
    found = [row for _, row in first if not isinstance(row, str)]
    forms = Counter(form for row in found if (form := form_of_row(row)) is not None)
    if forms:
        return forms.most_common(1)[0][0]
    if not first:
        return Form.OPENAI
    why = "no line names a model or holds a request" if found else f"line {first[0][0]}: {first[0][1]}"
    raise ConfigError(f"{path}: not a request log: {why}")


def _rows(lines: Iterator[tuple[int, str | None]]) -> _Rows:
    """Objects by line number, or in words why a line is none."""
    held = list(islice(_filled(lines), 1))
    if not held:
        return iter(())
    start = (held[0][1] or "").lstrip()
    lines = chain(held, lines)
    if start.startswith("["):
        return _array(lines)
    if start.startswith("{") or not start:
        return _json_lines(lines)
    return _csv(lines)


def _filled(lines: Iterator[tuple[int, str | None]]) -> Iterator[tuple[int, str | None]]:
    return ((number, line) for number, line in lines if line is None or line.strip())


_BAD_LINE = f"not UTF-8, or longer than {MAX_LINE_BYTES // 2**20} MiB"


def _json_lines(lines: Iterator[tuple[int, str | None]]) -> _Rows:
    for number, line in _filled(lines):
        if line is None:
            yield number, _BAD_LINE
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield number, "not JSON"
            continue
        yield from _objects(number, value)


def _objects(number: int, value: object) -> _Rows:
    """One object; a page of an API's answer holds several."""
    page = value.get("data") if isinstance(value, dict) and "model" not in value else None
    for item in page if isinstance(page, list) else [value]:
        yield number, item if isinstance(item, dict) else "not a JSON object"


def _array(lines: Iterator[tuple[int, str | None]]) -> _Rows:
    """The items of one JSON array, however its lines are broken."""
    decoder = json.JSONDecoder()
    text, opened, tried = "", False, 0
    number = 1
    for number, line in lines:
        if line is None:
            yield number, f"{_BAD_LINE}; the rest of the array is lost"
            return
        text += line
        # Trying at every line would be quadratic in an item's size: only once the text has grown by half.
        if len(text) < tried * 1.5:
            continue
        if not opened:
            text, opened = text.lstrip()[1:], True
        while text := text.lstrip(" \t\r\n,"):
            if text[0] == "]":
                return
            try:
                value, end = decoder.raw_decode(text)
            except (ValueError, RecursionError):
                break
            yield from _objects(number, value)
            text = text[end:]
        tried = len(text)
        if tried > MAX_LINE_BYTES:
            yield number, "an item of the array is no JSON, or too long; the rest is lost"
            return
    while text := text.lstrip(" \t\r\n,"):
        if text[0] == "]":
            return
        try:
            value, end = decoder.raw_decode(text)
        except (ValueError, RecursionError):
            break
        yield from _objects(number, value)
        text = text[end:]
    yield number, "the array does not end, or an item of it is no JSON; the rest is lost"


def _csv(lines: Iterator[tuple[int, str | None]]) -> _Rows:
    """Rows by the header's names."""
    spoilt: list[int] = []
    number = 0

    def texts() -> Iterator[str]:
        nonlocal number
        for at, line in lines:
            number = at
            if line is None:
                spoilt.append(at)
                yield "\n"
            else:
                yield line

    reader = csv.reader(texts())
    header: list[str] | None = None
    while True:
        start = number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, f"not CSV: {error}"
            continue
        if spoilt:
            spoilt.clear()
            yield start, _BAD_LINE
        elif not cells:
            continue
        elif header is None:
            header = [cell.strip() for cell in cells]
        elif len(cells) != len(header):
            yield start, f"{len(cells)} fields where the header names {len(header)}"
        else:
            yield start, dict(zip(header, cells, strict=True))


def _lines(file: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """Lines with their numbers and line ends; None for one that is too long or not in the file's encoding."""
    stream = io.BufferedReader(_Unpacked(file), CHUNK_BYTES)
    bom, encoding = next(((b, e) for b, e in _BOMS.items() if stream.peek(4)[:4].startswith(b)), (b"", "utf-8"))
    stream.read(len(bom))
    wide = encoding.startswith("utf-16")
    number = 0
    while True:
        number += 1
        line = stream.readline(MAX_LINE_BYTES + 1)
        if wide and line.endswith(b"\n") and encoding.endswith("le"):
            line += stream.read(1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = stream.readline(CHUNK_BYTES)
            yield number, None
            continue
        try:
            yield number, line.decode(encoding)
        except UnicodeDecodeError:
            yield number, None


_GZIP = 31  # zlib's name of gzip's header and trailer


class _Unpacked(io.RawIOBase):
    """The file's bytes, unpacked if they are gzip. What is damaged or cut off ends there, in a line that no encoding can read."""

    def __init__(self, file: BinaryIO) -> None:
        start = file.read(2)
        file.seek(0)
        self._file = file
        self._gzip = zlib.decompressobj(_GZIP) if start == b"\x1f\x8b" else None
        self._packed = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer)) if self._gzip is None else self._unpack(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _unpack(self, most: int) -> bytes:
        while not self._ended and self._gzip is not None:
            self._packed = self._packed or self._file.read(CHUNK_BYTES)
            if self._gzip.eof:  # logs are often several gzip files, one behind the other
                self._packed = self._packed.lstrip(b"\0") or self._file.read(CHUNK_BYTES)
                if not self._packed:
                    break
                self._gzip = zlib.decompressobj(_GZIP)
            try:
                data = self._gzip.decompress(self._packed, most)
            except zlib.error:
                break_off = True
            else:
                break_off = not self._packed and not data
                self._packed = self._gzip.unconsumed_tail or self._gzip.unused_data
                if data:
                    return data
            if break_off:
                self._ended = True
                return b"\xff\n"
        return b""
