"""Vectors on the wire: little-endian float32, unit length."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmmesh.common.v1 import vector_pb2
from services.common.chat_pb import Checker

MAX_DIMENSIONS = 4096


@dataclass(frozen=True, slots=True)
class Embedding:
    """A unit vector, shape (dimensions,), and the model that made it."""

    values: NDArray[np.float32]
    model_id: str


def vector_from_pb(pb: vector_pb2.Vector, field: str = "vector") -> Embedding:
    """The vector. Raises InvalidInput for NaN, infinity, a wrong number of bytes, or a length outside 0.99 to 1.01."""
    check = Checker()
    check.need(
        bool(pb.model_id) and len(pb.model_id) <= 128, f"{field}.model_id", "is required, at most 128 characters"
    )
    check.need(1 <= pb.dimensions <= MAX_DIMENSIONS, f"{field}.dimensions", f"must be 1 to {MAX_DIMENSIONS}")
    check.need(
        len(pb.values) == 4 * pb.dimensions, f"{field}.values", f"must hold 4 x dimensions bytes, got {len(pb.values)}"
    )
    check.done()
    values = np.frombuffer(pb.values, dtype="<f4")
    with np.errstate(over="ignore", invalid="ignore"):
        squared = float(values @ values)  # NaN and infinity spread into the sum
    check.need(0.98 <= squared <= 1.02, f"{field}.values", "must be finite and of unit length")
    check.done()
    return Embedding(values, pb.model_id)


def vector_to_pb(embedding: Embedding) -> vector_pb2.Vector:
    """The vector on the wire."""
    values = np.ascontiguousarray(embedding.values, dtype="<f4")
    return vector_pb2.Vector(values=values.tobytes(), model_id=embedding.model_id, dimensions=len(values))
