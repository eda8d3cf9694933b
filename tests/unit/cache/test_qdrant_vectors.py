"""Collections in Qdrant are made whole, and no two models share one."""

from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import grpc as pb

from services.cache.adapters.qdrant import QdrantVectors
from services.cache.domain.ports import Vector, VectorsUnavailable


class ScriptedQdrant:
    """Knows its collections, their indexes and points; `fail_at` fails the index of that field once."""

    def __init__(self) -> None:
        self.indexes: dict[str, set[str]] = {}
        self.points: list[str] = []
        self.fail_at = ""
        self.grpc_collections = SimpleNamespace(CollectionExists=self.exists, Create=self.create)
        self.grpc_points = SimpleNamespace(CreateFieldIndex=self.index, Upsert=self.upsert)

    async def exists(self, request: pb.CollectionExistsRequest, timeout: float) -> pb.CollectionExistsResponse:
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=request.collection_name in self.indexes))

    async def create(self, request: pb.CreateCollection, timeout: float) -> None:
        self.indexes[request.collection_name] = set()

    async def index(self, request: pb.CreateFieldIndexCollection, timeout: float) -> None:
        if request.field_name == self.fail_at:
            self.fail_at = ""
            raise grpc.RpcError("cut off")
        self.indexes[request.collection_name].add(request.field_name)

    async def upsert(self, request: pb.UpsertPoints, timeout: float) -> None:
        self.points.append(request.collection_name)


VECTOR = Vector(np.array([1.0, 0.0], dtype=np.float32), "model")


async def test_a_collection_that_was_cut_off_before_its_indexes_gets_them(tmp_path):
    qdrant = ScriptedQdrant()
    vectors = QdrantVectors(qdrant, "test", prefix="p-", timeout=1.0)
    qdrant.fail_at = "scope"
    with pytest.raises(VectorsUnavailable):
        await vectors.put("0" * 64, VECTOR, "acme", [b"s"], language="en", expires_at=None)
    assert qdrant.points == []
    await vectors.put("0" * 64, VECTOR, "acme", [b"s"], language="en", expires_at=None)
    assert qdrant.indexes == {"p-model-2": {"tenant", "scope", "language", "expires_at"}}
    assert qdrant.points == ["p-model-2"]


MODEL_IDS = st.text(st.sampled_from("ab._-/ 5f%é"), min_size=1, max_size=6)


@given(st.tuples(MODEL_IDS, st.integers(1, 9)), st.tuples(MODEL_IDS, st.integers(1, 9)))
def test_two_models_never_share_a_collection(one, other):
    vectors = QdrantVectors(ScriptedQdrant(), "test", prefix="p-", timeout=1.0)
    assert (vectors._name(*one) == vectors._name(*other)) == (one == other)


def test_names_of_plain_model_ids_are_plain():
    vectors = QdrantVectors(ScriptedQdrant(), "test", prefix="llmmesh-", timeout=1.0)
    assert vectors._name("all-MiniLM-L6-v2", 384) == "llmmesh-all-MiniLM-L6-v2-384"
    assert vectors._name("BAAI/bge_m3", 1024) == "llmmesh-BAAI_2f_bge_5f_m3-1024"
