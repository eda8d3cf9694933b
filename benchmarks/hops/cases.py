"""The cases: what one call of each does, and how it is known to have gone as its name says."""

import itertools
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import redis.asyncio

from benchmarks.hops.echo import METHOD
from benchmarks.hops.load import Call, WrongAnswerError
from benchmarks.hops.otlp_receiver import COUNT
from benchmarks.hops.processes import Running
from benchmarks.hops.questions import request_of, seeds, unasked, wordings
from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import caller_pb2
from llmmesh.edge.v1 import inference_pb2, inference_pb2_grpc
from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc

ECHO_BYTES = 300
TIMEOUT_S = 30.0
_EMBED_AT_ONCE = 64
# A quantised encoder gives a text a slightly different vector with every other batch that it is in.
_MARGIN = 0.03


class Cases:
    """The calls, over one channel each to edge and chain and one pool to Redis."""

    def __init__(self, running: Running, edge: grpc.aio.Channel, chain: grpc.aio.Channel, redis_url: str) -> None:
        self._running = running
        self._complete = inference_pb2_grpc.InferenceServiceStub(edge).Complete
        self._metadata = (("authorization", f"Bearer {running.key}"),)
        self._echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = chain.unary_unary(METHOD)
        self._redis = redis.asyncio.Redis.from_url(redis_url, max_connections=64)
        self._seeds = itertools.cycle([request_of(text) for text in seeds()])
        self._unasked = unasked()
        self._wordings: Iterator[str] = iter(())

    async def prepare(self, paraphrases: int) -> None:
        """Stores the seeds and chooses up to `paraphrases` wordings that the cache says it would serve.

        The choice asks `Explain`, which leaves no trace in the cache.
        """
        for text in seeds():
            await self._ask(request_of(text), inference_pb2.OUTCOME_MISS)
        self._wordings = iter(await self._served(wordings()[:paraphrases]))

    def calls(self) -> dict[str, Call]:
        """A call by the name of its case."""
        payload = bytes(ECHO_BYTES)

        async def exact_hit() -> None:
            await self._ask(next(self._seeds), inference_pb2.OUTCOME_EXACT_HIT)

        async def semantic_hit() -> None:
            text = next(self._wordings, None)
            if text is None:
                raise StopAsyncIteration
            await self._ask(request_of(text), inference_pb2.OUTCOME_SEMANTIC_HIT)

        async def miss() -> None:
            await self._ask(request_of(next(self._unasked)), inference_pb2.OUTCOME_MISS)

        async def bare_chain() -> None:
            if await self._echo(payload, timeout=TIMEOUT_S) != payload:
                raise WrongAnswerError("the chain answered something else")

        async def redis_get() -> None:
            if await self._redis.get("bench:value") != self._value:
                raise WrongAnswerError("Redis answered something else")

        return {
            "exact_hit": exact_hit,
            "semantic_hit": semantic_hit,
            "miss": miss,
            "bare_chain": bare_chain,
            "redis_get": redis_get,
        }

    async def put_value(self) -> None:
        """Gives Redis a value of the size of a stored answer."""
        entry = await anext(aiter(self._redis.scan_iter(match="*:e:*", count=1000)))
        value = await self._redis.get(entry)
        assert value is not None
        self._value = value
        await self._redis.set("bench:value", value)

    async def close(self) -> None:
        """Closes the pool."""
        await self._redis.aclose()

    async def _ask(self, request: inference_pb2.CompleteRequest, wanted: inference_pb2.Outcome.ValueType) -> None:
        response = await self._complete(request, metadata=self._metadata, timeout=TIMEOUT_S)
        receipt = response.receipt
        if receipt.outcome != wanted or receipt.degraded:
            got, due = inference_pb2.Outcome.Name(receipt.outcome), inference_pb2.Outcome.Name(wanted)
            why = f"{receipt.cache_reason} {list(receipt.degraded)}"
            raise WrongAnswerError(f"{got} instead of {due} ({why}): {request.chat.messages[-1].parts[0].text}")

    async def _served(self, texts: Sequence[str]) -> list[str]:
        caller = caller_pb2.Caller(tenant="bench", namespace="default")
        served = []
        async with (
            grpc.aio.insecure_channel(self._running.address["embedder"]) as embedder,
            grpc.aio.insecure_channel(self._running.address["cache"]) as cache,
        ):
            embed = embedder_pb2_grpc.EmbedderServiceStub(embedder).Embed
            explain = cache_pb2_grpc.CacheServiceStub(cache).Explain
            for start in range(0, len(texts), _EMBED_AT_ONCE):
                some = texts[start : start + _EMBED_AT_ONCE]
                embedded = await embed(embedder_pb2.EmbedRequest(texts=some), timeout=TIMEOUT_S)
                for text, vector in zip(some, embedded.vectors, strict=True):
                    request = cache_pb2.ExplainRequest(
                        caller=caller, chat=request_of(text).chat, requested_model="auto", vector=vector
                    )
                    explained = await explain(request, timeout=TIMEOUT_S)
                    verdict = explained.verdict
                    if explained.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT and (
                        verdict.candidates[0].similarity >= verdict.threshold + _MARGIN
                    ):
                        served.append(text)
        return served


@asynccontextmanager
async def open_cases(running: Running) -> AsyncIterator[Cases]:
    """The cases, connected."""
    async with AsyncExitStack() as stack:
        edge = await stack.enter_async_context(grpc.aio.insecure_channel(running.address["edge"]))
        chain = await stack.enter_async_context(grpc.aio.insecure_channel(running.address["echo_front"]))
        cases = Cases(running, edge, chain, f"redis://{running.address['redis']}/0")
        stack.push_async_callback(cases.close)
        yield cases


async def count_spans(running: Running) -> int:
    """Spans that arrived so far."""
    async with grpc.aio.insecure_channel(running.address["otlp_receiver"]) as channel:
        count: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(COUNT)
        return int(await count(b"", timeout=TIMEOUT_S))
