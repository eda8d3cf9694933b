"""Texts of concurrent calls share batches."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from services.embedder.domain import Batcher, Encoded, ModelInfo, Price, QueueFull


class Recorder:
    """Remembers its batches; `gate` holds the first one back until it is set."""

    info = ModelInfo("m", 2, 8, "numpy")

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.started = threading.Event()
        self.gate = threading.Event()

    def encode(self, texts: Sequence[str]) -> Encoded:
        self.batches.append(list(texts))
        self.started.set()
        self.gate.wait(10)
        if "bad" in texts:
            raise ValueError("bad text")
        rows = np.array([[len(text), 0] for text in texts], dtype=np.float32)
        if "lost" in texts:
            rows = rows[:-1]
        return Encoded(rows, tuple(1 for _ in texts), tuple(len(text) > 8 for text in texts), 1.0)


@pytest.fixture
def worker():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def batcher(model: Recorder, worker: ThreadPoolExecutor, max_batch: int = 4, max_queue: int = 100) -> Batcher:
    return Batcher(model, worker, max_batch=max_batch, max_wait=0, max_queue=max_queue)


async def started(model: Recorder) -> None:
    await asyncio.get_running_loop().run_in_executor(None, model.started.wait, 10)


async def test_idle_worker_starts_at_once_and_what_arrives_meanwhile_runs_together(worker):
    model = Recorder()
    batches = batcher(model, worker)
    first = asyncio.create_task(batches.embed(["first"]))
    await started(model)
    rest = [asyncio.create_task(batches.embed([f"r{i}"])) for i in range(3)]
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, *rest)
    assert model.batches == [["first"], ["r0", "r1", "r2"]]


async def test_each_caller_gets_its_own_rows_in_order(worker):
    model = Recorder()
    model.gate.set()
    batches = batcher(model, worker)
    texts = [["a" * (i % 7 + 1), "b" * (i % 3 + 1)] for i in range(20)]
    results = await asyncio.gather(*(batches.embed(pair) for pair in texts))
    for pair, result in zip(texts, results, strict=True):
        assert [row[0] for row in result.vectors] == [len(text) for text in pair]
        assert result.tokens == 2
    assert all(len(batch) <= 4 for batch in model.batches)


async def test_texts_run_in_the_order_of_their_arrival(worker):
    model = Recorder()
    batches = batcher(model, worker, max_batch=2)
    first = asyncio.create_task(batches.embed(["x"]))
    await started(model)
    rest = asyncio.create_task(batches.embed(["long" * 9, "s", "long" * 8, "t"]))
    await asyncio.sleep(0)
    model.gate.set()
    await asyncio.gather(first, rest)
    assert model.batches[1:] == [["long" * 9, "s"], ["long" * 8, "t"]]


async def test_each_text_is_told_whether_it_was_cut(worker):
    model = Recorder()
    model.gate.set()
    result = await batcher(model, worker, max_batch=2).embed(["short", "much too long", "fits"])
    assert result.truncated == (False, True, False)


async def test_a_model_that_loses_a_row_fails_its_callers_and_not_the_next(worker):
    model = Recorder()
    model.gate.set()
    batches = batcher(model, worker)
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="gave 1 vectors for 2 texts"):
            await batches.embed(["lost", "row"])
        assert (await batches.embed(["fine"])).vectors.shape == (1, 2)


async def test_after_a_failed_batch_the_rest_of_the_call_is_not_computed(worker):
    model = Recorder()
    batches = batcher(model, worker, max_batch=1)
    call = asyncio.create_task(batches.embed(["bad", "rest", "more"]))
    await started(model)
    other = asyncio.create_task(batches.embed(["other"]))
    await asyncio.sleep(0)
    model.gate.set()
    with pytest.raises(ValueError, match="bad text"):
        await call
    await other
    assert "more" not in [text for batch in model.batches for text in batch]


async def test_failure_reaches_only_the_callers_of_that_batch(worker):
    model = Recorder()
    batches = batcher(model, worker)
    first = asyncio.create_task(batches.embed(["bad"]))
    await started(model)
    second = asyncio.create_task(batches.embed(["fine"]))
    model.gate.set()
    with pytest.raises(ValueError, match="bad text"):
        await first
    assert (await second).vectors.shape == (1, 2)


async def test_cancelled_call_is_not_computed(worker):
    model = Recorder()
    batches = batcher(model, worker)
    first = asyncio.create_task(batches.embed(["first"]))
    await started(model)
    gone = asyncio.create_task(batches.embed(["gone"]))
    kept = asyncio.create_task(batches.embed(["kept"]))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    model.gate.set()
    await asyncio.gather(first, kept)
    assert model.batches == [["first"], ["kept"]]


async def test_full_queue_refuses_further_texts(worker):
    model = Recorder()
    batches = batcher(model, worker, max_queue=2)
    first = asyncio.create_task(batches.embed(["first"]))
    await started(model)
    waiting = asyncio.create_task(batches.embed(["a", "b"]))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await batches.embed(["c"])
    model.gate.set()
    await asyncio.gather(first, waiting)


@pytest.mark.parametrize(("seconds", "cost"), [(0.0, 0), (3600.0, 36_000_000), (1e-9, 1)])
def test_price_rounds_up(seconds, cost):
    assert Price(36_000_000).of(seconds) == cost


def test_no_price_costs_nothing():
    assert Price(0).of(1000.0) == 0


async def test_each_batch_tells_its_size(worker):
    model, sizes = Recorder(), []
    model.gate.set()
    batches = Batcher(model, worker, max_batch=2, max_wait=0, max_queue=10, ran=sizes.append)
    await batches.embed(["a", "b", "c"])
    assert sizes == [2, 1]
