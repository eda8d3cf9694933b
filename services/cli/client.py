"""The command line as a caller of the mesh: stubs, a key, and errors in words."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1.batch_pb2_grpc import BatchServiceStub
from llmmesh.edge.v1.costs_pb2_grpc import CostServiceStub
from llmmesh.edge.v1.inference_pb2_grpc import InferenceServiceStub
from services.cli.mesh import MeshError, MeshJson
from services.common.channels import open_channel
from services.common.errors import from_rpc_error


class Client:
    """The edge's stubs with a tenant's key."""

    def __init__(self, channel: grpc.aio.Channel, key: str) -> None:
        self.inference = InferenceServiceStub(channel)
        self.costs = CostServiceStub(channel)
        self.batches = BatchServiceStub(channel)
        self.metadata = (("authorization", f"Bearer {key}"),)


@asynccontextmanager
async def connect(mesh: MeshJson, tenant: str) -> AsyncIterator[Client]:
    """A client of a running mesh as one of its tenants. Raises MeshError for a tenant that has no key."""
    if tenant not in mesh["keys"]:
        raise MeshError(f"no key for tenant {tenant!r}; there are: {', '.join(mesh['keys'])}")
    async with open_channel(mesh["edge"]) as channel:
        yield Client(channel, mesh["keys"][tenant])


def in_words(error: grpc.aio.AioRpcError) -> str:
    """An error for people: name, message, fields."""
    named = from_rpc_error(error)
    fields = "".join(f"\n  {v.field}: {v.description}" for v in named.violations)
    return f"{named.reason}: {named.message}{fields}"


def text_message(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.Message:
    """A message of one text."""
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=text)])
