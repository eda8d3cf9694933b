"""Which mesh's keys are meant, and with which admin key."""

import os
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc

from llmmesh.edge.v1.keys_pb2_grpc import KeyServiceStub
from services.cli.cache.target import problem
from services.cli.mesh import MeshError, default_state_dir, read_mesh_json
from services.common.channels import open_channel
from services.common.errors import PermissionDenied, Unauthenticated, UnknownKey, from_rpc_error

if TYPE_CHECKING:
    from llmmesh.edge.v1.keys_pb2_grpc import KeyServiceAsyncStub

R = TypeVar("R")

ADMIN_KEY = "LLMMESH_ADMIN_KEY"
_NEXT = {
    Unauthenticated: f"give this mesh's admin key with --key or {ADMIN_KEY}; `llmmesh up` writes it to mesh.json",
    PermissionDenied: "keys are managed with an admin key only",
    UnknownKey: "`llmmesh keys list` shows the ids",
}


@dataclass(frozen=True)
class Where:
    """What the command line says. `edge` is the address of a mesh elsewhere."""

    state: Path | None = None
    edge: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Door:
    """An edge's KeyService, and the admin key that opens it."""

    address: str
    stub: "KeyServiceAsyncStub"
    metadata: tuple[tuple[str, str], ...]

    async def answered(self, call: Awaitable[R]) -> R:
        """The call's result. Raises MeshError in words, with what to do next."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            next_step = _NEXT.get(type(from_rpc_error(error)))
            raise MeshError(problem(error, self.address) + (f"\n  {next_step}" if next_step else "")) from None


def find(where: Where, environment: Mapping[str, str]) -> tuple[str, str]:
    """Address of the edge and the admin key. Raises MeshError saying what is missing."""
    if where.edge is not None:
        if where.state is not None:
            raise MeshError("--state and --edge exclude each other: the state folder says where its edge is")
        key = where.key or environment.get(ADMIN_KEY)
        if not key:
            raise MeshError(f"a mesh elsewhere needs its admin key: set {ADMIN_KEY}, or give --key")
        return where.edge, key
    mesh = read_mesh_json(where.state or default_state_dir())
    key = where.key or mesh.get("admin_key")
    if not key:
        raise MeshError("this mesh was started before there were admin keys: stop it and start it again")
    return mesh["edge"], key


@asynccontextmanager
async def connect(where: Where) -> AsyncIterator[Door]:
    """Opens the door; it connects when first used."""
    address, key = find(where, os.environ)
    if not key.isascii() or not key.isprintable():
        raise MeshError("that is no key: a key is one word of letters, digits, - and _")
    async with open_channel(address) as channel:
        yield Door(address, KeyServiceStub(channel), (("authorization", f"Bearer {key}"),))
