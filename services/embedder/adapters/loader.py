"""Loads and warms the configured models in the worker thread, so that the server is up while they load."""

import asyncio
from concurrent.futures import Executor
from pathlib import Path

import structlog

from services.common import metrics
from services.embedder.adapters.weights import weights_of
from services.embedder.domain import Batcher, Embedder, PairModel, TextModel
from services.embedder.settings import EmbedderSettings

# Heavy runtimes are imported by the loaders below, in the worker thread: an embedder without torch must start, and one with it
# must be up while torch loads.

log = structlog.get_logger()

LOOKALIKE = "lookalike-1"
"""The model that is shipped with the service."""
INT8_MODELS = frozenset({"all-MiniLM-L6-v2"})
"""Models known to keep their quality in int8; all-mpnet-base-v2 loses it."""
INT8_MAX_TOKENS = 256
WARM_UP = ("How do I reset my password?", "a longer text " * 40)


def load_encoder(model_id: str, settings: EmbedderSettings) -> TextModel:
    """Loads one encoder and runs it once. Raises where weights or packages are missing."""
    model: TextModel
    if model_id == LOOKALIKE:
        from services.embedder.adapters.lookalike import Lookalike

        model = Lookalike(threads=settings.threads)
    elif model_id == "use-multilingual-v3":
        from services.embedder.adapters.use_multilingual import UseEncoder

        model = UseEncoder(threads=settings.threads)
    else:
        weights = weights_of(model_id, settings.weights.get(model_id), settings.model_dir)
        if settings.backend == "onnx-int8" or (settings.backend == "auto" and model_id in INT8_MODELS):
            from services.embedder.adapters.onnx import OnnxEncoder, prepare

            folder = prepare(model_id, Path(weights), settings.model_dir)
            model = OnnxEncoder(folder, model_id, max_tokens=INT8_MAX_TOKENS, threads=settings.threads)
        else:
            from services.embedder.adapters.sentence_transformers import TorchEncoder

            model = TorchEncoder(weights, model_id, threads=settings.threads)
    for text in WARM_UP:
        model.encode([text])
    return model


def load_verifier(weights: str, settings: EmbedderSettings) -> PairModel:
    """Loads the shipped verifier or a cross-encoder, and runs it once."""
    model: PairModel
    if weights == LOOKALIKE:
        from services.embedder.adapters.lookalike import Lookalike

        model = Lookalike(threads=settings.threads)
    else:
        from services.embedder.adapters.sentence_transformers import TorchVerifier

        model = TorchVerifier(weights, Path(weights).name, threads=settings.threads)
    model.score([(WARM_UP[0], WARM_UP[0])])
    return model


async def load_all(embedder: Embedder, settings: EmbedderSettings, worker: Executor) -> None:
    """Loads every configured model into `embedder`. One that cannot be loaded is named by `embedder.missing`."""
    loop = asyncio.get_running_loop()
    shared: PairModel | None = None  # an encoder that scores pairs too, and remembers what it has read
    for model_id in settings.models:
        try:
            model = await loop.run_in_executor(worker, load_encoder, model_id, settings)
        except Exception as error:
            log.error("model_not_loaded", model=model_id, error=str(error))
            embedder.failed(model_id, str(error))
            continue
        batcher = Batcher(
            model,
            worker,
            max_batch=settings.max_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            ran=metrics.EMBED_BATCH.labels(model_id).observe,
        )
        embedder.loaded(batcher)
        if model_id == settings.verifier_model and isinstance(model, PairModel):
            shared = model
        log.info("model_loaded", model=model_id, backend=model.info.backend)
    if settings.verifier_model:
        try:
            verifier = shared
            if verifier is None:
                verifier = await loop.run_in_executor(worker, load_verifier, settings.verifier_model, settings)
        except Exception as error:
            log.error("verifier_not_loaded", error=str(error))
            embedder.failed("verifier", str(error))
            return
        embedder.verifier_loaded(verifier)
