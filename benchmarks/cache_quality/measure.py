"""One contestant on one set."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.cache_quality import thresholds
from benchmarks.cache_quality.contestants import DELTAS, HINDSIGHT, PEERS, PEERS_ENCODER, THRESHOLDS, Contestant
from benchmarks.cache_quality.models import Remembered, RememberedPairs
from benchmarks.cache_quality.results import Curve, Row
from benchmarks.cache_quality.sets import Pairs, Stream
from benchmarks.cache_quality.thresholds import GRID, Counts
from services.cache.domain.ports import CacheRules
from services.cli.evaluate.cache import Line, serve_pairs, serve_stream
from training.quality import Scores, quality

_REFUSED = -2.0
"""Below every cosine and every probability."""


def our_stream(stream: Stream, encoder: Remembered, contestant: Contestant, rules: CacheRules) -> Row:
    """The cache, or a part of it, over a stream."""
    before = _spent(encoder)
    lines = serve_stream(stream.items, encoder, contestant.trial(), rules)
    spent = _spent(encoder) - before
    served, wrong = sum(line["served"] for line in lines), sum(line["right"] is False for line in lines)
    row = _row(stream, contestant.name, encoder, contestant.delta, Counts(len(lines), served, wrong))
    return {**row, "cpu_ms_per_1k": round(1e6 * spent / len(lines), 1)}


def our_pairs(pairs: Pairs, encoder: Remembered, contestant: Contestant, rules: CacheRules) -> tuple[Row, Curve]:
    """The cache, or a part of it, on pairs."""
    before = _spent(encoder)
    lines = serve_pairs(pairs.pairs, encoder, contestant.trial, rules)
    spent = _spent(encoder) - before
    scores = np.array([score(line) for line in lines])
    row = _pairs_row(pairs, contestant.name, encoder, contestant.delta, scores, [line["served"] for line in lines])
    same = _same(pairs)
    limits = sorted({float(s) for s in scores if s > _REFUSED}, reverse=True)
    curve = _curve(pairs.name, contestant.name, {limit: thresholds.on_pairs(scores, same, limit) for limit in limits})
    return {**row, "cpu_ms_per_1k": round(1e6 * spent / len(lines), 1)}, curve


def plain_stream(stream: Stream, encoder: Remembered, *, own: bool) -> tuple[list[Row], Curve]:
    """Cosine thresholds over a stream; the best one in hindsight, too, where the encoder is `own`."""
    vectors = encoder.encode([text for text, _ in stream.items]).vectors
    similarities = vectors @ vectors.T
    answers = [answer for _, answer in stream.items]
    counts = {threshold: thresholds.on_stream(similarities, answers, threshold) for threshold in GRID}
    rows = [
        _row(stream, name, encoder, DELTAS[0], thresholds.on_stream(similarities, answers, threshold))
        for name, threshold in plain(encoder, own=own)
    ]
    if own:
        found = thresholds.best(counts, DELTAS[0])
        name = f"{HINDSIGHT} ({found:.2f})" if found in counts else HINDSIGHT
        rows.append(_row(stream, name, encoder, DELTAS[0], counts.get(found, Counts(len(answers), 0, 0))))
    return rows, _curve(stream.name, f"cosine {encoder.info.model_id}", counts)


def plain_pairs(pairs: Pairs, encoder: Remembered, *, own: bool) -> tuple[list[Row], Curve]:
    """Cosine thresholds on pairs."""
    first = encoder.encode([a for a, _, _ in pairs.pairs]).vectors
    second = encoder.encode([b for _, b, _ in pairs.pairs]).vectors
    similarities = np.sum(first * second, axis=1)
    same = _same(pairs)
    counts = {threshold: thresholds.on_pairs(similarities, same, threshold) for threshold in GRID}
    chosen = list(plain(encoder, own=own))
    if own:
        found = thresholds.best(counts, DELTAS[0])
        chosen.append((f"{HINDSIGHT} ({found:.2f})", found))
    rows = [
        _pairs_row(pairs, name, encoder, DELTAS[0], similarities, (similarities >= threshold).tolist())
        for name, threshold in chosen
    ]
    return rows, _curve(pairs.name, f"cosine {encoder.info.model_id}", counts)


def plain(encoder: Remembered, *, own: bool) -> list[tuple[str, float]]:
    """Names and thresholds of the caches that know nothing but a cosine of this encoder."""
    if own:
        return []
    peers = PEERS.items() if encoder.info.model_id == PEERS_ENCODER else ()
    return [*((f"cosine {threshold:.2f}", threshold) for threshold in THRESHOLDS), *peers]


def score(line: Line) -> float:
    """How sure a contestant was of a pair: the probability where there is one, else the similarity, unless something refused."""
    if line["reason"] == "exact":
        return 1.0
    if line["probability"] is not None:
        return line["probability"]
    if line["reason"] in ("served", "below_threshold") and line["similarity"] is not None:
        return line["similarity"]
    return _REFUSED


def _spent(encoder: Remembered) -> float:
    """CPU seconds of this process so far, with those that it was spared."""
    return time.process_time() + (encoder.owed_s if isinstance(encoder, RememberedPairs) else 0.0)


def _same(pairs: Pairs) -> NDArray[np.bool_]:
    return np.array([bool(same) for _, _, same in pairs.pairs])


def _row(asked: Stream | Pairs, contestant: str, encoder: Remembered, delta: float, counts: Counts) -> Row:
    return {
        "set": asked.name,
        "kind": "stream" if isinstance(asked, Stream) else "pairs",
        "order": asked.order if isinstance(asked, Stream) else 0,
        "contestant": contestant,
        "encoder": encoder.info.model_id,
        "delta": delta,
        "rows": counts.rows,
        "hit_share": round(counts.hit_share, 4),
        "wrong_share": round(counts.wrong_share, 4),
        "wrong_share_of_hits": round(counts.wrong / counts.served, 4) if counts.served else 0.0,
        "kept": counts.wrong <= delta * counts.rows,
        "auc": None,
        "served_at_1": None,
        "served_at_5": None,
        "same_served": None,
        "traps_served": None,
        "cpu_ms_per_1k": None,
    }


def _pairs_row(
    pairs: Pairs,
    contestant: str,
    encoder: Remembered,
    delta: float,
    scores: NDArray[np.floating],
    served: Sequence[bool],
) -> Row:
    same, passed = _same(pairs), np.array(served, dtype=bool)
    counts = Counts(len(same), int(passed.sum()), int((passed & ~same).sum()))
    found: Scores = quality(scores, same)
    return {
        **_row(pairs, contestant, encoder, delta, counts),
        "auc": round(found.auc, 3),
        "served_at_1": round(found.served_at_1, 3),
        "served_at_5": round(found.served_at_5, 3),
        "same_served": round(float(passed[same].mean()), 4),
        "traps_served": round(float(passed[~same].mean()), 4),
    }


def _curve(name: str, contestant: str, counts: dict[float, Counts]) -> Curve:
    return {
        "set": name,
        "contestant": contestant,
        "settings": [round(setting, 6) for setting in counts],
        "hit_share": [round(c.hit_share, 4) for c in counts.values()],
        "wrong_share": [round(c.wrong_share, 4) for c in counts.values()],
    }
