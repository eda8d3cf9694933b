"""The sets: streams of questions with the answer each wants, and pairs of questions with whether one answer serves both."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from services.cli.evaluate.rows import read_rows

WRITTEN = Path(__file__).parent / "data"
STREAM_ROWS = 3_000
PAIR_ROWS = 3_000
ORDERS = 5
OUT_OF_SCOPE = frozenset({"oos", "out_of_scope"})
"""Intents that are none: each of their questions wants an answer of its own."""
BANKING, HELP_DESK, QQP, PAIRS_EN, PAIRS_ES = "Banking77", "help desk en+es", "QQP", "pairs en", "pairs es"

T = TypeVar("T")

Item = tuple[str, str]
Pair = tuple[str, str, bool | None]


@dataclass(frozen=True, slots=True)
class Stream:
    """Questions in order, each with the id of its answer; `name` of the set and the number of the order, from 1."""

    name: str
    order: int
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of questions; the third is whether they have one answer."""

    name: str
    pairs: tuple[Pair, ...]


class _Intent(BaseModel):
    text: str
    intent: str


class _Duplicate(BaseModel):
    a: str
    b: str
    label: bool


class _Asked(BaseModel):
    text: str
    answer_id: str


class _Written(BaseModel):
    a: str
    b: str
    same_answer: bool
    lang: str


@dataclass(frozen=True, slots=True)
class Sets:
    """What is measured, and why the rest is not."""

    streams: tuple[Stream, ...]
    pairs: tuple[Pairs, ...]
    skipped: tuple[str, ...]


def load(data: Path, seed: int, part: float) -> Sets:
    """All sets. `data` is the folder of the public ones, `part` of each set is used, 0 to 1."""
    streams: list[Stream] = []
    pairs: list[Pairs] = []
    skipped: list[str] = []
    for name, file, orders in (
        (BANKING, "banking77_en_train.jsonl", ORDERS),
        ("CLINC150", "clinc150_en_train_val.jsonl", 1),
        ("HWU64", "hwu64_en.jsonl", 1),
    ):
        path = data / "cache" / file
        if not path.is_file():
            skipped.append(f"{name}: there is no {path}")
            continue
        intents = [(row.text, row.intent) for row in read_rows(path, _Intent)]
        if name == "CLINC150" and not OUT_OF_SCOPE & {intent for _, intent in intents}:
            skipped.append(f"{name}: the out-of-scope questions, of which {file} has none")
        items = sample(own_answers(intents), int(STREAM_ROWS * part), seed)
        streams += shuffled(name, items, orders, seed)
    desk = [(row.text, row.answer_id) for row in read_rows(WRITTEN / "help_desk.jsonl", _Asked)]
    streams += shuffled(HELP_DESK, sample(desk, int(len(desk) * part), seed), 1, seed)
    path = data / "cache" / "qqp_en_a.jsonl"
    if path.is_file():
        found: list[Pair] = [(row.a, row.b, row.label) for row in read_rows(path, _Duplicate)]
        pairs.append(Pairs(QQP, tuple(sample(found, int(PAIR_ROWS * part), seed))))
    else:
        skipped.append(f"{QQP}: there is no {path}")
    written = list(read_rows(WRITTEN / "pairs.jsonl", _Written))
    for name, language in ((PAIRS_EN, "en"), (PAIRS_ES, "es")):
        mine: list[Pair] = [(row.a, row.b, row.same_answer) for row in written if row.lang == language]
        pairs.append(Pairs(name, tuple(sample(mine, int(len(mine) * part), seed))))
    return Sets(tuple(streams), tuple(pairs), tuple(skipped))


def data_folder() -> Path:
    """Where the public sets lie: LLMMESH_DATA, or a folder beside the repository."""
    configured = os.environ.get("LLMMESH_DATA")
    return Path(configured) if configured else Path(__file__).parents[3] / "shared" / "data"


def own_answers(intents: Sequence[Item]) -> list[Item]:
    """The intent is the answer; a question out of scope has its own."""
    return [
        (text, f"{intent}:{number}" if intent in OUT_OF_SCOPE else intent)
        for number, (text, intent) in enumerate(intents)
    ]


def sample(rows: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` of them, at random, or all where there are no more."""
    return random.Random(seed).sample(rows, min(count, len(rows)))


def shuffled(name: str, items: Sequence[Item], orders: int, seed: int) -> list[Stream]:
    """The same items in so many orders."""
    streams = []
    for order in range(1, orders + 1):
        items = list(items)
        random.Random(seed + order).shuffle(items)
        streams.append(Stream(name, order, tuple(items)))
    return streams
