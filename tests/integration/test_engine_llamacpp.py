"""The engine service on llama.cpp with the packaged model: real tokens, real slots, real cancellation."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.engine.v1 import engine_pb2, engine_pb2_grpc
from services.common.errors import InvalidInput, MeshError, NotReady, from_rpc_error
from services.engine import app
from services.engine.settings import EngineSettings
from tests.waiting import until_answer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALLER = caller_pb2.Caller(tenant="acme")
CONTEXT_TOKENS = 512
SLOTS = 2


class Running:
    """An engine process and a stub to it."""

    def __init__(self, process: asyncio.subprocess.Process, channel: grpc.aio.Channel) -> None:
        self.process = process
        self.stub = engine_pb2_grpc.EngineServiceStub(channel)

    async def status(self) -> engine_pb2.GetStatusResponse:
        return await self.stub.GetStatus(engine_pb2.GetStatusRequest())


@asynccontextmanager
async def running_engine() -> AsyncIterator[Running]:
    """`python -m services.engine` on a free port, ready."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLMMESH_")}
    environment |= {
        "LLMMESH_ENGINE_SLOTS": str(SLOTS),
        "LLMMESH_ENGINE_THREADS": "1",
        "LLMMESH_ENGINE_CONTEXT_TOKENS": str(CONTEXT_TOKENS),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.engine", env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_stop, process)
        address = ""
        while not address:
            line = (await process.stderr.readline()).decode()
            assert line, f"the engine ended with {process.returncode}"
            if '"listening"' in line:
                address = line.split('"address": "')[1].split('"')[0]
        drain = asyncio.create_task(process.stderr.read())
        stack.callback(drain.cancel)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
        async for state in watch:
            if state.status == health_pb2.HealthCheckResponse.SERVING:
                break
        watch.cancel()
        yield Running(process, channel)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[Running]:
    async with running_engine() as running:
        yield running


def request(text: str, **sampling: object) -> engine_pb2.StreamGenerateRequest:
    defaults: dict[str, object] = {"max_output_tokens": 8, "temperature": 0}
    chat = chat_pb2.Chat(
        messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])],
        sampling=chat_pb2.Sampling(**(defaults | sampling)),  # type: ignore[arg-type]
    )
    return engine_pb2.StreamGenerateRequest(caller=CALLER, chat=chat)


async def answer(engine: Running, text: str, **sampling: object) -> tuple[str, engine_pb2.Finished]:
    events = [event async for event in engine.stub.StreamGenerate(request(text, **sampling))]
    assert events[-1].WhichOneof("event") == "finished"
    return "".join(event.delta.text for event in events), events[-1].finished


async def test_tokens_arrive_one_by_one_and_are_counted(engine: Running) -> None:
    events = [event async for event in engine.stub.StreamGenerate(request("Say hello to Bob."))]
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds.count("delta") > 3
    done = events[-1].finished
    assert done.usage.output_tokens == 8
    assert done.finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert done.usage.input_tokens > 20
    assert 0 < done.compute.prefill_cost_nanousd < done.compute.cost_nanousd


async def test_the_same_seed_gives_the_same_answer(engine: Running) -> None:
    texts = {(await answer(engine, "Name a colour.", temperature=1.0, seed=7))[0] for _ in range(2)}
    assert len(texts) == 1


async def test_a_stop_sequence_ends_the_answer(engine: Running) -> None:
    text, _ = await answer(engine, "Say hello to Bob.", max_output_tokens=30)
    word = text.split()[1]
    shorter, done = await answer(engine, "Say hello to Bob.", max_output_tokens=30, stop=[word])
    assert word not in shorter
    assert done.finish_reason == chat_pb2.FINISH_REASON_STOP


async def test_a_repeated_prompt_is_reported_as_cached_and_costs_less_prefill(engine: Running) -> None:
    text = "The parcel is late and the customer asks for a refund. " * 20
    _, first = await answer(engine, text, max_output_tokens=1)
    _, second = await answer(engine, text, max_output_tokens=1)
    assert second.usage.cache_read_input_tokens > 0.9 * second.usage.input_tokens
    assert first.usage.cache_read_input_tokens < 0.5 * first.usage.input_tokens


async def test_more_requests_than_slots_all_get_their_answer(engine: Running) -> None:
    before = await engine.status()
    answers = await asyncio.gather(*(answer(engine, f"Count to {n}.") for n in range(2 * SLOTS)))
    after = await engine.status()
    assert after.max_running == SLOTS
    shares = sum(
        part.ToNanoseconds() for _, done in answers for part in (done.compute.prefill_time, done.compute.decode_time)
    )
    assert shares == after.busy_time.ToNanoseconds() - before.busy_time.ToNanoseconds()


async def test_cancelling_frees_the_slot(engine: Running) -> None:
    calls = [engine.stub.StreamGenerate(request(f"Tell story {n}.", max_output_tokens=400)) for n in range(SLOTS)]
    for call in calls:
        await call.read()
        await call.read()
    assert (await engine.status()).running == SLOTS
    for call in calls:
        call.cancel()
    while (await engine.status()).running:  # noqa: ASYNC110 (another process: nothing to wait on)
        await asyncio.sleep(0.01)
    assert (await answer(engine, "Hi"))[0]


async def test_cancelling_during_the_prompt_frees_the_slot(engine: Running) -> None:
    call = engine.stub.StreamGenerate(request("unread " * 400, max_output_tokens=1))
    await call.read()
    assert (await engine.status()).running == 1
    call.cancel()
    while (await engine.status()).running:  # noqa: ASYNC110 (another process: nothing to wait on)
        await asyncio.sleep(0.01)


async def test_a_prompt_that_cannot_fit_is_refused(engine: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer(engine, "word " * 600)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidInput)
    assert error.violations[0].field == "chat.messages"
    assert "at most 512" in error.violations[0].description


async def test_an_answer_that_fills_the_context_is_truncated(engine: Running) -> None:
    _, done = await answer(engine, "word " * 480, max_output_tokens=400)
    assert done.finish_reason in (chat_pb2.FINISH_REASON_LENGTH, chat_pb2.FINISH_REASON_STOP)
    assert done.usage.input_tokens + done.usage.output_tokens <= CONTEXT_TOKENS


async def test_json_follows_its_schema(engine: Running) -> None:
    wanted = request("A person.", max_output_tokens=40)
    wanted.chat.response_format.kind = chat_pb2.ResponseFormat.KIND_JSON_SCHEMA
    wanted.chat.response_format.json_schema = (
        '{"type": "object", "properties": {"age": {"enum": [7]}}, "required": ["age"], "additionalProperties": false}'
    )
    events = [event async for event in engine.stub.StreamGenerate(wanted)]
    text = "".join(event.delta.text for event in events)
    assert text.replace(" ", "").replace("\n", "") == '{"age":7}'


async def test_pictures_are_refused(engine: Running) -> None:
    wanted = request("What is this?")
    wanted.chat.messages[0].parts.add().image.url = "https://example.com/a.png"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await engine.stub.Generate(engine_pb2.GenerateRequest(caller=CALLER, chat=wanted.chat))
    error = from_rpc_error(caught.value)
    assert error.violations[0].field == "chat.messages[0].parts[1]"


async def test_a_killed_engine_cuts_the_stream() -> None:
    async with running_engine() as engine:
        call = engine.stub.StreamGenerate(request("Tell a long story.", max_output_tokens=400))
        kinds: list[str | None] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 (what came before counts)
            async for event in call:
                kinds.append(event.WhichOneof("event"))
                if len(kinds) == 4:
                    engine.process.send_signal(signal.SIGKILL)
    assert from_rpc_error(caught.value).retryable
    assert "delta" in kinds
    assert "finished" not in kinds


async def refusal(engine: Running) -> MeshError:
    """What calls get once the engine has noticed that it is to stop."""
    while True:
        try:
            await engine.status()
        except grpc.aio.AioRpcError as error:
            return from_rpc_error(error)


async def test_a_stopping_engine_finishes_its_streams_and_takes_no_new_ones() -> None:
    async with running_engine() as engine:
        call = engine.stub.StreamGenerate(request("Tell a story.", max_output_tokens=120))
        kinds: list[str | None] = []
        async for event in call:
            kinds.append(event.WhichOneof("event"))
            if len(kinds) == 4:
                engine.process.terminate()
                assert isinstance(await refusal(engine), NotReady)
        assert kinds[-1] == "finished"
        assert await engine.process.wait() == 0


async def test_an_engine_without_its_model_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(app, "LOOK_FOR_MODEL_S", 0.01)
    model = tmp_path / "model.gguf"
    async with AsyncExitStack() as stack:
        (service,) = await app.build(EngineSettings(model_path=model), stack)
        assert service.missing is not None
        missing = service.missing

        async def says(words: str) -> bool:
            return words in (await missing() or "")

        await until_answer(lambda: says(f"{model}: no such model file"))
        # It is found when it appears (and, being no model, is said to be none).
        model.write_bytes(b"not a model")
        await until_answer(lambda: says("failed to load"))
