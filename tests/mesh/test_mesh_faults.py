"""kill -9 of every part in turn, while requests go on."""

import asyncio
import itertools

import grpc
import pytest

from llmmesh.edge.v1 import inference_pb2
from services.common.errors import MeshError, from_rpc_error
from tests.mesh.conftest import LONG, Mesh, ask, chat, costs, recorded
from tests.waiting import until, until_answer

BYPASS = inference_pb2.CacheControl(bypass=True)
# How to ask so that the service is on the way.
ON_THE_WAY = {
    "embedder": {},
    "cache": {},
    "router": {"cache": BYPASS},
    "compressor": {"cache": BYPASS, "namespace": "documents"},
}


@pytest.mark.parametrize("name", ON_THE_WAY)
async def test_without_it_every_request_is_answered_and_says_so(mesh: Mesh, name):
    seen: set[str] = set()
    answered = 0
    numbers = itertools.count()
    over = asyncio.Event()

    async def load(client) -> None:
        nonlocal answered
        while not over.is_set():
            answer = await ask(client, f"Is room {next(numbers)} of house {name} free?", **ON_THE_WAY[name])
            assert answer.text
            answered += 1
            seen.update(answer.receipt.degraded)

    async with mesh.client() as client, asyncio.TaskGroup() as workers:
        for _ in range(3):
            workers.create_task(load(client))
        await until(lambda: answered >= 3)
        assert seen == set()
        old = mesh.kill(name)
        await until(lambda: name in seen)
        await mesh.until_restarted(name, old)
        over.set()
    assert seen == {name}

    async def whole_again() -> bool:
        answer = await ask(client, f"Is room {next(numbers)} of house {name} free again?", **ON_THE_WAY[name])
        return not answer.receipt.degraded

    async with mesh.client() as client:
        await until_answer(whole_again)


async def test_without_qdrant_there_are_exact_answers_only(mesh: Mesh):
    async with mesh.client() as client:
        first = await ask(client, "How do I fold a jacket?")
        old = mesh.kill("qdrant")
        answer = await ask(client, "How can I fold a jacket?", cache=inference_pb2.CacheControl(no_store=True))
        assert answer.outcome == "miss"
        assert list(answer.receipt.degraded) == ["qdrant"]
        assert (await ask(client, "How do I fold a jacket?")).receipt.entry_id == first.receipt.entry_id
    await mesh.until_restarted("qdrant", old)


async def test_a_model_that_dies_in_the_middle_of_an_answer_never_finishes_it(mesh: Mesh):
    question = chat("Tell me everything about the sea, from the beginning.", LONG)
    fields = {"model": "smollm2-135m-instruct"}
    events = []
    async with mesh.client() as client:
        before = await costs(client)
        request = inference_pb2.StreamCompleteRequest(chat=question, **fields)
        call = client.inference.StreamComplete(request, metadata=client.metadata, timeout=60)
        old = 0
        with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012
            async for event in call:
                events.append(event.WhichOneof("event"))
                if events.count("delta") == 2:
                    old = mesh.kill("engine")
        assert "finished" not in events
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        error = from_rpc_error(caught.value)
        assert type(error) is not MeshError
        assert error.retryable
        after = await recorded(client, before.requests + 1)
        # What was streamed until then is on record.
        assert after.bill.actual_nanousd > before.bill.actual_nanousd
        await mesh.until_restarted("engine", old)
        assert (await ask(client, question, **fields)).outcome == "miss"


async def test_without_redis_answers_go_on_and_no_record_is_lost(mesh: Mesh):
    async with mesh.client() as client:
        before = await costs(client)
        old = mesh.kill("redis")
        spent = 0
        for number in range(8):
            answer = await ask(client, f"Is table {number} free?", cache=BYPASS)
            assert answer.text
            spent += answer.receipt.bill.actual_nanousd
        await mesh.until_restarted("redis", old)
        after = await recorded(client, before.requests + 8)
        assert after.requests == before.requests + 8
        assert after.bill.actual_nanousd - before.bill.actual_nanousd == spent
        assert (await ask(client, "Is table 9 free?", cache=BYPASS)).text


async def test_a_killed_edge_loses_no_record(mesh: Mesh):
    async with mesh.client() as client:
        before = await costs(client)
        answers = [await ask(client, f"Is chair {number} free?", cache=BYPASS) for number in range(6)]
        old = mesh.kill("edge")
        # Nobody is there: that is an error to try again with, not a hang.
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(client, "Is anybody there?")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    await mesh.until_restarted("edge", old)
    async with mesh.client() as client:
        after = await recorded(client, before.requests + 6)
        assert after.requests == before.requests + 6
        spent = sum(answer.receipt.bill.actual_nanousd for answer in answers)
        assert after.bill.actual_nanousd - before.bill.actual_nanousd == spent


async def test_the_supervisor_says_what_died(mesh: Mesh):
    old = mesh.kill("router")
    await until(lambda: "router ended (killed by SIGKILL); starting it again" in mesh.log.read_text())
    await mesh.until_restarted("router", old)


def test_no_prompt_and_no_key_is_in_any_log(mesh: Mesh):
    logs = "".join(path.read_text(errors="replace") for path in (mesh.state / "logs").glob("*.log"))
    for secret in ("jacket", "table 1", *mesh.json["keys"].values()):
        assert secret not in logs
