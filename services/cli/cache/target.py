"""Which cache a command speaks to, and on whose behalf."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from llmmesh.cache.v1.cache_pb2_grpc import CacheServiceStub
from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.embedder.v1 import embedder_pb2
from llmmesh.embedder.v1.embedder_pb2_grpc import EmbedderServiceStub
from services.cli.client import in_words, text_message
from services.cli.mesh import MeshError, MeshJson, default_state_dir, read_mesh_json
from services.common.channels import open_channel

if TYPE_CHECKING:
    from llmmesh.cache.v1.cache_pb2_grpc import CacheServiceAsyncStub
    from llmmesh.embedder.v1.embedder_pb2_grpc import EmbedderServiceAsyncStub

R = TypeVar("R")

CALL_TIMEOUT_S = 30.0
EMBED_TIMEOUT_S = 60.0
MAX_EMBED_BYTES = 65_536
"""The embedder takes no longer text, and the edge looks for no paraphrase of one."""


@dataclass(frozen=True)
class Where:
    """What the command line says. Of `tenant` and `key` at most one; `cache` and `embedder` are addresses of a mesh elsewhere."""

    state: Path | None = None
    tenant: str | None = None
    key: str | None = None
    namespace: str = "default"
    cache: str | None = None
    embedder: str | None = None


@dataclass(frozen=True)
class Target:
    """Addresses, and whose answers are meant. `embedder` is empty where the command needs none."""

    cache: str
    embedder: str
    tenant: str
    namespace: str

    @property
    def caller(self) -> caller_pb2.Caller:
        """As the edge would name it."""
        return caller_pb2.Caller(tenant=self.tenant, namespace=self.namespace)


def find(where: Where, *, embeds: bool = False) -> Target:
    """The cache that is meant; with `embeds` also the embedder. Raises MeshError saying what is missing."""
    if where.tenant and where.key:
        raise MeshError("--tenant and --key exclude each other: the key says whose it is")
    if where.cache is None:
        if where.embedder is not None:
            raise MeshError("--embedder needs --cache: both belong to one mesh")
        mesh = read_mesh_json(where.state or default_state_dir())
        services = mesh["services"]
        return Target(
            services["cache"]["address"], services["embedder"]["address"], tenant_of(mesh, where), where.namespace
        )
    if where.state is not None:
        raise MeshError("--state and --cache exclude each other: the state folder says where its cache is")
    if where.key:
        raise MeshError("whose key it is, is known only of a mesh on this machine: give --tenant")
    if not where.tenant:
        raise MeshError("a mesh elsewhere needs --tenant: whose answers are meant?")
    if embeds and where.embedder is None:
        raise MeshError("a mesh elsewhere needs --embedder HOST:PORT too, the one that its edge uses")
    return Target(where.cache, where.embedder or "", where.tenant, where.namespace)


def tenant_of(mesh: MeshJson, where: Where) -> str:
    """The tenant that is meant: of the key, by name, or the mesh's first. Raises MeshError for one that the mesh lacks."""
    known = ", ".join(mesh["keys"])
    if where.key:
        owners = [tenant for tenant, key in mesh["keys"].items() if key == where.key]
        if not owners:
            raise MeshError(f"no tenant of this mesh has that key; there are: {known}")
        return owners[0]
    if where.tenant and where.tenant not in mesh["keys"]:
        raise MeshError(f"this mesh has no tenant {where.tenant!r}; there are: {known}")
    return where.tenant or next(iter(mesh["keys"]))


@dataclass(frozen=True)
class Asked:
    """What makes a one-turn request beside the question itself: all of it is part of its identity."""

    system: str = ""
    model: str = "auto"
    temperature: float | None = None
    max_tokens: int | None = None

    def chat(self, question: str, system: str | None = None) -> chat_pb2.Chat:
        """The chat as a caller of the edge sends it; `system` stands in for the one here."""
        text = self.system if system is None else system
        messages = [text_message(chat_pb2.ROLE_SYSTEM, text)] if text else []
        messages.append(text_message(chat_pb2.ROLE_USER, question))
        chat = chat_pb2.Chat(messages=messages)
        if self.temperature is not None:
            chat.sampling.temperature = self.temperature
        if self.max_tokens is not None:
            chat.sampling.max_output_tokens = self.max_tokens
        return chat


@dataclass(frozen=True)
class Doors:
    """The stubs of a target."""

    target: Target
    cache: "CacheServiceAsyncStub"
    embedder: "EmbedderServiceAsyncStub | None"

    async def embed(self, texts: list[str]) -> embedder_pb2.EmbedResponse:
        """Vectors of 1 to 256 texts by the default model, which is the edge's. Raises grpc.aio.AioRpcError."""
        if self.embedder is None:
            raise MeshError("no embedder is known")
        return await self.embedder.Embed(embedder_pb2.EmbedRequest(texts=texts), timeout=EMBED_TIMEOUT_S)


@asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Doors]:
    """Opens the doors; they connect when first used."""
    async with open_channel(target.cache) as cache:
        if not target.embedder:
            yield Doors(target, CacheServiceStub(cache), None)
            return
        async with open_channel(target.embedder) as embedder:
            yield Doors(target, CacheServiceStub(cache), EmbedderServiceStub(embedder))


async def answered(call: Awaitable[R], address: str) -> R:
    """The call's result. Raises MeshError in words, with what to do when nobody answers at `address`."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise MeshError(problem(error, address)) from None


def problem(error: grpc.aio.AioRpcError, address: str) -> str:
    """What went wrong at `address`, and what to do about it."""
    if error.code() is grpc.StatusCode.UNAVAILABLE and not error.trailing_metadata():
        return f"nothing answers at {address}; does the mesh run? `llmmesh up` starts one"
    return in_words(error)


def text_or_file(value: str) -> str:
    """The text of the file of that name, taken as it stands, or `value` itself where there is no such file."""
    try:
        if Path(value).is_file():
            return Path(value).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise MeshError(f"{value}: not UTF-8 text") from None
        if isinstance(error, PermissionError):
            raise MeshError(f"{value}: {error.strerror}") from None
    return value
