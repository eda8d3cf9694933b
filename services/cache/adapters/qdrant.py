"""Vectors in Qdrant: one collection per embedding model and length, partitioned by tenant and scope.

It speaks through the gRPC stubs of the client: its own conversion of every request through pydantic costs more than the search.
"""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc
import grpc.aio
from qdrant_client import AsyncQdrantClient
from qdrant_client import grpc as pb

from services.cache.domain.ports import Neighbour, Vector, VectorsUnavailable

_NEVER = 1e12  # an expiry, in Unix seconds, that no clock reaches
_UNKNOWN = "und"  # ISO 639 for a language that was not made out


class QdrantVectors:
    """Vectors in Qdrant."""

    def __init__(self, client: AsyncQdrantClient, address: str, *, prefix: str, timeout: float) -> None:
        """`prefix` begins the names of the collections; `timeout` seconds for each call."""
        self._client = client
        self._address = address
        self._prefix = prefix
        self._timeout = timeout
        self._patience = max(10.0, timeout)  # building a collection takes longer than a search
        self._ensured: set[str] = set()
        self._creating = asyncio.Lock()

    async def missing(self) -> str | None:
        """None when Qdrant answers."""
        try:
            await self._client.grpc_collections.List(pb.ListCollectionsRequest(), timeout=self._timeout)
        except (grpc.RpcError, OSError):
            return f"qdrant at {self._address}"
        return None

    async def search(
        self,
        vector: Vector,
        tenant: str,
        scopes: Sequence[bytes],
        *,
        language: str,
        now: float,
        floor: float,
        limit: int,
    ) -> list[Neighbour]:
        must = [
            _keyword("tenant", tenant),
            _any_keyword("scope", [scope.hex() for scope in scopes]),
            pb.Condition(field=pb.FieldCondition(key="expires_at", range=pb.Range(gt=now))),
        ]
        if language:
            must.append(_any_keyword("language", [language, _UNKNOWN]))
        request = pb.QueryPoints(
            collection_name=self._name(vector.model_id, len(vector.values)),
            query=pb.Query(nearest=pb.VectorInput(dense=pb.DenseVector(data=vector.values.tolist()))),
            filter=pb.Filter(must=must),
            limit=limit,
            score_threshold=floor,
            with_payload=pb.WithPayloadSelector(include=pb.PayloadIncludeSelector(fields=["entry"])),
        )
        try:
            response = await self._client.grpc_points.Query(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if _code(error) is grpc.StatusCode.NOT_FOUND:
                self._ensured.discard(request.collection_name)
                return []
            raise VectorsUnavailable from error
        return [Neighbour(point.payload["entry"].string_value, point.score) for point in response.result]

    async def put(
        self,
        entry_id: str,
        vector: Vector,
        tenant: str,
        scopes: Sequence[bytes],
        *,
        language: str,
        expires_at: float | None,
    ) -> None:
        dimensions = len(vector.values)
        name = self._name(vector.model_id, dimensions)
        point = pb.PointStruct(
            id=_point_id(entry_id),
            vectors=pb.Vectors(vector=pb.Vector(dense=pb.DenseVector(data=vector.values.tolist()))),
            payload={
                "tenant": pb.Value(string_value=tenant),
                "scope": pb.Value(
                    list_value=pb.ListValue(values=[pb.Value(string_value=scope.hex()) for scope in scopes])
                ),
                "language": pb.Value(string_value=language or _UNKNOWN),
                "entry": pb.Value(string_value=entry_id),
                "expires_at": pb.Value(double_value=_NEVER if expires_at is None else expires_at),
            },
        )
        request = pb.UpsertPoints(collection_name=name, points=[point], wait=True)
        try:
            await self._ensure(name, dimensions)
            try:
                await self._client.grpc_points.Upsert(request, timeout=self._timeout)
            except grpc.RpcError as error:
                if _code(error) is not grpc.StatusCode.NOT_FOUND:
                    raise
                self._ensured.discard(name)  # the store was emptied behind our back
                await self._ensure(name, dimensions)
                await self._client.grpc_points.Upsert(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise VectorsUnavailable from error

    async def remove(self, model_id: str, dimensions: int, entry_ids: Sequence[str]) -> None:
        ids = pb.PointsIdsList(ids=[_point_id(entry_id) for entry_id in entry_ids])
        await self._delete(self._name(model_id, dimensions), pb.PointsSelector(points=ids))

    async def remove_expired(self, now: float) -> None:
        """Removes the vectors whose answers ended before `now`, in every collection of the cache."""
        try:
            listed = await self._client.grpc_collections.List(pb.ListCollectionsRequest(), timeout=self._timeout)
        except grpc.RpcError as error:
            raise VectorsUnavailable from error
        ended = pb.Condition(field=pb.FieldCondition(key="expires_at", range=pb.Range(lte=now)))
        for collection in listed.collections:
            if collection.name.startswith(self._prefix):
                await self._delete(collection.name, pb.PointsSelector(filter=pb.Filter(must=[ended])))

    async def _delete(self, name: str, selector: pb.PointsSelector) -> None:
        request = pb.DeletePoints(collection_name=name, points=selector, wait=False)
        try:
            await self._client.grpc_points.Delete(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if _code(error) is not grpc.StatusCode.NOT_FOUND:
                raise VectorsUnavailable from error

    async def _ensure(self, name: str, dimensions: int) -> None:
        if name in self._ensured:
            return
        async with self._creating:
            if name in self._ensured:
                return
            exists = await self._client.grpc_collections.CollectionExists(
                pb.CollectionExistsRequest(collection_name=name), timeout=self._timeout
            )
            if not exists.result.exists:
                await self._create(name, dimensions)
            # Also where the collection was there: whoever made it may have been cut off before its indexes.
            await self._index(name)
            self._ensured.add(name)

    async def _create(self, name: str, dimensions: int) -> None:
        params = pb.VectorParams(size=dimensions, distance=pb.Distance.Cosine)
        try:
            await self._client.grpc_collections.Create(
                pb.CreateCollection(collection_name=name, vectors_config=pb.VectorsConfig(params=params)),
                timeout=self._patience,
            )
        except grpc.RpcError as error:
            # Another replica may have been faster, which Qdrant tells by either of these.
            if _code(error) not in (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT):
                raise

    async def _index(self, name: str) -> None:
        """Makes the indexes of what is filtered by; Qdrant leaves alone those that are there."""
        keyword = pb.PayloadIndexParams(keyword_index_params=pb.KeywordIndexParams(is_tenant=True))
        for field, kind, options in (
            ("tenant", pb.FieldType.FieldTypeKeyword, keyword),
            ("scope", pb.FieldType.FieldTypeKeyword, None),
            ("language", pb.FieldType.FieldTypeKeyword, None),
            ("expires_at", pb.FieldType.FieldTypeFloat, None),
        ):
            await self._client.grpc_points.CreateFieldIndex(
                pb.CreateFieldIndexCollection(
                    collection_name=name, field_name=field, field_type=kind, field_index_params=options, wait=True
                ),
                timeout=self._patience,
            )

    def _name(self, model_id: str, dimensions: int) -> str:
        # Whatever is no plain character becomes its code: two models must never share a collection.
        plain = re.sub(r"[^A-Za-z0-9.-]", lambda match: f"_{ord(match[0]):x}_", model_id)
        return f"{self._prefix}{plain}-{dimensions}"


@asynccontextmanager
async def open_qdrant(
    address: str, *, api_key: str | None, tls: bool, prefix: str, timeout: float
) -> AsyncIterator[QdrantVectors]:
    """Vectors behind a gRPC address "host:port". The connection is made when first needed and again after a fault."""
    host, _, port = address.rpartition(":")
    client = AsyncQdrantClient(
        host=host or "127.0.0.1",
        grpc_port=int(port),
        prefer_grpc=True,
        https=tls,
        api_key=api_key,
        check_compatibility=False,
        grpc_options={
            # The default backs off for up to two minutes after an outage.
            "grpc.max_reconnect_backoff_ms": 1_000,
            "grpc.initial_reconnect_backoff_ms": 100,
        },
    )
    try:
        yield QdrantVectors(client, address, prefix=prefix, timeout=timeout)
    finally:
        await client.close()


def _point_id(entry_id: str) -> pb.PointId:
    return pb.PointId(uuid=str(uuid.UUID(entry_id[:32])))


def _keyword(key: str, value: str) -> pb.Condition:
    return pb.Condition(field=pb.FieldCondition(key=key, match=pb.Match(keyword=value)))


def _any_keyword(key: str, values: Sequence[str]) -> pb.Condition:
    if len(values) == 1:
        return _keyword(key, values[0])
    return pb.Condition(field=pb.FieldCondition(key=key, match=pb.Match(keywords=pb.RepeatedStrings(strings=values))))


def _code(error: grpc.RpcError) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.aio.AioRpcError) else None
