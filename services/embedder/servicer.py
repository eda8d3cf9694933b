"""gRPC door of the embedder."""

import grpc.aio

from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from services.common import metrics, telemetry
from services.common.errors import ModelNotLoaded, NotReady, RateLimited, VerifierNotLoaded
from services.embedder import convert
from services.embedder.domain import Batcher, Embedder, Price, QueueFull

_EMBED, _SCORE = metrics.EMBED_SECONDS.labels("embed"), metrics.EMBED_SECONDS.labels("score")


class EmbedderServicer(embedder_pb2_grpc.EmbedderServiceServicer):
    """Turns calls into the domain's."""

    def __init__(self, embedder: Embedder, price: Price) -> None:
        self._embedder = embedder
        self._price = price

    async def Embed(
        self,
        request: embedder_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.EmbedRequest, embedder_pb2.EmbedResponse],
    ) -> embedder_pb2.EmbedResponse:
        """Embeds texts."""
        texts = convert.texts_from(request)
        model = self._model(request.model)
        try:
            with _EMBED.time():
                embedded = await model.embed(texts)
        except QueueFull:
            raise RateLimited("too many texts are waiting", retry_after_s=1.0) from None
        cost = self._price.of(embedded.cpu_seconds)
        span = telemetry.span()
        span.set_attribute(telemetry.EMBED_TEXTS, len(texts))
        span.set_attribute(telemetry.EMBED_BATCH, embedded.largest_batch)
        span.set_attribute(telemetry.COST_SPAN, cost)
        return convert.embed_response(embedded, model.info, cost)

    async def ScorePairs(
        self,
        request: embedder_pb2.ScorePairsRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.ScorePairsRequest, embedder_pb2.ScorePairsResponse],
    ) -> embedder_pb2.ScorePairsResponse:
        """Scores pairs."""
        pairs = convert.pairs_from(request)
        info = self._embedder.verifier
        with _SCORE.time():
            scored = await self._embedder.score(pairs, request.model)
        if info is None or scored is None:
            raise VerifierNotLoaded("no verifier of that name is loaded")
        cost = self._price.of(scored.cpu_seconds)
        telemetry.set_cost(cost)
        return convert.score_response(scored, info, cost)

    async def ListModels(
        self,
        request: embedder_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[embedder_pb2.ListModelsRequest, embedder_pb2.ListModelsResponse],
    ) -> embedder_pb2.ListModelsResponse:
        """Lists what is loaded."""
        return convert.models_response(self._embedder.infos, self._embedder.verifier)

    def _model(self, asked: str) -> Batcher:
        if not self._embedder.expects(asked):
            raise ModelNotLoaded(f"model {asked!r} is not loaded here")
        model = self._embedder.model(asked)
        if model is None:
            raise NotReady(f"model {asked or 'of the default'} is still loading", retry_after_s=1.0)
        return model
