"""`llmmesh evaluate cache`: the cache's verdict on labelled questions, with the very code of the service."""

import time
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from services.cache.convert import rules_of
from services.cache.domain import verdict
from services.cache.domain.lookup import CANDIDATES
from services.cli.evaluate.rows import read_rows, write_rows
from services.common.policy import Policy
from services.common.prices import PriceBook
from services.common.yaml_file import ConfigError
from services.embedder.adapters.loader import load_encoder
from services.embedder.domain import TextModel
from services.embedder.settings import EmbedderSettings

BATCH = 64


class Line(TypedDict):
    """One line of OUT. `right` is null where nothing was served; `probability` is null: floor, vetoes and threshold decide."""

    served: bool
    right: bool | None
    probability: float | None
    similarity: float | None
    reason: str


class _Row(BaseModel):
    """A pair (`a`, `b`, `same_answer`) or an item of a stream (`text`, `answer_id`)."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    a: str | None = Field(None, min_length=1)
    b: str | None = Field(None, min_length=1)
    same_answer: bool | None = None
    text: str | None = Field(None, min_length=1)
    answer_id: str | None = None


def run(file: Path, delta: float, out: Path | None, policy_file: Path, model: str | None) -> dict[str, object]:
    """Serves each row of `file` as the cache would, and counts.

    Pairs: each in a fresh scope, would b be served a's answer? Stream: in order, one scope; what is not served is stored.
    `delta` is the error budget (share of served answers that are wrong) that the result is held against.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta {delta:g} must be between 0 and 1")
    rows = list(read_rows(file, _Row))
    if not rows:
        raise ConfigError(f"{file}: no rows")
    settings = EmbedderSettings.load()
    encoder = load_encoder(model or settings.models[0], settings)
    cache = rules_of(Policy.load(policy_file, PriceBook.load()))["default"]
    rules = verdict.Rules(
        floor=cache.floor,
        threshold=cache.thresholds.get(encoder.info.model_id),
        oldest=0.0,
        cross_language=cache.cross_language,
    )
    started = time.process_time()
    pairs = [(r.a, r.b, r.same_answer) for r in rows if r.a is not None and r.b is not None]
    stream = [(r.text, r.answer_id) for r in rows if r.text is not None and r.answer_id is not None]
    if len(pairs) == len(rows):
        lines = _pairs(pairs, encoder, rules)
        wanted = sum(bool(same) for _, _, same in pairs)
    elif len(stream) == len(rows):
        lines = _stream(stream, encoder, rules)
        wanted = len(stream) - len({answer for _, answer in stream})
    else:
        raise ConfigError(
            f"{file}: every row needs `a` and `b` (pairs), or every row `text` and `answer_id` (a stream)"
        )
    if out is not None:
        write_rows(out, lines)
    served = sum(line["served"] for line in lines)
    wrong = sum(line["right"] is False for line in lines)
    reasons: dict[str, int] = {}
    for line in lines:
        reasons[line["reason"]] = reasons.get(line["reason"], 0) + 1
    return {
        "rows": len(rows),
        "served": served,
        "wrong": wrong,
        "hit_share": served / len(rows),
        "wrong_share": wrong / len(rows),
        "wrong_share_of_hits": wrong / served if served else 0.0,
        "within_delta": wrong <= delta * served,
        "delta": delta,
        "should_hit": wanted,
        "should_hit_served": (served - wrong) / wanted if wanted else None,
        "model": encoder.info.model_id,
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])),
        "cpu_ms": 1000 * (time.process_time() - started) / len(rows),
    }


def _encode(encoder: TextModel, texts: list[str]) -> NDArray[np.float32]:
    """Unit vectors, shape (len(texts), dimensions)."""
    batches = [encoder.encode(texts[i : i + BATCH]).vectors for i in range(0, len(texts), BATCH)]
    return np.concatenate(batches)


def _suspect(entry: int, similarity: float, question: str) -> verdict.Suspect:
    return verdict.Suspect(str(entry), similarity, question, created_at=1.0, pinned=False)


def _pairs(pairs: list[tuple[str, str, bool | None]], encoder: TextModel, rules: verdict.Rules) -> list[Line]:
    first = _encode(encoder, [a for a, _, _ in pairs])
    second = _encode(encoder, [b for _, b, _ in pairs])
    similarities = np.sum(first * second, axis=1)
    lines: list[Line] = []
    for (a, b, same), similarity in zip(pairs, similarities, strict=True):
        # The very same question is an exact hit: it never gets as far as a verdict.
        exact = a == b
        decided = verdict.decide(b, [_suspect(0, float(similarity), a)], rules)
        served = exact or decided.served is not None
        lines.append(_line(served, same, float(similarity), "exact" if exact else decided.reason))
    return lines


def _stream(stream: list[tuple[str, str]], encoder: TextModel, rules: verdict.Rules) -> list[Line]:
    texts = [text for text, _ in stream]
    vectors = _encode(encoder, texts)
    stored: list[int] = []
    exact: dict[str, int] = {}
    lines: list[Line] = []
    for index, (text, answer) in enumerate(stream):
        if text in exact:
            lines.append(_line(True, stream[exact[text]][1] == answer, 1.0, "exact"))
            continue
        decided = verdict.decide(text, _nearest(vectors, stored, index, texts, rules.floor), rules)
        similarity = decided.judged[0].similarity if decided.judged else None
        if decided.served is None:
            stored.append(index)
            exact[text] = index
            lines.append(_line(False, None, similarity, decided.reason))
        else:
            lines.append(_line(True, stream[int(decided.served)][1] == answer, similarity, decided.reason))
    return lines


def _nearest(
    vectors: NDArray[np.float32], stored: list[int], index: int, texts: list[str], floor: float
) -> list[verdict.Suspect]:
    if not stored:
        return []
    similarities = vectors[stored] @ vectors[index]
    best = np.argsort(-similarities)[:CANDIDATES]
    return [
        _suspect(stored[i], float(similarities[i]), texts[stored[i]]) for i in best if float(similarities[i]) >= floor
    ]


def _line(served: bool, right: bool | None, similarity: float | None, reason: str) -> Line:
    return {
        "served": served,
        "right": right if served else None,
        "probability": None,
        "similarity": None if similarity is None else round(similarity, 4),
        "reason": reason,
    }
