"""Protobuf to the embedder's domain and back."""

from collections.abc import Sequence

import numpy as np

from llmmesh.common.v1 import vector_pb2
from llmmesh.embedder.v1 import embedder_pb2
from services.common.chat_pb import Checker, require_texts
from services.embedder.domain import Embedded, ModelInfo, Scored

MAX_TEXTS = 256
MAX_PAIRS = 64
MAX_TEXT_BYTES = 65_536


def texts_from(request: embedder_pb2.EmbedRequest) -> list[str]:
    """The texts. Raises InvalidInput for none, too many, an empty or an oversized one."""
    _count(len(request.texts), "texts", MAX_TEXTS)
    require_texts(request.texts, "texts", MAX_TEXT_BYTES)
    return list(request.texts)


def pairs_from(request: embedder_pb2.ScorePairsRequest) -> list[tuple[str, str]]:
    """The pairs. Raises InvalidInput for none, too many, or an empty or oversized text."""
    _count(len(request.pairs), "pairs", MAX_PAIRS)
    require_texts((pair.a for pair in request.pairs), "pairs.a", MAX_TEXT_BYTES)
    require_texts((pair.b for pair in request.pairs), "pairs.b", MAX_TEXT_BYTES)
    return [(pair.a, pair.b) for pair in request.pairs]


def _count(count: int, field: str, limit: int) -> None:
    check = Checker()
    check.need(1 <= count <= limit, field, f"must hold 1 to {limit}, got {count}")
    check.done()


def embed_response(embedded: Embedded, info: ModelInfo, cost_nanousd: int) -> embedder_pb2.EmbedResponse:
    """The vectors on the wire."""
    rows = np.ascontiguousarray(embedded.vectors, dtype="<f4")
    return embedder_pb2.EmbedResponse(
        vectors=[
            vector_pb2.Vector(values=row.tobytes(), model_id=info.model_id, dimensions=info.dimensions) for row in rows
        ],
        input_tokens=embedded.tokens,
        cost_nanousd=cost_nanousd,
        truncated=embedded.truncated,
    )


def score_response(scored: Scored, info: ModelInfo, cost_nanousd: int) -> embedder_pb2.ScorePairsResponse:
    """The probabilities on the wire."""
    return embedder_pb2.ScorePairsResponse(
        probabilities=scored.probabilities, model_id=info.model_id, cost_nanousd=cost_nanousd
    )


def models_response(encoders: Sequence[ModelInfo], verifier: ModelInfo | None) -> embedder_pb2.ListModelsResponse:
    """The loaded models, the default first."""
    response = embedder_pb2.ListModelsResponse()
    for index, info in enumerate(encoders):
        response.models.add(
            model_id=info.model_id,
            dimensions=info.dimensions,
            max_tokens=info.max_tokens,
            backend=info.backend,
            is_default=index == 0,
        )
    if verifier is not None:
        response.models.add(
            model_id=verifier.model_id, max_tokens=verifier.max_tokens, backend=verifier.backend, is_verifier=True
        )
    return response
