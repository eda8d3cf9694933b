"""Protobuf to domain types and back."""

from llmmesh.router.v1 import router_pb2
from services.common.chat_pb import Checker, chat_from_pb
from services.router.domain.routing import Objective, Question, Route

MAX_NAME_LENGTH = 128
MAX_WARM_PREFIXES = 64

_OBJECTIVES_PB = {
    Objective.POLICY: router_pb2.OBJECTIVE_POLICY,
    Objective.BALANCED: router_pb2.OBJECTIVE_BALANCED,
    Objective.CHEAPEST: router_pb2.OBJECTIVE_CHEAPEST,
    Objective.FASTEST: router_pb2.OBJECTIVE_FASTEST,
}


def question_from_pb(pb: router_pb2.RouteRequest) -> Question:
    """The request. Raises InvalidInput with field violations."""
    check = Checker()
    check.need(len(pb.requested_model) <= MAX_NAME_LENGTH, "requested_model", f"at most {MAX_NAME_LENGTH} characters")
    check.need(len(pb.warm_prefixes) <= MAX_WARM_PREFIXES, "warm_prefixes", f"at most {MAX_WARM_PREFIXES}")
    for i, prefix in enumerate(pb.warm_prefixes):
        check.need(prefix.tokens >= 0, f"warm_prefixes[{i}].tokens", "must not be negative")
    check.done()
    return Question(
        chat=chat_from_pb(pb.chat),
        requested=pb.requested_model.strip(),
        warm_tokens={prefix.model: prefix.tokens for prefix in pb.warm_prefixes},
        batch=pb.batch,
    )


def route_to_pb(route: Route) -> router_pb2.RouteResponse:
    """The decision on the wire."""
    return router_pb2.RouteResponse(
        tier=route.tier,
        candidates=[
            router_pb2.Candidate(
                model=candidate.model,
                estimated_cost_nanousd=candidate.cost,
                estimated_input_tokens=candidate.input_tokens,
                estimated_output_tokens=candidate.output_tokens,
                unpriced=candidate.unpriced,
            )
            for candidate in route.candidates
        ],
        reason=route.reason,
        score=route.score,
        objective=_OBJECTIVES_PB[route.objective],
    )
