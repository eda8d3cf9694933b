from __future__ import annotations

import asyncio

import grpc
import psutil
import pytest
from conftest import Running
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.engine.v1 import engine_pb2, engine_pb2_grpc
from services.common.errors import InvalidInput, UnknownModel, from_rpc_error

CALLER = caller_pb2.Caller(tenant="acme")


def chat(text: str, max_output_tokens: int = 12) -> chat_pb2.Chat:
    return chat_pb2.Chat(
        messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])],
        sampling=chat_pb2.Sampling(max_output_tokens=max_output_tokens, temperature=0),
    )


def request(text: str, max_output_tokens: int = 12, model: str = "") -> engine_pb2.StreamGenerateRequest:
    return engine_pb2.StreamGenerateRequest(caller=CALLER, chat=chat(text, max_output_tokens), model=model)


async def finished(
    engine: engine_pb2_grpc.EngineServiceAsyncStub, text: str, max_output_tokens: int = 12
) -> engine_pb2.Finished:
    events = [event async for event in engine.StreamGenerate(request(text, max_output_tokens))]
    assert events[0].started.model == "tiny"
    assert events[-1].WhichOneof("event") == "finished"
    return events[-1].finished


async def test_streams_tokens_and_counts_them(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    events = [event async for event in engine.StreamGenerate(request("Where is the parcel?"))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-1] == "finished"
    assert set(kinds[1:-1]) == {"delta"}
    done = events[-1].finished
    assert 0 < done.usage.output_tokens <= 12
    assert done.usage.input_tokens > 10
    assert 0 < done.compute.prefill_cost_nanousd < done.compute.cost_nanousd


async def test_eight_requests_run_at_once(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    before = await engine.GetStatus(engine_pb2.GetStatusRequest())
    answers = await asyncio.gather(*(finished(engine, f"How do I cancel order {n}?", 48) for n in range(8)))
    after = await engine.GetStatus(engine_pb2.GetStatusRequest())
    assert after.max_running == 8
    assert all(answer.usage.output_tokens > 0 for answer in answers)
    # Their shares add up to the time in which anything ran, though all ran at the same time.
    shares = sum(part.ToNanoseconds() for a in answers for part in (a.compute.prefill_time, a.compute.decode_time))
    assert shares == after.busy_time.ToNanoseconds() - before.busy_time.ToNanoseconds()


async def test_cancelling_frees_the_slot(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    call = engine.StreamGenerate(request("Tell me everything.", 900))
    async for event in call:
        if event.WhichOneof("event") == "delta":
            break
    assert (await engine.GetStatus(engine_pb2.GetStatusRequest())).running == 1
    call.cancel()
    async with asyncio.timeout(30):
        while (await engine.GetStatus(engine_pb2.GetStatusRequest())).running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (await finished(engine, "Are you there?")).usage.output_tokens > 0


async def test_a_repeated_prefix_is_reported_as_cached(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    prefix = "The refund takes five days. " * 40
    first = await finished(engine, prefix + "Why?")
    second = await finished(engine, prefix + "How long?")
    assert first.usage.cache_read_input_tokens == 0
    assert second.usage.cache_read_input_tokens >= 128
    assert second.usage.cache_read_input_tokens < second.usage.input_tokens


async def test_a_prompt_that_cannot_fit_is_refused(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await engine.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=chat("parcel " * 2000)))
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "chat.messages"


async def test_says_what_it_runs(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    status = await engine.GetStatus(engine_pb2.GetStatusRequest())
    assert (status.backend, status.model, status.max_context_tokens) == ("vllm", "tiny", 1024)
    assert list(status.adapters) == ["tiny-legal"]


async def test_a_model_name_chooses_the_adapter(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    """In one step as well as alone: no request gets anything of its neighbour's adapter."""

    async def said(model: str) -> tuple[str, str]:
        wanted = engine_pb2.GenerateRequest(caller=CALLER, chat=chat("Where is the parcel?", 24), model=model)
        response = await engine.Generate(wanted)
        return response.model, response.answer.message.parts[0].text

    alone = [await said(""), await said("tiny-legal")]
    base, named, adapted = await asyncio.gather(said(""), said("tiny"), said("tiny-legal"))
    assert alone == [base, adapted]
    assert base == named
    assert (base[0], adapted[0]) == ("tiny", "tiny-legal")
    assert base[1] != adapted[1]


async def test_an_unknown_adapter_is_refused_by_name(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await engine.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=chat("Hi"), model="tiny-medical"))
    assert isinstance(from_rpc_error(caught.value), UnknownModel)


async def test_passes_vllms_metrics_on(engine: engine_pb2_grpc.EngineServiceAsyncStub) -> None:
    before = await engine.GetStatus(engine_pb2.GetStatusRequest())
    done = await finished(engine, "Where is the parcel?")
    after = await engine.GetStatus(engine_pb2.GetStatusRequest())
    assert after.output_tokens - before.output_tokens == done.usage.output_tokens
    metric = "vllm:generation_tokens_total"
    assert after.library_metrics[metric] - before.library_metrics[metric] == done.usage.output_tokens
    assert {"vllm:num_requests_running", "vllm:num_requests_waiting"} <= after.library_metrics.keys()
    assert not [name for name in after.library_metrics if name.endswith("_bucket")]
    assert after.HasField("kv_cache_use")
    assert 0 <= after.kv_cache_use <= 1
    assert after.output_tokens_per_second > 0


async def test_a_dead_core_cuts_the_stream_and_makes_the_engine_unready(
    running: Running, engine: engine_pb2_grpc.EngineServiceAsyncStub
) -> None:
    """Last, for it ends vLLM's core process."""
    call = engine.StreamGenerate(request("Tell me everything.", 900))
    kinds: list[str | None] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 (what came before counts)
        async for event in call:
            kinds.append(event.WhichOneof("event"))
            if len(kinds) == 3:
                cores = [c for c in psutil.Process(running.process.pid).children() if "EngineCore" in c.name()]
                for core in cores:
                    core.kill()
    assert "finished" not in kinds
    assert from_rpc_error(caught.value).retryable
    health = health_pb2_grpc.HealthStub(running.channel)
    async with asyncio.timeout(30):
        async for state in health.Watch(health_pb2.HealthCheckRequest()):
            if state.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                break
