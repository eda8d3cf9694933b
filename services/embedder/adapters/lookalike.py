"""The shipped text model on onnxruntime: vectors of questions, and P(one answer serves both) of pairs. No torch."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

from services.embedder.domain import Encoded, ModelInfo, Scored

MODEL_ID = "lookalike-1"
FOLDER = Path(__file__).parents[1] / "models" / MODEL_ID
DIMENSIONS = 384
MAX_TOKENS = 128
"""It was trained on single questions; what is longer is no question that a paraphrase would match."""
_UNKNOWN = 3
_FOREIGN = 0x0250
"""Letters from here on are not Latin, which is all that the vocabulary holds."""


class Lookalike:
    """Encoder and verifier over one vocabulary. Called from one thread at a time.

    Each text and each pair runs by itself: int8 activations are scaled over the whole input, so a text's neighbours would move
    its vector, and the same question would hit or miss by chance.
    """

    def __init__(self, folder: Path = FOLDER, *, threads: int) -> None:
        """`folder` as written by training.export; `threads` CPU threads for a text."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning thread would burn the CPU time that the other services need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CPUExecutionProvider"]
        self._encoder = onnxruntime.InferenceSession(folder / "encoder.onnx", options, providers=providers)
        self._verifier = onnxruntime.InferenceSession(folder / "verifier.onnx", options, providers=providers)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.no_padding()
        self._threads = threads

    @property
    def info(self) -> ModelInfo:
        """What it is, as an encoder."""
        return ModelInfo(MODEL_ID, DIMENSIONS, MAX_TOKENS, "onnx-int8")

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embeds at least one text. One with letters that the vocabulary lacks counts as cut: its vector misses them."""
        started = time.thread_time()
        encodings = self._tokenizer.encode_batch(list(texts))
        vectors = [self._encoder.run(None, {"ids": np.array([e.ids], dtype=np.int64)})[0] for e in encodings]
        return Encoded(
            vectors=np.stack(vectors).astype(np.float32),
            tokens=tuple(len(e.ids) for e in encodings),
            truncated=tuple(
                bool(e.overflowing) or _unreadable(t, e.ids) for t, e in zip(texts, encodings, strict=True)
            ),
            cpu_seconds=(time.thread_time() - started) * self._threads,
        )

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        """Scores at least one pair."""
        started = time.thread_time()
        odds = [self._odds(a, b) for a, b in pairs]
        return Scored(
            probabilities=tuple(float(1 / (1 + np.exp(-min(max(o, -30.0), 30.0)))) for o in odds),
            cpu_seconds=(time.thread_time() - started) * self._threads,
        )

    def _odds(self, a: str, b: str) -> float:
        """Log-odds that one answer serves both."""
        first, second = (e.ids for e in self._tokenizer.encode_batch([a, b]))
        ids = np.array([[*first, *second]], dtype=np.int64)
        sides = np.array([[0] * len(first) + [1] * len(second)], dtype=np.int64)
        return float(self._verifier.run(None, {"ids": ids, "sides": sides})[0][0])


def _unreadable(text: str, ids: Sequence[int]) -> bool:
    return _UNKNOWN in ids and any(char.isalpha() and ord(char) >= _FOREIGN for char in text)
