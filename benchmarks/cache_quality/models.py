"""Encoders that read every text once, however many contestants ask."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.cache_quality.results import Encoder
from services.embedder.domain import Encoded, ModelInfo, PairModel, Scored, TextModel, Vectors

BATCH = 32


class Remembered:
    """An encoder with a memory: `encode` answers out of it for texts that `read` has seen. It can be a verifier, too."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self._vectors: dict[str, Vectors] = {}
        self._cut: dict[str, bool] = {}
        self._read_s = 0.0

    @property
    def info(self) -> ModelInfo:
        """What it is."""
        return self._model.info

    def read(self, texts: Sequence[str], progress: Callable[[int], None]) -> None:
        """Embeds the texts that are new; `progress` hears how many were done."""
        new = [text for text in dict.fromkeys(texts) if text not in self._vectors]
        progress(len(texts) - len(new))
        for start in range(0, len(new), BATCH):
            some = new[start : start + BATCH]
            started = time.process_time()
            encoded = self._model.encode(some)
            self._read_s += time.process_time() - started
            self._vectors.update(zip(some, encoded.vectors, strict=True))
            self._cut.update(zip(some, encoded.truncated, strict=True))
            progress(len(some))

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of texts that were read; their tokens are not remembered."""
        return Encoded(
            vectors=np.stack([self._vectors[text] for text in texts]),
            tokens=(0,) * len(texts),
            truncated=tuple(self._cut[text] for text in texts),
            cpu_seconds=0.0,
        )

    def cost(self) -> Encoder:
        """What reading has cost."""
        count = len(self._vectors)
        return {
            "model": self.info.model_id,
            "backend": self.info.backend,
            "texts": count,
            "cpu_ms_per_1k_texts": round(1e6 * self._read_s / max(1, count), 1),
            "cpu_ms_per_1k_pairs": None,
        }


class RememberedPairs(Remembered):
    """The same for an encoder that is a verifier, too: a pair is scored once, and its cost is owed by all who ask."""

    def __init__(self, model: TextModel, verifier: PairModel) -> None:
        super().__init__(model)
        self._verifier = verifier
        self._scores: dict[tuple[str, str], tuple[float, float]] = {}
        self.owed_s = 0.0
        """CPU seconds that were not spent since somebody else had spent them; grows."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        """P(one answer serves both) of each pair."""
        for pair in pairs:
            known = self._scores.get(pair)
            if known is None:
                started = time.process_time()
                probability = self._verifier.score([pair]).probabilities[0]
                self._scores[pair] = (probability, time.process_time() - started)
            else:
                self.owed_s += known[1]
        found = [self._scores[pair] for pair in pairs]
        return Scored(tuple(p for p, _ in found), sum(s for _, s in found))

    def cost(self) -> Encoder:
        spent = sum(seconds for _, seconds in self._scores.values())
        per_1k = round(1e6 * spent / max(1, len(self._scores)), 1)
        return {**super().cost(), "cpu_ms_per_1k_pairs": per_1k}


def remembered(model: TextModel) -> Remembered:
    """With a memory for pairs where it is a verifier."""
    return RememberedPairs(model, model) if isinstance(model, PairModel) else Remembered(model)
