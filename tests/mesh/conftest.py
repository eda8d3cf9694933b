"""One whole mesh for all tests of this folder, started as a user starts it, with its spans sent to us."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import costs_pb2, inference_pb2
from services.cli.client import Client, connect, text_message
from services.cli.mesh import MeshJson
from tests.waiting import PATIENCE_S, until, until_answer

OUTCOMES = {number: name.removeprefix("OUTCOME_").lower() for name, number in inference_pb2.Outcome.items()}
# One word an answer: a natural end, so that it is stored, and quick.
ONE_WORD = chat_pb2.Sampling(temperature=0, max_output_tokens=24, stop=[" ", "\n"])
# A sentence that ends by itself, in many pieces.
ONE_LINE = chat_pb2.Sampling(temperature=0, max_output_tokens=64, stop=["\n", "."])
# Long enough for something to happen meanwhile.
LONG = chat_pb2.Sampling(temperature=0, max_output_tokens=256)


@dataclass(frozen=True)
class Span:
    """A received span."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, object]


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it gets."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._lock = threading.Lock()

    def Export(self, request, context):
        for resource in request.resource_spans:
            service = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            with self._lock:
                self.spans += [_span(service, span) for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(self, trace_id: str) -> list[Span]:
        """What came of one trace so far."""
        with self._lock:
            return [span for span in self.spans if span.trace_id == trace_id]


def _span(service: str, span: trace_pb2.Span) -> Span:
    attributes = {a.key: getattr(a.value, a.value.WhichOneof("value") or "string_value") for a in span.attributes}
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    return Span(service, span.name, *ids, attributes)


@dataclass
class Answer:
    """What a call brought."""

    text: str
    receipt: inference_pb2.Receipt
    finish_reason: int
    pieces: int = 1

    @property
    def outcome(self) -> str:
        return OUTCOMES[self.receipt.outcome]


@dataclass
class Mesh:
    """A running mesh."""

    state: Path
    receiver: Receiver
    log: Path

    @property
    def json(self) -> MeshJson:
        """As mesh.json says now."""
        loaded: MeshJson = json.loads((self.state / "mesh.json").read_text(encoding="utf-8"))
        return loaded

    @asynccontextmanager
    async def client(self, tenant: str = "acme-shop") -> AsyncIterator[Client]:
        """The edge, as one tenant."""
        async with connect(self.json, tenant) as client:
            yield client

    def pid(self, name: str) -> int:
        """Process of a service now."""
        pid = self.json["services"][name]["pid"]
        assert pid is not None
        return pid

    def kill(self, name: str) -> int:
        """kill -9; returns the process that it was."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        return pid

    async def until_restarted(self, name: str, old: int) -> None:
        """Until a new process is there and says that it is ready."""
        await until(lambda: self.pid(name) != old)
        if name in ("redis", "qdrant", "vendor"):
            return
        await until_answer(lambda: self._serves(self.json["services"][name]["address"]))

    async def _serves(self, address: str) -> bool:
        async with grpc.aio.insecure_channel(address) as channel:
            try:
                answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.aio.AioRpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING


def chat(text: str, sampling: chat_pb2.Sampling = ONE_WORD, *, system: str = "", history=(), **fields) -> chat_pb2.Chat:
    """A chat of `text` after an optional system prompt and (question, answer) turns."""
    messages = [text_message(chat_pb2.ROLE_SYSTEM, system)] if system else []
    for asked, answered in history:
        messages += [text_message(chat_pb2.ROLE_USER, asked), text_message(chat_pb2.ROLE_ASSISTANT, answered)]
    messages.append(text_message(chat_pb2.ROLE_USER, text))
    return chat_pb2.Chat(messages=messages, sampling=sampling, **fields)


async def ask(client: Client, text: str | chat_pb2.Chat, *, metadata=(), **fields) -> Answer:
    """A whole answer."""
    request = inference_pb2.CompleteRequest(chat=chat(text) if isinstance(text, str) else text, **fields)
    response = await client.inference.Complete(request, metadata=(*client.metadata, *metadata), timeout=60)
    text_ = "".join(part.text for part in response.answer.message.parts)
    return Answer(text_, response.receipt, response.answer.finish_reason)


async def stream(client: Client, text: str | chat_pb2.Chat, **fields) -> Answer:
    """A streamed answer, its form checked."""
    request = inference_pb2.StreamCompleteRequest(chat=chat(text) if isinstance(text, str) else text, **fields)
    call = client.inference.StreamComplete(request, metadata=client.metadata, timeout=60)
    events = [event async for event in call]
    assert [e.WhichOneof("event") for e in events] == ["started", *["delta"] * (len(events) - 2), "finished"]
    finished = events[-1].finished
    return Answer(
        "".join(event.delta.text for event in events), finished.receipt, finished.finish_reason, len(events) - 2
    )


async def costs(client: Client) -> costs_pb2.CostRow:
    """The tenant's total."""
    response = await client.costs.QueryCosts(costs_pb2.QueryCostsRequest(), metadata=client.metadata, timeout=10)
    return response.total


async def recorded(client: Client, requests: int) -> costs_pb2.CostRow:
    """The total once it has so many requests."""
    found = costs_pb2.CostRow()

    async def enough() -> bool:
        nonlocal found
        try:
            found = await costs(client)
        except grpc.aio.AioRpcError:
            return False
        return found.requests >= requests

    await until_answer(enough)
    return found


@pytest.fixture(scope="session")
def mesh(tmp_path_factory) -> Iterator[Mesh]:
    """Starts everything once. Its logs are in the folder of the run, and at the end of a failure's report."""
    receiver = Receiver()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    state = tmp_path_factory.mktemp("mesh") / "state"
    log = state.parent / "up.log"
    env = {
        **os.environ,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli", "up", "--state", str(state)], stdout=out, stderr=out, env=env
        )
    try:
        _until_started(process, state, log)
        yield Mesh(state, receiver, log)
    finally:
        process.terminate()
        assert process.wait(60) == 0
        server.stop(None)
    assert not (state / "mesh.json").exists()


def _until_started(process: subprocess.Popen[bytes], state: Path, log: Path) -> None:
    end = time.monotonic() + 2 * PATIENCE_S
    while not (state / "mesh.json").exists():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"the mesh did not start:\n{log.read_text()}")
        time.sleep(0.1)


@pytest.fixture
async def acme(mesh) -> AsyncIterator[Client]:
    """The edge, as the first tenant."""
    async with mesh.client() as client:
        yield client


async def together(count: int, work) -> list:
    """`count` calls at once."""
    return list(await asyncio.gather(*(work(number) for number in range(count))))
