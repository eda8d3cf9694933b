"""The embedder service: the verifier's scores, and vectors of answers."""

import time
from collections.abc import Sequence

import grpc
import grpc.aio
import numpy as np
import structlog
from numpy.typing import NDArray

from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from services.cache.domain.ports import EmbedderUnavailable, Scores, VerifierUnavailable
from services.common.channels import outgoing_metadata, remaining
from services.common.errors import InvalidInput
from services.common.vector_pb import vector_from_pb

log = structlog.get_logger()

REST_S = 1.0
"""How long a verifier that did not answer is left alone, so that an outage costs one lookup a second its patience."""
MAX_TEXT_BYTES = 65_536
_OURS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.CANCELLED)


class EmbedderPeer:
    """Both of what the cache asks of the embedder."""

    def __init__(self, channel: grpc.aio.Channel, *, verifier_timeout: float, embed_timeout: float) -> None:
        """Timeouts in seconds, for each call."""
        stub = embedder_pb2_grpc.EmbedderServiceStub(channel)
        self._score, self._embed = stub.ScorePairs, stub.Embed
        self._verifier_timeout, self._embed_timeout = verifier_timeout, embed_timeout
        self._rests_until = 0.0
        self._failing = False

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        if time.monotonic() < self._rests_until:
            raise VerifierUnavailable
        request = embedder_pb2.ScorePairsRequest(pairs=[embedder_pb2.TextPair(a=a, b=b) for a, b in pairs])
        timeout = remaining(at_most=self._verifier_timeout)
        try:
            response = await self._score(request, metadata=outgoing_metadata(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            # A text that is too long, or a caller in a hurry, says nothing about the verifier.
            hurried = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and timeout != self._verifier_timeout
            if error.code() not in _OURS and not hurried:
                self._rests_until = time.monotonic() + REST_S
                if not self._failing:
                    log.warning("verifier_unavailable", code=error.code().name)
                self._failing = True
            raise VerifierUnavailable from None
        self._failing = False
        chances = tuple(response.probabilities)
        if len(chances) != len(pairs) or not all(0 <= chance <= 1 for chance in chances):
            raise VerifierUnavailable
        return Scores(chances, response.cost_nanousd)

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        request = embedder_pb2.EmbedRequest(texts=texts)
        if not all(0 < len(text.encode()) <= MAX_TEXT_BYTES for text in texts):
            raise EmbedderUnavailable
        timeout = remaining(at_most=self._embed_timeout)
        try:
            response = await self._embed(request, metadata=outgoing_metadata(), timeout=timeout)
            vectors = [vector_from_pb(vector).values for vector in response.vectors]
        except (grpc.aio.AioRpcError, InvalidInput) as error:
            raise EmbedderUnavailable from error
        if len(vectors) != len(texts) or len({len(vector) for vector in vectors}) != 1 or any(response.truncated):
            raise EmbedderUnavailable
        return np.stack(vectors)
