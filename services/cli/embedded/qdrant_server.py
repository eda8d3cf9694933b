"""Qdrant's storage engine as a server: the part of Qdrant's gRPC API that the mesh uses, over one folder.

    python -m services.cli.embedded.qdrant_server --path DIR --port N

This process never calls the engine: see qdrant_store. An acknowledged write survives a crash of all processes.
"""

import argparse
import asyncio
import re
import signal
import time
import uuid
from array import array
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from qdrant_client import grpc as pb
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc, qdrant_pb2, qdrant_pb2_grpc

from services.cli.embedded.qdrant_engine import Header, Identifier
from services.cli.embedded.qdrant_store import Collection, Collections, EngineGone, Kind, Rejected

VERSION = "1.20.0-edge"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_DISTANCES = {
    pb.Distance.Cosine: "cosine",
    pb.Distance.Dot: "dot",
    pb.Distance.Euclid: "euclid",
    pb.Distance.Manhattan: "manhattan",
}
_DATATYPES = {
    pb.Datatype.Default: "float32",
    pb.Datatype.Float32: "float32",
    pb.Datatype.Float16: "float16",
    pb.Datatype.Uint8: "uint8",
}
_INDEXES = {
    pb.FieldType.FieldTypeFloat: "float",
    pb.FieldType.FieldTypeInteger: "integer",
    pb.FieldType.FieldTypeKeyword: "keyword",
}

Context = grpc.aio.ServicerContext[Any, Any]


class Refused(Exception):
    """A request that cannot be served, with its status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def value_of(value: Any) -> object:
    """A payload value as plain data."""
    kind = value.WhichOneof("kind")
    if kind in (None, "null_value"):
        return None
    if kind == "struct_value":
        return {key: value_of(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [value_of(item) for item in value.list_value.values]
    plain: object = getattr(value, kind)
    return plain


def pb_value(value: object) -> Any:
    """Plain data as a payload value."""
    match value:
        case None:
            return pb.Value(null_value=pb.NullValue.NULL_VALUE)
        case bool():
            return pb.Value(bool_value=value)
        case int():
            return pb.Value(integer_value=value)
        case float():
            return pb.Value(double_value=value)
        case str():
            return pb.Value(string_value=value)
        case dict():
            return pb.Value(struct_value=pb.Struct(fields={key: pb_value(item) for key, item in value.items()}))
        case list():
            return pb.Value(list_value=pb.ListValue(values=[pb_value(item) for item in value]))
        case _:
            raise TypeError(type(value))


def point_id(identifier: Any) -> Identifier:
    """An id; refuses what is neither a number nor a UUID."""
    if identifier.WhichOneof("point_id_options") == "num":
        number: int = identifier.num
        return number
    try:
        return str(uuid.UUID(identifier.uuid))
    except ValueError:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a point's id must be a number or a UUID") from None


def pb_point_id(identifier: Identifier) -> Any:
    """An id on the wire."""
    return pb.PointId(num=identifier) if isinstance(identifier, int) else pb.PointId(uuid=identifier)


def condition_of(condition: Any) -> Header:
    """One condition; refuses kinds that the mesh does not use."""
    kind = condition.WhichOneof("condition_one_of")
    if kind == "filter":
        return {"filter": filter_of(condition.filter)}
    if kind == "has_id":
        return {"ids": [point_id(i) for i in condition.has_id.has_id]}
    if kind == "field":
        field = condition.field
        if field.HasField("match"):
            match = field.match.WhichOneof("match_value")
            if match in ("keyword", "integer", "boolean"):
                return {"key": field.key, "value": getattr(field.match, match)}
            if match == "keywords":
                return {"key": field.key, "any": list(field.match.keywords.strings)}
        elif field.HasField("range"):
            bounds = {
                name: getattr(field.range, name) for name in ("gt", "gte", "lt", "lte") if field.range.HasField(name)
            }
            return {"key": field.key, "range": bounds}
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, "this kind of condition is not served by the embedded store")


def filter_of(condition: Any) -> Header:
    """A filter."""
    if condition.HasField("min_should"):
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "min_should is not served by the embedded store")
    kinds = ("must", "should", "must_not")
    return {kind: [condition_of(c) for c in getattr(condition, kind)] for kind in kinds if getattr(condition, kind)}


def filter_in(request: Any) -> Header | None:
    """A request's filter, or None."""
    return filter_of(request.filter) if request.HasField("filter") else None


def payload_selector(request: Any) -> bool | list[str]:
    """Which payload fields are wanted; all when nothing is said."""
    if not request.HasField("with_payload"):
        return True
    selector = request.with_payload
    if selector.WhichOneof("selector_options") == "include":
        return list(selector.include.fields)
    return bool(selector.enable)


def kind_of(request: Any) -> Kind:
    """What a new collection is to hold; refuses what the engine is not told about."""
    params = request.vectors_config.params
    distance, datatype = _DISTANCES.get(params.distance), _DATATYPES.get(params.datatype)
    if distance is None or datatype is None or not params.size:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a collection needs a distance, a datatype and a size above 0")
    quantisation = request.quantization_config.WhichOneof("quantization")
    if quantisation not in (None, "scalar"):
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only scalar quantisation is served by the embedded store")
    return Kind(params.size, distance, datatype, int8=quantisation == "scalar")


def dense(vector: Any) -> "array[float]":
    """The values of a plain vector; refuses others."""
    if vector.WhichOneof("vector") == "dense":
        return array("f", vector.dense.data)
    if vector.data and not vector.HasField("indices"):
        return array("f", vector.data)
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only dense vectors are served by the embedded store")


def pb_payload(payload: dict[str, object]) -> dict[str, Any]:
    """A payload on the wire."""
    return {key: pb_value(value) for key, value in payload.items()}


class HealthServicer(qdrant_pb2_grpc.QdrantServicer):
    """qdrant.Qdrant."""

    async def HealthCheck(self, request: Any, context: Context) -> Any:
        return qdrant_pb2.HealthCheckReply(title="qdrant - vector search engine", version=VERSION)


class Answers:
    """How requests are answered: what is refused gets its status."""

    def __init__(self, collections: Collections, broken: asyncio.Event) -> None:
        """`broken` is set when an engine has ended by itself: then there is nothing to serve with."""
        self._collections = collections
        self._broken = broken

    def _get(self, name: str) -> Collection:
        found = self._collections.find(name)
        if found is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Collection `{name}` doesn't exist!")
        return found

    async def _answer(self, context: Context, work: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await work()
        except Refused as error:
            await context.abort(error.code, error.message)
        except EngineGone:
            if self._collections.broken():
                self._broken.set()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the storage engine has ended")
        except Rejected as error:  # as Qdrant does
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        raise AssertionError("abort raises")


class CollectionsServicer(Answers, collections_service_pb2_grpc.CollectionsServicer):
    """qdrant.Collections."""

    async def List(self, request: Any, context: Context) -> Any:
        names = [pb.CollectionDescription(name=name) for name in self._collections.names()]
        return pb.ListCollectionsResponse(collections=names)

    async def CollectionExists(self, request: Any, context: Context) -> Any:
        exists = self._collections.find(request.collection_name) is not None
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    async def Create(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            config, name = request.vectors_config, request.collection_name
            if config.WhichOneof("config") != "params":
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only one unnamed vector is served by the embedded store")
            if not _NAME.fullmatch(name):
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the collection's name must be a plain file name")
            if not await self._collections.create(name, kind_of(request)):
                raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"Collection `{name}` already exists!")
            return pb.CollectionOperationResponse(result=True)

        return await self._answer(context, work)

    async def Delete(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            return pb.CollectionOperationResponse(result=await self._collections.delete(request.collection_name))

        return await self._answer(context, work)

    async def Get(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            collection = self._get(request.collection_name)
            count, _ = await collection.engine.call({"op": "count", "filter": None}, urgent=True)
            found, _ = await collection.engine.call({"op": "info"}, urgent=True)
            distance = next(value for value, name in _DISTANCES.items() if name == collection.kind.distance)
            params = pb.VectorParams(size=collection.kind.size, distance=distance)
            info = pb.CollectionInfo(
                status=pb.CollectionStatus.Green,
                segments_count=found["segments"],
                points_count=count,
                indexed_vectors_count=found["indexed"],
                config=pb.CollectionConfig(
                    params=pb.CollectionParams(vectors_config=pb.VectorsConfig(params=params), shard_number=1)
                ),
            )
            return pb.GetCollectionInfoResponse(result=info)

        return await self._answer(context, work)


class PointsServicer(Answers, points_service_pb2_grpc.PointsServicer):
    """qdrant.Points."""

    async def Upsert(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            collection = self._get(request.collection_name)
            points: list[tuple[Identifier, dict[str, object]]] = []
            vectors = array("f")
            for point in request.points:
                vector = dense(point.vectors.vector)
                if len(vector) != collection.kind.size:
                    raise Refused(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"Wrong input: Vector dimension error: expected dim: {collection.kind.size}, got {len(vector)}",
                    )
                vectors += vector
                points.append((point_id(point.id), {key: value_of(value) for key, value in point.payload.items()}))
            await collection.upsert(points, vectors.tobytes())
            return _completed()

        return await self._answer(context, work)

    async def Delete(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            collection = self._get(request.collection_name)
            selector = request.points
            if selector.WhichOneof("points_selector_one_of") == "filter":
                await collection.delete_where(filter_of(selector.filter))
            else:
                await collection.delete([point_id(identifier) for identifier in selector.points.ids])
            return _completed()

        return await self._answer(context, work)

    async def Query(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            started = time.perf_counter()
            nearest = request.query.nearest
            if request.query.WhichOneof("variant") != "nearest" or nearest.WhichOneof("variant") != "dense":
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only nearest-vector queries are served")
            found = await self._search(request, array("f", nearest.dense.data), request.limit or 10)
            return pb.QueryResponse(result=found, time=time.perf_counter() - started)

        return await self._answer(context, work)

    async def Search(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            started = time.perf_counter()
            found = await self._search(request, array("f", request.vector), request.limit)
            return pb.SearchResponse(result=found, time=time.perf_counter() - started)

        return await self._answer(context, work)

    async def _search(self, request: Any, vector: "array[float]", limit: int) -> list[Any]:
        query = {
            "op": "query",
            "limit": limit,
            "offset": request.offset,
            "filter": filter_in(request),
            "score_threshold": request.score_threshold if request.HasField("score_threshold") else None,
            "payload": payload_selector(request),
        }
        engine = self._get(request.collection_name).engine
        found, _ = await engine.call(query, vector.tobytes(), urgent=True)
        return [
            pb.ScoredPoint(id=pb_point_id(identifier), payload=pb_payload(payload), score=score, version=version)
            for identifier, payload, score, version in found
        ]

    async def Count(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            engine = self._get(request.collection_name).engine
            count, _ = await engine.call({"op": "count", "filter": filter_in(request)}, urgent=True)
            return pb.CountResponse(result=pb.CountResult(count=count))

        return await self._answer(context, work)

    async def Scroll(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            scroll = {
                "op": "scroll",
                "offset": point_id(request.offset) if request.HasField("offset") else None,
                "limit": request.limit or 10,
                "filter": filter_in(request),
                "payload": payload_selector(request),
                "vectors": False,
            }
            (records, following), _ = await self._get(request.collection_name).engine.call(scroll, urgent=True)
            points = [pb.RetrievedPoint(id=pb_point_id(i), payload=pb_payload(payload)) for i, payload in records]
            offset = None if following is None else pb_point_id(following)
            return pb.ScrollResponse(result=points, next_page_offset=offset)

        return await self._answer(context, work)

    async def CreateFieldIndex(self, request: Any, context: Context) -> Any:
        async def work() -> Any:
            collection = self._get(request.collection_name)
            kind = _INDEXES.get(request.field_type)
            if kind is None:
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "this kind of index is not served by the embedded store")
            tenant = request.field_index_params.keyword_index_params.is_tenant
            await collection.index(request.field_name, kind, tenant=tenant)
            return _completed()

        return await self._answer(context, work)


def _completed() -> Any:
    return pb.PointsOperationResponse(result=pb.UpdateResult(status=pb.UpdateStatus.Completed))


async def serve(path: Path, port: int, host: str = "127.0.0.1") -> bool:
    """Serves the folder until SIGTERM or SIGINT; False where an engine ended before."""
    stop, broken = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    collections = Collections(path)
    await collections.start()
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    qdrant_pb2_grpc.add_QdrantServicer_to_server(HealthServicer(), server)  # type: ignore[no-untyped-call]
    collections_service_pb2_grpc.add_CollectionsServicer_to_server(  # type: ignore[no-untyped-call]
        CollectionsServicer(collections, broken), server
    )
    points_service_pb2_grpc.add_PointsServicer_to_server(  # type: ignore[no-untyped-call]
        PointsServicer(collections, broken), server
    )
    bound = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    print(f"listening on {host}:{bound}", flush=True)
    ends = [asyncio.create_task(stop.wait()), asyncio.create_task(broken.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    await server.stop(1.0)
    await collections.close()
    return not broken.is_set()


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description="Qdrant's storage engine behind Qdrant's gRPC API.")
    parser.add_argument("--path", type=Path, required=True, help="folder of the data")
    parser.add_argument("--port", type=int, required=True, help="port on loopback; 0 lets the system choose")
    arguments = parser.parse_args()
    if not asyncio.run(serve(arguments.path, arguments.port)):
        raise SystemExit("a storage engine ended by itself")


if __name__ == "__main__":
    main()
