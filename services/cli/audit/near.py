"""Which sampled questions the semantic cache would have answered: its own candidates, guards, verifier and calibration."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.cache.domain import guards
from services.cache.domain.answers import Comparison, compare
from services.cache.domain.calibration import Calibration
from services.cache.domain.ports import CacheRules
from services.cache.domain.verdict import CANDIDATES, Suspect, Verdict
from services.cli.audit.sample import Block, Kept
from services.cli.evaluate.cache import CacheTrial
from services.embedder.adapters.loader import load_encoder
from services.embedder.domain import TextModel
from services.embedder.settings import EmbedderSettings

BATCH = 32
LONGEST = 4_000
"""Letters of a question that are read; the model's window is shorter, and what it cuts is never compared."""

Advance = Callable[[int], None]
"""Hears that so many more questions are done."""
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Near:
    """A question that would have been answered with an earlier one's answer.

    `contradicted`: the log's two answers contradict each other, so that this would have been wrong.
    """

    line: int
    same_as: int
    similarity: float
    probability: float | None
    contradicted: bool
    text: str
    other: str


@dataclass(slots=True)
class Verdicts:
    """What became of the judged questions: by line, and how many there were."""

    judged: int
    near: dict[int, Near]


def judge(blocks: Sequence[Block], rules: CacheRules, advance: Advance) -> Verdicts:
    """Serves each block as the cache would, from empty; requests without a scope pass by. Answers live as long as the policy
    says. `advance` hears of texts read and of questions judged, two steps a request.
    """
    settings = EmbedderSettings.load()
    encoder = load_encoder(settings.models[0], settings)
    verdicts = Verdicts(0, {})
    for block in blocks:
        asyncio.run(_serve(block, encoder, rules, verdicts, advance))
    return verdicts


async def _serve(block: Block, encoder: TextModel, rules: CacheRules, verdicts: Verdicts, advance: Advance) -> None:
    trial = CacheTrial(encoder, rules, rules.error_budget, Calibration.load(), learns=rules.learn)
    vectors, readable = _encode(encoder, [kept.text[:LONGEST] for kept in block.requests], advance)
    requests, stored = block.requests, dict[int, list[int]]()
    for index, kept in enumerate(requests):
        advance(1)
        counts = index >= block.judged_from
        verdicts.judged += counts and kept.scope is not None
        if kept.scope is None or not readable[index]:
            continue
        known = stored.setdefault(kept.scope, [])
        suspects = _nearest(requests, vectors, known, index, rules)
        # What only fills the cache is stored unjudged: an entry more is no answer served.
        if counts:
            decided = await trial.judge(kept.text[:LONGEST], suspects)
            if decided.served is not None:
                near = _near(kept, requests[int(decided.served)], decided)
                verdicts.near[kept.line] = near
                if not near.contradicted:
                    continue
            elif decided.judged:
                _learn(trial, kept, requests[int(decided.judged[0].entry_id)], decided)
        known.append(index)


def _encode(encoder: TextModel, texts: Sequence[str], advance: Advance) -> tuple[Vectors, list[bool]]:
    """Unit vectors, (texts, dimensions), and whether each text was read whole. Each different text is read once."""
    places: dict[str, int] = {}
    for text in texts:
        places.setdefault(text or " ", len(places))
    different = sorted(places, key=len)  # texts of a batch are padded to its longest
    rows: dict[str, tuple[Vectors, bool]] = {}
    for start in range(0, len(different), BATCH):
        batch = different[start : start + BATCH]
        encoded = encoder.encode(batch)
        for text, vector, cut in zip(batch, encoded.vectors, encoded.truncated, strict=True):
            rows[text] = (vector, cut)
        advance(len(texts) * len(batch) // len(different))
    found = [rows[text or " "] for text in texts]
    vectors = np.stack([vector for vector, _ in found]) if found else np.zeros((0, 1), np.float32)
    return vectors, [bool(text.strip()) and not cut for text, (_, cut) in zip(texts, found, strict=True)]


def _nearest(
    requests: Sequence[Kept], vectors: Vectors, known: list[int], index: int, rules: CacheRules
) -> list[Suspect]:
    """What a search finds: the nearest living questions in the asked one's language."""
    kept = requests[index]
    ttl = rules.ttl[""]
    if kept.at is not None:
        known = [i for i in known if abs(kept.at - (requests[i].at or 0.0)) < ttl]
    if not known:
        return []
    language = "" if rules.cross_language else guards.read(kept.text[:LONGEST]).language
    similarities = vectors[known] @ vectors[index]
    found: list[Suspect] = []
    for place in np.argsort(-similarities):
        similarity = float(similarities[place])
        if len(found) == CANDIDATES or similarity < rules.floor:
            break
        text = requests[known[place]].text[:LONGEST]
        if not language or guards.read(text).language in ("", language):
            found.append(Suspect(str(known[place]), similarity, text, created_at=1.0, pinned=False))
    return found


def _near(kept: Kept, other: Kept, decided: Verdict) -> Near:
    best = decided.judged[0]
    different = compare(other.answer, kept.answer, None) is Comparison.DIFFERENT
    return Near(kept.line, other.line, best.similarity, best.probability, different, kept.text, other.text)


def _learn(trial: CacheTrial, kept: Kept, other: Kept, decided: Verdict) -> None:
    label = compare(other.answer, kept.answer, None)
    if label is not Comparison.DOUBT:
        trial.learn(decided, label is Comparison.SAME)
