"""Identical requests at the same time over two edge replicas, each a process of its own."""

import asyncio
import contextlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc
import pytest

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import inference_pb2
from services.cli.client import Client, connect
from services.cli.processes import free_ports, health_probe
from services.common import telemetry
from services.common.errors import from_rpc_error
from tests.mesh.conftest import LONG, OUTCOMES, Answer, Mesh, ask, chat
from tests.waiting import until, until_answer

MODEL = "smollm2-135m-instruct"


@dataclass
class Replica:
    """A second edge."""

    process: asyncio.subprocess.Process
    client: Client


@pytest.fixture
async def replica(mesh: Mesh, tmp_path) -> AsyncIterator[Replica]:
    """One more edge beside the mesh's own; a test may kill it."""
    (port,) = free_ports(1)
    services = mesh.json["services"]
    settings = {
        "PORT": str(port),
        "REDIS_URL": mesh.json["redis"],
        "KEYS_FILE": str(mesh.state / "keys.json"),
        "SPOOL_DIR": str(tmp_path / "spool"),
        "EMBED_TIMEOUT_SECONDS": "5",
        "CACHE_TIMEOUT_SECONDS": "3",
        "ROUTE_TIMEOUT_SECONDS": "3",
    } | {name.upper(): services[name]["address"] for name in ("embedder", "cache", "router", "compressor", "provider")}
    env = {**os.environ, **{f"LLMMESH_EDGE_{name}": value for name, value in settings.items()}}
    with (tmp_path / "edge.log").open("wb") as log:
        command = [sys.executable, "-m", "services.edge"]
        process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=env)
    try:
        address = f"127.0.0.1:{port}"
        await until_answer(health_probe(address))
        async with connect({**mesh.json, "edge": address}, "acme-shop") as client:
            yield Replica(process, client)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@dataclass
class Stream:
    """A streamed answer as far as it came."""

    text: str = ""
    answer: Answer | None = None
    error: grpc.aio.AioRpcError | None = None


async def follow(client: Client, question: chat_pb2.Chat, seen: Stream) -> None:
    """Reads a streamed answer into `seen`."""
    request = inference_pb2.StreamCompleteRequest(chat=question, model=MODEL)
    try:
        async for event in client.inference.StreamComplete(request, metadata=client.metadata, timeout=90):
            seen.text += event.delta.text
            if event.HasField("finished"):
                receipt = event.finished.receipt
                seen.answer = Answer(seen.text, receipt, event.finished.finish_reason)
    except grpc.aio.AioRpcError as error:
        seen.error = error


def check_bill(answer: Answer) -> None:
    bill = answer.receipt.bill
    saved = sum(getattr(bill.savings, field.name) for field in bill.savings.DESCRIPTOR.fields)
    assert bill.baseline_nanousd - saved + bill.overhead_nanousd == bill.actual_nanousd
    if answer.outcome == "coalesced":
        assert bill.actual_nanousd == bill.overhead_nanousd
        assert bill.savings.cache_nanousd == bill.baseline_nanousd > 0


async def test_two_hundred_identical_requests_over_two_edges_cost_one_generation(mesh: Mesh, acme, replica):
    question = chat("Tell me about the mountains, from the beginning.", LONG)
    leader = Stream()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(acme, question, leader))
        await until(lambda: bool(leader.text))
        streams = [Stream() for _ in range(99)]
        for number, seen in enumerate(streams):
            tasks.create_task(follow((acme, replica.client)[number % 2], question, seen))
        whole = [
            tasks.create_task(ask((acme, replica.client)[number % 2], question, model=MODEL)) for number in range(100)
        ]
    answers = [seen.answer for seen in (leader, *streams)] + [task.result() for task in whole]
    assert {answer.text for answer in answers if answer} == {leader.text}
    assert Counter(answer.outcome for answer in answers if answer) == {"miss": 1, "coalesced": 199}
    assert leader.answer is not None
    assert leader.answer.outcome == "miss"
    for answer in answers:
        assert answer is not None
        check_bill(answer)


async def test_when_the_leading_edge_is_killed_the_others_followers_finish_with_one_more_generation(
    mesh: Mesh, acme, replica
):
    question = chat("Tell me about the rivers, from the beginning.", LONG)
    bypass = inference_pb2.CacheControl(bypass=True)
    expected = (await ask(acme, question, model=MODEL, cache=bypass)).text
    leader, streams = Stream(), [Stream() for _ in range(5)]
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(replica.client, question, leader))
        await until(lambda: bool(leader.text))
        for seen in streams:
            tasks.create_task(follow(acme, question, seen))
        whole = [tasks.create_task(ask(acme, question, model=MODEL)) for _ in range(5)]
        await until(lambda: all(seen.text for seen in streams))
        replica.process.kill()
    assert leader.answer is None
    assert leader.error is not None
    assert from_rpc_error(leader.error).retryable
    assert expected.startswith(leader.text)
    answers = [seen.answer for seen in streams] + [task.result() for task in whole]
    assert [seen.error for seen in streams] == [None] * 5
    assert [answer.text for answer in answers if answer] == [expected] * 10
    assert Counter(OUTCOMES[a.receipt.outcome] for a in answers if a) == {"miss": 1, "coalesced": 9}
    for answer in answers:
        assert answer is not None
        check_bill(answer)


async def test_a_shared_answer_says_so_on_its_root_span(mesh: Mesh, acme):
    question = chat("Tell me about the lakes, from the beginning.", LONG)
    ids = ["a" * 31 + str(n) for n in range(2)]
    leader = Stream()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(follow(acme, question, leader))
        await until(lambda: bool(leader.text))
        extra = (("traceparent", f"00-{ids[1]}-{'1' * 16}-01"),)
        shared = await ask(acme, question, model=MODEL, metadata=extra)
    assert shared.outcome == "coalesced"
    await until(lambda: len(mesh.receiver.trace(ids[1])) >= 2)
    spans = mesh.receiver.trace(ids[1])
    (root,) = (span for span in spans if span.service == "llmmesh-edge")
    assert root.attributes[telemetry.COALESCED]
    assert root.attributes[telemetry.OUTCOME] == "coalesced"
    assert {span.name.rsplit("/", 1)[1] for span in spans} == {"Complete", "Lookup"}
    assert not root.attributes.get(telemetry.COST_SPAN)
