"""Encoders on onnxruntime: int8 weights, made once per machine, run without torch."""

import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.embedder.domain import Encoded, ModelInfo

MODEL_FILE = "model.int8.onnx"
TOKENIZER_FILE = "tokenizer.json"
FORMAT = "1"
"""Part of the folder's name: raise it when the exported graph changes, so that old files are not used."""


class OnnxEncoder:
    """A sentence encoder as one ONNX graph: token ids in, unit vectors out."""

    def __init__(self, folder: Path, model_id: str, *, max_tokens: int, threads: int) -> None:
        """`folder` as written by `prepare`; `threads` CPU threads for a batch."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning thread would burn the CPU time that the other services need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.no_padding()  # the file says always to 128
        self._threads = threads
        dimensions = int(self._session.get_outputs()[0].shape[1])
        self._info = ModelInfo(model_id, dimensions, max_tokens, "onnx-int8")

    @property
    def info(self) -> ModelInfo:
        """What it is."""
        return self._info

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embeds at least one text.

        Each runs by itself: activations are quantised over the whole input, so a text's neighbours would move its vector (to a
        cosine of 0.98 with itself), and the same question would hit or miss by chance. It costs a fifth of the throughput.
        """
        started = time.thread_time()
        encodings = self._tokenizer.encode_batch(list(texts))
        vectors = [self._run(np.array([encoding.ids], dtype=np.int64)) for encoding in encodings]
        return Encoded(
            vectors=np.concatenate(vectors),
            tokens=tuple(len(encoding.ids) for encoding in encodings),
            truncated=tuple(bool(encoding.overflowing) for encoding in encodings),
            cpu_seconds=(time.thread_time() - started) * self._threads,
        )

    def _run(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Unit vectors, shape (1, dimensions), of token ids, shape (1, tokens)."""
        vectors = self._session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0]
        return np.asarray(vectors, dtype=np.float32)


def prepare(model_id: str, weights: Path, models_dir: Path) -> Path:
    """Returns the folder of the int8 model, making it first where it is not there (about half a minute, needs torch).

    Two processes never make it twice at once, and a half-written one is never seen. Raises RuntimeError with the
    exporter's last words when it fails.
    """
    target = models_dir / f"{model_id}-int8-v{FORMAT}"
    if target.is_dir():
        return target
    models_dir.mkdir(parents=True, exist_ok=True)
    with _locked(models_dir / f".{target.name}.lock"):
        if not target.is_dir():
            command = [sys.executable, "-m", "services.embedder.adapters.onnx_export", str(weights), str(target)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own module)
            if done.returncode != 0:
                raise RuntimeError(f"export of {model_id} failed: {done.stderr.strip()[-500:]}")
    return target


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file lets go
