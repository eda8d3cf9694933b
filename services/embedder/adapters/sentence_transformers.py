"""Encoders and cross-encoders on torch, through sentence-transformers: any local folder or hub id."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from services.embedder.domain import Encoded, ModelInfo, Scored

DEFAULT_MAX_TOKENS = 512


class TorchEncoder:
    """A sentence-transformers model."""

    def __init__(self, weights: str, model_id: str, *, threads: int) -> None:
        """Loads `weights`, a folder or hub id; `threads` CPU threads for a batch."""
        torch.set_num_threads(threads)
        self._threads = threads
        self._model = SentenceTransformer(weights)
        dimensions = self._model.get_embedding_dimension() or 0
        self._info = ModelInfo(model_id, dimensions, self._model.max_seq_length or DEFAULT_MAX_TOKENS, "torch")

    @property
    def info(self) -> ModelInfo:
        """What it is."""
        return self._info

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embeds at least one text."""
        started = time.thread_time()
        batch = list(texts)
        vectors = self._model.encode(
            batch, batch_size=len(batch), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        # Counted without the cut, since a text that fills the window exactly has lost nothing.
        tokenized = self._model.tokenizer(batch, truncation=False, verbose=False)["input_ids"]
        window = self._info.max_tokens
        return Encoded(
            vectors=np.asarray(vectors, dtype=np.float32),
            tokens=tuple(min(len(ids), window) for ids in tokenized),
            truncated=tuple(len(ids) > window for ids in tokenized),
            cpu_seconds=(time.thread_time() - started) * self._threads,
        )


class TorchVerifier:
    """A cross-encoder with one output."""

    def __init__(self, weights: str, model_id: str, *, threads: int) -> None:
        """Loads `weights`, a folder or hub id of a cross-encoder whose single output is a logit."""
        torch.set_num_threads(threads)
        self._threads = threads
        self._model = CrossEncoder(weights)
        if self._model.config.num_labels != 1:
            raise ValueError(f"verifier {model_id} has {self._model.config.num_labels} outputs, not 1")
        self._info = ModelInfo(model_id, 0, self._model.max_seq_length or DEFAULT_MAX_TOKENS, "torch")

    @property
    def info(self) -> ModelInfo:
        """What it is."""
        return self._info

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        """Scores at least one pair."""
        started = time.thread_time()
        scores = self._model.predict(
            list(pairs), activation_fn=torch.nn.Sigmoid(), convert_to_numpy=True, show_progress_bar=False
        )
        return Scored(
            probabilities=tuple(float(score) for score in scores),
            cpu_seconds=(time.thread_time() - started) * self._threads,
        )
