"""The embedder behind a real channel, with a model that is arithmetic."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from services.common.runtime import Service
from services.common.testing import serve
from services.embedder.app import SERVICE
from services.embedder.domain import Batcher, Embedder, Encoded, ModelInfo, Price, Scored
from services.embedder.servicer import EmbedderServicer


class HashModel:
    """Vectors out of character counts; a CPU second per text."""

    info = ModelInfo("hash", 8, 16, "numpy")

    def encode(self, texts: Sequence[str]) -> Encoded:
        rows = np.ones((len(texts), 8), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[len(text) % 8] += 5
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        tokens = [len(text.split()) for text in texts]
        cut = tuple(count > 16 for count in tokens)
        return Encoded(rows, tuple(min(count, 16) for count in tokens), cut, cpu_seconds=float(len(texts)))


class SameText:
    """A verifier that knows equality only."""

    info = ModelInfo("same-text", 0, 16, "torch")

    def score(self, pairs: Sequence[tuple[str, str]]) -> Scored:
        return Scored(tuple(float(a == b) for a, b in pairs), 2.0)


@pytest.fixture
def embedder():
    worker = ThreadPoolExecutor(1)
    embedder = Embedder(("hash",), worker)
    embedder.worker_for_tests = worker
    yield embedder
    worker.shutdown()


def load(embedder: Embedder) -> None:
    embedder.loaded(Batcher(HashModel(), embedder.worker_for_tests, max_batch=4, max_wait=0, max_queue=100))


def service(embedder: Embedder) -> Service:
    servicer = EmbedderServicer(embedder, Price(3_600_000_000_000))
    return Service(SERVICE, servicer, embedder_pb2_grpc.add_EmbedderServiceServicer_to_server, embedder.missing)


async def test_embeds_in_order_with_tokens_and_cost(embedder):
    load(embedder)
    async with serve([service(embedder)]) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        response = await stub.Embed(embedder_pb2.EmbedRequest(texts=["a", "two words"]))
    rows = [np.frombuffer(v.values, "<f4") for v in response.vectors]
    assert [int(np.argmax(row)) for row in rows] == [1, 1]
    assert all(v.model_id == "hash" and v.dimensions == 8 for v in response.vectors)
    assert response.input_tokens == 3
    assert response.cost_nanousd == pytest.approx(2_000_000_000, rel=0.01)


async def test_says_of_each_text_whether_it_was_cut(embedder):
    load(embedder)
    async with serve([service(embedder)]) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        response = await stub.Embed(embedder_pb2.EmbedRequest(texts=["a", "word " * 17, "word " * 16]))
    assert list(response.truncated) == [False, True, False]


@pytest.mark.parametrize("texts", [[], [""], ["  "], ["x"] * 257, ["x" * 65_537]])
async def test_bad_texts_are_invalid_input(embedder, texts):
    load(embedder)
    async with serve([service(embedder)]) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(embedder_pb2.EmbedRequest(texts=texts))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_model_that_is_loading_is_unavailable_and_one_that_is_unknown_is_a_failed_precondition(embedder):
    async with serve([service(embedder)]) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as loading:
            await stub.Embed(embedder_pb2.EmbedRequest(texts=["a"]))
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await stub.Embed(embedder_pb2.EmbedRequest(texts=["a"], model="other"))
    assert loading.value.code() is grpc.StatusCode.UNAVAILABLE
    assert unknown.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert await embedder.missing() == "loading hash"


async def test_pairs_need_a_verifier(embedder):
    load(embedder)
    pair = embedder_pb2.TextPair(a="x", b="x")
    async with serve([service(embedder)]) as channel:
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ScorePairs(embedder_pb2.ScorePairsRequest(pairs=[pair]))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        embedder.verifier_loaded(SameText())
        response = await stub.ScorePairs(
            embedder_pb2.ScorePairsRequest(pairs=[pair, embedder_pb2.TextPair(a="x", b="y")])
        )
        models = await stub.ListModels(embedder_pb2.ListModelsRequest())
    assert list(response.probabilities) == [1.0, 0.0]
    assert response.model_id == "same-text"
    assert [(m.model_id, m.is_default, m.is_verifier) for m in models.models] == [
        ("hash", True, False),
        ("same-text", False, True),
    ]
