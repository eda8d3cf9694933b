"""Vectors on the wire."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from llmmesh.common.v1.vector_pb2 import Vector
from services.common.errors import InvalidInput
from services.common.vector_pb import Embedding, vector_from_pb, vector_to_pb

NAN, INF = float("nan"), float("inf")


def pb(*values: float, dimensions: int | None = None, model_id: str = "m") -> Vector:
    packed = struct.pack(f"<{len(values)}f", *values)
    return Vector(values=packed, model_id=model_id, dimensions=len(values) if dimensions is None else dimensions)


@given(np_st.arrays(np.float32, st.integers(1, 400), elements=st.floats(-1, 1, width=32)))
def test_a_unit_vector_survives_the_wire_bit_for_bit(values):
    length = np.linalg.norm(values.astype(np.float64))
    if length < 1e-3:
        values, length = np.eye(1, len(values), dtype=np.float32)[0], 1.0
    unit = (values / length).astype(np.float32)
    back = vector_from_pb(Vector.FromString(vector_to_pb(Embedding(unit, "m")).SerializeToString()))
    assert back.model_id == "m"
    assert back.values.dtype == np.float32
    assert back.values.tobytes() == unit.tobytes()


def test_a_slice_of_a_matrix_is_sent_whole():
    matrix = np.asfortranarray(np.eye(3, dtype=np.float64))
    assert vector_to_pb(Embedding(matrix[1], "m")) == pb(0, 1, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("vector", "field"),
    [
        (pb(NAN, 0), "vector.values"),
        (pb(NAN, 1), "vector.values"),
        (pb(INF, 0), "vector.values"),
        (pb(-INF, INF), "vector.values"),
        (pb(3e38, 3e38), "vector.values"),
        (pb(0, 0), "vector.values"),
        (pb(1, 1), "vector.values"),
        (pb(0.9, 0), "vector.values"),
        (pb(1, 0, dimensions=3), "vector.values"),
        (pb(1, 0, dimensions=1), "vector.values"),
        (Vector(values=b"\0\0\x80", dimensions=1, model_id="m"), "vector.values"),
        (pb(dimensions=0), "vector.dimensions"),
        (pb(1, dimensions=-1), "vector.dimensions"),
        (pb(*[1 / 64.0078] * 4097), "vector.dimensions"),
        (pb(1, model_id=""), "vector.model_id"),
        (pb(1, model_id="m" * 129), "vector.model_id"),
        (Vector(), "vector.model_id"),
    ],
)
def test_what_is_no_unit_vector_names_its_field(vector, field):
    with pytest.raises(InvalidInput) as caught:
        vector_from_pb(vector)
    assert field in {v.field for v in caught.value.violations}


def test_rounding_of_the_sender_is_tolerated():
    assert len(vector_from_pb(pb(0.6, 0.8005)).values) == 2
