"""The router behind a real channel."""

from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from llmmesh.common.v1 import chat_pb2
from llmmesh.router.v1 import router_pb2, router_pb2_grpc
from services.common import policy, prices
from services.common.errors import InvalidInput, UnknownModel, from_rpc_error
from services.common.runtime import Service
from services.common.testing import serve
from services.common.yaml_file import ConfigError
from services.router.adapters.policy_files import PolicyFiles
from services.router.servicer import RouterServicer

NAME = "llmmesh.router.v1.RouterService"


class FixedClock:
    """A day that can be moved."""

    def __init__(self, year: int) -> None:
        self.year = year

    def now(self) -> float:
        return datetime(self.year, 6, 1, tzinfo=UTC).timestamp()


@pytest.fixture
async def router():
    files = PolicyFiles(policy.SHIPPED, prices.SHIPPED, FixedClock(2026))
    service = Service(NAME, RouterServicer(files.catalogue), router_pb2_grpc.add_RouterServiceServicer_to_server)
    async with serve([service]) as channel:
        yield router_pb2_grpc.RouterServiceStub(channel)


def ask(text: str, **fields) -> router_pb2.RouteRequest:
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return router_pb2.RouteRequest(chat=chat_pb2.Chat(messages=[message]), **fields)


async def test_a_route_has_tier_candidates_prices_and_a_reason(router):
    found = await router.Route(ask("Prove that there are infinitely many primes."))
    assert found.tier == "reasoning"
    assert found.candidates[0].model == "o1"
    assert found.candidates[0].estimated_cost_nanousd > found.candidates[1].estimated_cost_nanousd > 0
    assert not any(candidate.HasField("quality") for candidate in found.candidates)
    assert "proof" in found.reason
    assert found.score >= 0.75
    assert found.objective == router_pb2.OBJECTIVE_POLICY
    assert found.cost_nanousd == 0


async def test_suffixes_set_the_objective(router):
    floor = await router.Route(ask("hi", requested_model="auto:floor"))
    nitro = await router.Route(ask("hi", requested_model="gpt-4o:nitro"))
    assert floor.objective == router_pb2.OBJECTIVE_CHEAPEST
    assert nitro.objective == router_pb2.OBJECTIVE_FASTEST
    assert [candidate.model for candidate in nitro.candidates] == ["gpt-4o"]
    balanced = await router.Route(ask("hi", requested_model="reasoning:balanced"))
    assert balanced.objective == router_pb2.OBJECTIVE_BALANCED


async def test_speeds_come_out_of_the_price_book(router):
    policy_order = await router.Route(ask("hi", requested_model="reasoning"))
    nitro = await router.Route(ask("hi", requested_model="reasoning:nitro"))
    assert [candidate.model for candidate in policy_order.candidates[:2]] == ["o1", "gpt-4o"]
    assert [candidate.model for candidate in nitro.candidates[:2]] == ["gpt-4o", "o1"]


async def test_warm_prefixes_and_batches_lower_the_price(router):
    text = "word " * 500
    cold = await router.Route(ask(text, requested_model="gpt-4o"))
    warm = await router.Route(
        ask(text, requested_model="gpt-4o", warm_prefixes=[router_pb2.WarmPrefix(model="gpt-4o", tokens=400)])
    )
    batch = await router.Route(ask(text, requested_model="gpt-4o", batch=True))
    assert warm.candidates[0].estimated_cost_nanousd == cold.candidates[0].estimated_cost_nanousd - 400 * 1250
    assert batch.candidates[0].estimated_cost_nanousd * 2 == cold.candidates[0].estimated_cost_nanousd


async def test_a_long_chat_is_routed_like_a_short_one(router):
    found = await router.Route(ask("line of context. " * 20_000 + "Thanks!"))
    assert found.tier == "medium"


async def test_an_unknown_model_is_named_in_the_error(router):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await router.Route(ask("hi", requested_model="gpt-9"))
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(failure.value)
    assert isinstance(error, UnknownModel)
    assert "gpt-9" in error.message
    assert error.violations[0].field == "requested_model"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (router_pb2.RouteRequest(), "chat.messages"),
        (ask("hi", requested_model="x" * 200), "requested_model"),
        (ask("hi", warm_prefixes=[router_pb2.WarmPrefix(model="m", tokens=-1)]), "warm_prefixes[0].tokens"),
    ],
)
async def test_bad_requests_name_the_field(router, request_, field):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await router.Route(request_)
    error = from_rpc_error(failure.value)
    assert isinstance(error, InvalidInput)
    assert field in {violation.field for violation in error.violations}


PRICES = """
models:
  m:
    prices:
      - {valid_from: 2024-01-01, input: 1, output: 1}
      - {valid_from: 2026-01-01, input: 2, output: 2}
"""
POLICY = """
baseline: m
tiers: {simple: {candidates: [m]}, medium: {candidates: [m]}}
"""


def test_a_price_holds_from_its_day_on(tmp_path: Path):
    (tmp_path / "prices.yaml").write_text(PRICES)
    (tmp_path / "policy.yaml").write_text(POLICY)
    clock = FixedClock(2025)
    files = PolicyFiles(tmp_path / "policy.yaml", tmp_path / "prices.yaml", clock)
    assert files.catalogue().prices["m"].rates.input == 1_000_000_000
    clock.year = 2026
    assert files.catalogue().prices["m"].rates.input == 2_000_000_000


def test_a_policy_that_names_a_model_without_a_price_is_refused_with_file_and_line(tmp_path: Path):
    (tmp_path / "prices.yaml").write_text(PRICES)
    (tmp_path / "policy.yaml").write_text(POLICY.replace("simple: {candidates: [m]}", "simple: {candidates: [other]}"))
    with pytest.raises(ConfigError, match=r"policy\.yaml:3: .*other"):
        PolicyFiles(tmp_path / "policy.yaml", tmp_path / "prices.yaml", FixedClock(2026))
