"""The callers: all streams at once, each read to its end, while the processes' memory and files are looked at."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from benchmarks.streams.processes import MODEL, Running
from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import inference_pb2, inference_pb2_grpc
from services.common.errors import from_rpc_error

TIMEOUT_S = 300.0
_LOOK_S = 0.25


@dataclass
class Seen:
    """What the callers saw; `first_ms` is the time to the first piece of each stream. `began` and `ended` are unix seconds."""

    completed: int = 0
    dropped: int = 0
    pieces: int = 0
    open: int = 0
    open_at_once: int = 0
    first_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    ended: float = 0.0


@dataclass
class Use:
    """A process's resident memory in MiB and open files, before and at most."""

    idle_mib: float
    idle_files: int
    peak_mib: float = 0.0
    peak_files: int = 0


async def drive(running: Running, streams: int, pids: Mapping[str, int]) -> tuple[Seen, dict[str, Use]]:
    """Opens all streams at once and reads each to its end. A stream that breaks is counted, and ends nothing."""
    seen = Seen()
    used = {name: Use(_memory_mib(pid, "VmRSS"), _files(pid)) for name, pid in pids.items()}
    async with grpc.aio.insecure_channel(running.edge) as channel:
        ask = inference_pb2_grpc.InferenceServiceStub(channel).StreamComplete
        metadata = (("authorization", f"Bearer {running.key}"),)
        looking = asyncio.create_task(_look(pids, used))
        seen.began = time.time()
        await asyncio.gather(*(_caller(number, ask, metadata, seen) for number in range(streams)))
        seen.ended = time.time()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    for name, pid in pids.items():
        used[name].peak_mib = _memory_mib(pid, "VmHWM")
    return seen, used


async def _caller(
    number: int,
    ask: "grpc.aio.UnaryStreamMultiCallable[inference_pb2.StreamCompleteRequest, inference_pb2.StreamCompleteResponse]",
    metadata: tuple[tuple[str, str], ...],
    seen: Seen,
) -> None:
    text = f"What became of order number {number}?"
    request = inference_pb2.StreamCompleteRequest(
        model=MODEL,
        chat=chat_pb2.Chat(
            messages=[chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])]
        ),
        cache=inference_pb2.CacheControl(bypass=True, no_store=True),
    )
    begin = time.perf_counter()
    pieces, whole = 0, False
    try:
        async for event in ask(request, metadata=metadata, timeout=TIMEOUT_S):
            kind = event.WhichOneof("event")
            if kind == "delta":
                if not pieces:
                    seen.first_ms.append((time.perf_counter() - begin) * 1000)
                    seen.open += 1
                    seen.open_at_once = max(seen.open_at_once, seen.open)
                pieces += 1
            whole = kind == "finished"
    except grpc.aio.AioRpcError as error:
        seen.errors[from_rpc_error(error).reason] += 1
    seen.open -= bool(pieces)
    seen.pieces += pieces
    seen.completed += whole
    seen.dropped += not whole


async def _look(pids: Mapping[str, int], used: dict[str, Use]) -> None:
    while True:
        for name, pid in pids.items():
            used[name].peak_files = max(used[name].peak_files, _files(pid))
        await asyncio.sleep(_LOOK_S)


def _files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def _memory_mib(pid: int, field_name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field_name:
            return round(int(value.split()[0]) / 1024, 1)
    raise LookupError(field_name)
