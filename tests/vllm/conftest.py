from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmmesh.engine.v1 import engine_pb2_grpc

START_TIMEOUT_S = 180

# These tests need an environment of their own, which run.sh makes.
collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]


@dataclass(frozen=True)
class Running:
    """`python -m services.engine` on vLLM, ready, and a channel to it."""

    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel


@pytest_asyncio.fixture(scope="session")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    from tiny_model import CONTEXT_TOKENS, write_tiny_adapter, write_tiny_model

    folder: Path = tmp_path_factory.mktemp("model")
    write_tiny_model(folder)
    adapter: Path = tmp_path_factory.mktemp("adapter")
    write_tiny_adapter(adapter)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "PORT": port,
        "BACKEND": "vllm",
        "MODEL_NAME": "tiny",
        "PRICE_USD_PER_HOUR": "2.5",
        "VLLM_MODEL": folder,
        "VLLM_LOAD_FORMAT": "dummy",
        "VLLM_DTYPE": "float32",
        "VLLM_ENFORCE_EAGER": "true",
        "VLLM_MAX_MODEL_LEN": CONTEXT_TOKENS,
        "VLLM_MAX_NUM_SEQS": 8,
        "VLLM_LORA_ADAPTERS": json.dumps({"tiny-legal": str(adapter)}),
        "VLLM_MAX_LORA_RANK": 8,
    }
    environment = os.environ | {f"LLMMESH_ENGINE_{name}": str(value) for name, value in settings.items()}
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "services.engine", env=environment)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened:
            await _ready(opened, process)
            yield Running(process, opened)
    finally:
        if process.returncode is None:
            process.terminate()
        assert await process.wait() == 0


async def _ready(channel: grpc.aio.Channel, process: asyncio.subprocess.Process) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    async with asyncio.timeout(START_TIMEOUT_S):
        async for state in health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True):
            if state.status == health_pb2.HealthCheckResponse.SERVING:
                return
    raise AssertionError(f"the engine ended with {process.returncode}")


@pytest.fixture
def engine(running: Running) -> engine_pb2_grpc.EngineServiceAsyncStub:
    return engine_pb2_grpc.EngineServiceStub(running.channel)
