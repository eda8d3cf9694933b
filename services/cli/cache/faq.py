"""Files of questions and answers for `llmmesh warm`: read a line at a time, and what is wrong with a line is told, not raised."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from services.common.yaml_file import ConfigError

MAX_LINE_BYTES = 16 * 1024 * 1024
MAX_TAGS = 16

TtlClass = Literal["realtime", "faq", "static", "archive"]


def _said(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty")
    return _sendable(text)


def _sendable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate)") from None
    return text


Said = Annotated[str, AfterValidator(_said)]
Tag = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_sendable)]


class FaqRow(BaseModel):
    """One answer and the questions that it is for: `question` and the other wordings in `also`."""

    model_config = ConfigDict(extra="ignore")

    question: Said
    answer: Said
    system: Annotated[str, AfterValidator(_sendable)] | None = None
    tags: list[Tag] = Field(default_factory=list, max_length=MAX_TAGS)
    ttl_class: TtlClass | None = None
    also: list[Said] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file: its row, or what is wrong with it. `number` from 1; `end` is the position after it, in bytes."""

    number: int
    end: int
    row: FaqRow | None
    problem: str = ""


def read(file: Path) -> Iterator[Line]:
    """The lines that hold something. Never more than one in memory. Raises ConfigError when the file cannot be read."""
    try:
        with file.open("rb") as stream:
            number = 0
            while raw := stream.readline(MAX_LINE_BYTES):
                number += 1
                if len(raw) == MAX_LINE_BYTES and not raw.endswith(b"\n"):
                    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield Line(number, stream.tell(), None, f"longer than {MAX_LINE_BYTES >> 20} MiB")
                elif raw.strip():
                    yield _line(number, stream.tell(), raw)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None


def _line(number: int, end: int, raw: bytes) -> Line:
    try:
        found = json.loads(raw.decode("utf-8-sig"))
        if not isinstance(found, dict):
            return Line(number, end, None, "not a JSON object")
        row = FaqRow.model_validate(found)
    except UnicodeDecodeError:
        return Line(number, end, None, "not UTF-8 text")
    except json.JSONDecodeError as error:
        return Line(number, end, None, f"not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return Line(number, end, None, "not JSON: nested too deeply")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return Line(number, end, None, f"{where}: {first['msg'].removeprefix('Value error, ')}")
    return Line(number, end, row)


class Done:
    """What a file's earlier runs have stored: a digest of 128 bits per wording, one a line of FILE.done.

    It says what was stored, not that it is still there: that is for the cache to tell.
    """

    def __init__(self, file: Path) -> None:
        """Raises ConfigError for a sidecar that cannot be read or written."""
        self.path = file.with_name(f"{file.name}.done")
        try:
            self._stream = self.path.open("a+b")
            self._stream.seek(0)
            self._known = {line for raw in self._stream if len(line := raw.strip()) == 32 and raw.endswith(b"\n")}
            if self._stream.tell():
                self._stream.seek(-1, 2)
                if self._stream.read(1) != b"\n":  # a run was killed while it wrote
                    self._stream.write(b"\n")
        except OSError as error:
            raise ConfigError(
                f"{self.path}: {error.strerror}; what is stored is noted there, so copy the file to a folder of yours"
            ) from None

    def __contains__(self, digest: str) -> bool:
        return digest.encode() in self._known

    def add(self, digests: list[str]) -> None:
        """Notes what was stored just now; it outlives this process at once."""
        lines = [digest.encode() for digest in digests]
        self._known.update(lines)
        self._stream.write(b"".join(line + b"\n" for line in lines))
        self._stream.flush()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()


def digest_of(*parts: object) -> str:
    """128 bits over values of JSON, as 32 hexadecimal digits."""
    return blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()
