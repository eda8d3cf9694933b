"""Qdrant's storage engine as a server: the part of Qdrant's gRPC API that the mesh uses, over one folder.

    python -m services.cli.embedded.qdrant_server --path DIR --port N

The engine's calls hold the interpreter's lock, which is why this is a process of its own. A collection is one shard in one
folder; an acknowledged write survives a crash of the process. Indexes are built in the background once enough has changed.
"""

import argparse
import asyncio
import json
import re
import shutil
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import qdrant_edge as edge
from qdrant_client import grpc as pb
from qdrant_client.grpc import collections_service_pb2_grpc, points_service_pb2_grpc, qdrant_pb2, qdrant_pb2_grpc

VERSION = "1.20.0-edge"
OPTIMIZE_INTERVAL_S = 5.0
OPTIMIZE_AFTER_CHANGES = 5_000
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_DISTANCES = {
    pb.Distance.Cosine: edge.Distance.Cosine,
    pb.Distance.Dot: edge.Distance.Dot,
    pb.Distance.Euclid: edge.Distance.Euclid,
    pb.Distance.Manhattan: edge.Distance.Manhattan,
}
T = TypeVar("T")


class Refused(Exception):
    """A request that cannot be served, with its status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Collection:
    """One shard on disk and what has to be known of it."""

    def __init__(self, folder: Path, shard: edge.EdgeShard, size: int, distance: int) -> None:
        self.folder = folder
        self.shard = shard
        self.size = size
        self.distance = distance
        self.changes = 0

    @classmethod
    def create(cls, folder: Path, size: int, distance: int) -> "Collection":
        """Makes a new one."""
        config = edge.EdgeConfig(
            vectors=edge.EdgeVectorParams(size=size, distance=_DISTANCES[pb.Distance.ValueType(distance)]),
            # No graph: every query of the mesh is filtered down to one scope, where a scan is exact and quick, and
            # building a graph would stop this process for minutes.
            hnsw_config=edge.HnswIndexConfig(m=0, ef_construct=16, full_scan_threshold=10_000),
        )
        work = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(work, ignore_errors=True)
        shard = edge.EdgeShard.create(str(work / "shard"), config)
        shard.flush()
        shard.close()
        (work / "collection.json").write_text(json.dumps({"size": size, "distance": distance}))
        work.rename(folder)  # a half-made collection is never seen
        return cls.load(folder)

    @classmethod
    def load(cls, folder: Path) -> "Collection":
        """Opens one that is there."""
        known = json.loads((folder / "collection.json").read_text())
        return cls(folder, edge.EdgeShard.load(str(folder / "shard")), known["size"], known["distance"])

    def update(self, operation: edge.UpdateOperation, changes: int = 1) -> None:
        """Applies a change."""
        self.shard.update(operation)
        self.changes += changes

    def optimize(self) -> None:
        """Builds indexes and drops deleted points."""
        self.changes = 0
        self.shard.optimize()

    def close(self) -> None:
        """Writes everything and lets go."""
        self.shard.flush()
        self.shard.close()


class Collections:
    """All collections of a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(parents=True, exist_ok=True)
        self._open = {
            folder.name: Collection.load(folder)
            for folder in sorted(root.iterdir())
            if not folder.name.startswith(".") and (folder / "collection.json").is_file()
        }

    def names(self) -> list[str]:
        """Their names."""
        return list(self._open)

    def find(self, name: str) -> Collection | None:
        """One, or None."""
        return self._open.get(name)

    def get(self, name: str) -> Collection:
        """One; refuses NOT_FOUND."""
        found = self._open.get(name)
        if found is None:
            raise Refused(grpc.StatusCode.NOT_FOUND, f"Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, size: int, distance: int) -> None:
        """Makes one; refuses names that are taken or are no file names."""
        if not _NAME.fullmatch(name):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the collection's name must be a plain file name")
        if name in self._open:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS, f"Collection `{name}` already exists!")
        self._open[name] = Collection.create(self._root / name, size, distance)

    def delete(self, name: str) -> bool:
        """Removes one; False where there was none."""
        found = self._open.pop(name, None)
        if found is None:
            return False
        found.shard.close()
        shutil.rmtree(found.folder)
        return True

    def optimize_one(self) -> None:
        """Optimises the collection with the most changes, if it has enough."""
        busiest = max(self._open.values(), key=lambda c: c.changes, default=None)
        if busiest is not None and busiest.changes >= OPTIMIZE_AFTER_CHANGES:
            busiest.optimize()

    def close(self) -> None:
        """Closes all."""
        for collection in self._open.values():
            collection.close()


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


def point_id(identifier: Any) -> int | uuid.UUID:
    """An id; refuses what is neither a number nor a UUID."""
    if identifier.WhichOneof("point_id_options") == "num":
        number: int = identifier.num
        return number
    try:
        return uuid.UUID(identifier.uuid)
    except ValueError:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a point's id must be a number or a UUID") from None


def pb_point_id(identifier: object) -> Any:
    """An id on the wire."""
    return pb.PointId(num=identifier) if isinstance(identifier, int) else pb.PointId(uuid=str(identifier))


def condition_of(condition: Any) -> Any:
    """One condition; refuses kinds that the mesh does not use."""
    kind = condition.WhichOneof("condition_one_of")
    if kind == "filter":
        return filter_of(condition.filter)
    if kind == "has_id":
        return edge.HasIdCondition({point_id(i) for i in condition.has_id.has_id})
    if kind == "field":
        field = condition.field
        if field.HasField("match"):
            match = field.match.WhichOneof("match_value")
            if match in ("keyword", "integer", "boolean"):
                return edge.FieldCondition(key=field.key, match=edge.MatchValue(getattr(field.match, match)))
            if match == "keywords":
                return edge.FieldCondition(key=field.key, match=edge.MatchAny(list(field.match.keywords.strings)))
        elif field.HasField("range"):
            bounds = {
                name: getattr(field.range, name) for name in ("gt", "gte", "lt", "lte") if field.range.HasField(name)
            }
            return edge.FieldCondition(key=field.key, range=edge.RangeFloat(**bounds))
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, "this kind of condition is not served by the embedded store")


def filter_of(condition: Any) -> edge.Filter:
    """A filter."""
    if condition.HasField("min_should"):
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "min_should is not served by the embedded store")
    return edge.Filter(
        must=[condition_of(c) for c in condition.must] or None,
        should=[condition_of(c) for c in condition.should] or None,
        must_not=[condition_of(c) for c in condition.must_not] or None,
    )


def payload_selector(request: Any) -> bool | list[str]:
    """Which payload fields are wanted; all when nothing is said."""
    if not request.HasField("with_payload"):
        return True
    selector = request.with_payload
    if selector.WhichOneof("selector_options") == "include":
        return list(selector.include.fields)
    return bool(selector.enable)


def dense(vector: Any) -> list[float]:
    """The values of a plain vector; refuses others."""
    if vector.WhichOneof("vector") == "dense":
        return list(vector.dense.data)
    if vector.data and not vector.HasField("indices"):
        return list(vector.data)
    raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only dense vectors are served by the embedded store")


def pb_payload(payload: dict[str, object] | None) -> dict[str, Any]:
    """A payload on the wire."""
    return {key: pb_value(value) for key, value in (payload or {}).items()}


def scored(points: list[edge.ScoredPoint]) -> list[Any]:
    """Search results on the wire."""
    return [
        pb.ScoredPoint(id=pb_point_id(p.id), payload=pb_payload(p.payload), score=p.score, version=p.version)
        for p in points
    ]


async def answer(context: grpc.aio.ServicerContext[Any, Any], work: Callable[[], T]) -> T:
    """Runs one request; engine errors become INVALID_ARGUMENT, as in Qdrant."""
    try:
        return work()
    except Refused as error:
        await context.abort(error.code, error.message)
    except Exception as error:  # the engine has one exception type for everything
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{type(error).__name__}: {error}")
    raise AssertionError("abort raises")


Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(qdrant_pb2_grpc.QdrantServicer):
    """qdrant.Qdrant."""

    async def HealthCheck(self, request: Any, context: Context) -> Any:
        return qdrant_pb2.HealthCheckReply(title="qdrant - vector search engine", version=VERSION)


class CollectionsServicer(collections_service_pb2_grpc.CollectionsServicer):
    """qdrant.Collections."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    async def List(self, request: Any, context: Context) -> Any:
        names = [pb.CollectionDescription(name=name) for name in self._collections.names()]
        return pb.ListCollectionsResponse(collections=names)

    async def CollectionExists(self, request: Any, context: Context) -> Any:
        exists = self._collections.find(request.collection_name) is not None
        return pb.CollectionExistsResponse(result=pb.CollectionExists(exists=exists))

    async def Create(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            config = request.vectors_config
            if config.WhichOneof("config") != "params":
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only one unnamed vector is served by the embedded store")
            self._collections.create(request.collection_name, config.params.size, config.params.distance)
            return pb.CollectionOperationResponse(result=True)

        return await answer(context, work)

    async def Delete(self, request: Any, context: Context) -> Any:
        return await answer(
            context,
            lambda: pb.CollectionOperationResponse(result=self._collections.delete(request.collection_name)),
        )

    async def Get(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            collection = self._collections.get(request.collection_name)
            count = collection.shard.count(edge.CountRequest(exact=True))
            params = pb.VectorParams(size=collection.size, distance=pb.Distance.ValueType(collection.distance))
            info = pb.CollectionInfo(
                status=pb.CollectionStatus.Green,
                segments_count=collection.shard.info().segments_count,
                points_count=count,
                indexed_vectors_count=collection.shard.info().indexed_vectors_count,
                config=pb.CollectionConfig(
                    params=pb.CollectionParams(vectors_config=pb.VectorsConfig(params=params), shard_number=1)
                ),
            )
            return pb.GetCollectionInfoResponse(result=info)

        return await answer(context, work)


class PointsServicer(points_service_pb2_grpc.PointsServicer):
    """qdrant.Points."""

    def __init__(self, collections: Collections) -> None:
        self._collections = collections

    async def Upsert(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            collection = self._collections.get(request.collection_name)
            points = []
            for point in request.points:
                vector = dense(point.vectors.vector)
                if len(vector) != collection.size:
                    raise Refused(
                        grpc.StatusCode.INVALID_ARGUMENT,
                        f"Wrong input: Vector dimension error: expected dim: {collection.size}, got {len(vector)}",
                    )
                payload = {key: value_of(value) for key, value in point.payload.items()}
                points.append(edge.Point(id=point_id(point.id), vector=vector, payload=payload))
            collection.update(edge.UpdateOperation.upsert_points(points), len(points))
            return _completed()

        return await answer(context, work)

    async def Delete(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            collection = self._collections.get(request.collection_name)
            selector = request.points
            if selector.WhichOneof("points_selector_one_of") == "filter":
                collection.update(edge.UpdateOperation.delete_points_by_filter(filter_of(selector.filter)))
            else:
                ids: list[int | uuid.UUID | str] = [point_id(identifier) for identifier in selector.points.ids]
                collection.update(edge.UpdateOperation.delete_points(ids), len(ids))
            return _completed()

        return await answer(context, work)

    async def Query(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            started = time.perf_counter()
            nearest = request.query.nearest
            if request.query.WhichOneof("variant") != "nearest" or nearest.WhichOneof("variant") != "dense":
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "only nearest-vector queries are served")
            found = self._search(request, list(nearest.dense.data), request.limit or 10)
            return pb.QueryResponse(result=found, time=time.perf_counter() - started)

        return await answer(context, work)

    async def Search(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            started = time.perf_counter()
            found = self._search(request, list(request.vector), request.limit)
            return pb.SearchResponse(result=found, time=time.perf_counter() - started)

        return await answer(context, work)

    def _search(self, request: Any, vector: list[float], limit: int) -> list[Any]:
        shard = self._collections.get(request.collection_name).shard
        query = edge.QueryRequest(
            limit=limit,
            offset=request.offset,
            query=edge.Query.Nearest(vector),
            filter=filter_of(request.filter) if request.HasField("filter") else None,
            score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
            with_payload=payload_selector(request),
        )
        return scored(shard.query(query))

    async def Count(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            shard = self._collections.get(request.collection_name).shard
            condition = filter_of(request.filter) if request.HasField("filter") else None
            count = shard.count(edge.CountRequest(exact=True, filter=condition))
            return pb.CountResponse(result=pb.CountResult(count=count))

        return await answer(context, work)

    async def Scroll(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            shard = self._collections.get(request.collection_name).shard
            records, following = shard.scroll(
                edge.ScrollRequest(
                    offset=point_id(request.offset) if request.HasField("offset") else None,
                    limit=request.limit or 10,
                    filter=filter_of(request.filter) if request.HasField("filter") else None,
                    with_payload=payload_selector(request),
                    with_vector=False,
                )
            )
            points = [pb.RetrievedPoint(id=pb_point_id(r.id), payload=pb_payload(r.payload)) for r in records]
            offset = None if following is None else pb_point_id(following)
            return pb.ScrollResponse(result=points, next_page_offset=offset)

        return await answer(context, work)

    async def CreateFieldIndex(self, request: Any, context: Context) -> Any:
        def work() -> Any:
            collection = self._collections.get(request.collection_name)
            params: Any
            if request.field_type == pb.FieldType.FieldTypeFloat:
                params = edge.FloatIndexParams()
            elif request.field_type == pb.FieldType.FieldTypeInteger:
                params = edge.IntegerIndexParams()
            elif request.field_type == pb.FieldType.FieldTypeKeyword:
                is_tenant = request.field_index_params.keyword_index_params.is_tenant
                params = edge.KeywordIndexParams(is_tenant=is_tenant)
            else:
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "this kind of index is not served by the embedded store")
            collection.update(edge.UpdateOperation.create_field_index(request.field_name, params))
            return _completed()

        return await answer(context, work)


def _completed() -> Any:
    return pb.PointsOperationResponse(result=pb.UpdateResult(status=pb.UpdateStatus.Completed))


async def serve(path: Path, port: int, host: str = "127.0.0.1") -> None:
    """Serves the folder until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    collections = Collections(path)
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    qdrant_pb2_grpc.add_QdrantServicer_to_server(HealthServicer(), server)  # type: ignore[no-untyped-call]
    collections_service_pb2_grpc.add_CollectionsServicer_to_server(  # type: ignore[no-untyped-call]
        CollectionsServicer(collections), server
    )
    points_service_pb2_grpc.add_PointsServicer_to_server(  # type: ignore[no-untyped-call]
        PointsServicer(collections), server
    )
    bound = server.add_insecure_port(f"{host}:{port}")
    await server.start()
    print(f"listening on {host}:{bound}", flush=True)
    optimizer = asyncio.create_task(_optimize(collections))
    await stop.wait()
    optimizer.cancel()
    await server.stop(1.0)
    collections.close()


async def _optimize(collections: Collections) -> None:
    while True:
        await asyncio.sleep(OPTIMIZE_INTERVAL_S)
        try:
            collections.optimize_one()
        except Exception as error:  # the collection goes on without; it is tried again after as many changes
            print(f"could not optimize: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def main() -> None:
    """Reads the command line and serves."""
    parser = argparse.ArgumentParser(description="Qdrant's storage engine behind Qdrant's gRPC API.")
    parser.add_argument("--path", type=Path, required=True, help="folder of the data")
    parser.add_argument("--port", type=int, required=True, help="port on loopback; 0 lets the system choose")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.path, arguments.port))


if __name__ == "__main__":
    main()
