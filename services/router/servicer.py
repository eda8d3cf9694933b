"""RPC to domain call."""

import asyncio
from collections.abc import Callable

import grpc

from llmmesh.router.v1 import router_pb2, router_pb2_grpc
from services.common import telemetry
from services.common.errors import UnknownModel
from services.router import convert
from services.router.domain.routing import Catalogue, UnknownModelName, route

# Reading a long chat takes long enough to hold up other calls.
_OFF_LOOP_BYTES = 64 * 1024


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Answers from whatever catalogue is current."""

    def __init__(self, catalogue: Callable[[], Catalogue]) -> None:
        self._catalogue = catalogue

    async def Route(
        self,
        request: router_pb2.RouteRequest,
        context: grpc.aio.ServicerContext[router_pb2.RouteRequest, router_pb2.RouteResponse],
    ) -> router_pb2.RouteResponse:
        """Orders the candidates for one request."""
        large = request.ByteSize() > _OFF_LOOP_BYTES
        response = await asyncio.to_thread(self._route, request) if large else self._route(request)
        span = telemetry.span()
        if span.is_recording():
            span.set_attribute(telemetry.ROUTE_TIER, response.tier)
            span.set_attribute(telemetry.ROUTE_REASON, response.reason)
            prices = [f"{c.model}={c.estimated_cost_nanousd}" for c in response.candidates]
            span.set_attribute(telemetry.ROUTE_CANDIDATES, prices)
        return response

    def _route(self, request: router_pb2.RouteRequest) -> router_pb2.RouteResponse:
        try:
            return convert.route_to_pb(route(convert.question_from_pb(request), self._catalogue()))
        except UnknownModelName as error:
            raise UnknownModel(str(error), field="requested_model") from None
