"""One request at a time through the real provider over gRPC, to a vendor with a fault and, or not, a healthy second one."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc

from benchmarks.faults.cases import FAULTS, Fault
from benchmarks.faults.results import Row, Shape
from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.errors import from_rpc_error
from services.common.testing import serve
from services.provider.app import build
from services.provider.settings import ProviderSettings
from tests.vendors.openai_like import OpenAILike

MAX_ATTEMPTS = 3
MODEL = "gpt-4o-mini"
_DEADLINE_S = 25.0  # before what the vendor asks to wait is over
_CALLER = caller_pb2.Caller(tenant="bench")
_CHAT = chat_pb2.Chat(
    messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="Where is my order?")])]
)


async def measure(folder: Path) -> list[Row]:
    """All faults, for whole answers and streams, with a second vendor and without. Files go to `folder`."""
    shapes: tuple[Shape, ...] = ("unary", "stream")
    rows = []
    async with _speaks_no_tls() as plain:
        for fault in FAULTS:
            for shape in shapes:
                rows += [await _request(fault, shape, second, plain, folder) for second in (True, False)]
    return rows


async def _request(fault: Fault, shape: Shape, second_vendor: bool, plain: str, folder: Path) -> Row:
    async with AsyncExitStack() as stack:
        faulty = await stack.enter_async_context(OpenAILike(script=fault.script))
        healthy = await stack.enter_async_context(OpenAILike())
        vendors = [
            {
                "name": "faulty",
                "kind": "openai",
                "base_url": fault.place(faulty.url.removeprefix("http://"), plain),
                "models": {MODEL: MODEL},
                "timeout_s": fault.timeout_s,
                "unary_timeout_s": fault.timeout_s,
            }
        ]
        if second_vendor:
            vendors.append(
                {"name": "healthy", "kind": "openai", "base_url": healthy.base_url, "models": {MODEL: MODEL}}
            )
        path = folder / "vendors.yaml"
        path.write_text(json.dumps({"vendors": vendors}), encoding="utf-8")  # JSON is YAML
        settings = ProviderSettings(vendors_file=path, max_attempts=MAX_ATTEMPTS, backoff_base_s=0.01)
        provider = await stack.enter_async_context(AsyncExitStack())
        channel = await stack.enter_async_context(serve(await build(settings, provider)))
        row = await _ask(provider_pb2_grpc.ProviderServiceStub(channel), shape)
        row["fault"], row["second_vendor"] = fault.name, second_vendor
        row["requests"] = len(faulty.requests) + len(healthy.requests) if fault.counted else None
        return row


async def _ask(provider: "provider_pb2_grpc.ProviderServiceAsyncStub", shape: Shape) -> Row:
    row: Row = {
        "fault": "",
        "shape": shape,
        "second_vendor": False,
        "answered_by": "",
        "error": "",
        "retry_after_s": None,
        "pieces": 0,
        "attempts": 0,
        "outcomes": [],
        "requests": None,
        "cost_nanousd": 0,
        "wasted_nanousd": 0,
    }
    try:
        if shape == "unary":
            request = provider_pb2.GenerateRequest(caller=_CALLER, chat=_CHAT, candidates=[MODEL])
            done: provider_pb2.GenerateResponse | provider_pb2.Finished
            done = await provider.Generate(request, timeout=_DEADLINE_S)
            row["pieces"] = len(done.answer.message.parts)
        else:
            streamed = provider_pb2.StreamGenerateRequest(caller=_CALLER, chat=_CHAT, candidates=[MODEL])
            async for event in provider.StreamGenerate(streamed, timeout=_DEADLINE_S):
                row["pieces"] += bool(event.delta.text)
                done = event.finished
    except grpc.aio.AioRpcError as failure:
        error = from_rpc_error(failure)
        row["error"] = error.reason
        row["retry_after_s"] = None if error.retry_after_s is None else round(error.retry_after_s)
        row["attempts"] = int(error.metadata["attempts"])
        row["wasted_nanousd"] = int(error.metadata["wasted_nanousd"])
        return row
    row["outcomes"] = [attempt.outcome for attempt in done.attempts]
    row["attempts"] = len(done.attempts)
    row["answered_by"] = done.attempts[-1].vendor
    row["cost_nanousd"] = done.charge.cost_nanousd
    row["wasted_nanousd"] = done.charge.wasted_nanousd
    return row


@asynccontextmanager
async def _speaks_no_tls() -> AsyncIterator[str]:
    """A server that answers a TLS greeting in plain text; its host and port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
