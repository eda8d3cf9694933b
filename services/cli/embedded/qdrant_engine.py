"""One collection of Qdrant's storage engine, in a process of its own that speaks over its standard input and output.

    python -m services.cli.embedded.qdrant_engine --shard DIR --size N --distance NAME

Every call into the engine holds the interpreter's lock until it is done. Whoever has to stay responsive keeps out of this process
and talks to it in frames: the lengths of header and tail (two 32-bit numbers, big-endian), the header (JSON), the tail (vectors,
32-bit floats one after the other). Requests are answered in order. An acknowledged write survives a crash of the process.
"""

import argparse
import ctypes
import fcntl
import json
import os
import signal
import struct
import sys
import uuid
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import qdrant_edge as edge

LENGTHS = struct.Struct(">II")
DISTANCES = {
    "cosine": edge.Distance.Cosine,
    "dot": edge.Distance.Dot,
    "euclid": edge.Distance.Euclid,
    "manhattan": edge.Distance.Manhattan,
}
DATATYPES = {
    "float32": edge.VectorStorageDatatype.Float32,
    "float16": edge.VectorStorageDatatype.Float16,
    "uint8": edge.VectorStorageDatatype.Uint8,
}
NICE = 10
FULL_SCAN_KB = 10_000
"""Vectors of a search that are read one by one at most; above, the graph is quicker."""
_PR_SET_PDEATHSIG = 1

Header = dict[str, Any]
Identifier = int | str
Record = tuple[Identifier, dict[str, object]]


def frame(header: Mapping[str, object], tail: bytes = b"") -> bytes:
    """A message on the wire."""
    plain = json.dumps(header, separators=(",", ":")).encode()
    return LENGTHS.pack(len(plain), len(tail)) + plain + tail


class Engine:
    """The shard, and what can be asked of it."""

    def __init__(self, folder: Path, size: int, distance: str, datatype: str, *, int8: bool) -> None:
        """Opens the shard in `folder`, or makes one where there is none.

        `datatype` is how vectors are stored. `int8`: searches go through a copy of them in 8 bits a value that stays in memory,
        and only what it finds is read as stored.
        """
        self._size = size
        self._operations: dict[str, Callable[[Header, bytes], tuple[object, bytes]]] = {
            "upsert": self._upsert,
            "delete": self._delete,
            "query": self._query,
            "count": self._count,
            "scroll": self._scroll,
            "retrieve": self._retrieve,
            "index": self._index,
            "info": self._info,
            "optimize": self._optimize,
            "close": self._close,
        }
        if folder.exists():
            self._shard = edge.EdgeShard.load(str(folder))
            return
        self._shard = edge.EdgeShard.create(
            str(folder),
            edge.EdgeConfig(
                vectors=edge.EdgeVectorParams(size=size, distance=DISTANCES[distance], datatype=DATATYPES[datatype]),
                quantization_config=edge.ScalarQuantizationConfig(edge.ScalarType.Int8, memory=edge.Memory.Pinned)
                if int8
                else None,
                hnsw_config=edge.HnswIndexConfig(
                    m=16, ef_construct=64, full_scan_threshold=FULL_SCAN_KB, max_indexing_threads=1
                ),
                max_search_threads=1,
            ),
        )
        self._shard.flush()

    def handle(self, header: Header, tail: bytes) -> bytes:
        """The answer to one request, as a frame. What the engine refuses is an answer, too."""
        try:
            result, vectors = self._operations[header["op"]](header, tail)
        except Exception as error:  # the engine has one exception type for everything
            return frame({"error": f"{type(error).__name__}: {error}"})
        return frame({"result": result}, vectors)

    def _upsert(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        values = array("f", tail)
        points = [
            edge.Point(
                id=_id(identifier), vector=values[i * self._size : (i + 1) * self._size].tolist(), payload=payload
            )
            for i, (identifier, payload) in enumerate(header["points"])
        ]
        self._shard.update(edge.UpdateOperation.upsert_points(points))
        return None, b""

    def _delete(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        self._shard.update(edge.UpdateOperation.delete_points([_id(i) for i in header["ids"]]))
        return None, b""

    def _query(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        found = self._shard.query(
            edge.QueryRequest(
                limit=header["limit"],
                offset=header["offset"],
                query=edge.Query.Nearest(array("f", tail).tolist()),
                filter=_filter(header["filter"]),
                score_threshold=header["score_threshold"],
                with_payload=header["payload"],
            )
        )
        return [(_plain(p.id), p.payload or {}, p.score, p.version) for p in found], b""

    def _count(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        return self._shard.count(edge.CountRequest(exact=True, filter=_filter(header["filter"]))), b""

    def _scroll(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        offset = header["offset"]
        found, following = self._shard.scroll(
            edge.ScrollRequest(
                offset=None if offset is None else _id(offset),
                limit=header["limit"],
                filter=_filter(header["filter"]),
                with_payload=header["payload"],
                with_vector=header["vectors"],
            )
        )
        records = [(_plain(r.id), r.payload or {}) for r in found]
        vectors = _vectors(found) if header["vectors"] else b""
        return [records, None if following is None else _plain(following)], vectors

    def _retrieve(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        found = self._shard.retrieve([_id(i) for i in header["ids"]], with_payload=True, with_vector=True)
        return [(_plain(r.id), r.payload or {}) for r in found], _vectors(found)

    def _index(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        kind: object
        match header["kind"]:
            case "float":
                kind = edge.FloatIndexParams()
            case "integer":
                kind = edge.IntegerIndexParams()
            case _:
                kind = edge.KeywordIndexParams(is_tenant=header["tenant"])
        self._shard.update(edge.UpdateOperation.create_field_index(header["field"], kind))
        return None, b""

    def _info(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        info = self._shard.info()
        return {"segments": info.segments_count, "indexed": info.indexed_vectors_count}, b""

    def _optimize(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        return self._shard.optimize(), b""

    def _close(self, header: Header, tail: bytes) -> tuple[object, bytes]:
        self._shard.flush()
        self._shard.close()
        return None, b""


def _id(identifier: Identifier) -> int | uuid.UUID:
    return identifier if isinstance(identifier, int) else uuid.UUID(identifier)


def _plain(identifier: object) -> Identifier:
    return identifier if isinstance(identifier, int) else str(identifier)


def _vectors(records: Sequence[Any]) -> bytes:
    return b"".join(array("f", record.vector).tobytes() for record in records)


def _filter(conditions: Mapping[str, Sequence[Header]] | None) -> edge.Filter | None:
    if conditions is None:
        return None
    some = {kind: [_condition(condition) for condition in found] for kind, found in conditions.items()}
    return edge.Filter(must=some.get("must"), should=some.get("should"), must_not=some.get("must_not"))


def _condition(condition: Header) -> Any:
    if "filter" in condition:
        return _filter(condition["filter"])
    if "ids" in condition:
        return edge.HasIdCondition({_id(i) for i in condition["ids"]})
    if "range" in condition:
        return edge.FieldCondition(key=condition["key"], range=edge.RangeFloat(**condition["range"]))
    match: edge.MatchAny | edge.MatchValue
    match = edge.MatchAny(condition["any"]) if "any" in condition else edge.MatchValue(condition["value"])
    return edge.FieldCondition(key=condition["key"], match=match)


def serve(engine: Engine, asked: BinaryIO, answered: BinaryIO) -> None:
    """Answers until the input ends or the shard is closed. What is acknowledged by then is safe without a farewell."""
    while len(lengths := asked.read(LENGTHS.size)) == LENGTHS.size:
        header_length, tail_length = LENGTHS.unpack(lengths)
        header, tail = asked.read(header_length), asked.read(tail_length)
        if len(tail) < tail_length or len(header) < header_length:
            return
        request: Header = json.loads(header)
        answered.write(engine.handle(request, tail))
        answered.flush()
        if request["op"] == "close":
            return


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(
        description="One collection of Qdrant's storage engine, over standard input and output."
    )
    parser.add_argument("--shard", type=Path, required=True, help="folder of the shard; made where there is none")
    parser.add_argument("--size", type=int, required=True, help="length of the vectors")
    parser.add_argument("--distance", choices=DISTANCES, required=True)
    parser.add_argument("--datatype", choices=DATATYPES, default="float32", help="how vectors are stored")
    parser.add_argument("--int8", action="store_true", help="search through a quantised copy in memory")
    parser.add_argument("--background", action="store_true", help="give way to everything else on the machine")
    arguments = parser.parse_args()
    # These may reach the whole group of processes; the parent decides when this one ends.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere it ends with its input
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if arguments.background:
        os.nice(NICE)
    answered = sys.stdout.buffer
    with arguments.shard.with_name(f"{arguments.shard.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a killed parent's engine may not be gone yet
        engine = Engine(arguments.shard, arguments.size, arguments.distance, arguments.datatype, int8=arguments.int8)
        answered.write(frame({"result": "ready"}))
        answered.flush()
        serve(engine, sys.stdin.buffer, answered)


if __name__ == "__main__":
    main()
