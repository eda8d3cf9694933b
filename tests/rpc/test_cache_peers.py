"""The cache's ways to the embedder and the provider, over real channels to servers that do as they are told."""

import asyncio
import contextlib

import numpy as np
import pytest

from llmmesh.common.v1 import chat_pb2, usage_pb2, vector_pb2
from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.cache.adapters import embedder as embedder_adapter
from services.cache.adapters.embedder import EmbedderPeer
from services.cache.adapters.provider import ProviderJudge
from services.cache.domain.judge import chat_for
from services.cache.domain.ports import (
    EmbedderUnavailable,
    JudgeUnavailable,
    Question,
    Ruling,
    Scores,
    VerifierUnavailable,
)
from services.common.errors import InvalidInput, NotReady, VerifierNotLoaded, Violation
from services.common.runtime import Service
from services.common.testing import serve


class Embedder(embedder_pb2_grpc.EmbedderServiceServicer):
    """Answers with what is set, or raises it."""

    def __init__(self) -> None:
        self.calls = 0
        self.failure: Exception | None = None
        self.scores: list[float] = []
        self.truncated = False
        self.lengths = [3, 3]

    async def ScorePairs(self, request, context):
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        return embedder_pb2.ScorePairsResponse(probabilities=self.scores, model_id="v", cost_nanousd=5)

    async def Embed(self, request, context):
        if self.failure is not None:
            raise self.failure
        vectors = [
            vector_pb2.Vector(values=np.eye(1, n, dtype="<f4").tobytes(), model_id="m", dimensions=n)
            for n in self.lengths
        ]
        return embedder_pb2.EmbedResponse(vectors=vectors, truncated=[self.truncated] * len(vectors))


@pytest.fixture
async def embedder():
    servicer = Embedder()
    service = Service(
        "llmmesh.embedder.v1.EmbedderService", servicer, embedder_pb2_grpc.add_EmbedderServiceServicer_to_server
    )
    async with serve([service]) as channel:
        yield servicer, EmbedderPeer(channel, verifier_timeout=10, embed_timeout=10)


async def test_pairs_are_scored_at_a_cost(embedder):
    servicer, peer = embedder
    servicer.scores = [0.25, 0.75]
    assert await peer.score([("a", "b"), ("c", "d")]) == Scores((0.25, 0.75), 5)


@pytest.mark.parametrize("scores", [[], [0.5], [0.5, 0.5, 0.5], [0.5, 1.5], [0.5, float("nan")]])
async def test_scores_that_make_no_sense_are_none(embedder, scores):
    servicer, peer = embedder
    servicer.scores = scores
    with pytest.raises(VerifierUnavailable):
        await peer.score([("a", "b"), ("c", "d")])


@pytest.mark.parametrize("failure", [VerifierNotLoaded("none"), NotReady("loading"), ValueError("bug")])
async def test_a_verifier_that_fails_is_left_alone_for_a_moment(embedder, failure, monkeypatch):
    servicer, peer = embedder
    now = 100.0
    monkeypatch.setattr(embedder_adapter.time, "monotonic", lambda: now)
    servicer.failure = failure
    for _ in range(3):
        with pytest.raises(VerifierUnavailable):
            await peer.score([("a", "b")])
    assert servicer.calls == 1
    now += embedder_adapter.REST_S
    servicer.failure, servicer.scores = None, [0.5]
    assert (await peer.score([("a", "b")])).probabilities == (0.5,)


async def test_a_pair_that_is_refused_says_nothing_about_the_next(embedder):
    servicer, peer = embedder
    servicer.failure = InvalidInput(violations=[Violation("pairs[0].a", "is too long")])
    with pytest.raises(VerifierUnavailable):
        await peer.score([("a", "b")])
    servicer.failure, servicer.scores = None, [0.5]
    assert (await peer.score([("a", "b")])).probabilities == (0.5,)


async def test_answers_are_embedded_whole_or_not_at_all(embedder):
    servicer, peer = embedder
    assert (await peer.embed(["a", "b"])).shape == (2, 3)
    servicer.truncated = True
    with pytest.raises(EmbedderUnavailable):
        await peer.embed(["a", "b"])
    servicer.truncated = False
    for lengths in ([], [3], [3, 4]):
        servicer.lengths = lengths
        with pytest.raises(EmbedderUnavailable):
            await peer.embed(["a", "b"])
    for texts in (["", "b"], ["a", "é" * 40_000]):
        with pytest.raises(EmbedderUnavailable):
            await peer.embed(texts)
    servicer.failure = NotReady("loading")
    with pytest.raises(EmbedderUnavailable):
        await peer.embed(["a", "b"])


class Provider(provider_pb2_grpc.ProviderServiceServicer):
    """Says `answer`; None is never."""

    def __init__(self) -> None:
        self.answer: str | Exception | None = "YES"
        self.requests: list[provider_pb2.GenerateRequest] = []

    async def Generate(self, request, context):
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
        parts = [chat_pb2.ContentPart(text=self.answer)] if self.answer else []
        message = chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT, parts=parts)
        return provider_pb2.GenerateResponse(
            answer=chat_pb2.Answer(message=message, finish_reason=chat_pb2.FINISH_REASON_STOP),
            usage=usage_pb2.Usage(input_tokens=9, output_tokens=1),
            charge=provider_pb2.Charge(cost_nanousd=40, wasted_nanousd=2),
            model="small",
        )


@contextlib.asynccontextmanager
async def judging():
    servicer = Provider()
    service = Service(
        "llmmesh.provider.v1.ProviderService", servicer, provider_pb2_grpc.add_ProviderServiceServicer_to_server
    )
    async with serve([service]) as channel:
        yield servicer, ProviderJudge(channel)


CHAT = chat_for("How do I pay?", "By card.", "How can I pay?")
ASKED = Question("acme", "default", "ann", "r1", "auto", CHAT, None)


@pytest.mark.parametrize(("answer", "same"), [("YES", True), ("no.", False)])
async def test_the_judge_is_one_call_of_one_model_at_no_temperature(answer, same):
    async with judging() as (servicer, judge):
        servicer.answer = answer
        assert await judge.ask(ASKED, "small", CHAT, 10) == Ruling(same, 42)
        (request,) = servicer.requests
        assert (list(request.candidates), request.max_attempts) == (["small"], 1)
        assert (request.chat.sampling.temperature, request.chat.sampling.max_output_tokens) == (0.0, 4)
        assert (request.caller.tenant, request.caller.user, request.caller.request_id) == ("acme", "ann", "r1")


@pytest.mark.parametrize(("answer", "cost"), [("Perhaps", 42), ("", 42), (NotReady("down"), 0)])
async def test_a_judge_without_a_word_is_paid_all_the_same(answer, cost):
    async with judging() as (servicer, judge):
        servicer.answer = answer
        with pytest.raises(JudgeUnavailable) as caught:
            await judge.ask(ASKED, "small", CHAT, 10)
        assert caught.value.cost == cost


async def test_a_judge_that_is_too_slow_is_no_judge():
    async with judging() as (servicer, judge):
        servicer.answer = None
        with pytest.raises(JudgeUnavailable):
            await judge.ask(ASKED, "small", CHAT, 0.05)
