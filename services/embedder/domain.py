"""Embedding as a decision: which model, which texts run together, what it costs."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a model. `dimensions` is 0 for a verifier; `max_tokens` is the longest input."""

    model_id: str
    dimensions: int
    max_tokens: int
    backend: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """Vectors of a batch: (n, dimensions) float32 rows of unit length; the tokens read of each text, and whether there were
    more than the window holds; CPU seconds spent.
    """

    vectors: Vectors
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class Scored:
    """P(one answer serves both) of each pair, 0 to 1, and the CPU seconds spent."""

    probabilities: tuple[float, ...]
    cpu_seconds: float


class TextModel(Protocol):
    """A loaded encoder. Called from one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """What it is."""
        ...

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Embeds at least one text; text past the window is cut."""
        ...


@runtime_checkable
class PairModel(Protocol):
    """A loaded verifier. Called from one thread at a time."""

    @property
    def info(self) -> ModelInfo:
        """What it is."""
        ...

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        """Scores at least one pair."""
        ...


class QueueFull(Exception):
    """More texts wait than the service is willing to hold."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one call, (n, dimensions) float32, and whether each text was cut; its tokens, its share of CPU seconds,
    its largest batch.
    """

    vectors: Vectors
    truncated: tuple[bool, ...]
    tokens: int
    cpu_seconds: float
    largest_batch: int


@dataclass(slots=True)
class _Row:
    vector: Vectors
    truncated: bool
    tokens: int
    cpu_seconds: float
    batch: int


@dataclass(slots=True)
class _Waiting:
    text: str
    done: asyncio.Future[_Row]


class Batcher:
    """Runs the texts of concurrent calls together, first come first served, in one worker thread.

    A free worker starts at once (after `max_wait` seconds where that is above 0); what arrives while it works makes the next
    batch.
    """

    def __init__(
        self,
        model: TextModel,
        worker: Executor,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        ran: Callable[[int], None] | None = None,
    ) -> None:
        """`max_batch` texts of at least 1 a batch; at most `max_queue` texts may wait. `ran` hears of each batch's size."""
        self._model = model
        self._worker = worker
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._ran = ran
        self._waiting: deque[_Waiting] = deque()
        self._running: asyncio.Task[None] | None = None

    @property
    def info(self) -> ModelInfo:
        """The model behind it."""
        return self._model.info

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Embeds 1 or more texts. Raises QueueFull when too many wait already."""
        if self._waiting and len(self._waiting) + len(texts) > self._max_queue:
            raise QueueFull
        loop = asyncio.get_running_loop()
        mine = [_Waiting(text, loop.create_future()) for text in texts]
        self._waiting.extend(mine)
        if self._running is None:
            self._running = loop.create_task(self._run())
        try:
            rows = await asyncio.gather(*(item.done for item in mine))
        except BaseException:
            for item in mine:
                item.done.cancel()  # a text that nobody waits for is not computed
            raise
        return Embedded(
            vectors=np.stack([row.vector for row in rows]),
            truncated=tuple(row.truncated for row in rows),
            tokens=sum(row.tokens for row in rows),
            cpu_seconds=sum(row.cpu_seconds for row in rows),
            largest_batch=max(row.batch for row in rows),
        )

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if self._max_wait > 0 and len(self._waiting) < self._max_batch:
                    await asyncio.sleep(self._max_wait)
                batch = self._next_batch()
                if not batch:
                    continue
                try:
                    encoded = await loop.run_in_executor(
                        self._worker, self._model.encode, [item.text for item in batch]
                    )
                    rows = _rows(encoded, len(batch))
                    if self._ran is not None:
                        self._ran(len(batch))
                except Exception as error:  # whatever it is, the calls that wait must hear of it
                    for item in batch:
                        if not item.done.done():
                            item.done.set_exception(error)
                    continue
                for item, row in zip(batch, rows, strict=True):
                    if not item.done.done():
                        item.done.set_result(row)
        finally:
            self._running = None

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._max_batch:
            item = self._waiting.popleft()
            if not item.done.done():
                batch.append(item)
        return batch


def _rows(encoded: Encoded, count: int) -> list[_Row]:
    """A batch's result by text; each bears the CPU time by its tokens. Raises ValueError unless there are `count`."""
    if len(encoded.vectors) != count:
        raise ValueError(f"the model gave {len(encoded.vectors)} vectors for {count} texts")
    share = encoded.cpu_seconds / max(1, sum(encoded.tokens))
    return [
        _Row(vector, truncated, tokens, share * tokens, count)
        for vector, truncated, tokens in zip(encoded.vectors, encoded.truncated, encoded.tokens, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Price:
    """What computing costs. `nanousd_per_hour` of one CPU; 0 means that no price is set."""

    nanousd_per_hour: int

    def of(self, cpu_seconds: float) -> int:
        """Cost in nano-USD, rounded up so that work never looks free."""
        return -(-int(cpu_seconds * 1_000_000_000) * self.nanousd_per_hour // 3_600_000_000_000)


class Embedder:
    """The models of this service: those expected, those loaded."""

    def __init__(self, expected: Sequence[str], worker: Executor, *, verifier_expected: bool = False) -> None:
        """`expected` model ids in order, the default first; `worker` is the one thread that computes."""
        self._expected = tuple(expected)
        self._verifier_expected = verifier_expected
        self._worker = worker
        self._models: dict[str, Batcher] = {}
        self._failures: dict[str, str] = {}
        self._verifier: PairModel | None = None

    def loaded(self, batcher: Batcher) -> None:
        """Takes in a model that is warm."""
        self._models[batcher.info.model_id] = batcher

    def verifier_loaded(self, verifier: PairModel) -> None:
        """Takes in the verifier."""
        self._verifier = verifier

    def failed(self, name: str, why: str) -> None:
        """Notes that a model cannot be had."""
        self._failures[name] = why

    async def missing(self) -> str | None:
        """What is not there yet, as a sentence; None when everything is."""
        for name, why in self._failures.items():
            return f"{name} could not be loaded: {why}"
        for model_id in self._expected:
            if model_id not in self._models:
                return f"loading {model_id}"
        if self._verifier_expected and self._verifier is None:
            return "loading the verifier"
        return None

    def model(self, asked: str) -> Batcher | None:
        """The model of that id, the default one when `asked` is empty; None when it is not loaded."""
        return self._models.get(asked or self._expected[0])

    def expects(self, asked: str) -> bool:
        """Whether that model is configured, loaded or not."""
        return not asked or asked in self._expected

    @property
    def infos(self) -> list[ModelInfo]:
        """The loaded encoders, in the configured order."""
        return [self._models[model_id].info for model_id in self._expected if model_id in self._models]

    @property
    def verifier(self) -> ModelInfo | None:
        """The loaded verifier."""
        return self._verifier.info if self._verifier else None

    async def score(self, pairs: Sequence[tuple[str, str]], asked: str) -> Scored | None:
        """Scores 1 or more pairs; None without a verifier of that id ("" for any)."""
        if self._verifier is None or asked not in ("", self._verifier.info.model_id):
            return None
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._verifier.score, pairs)
