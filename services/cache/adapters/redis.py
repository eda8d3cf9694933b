"""Bodies in Redis. Every key begins with the tenant as hash tag, so that each step touches one slot.

    {tenant}:e:<entry id>        the entry: times, header, payload; or an alias of another one. Expires with the answer
    {tenant}:c:<entry id>        how often the entry was checked and found right or wrong; expires
    {tenant}:g:<entry id>        the group of entries whose answers were found to be one; expires
    {tenant}:x:<key>:<entry id>  the entry was found wrong for the question with this exact key; expires
    {tenant}:v:<namespace>       the namespace's version; never expires
    {tenant}:t:<namespace>:<tag> sorted set of entry ids by expiry; never expires, so that memory pressure cannot lose a tag
    {tenant}:r:<request id>      the entry that answered the request, and what a word on it teaches; expires
    {tenant}:f:<request id>      a word on the request was taken; expires
    {tenant}:q:<namespace>       hash of the namespace's counters; never expires
    {tenant}:ql:<namespace>      list of its newest labels; never expires

Run Redis with `maxmemory-policy volatile-lru`: what expires may be evicted, the rest may not.
"""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from services.cache.domain.calibration import Label
from services.cache.domain.ports import Alias, Body, Candidate, Header, Note, StoreUnavailable
from services.cache.domain.signals import FEATURES

_PREFIX = struct.Struct("<BddI")  # format, created, expires (0 for never), length of the header
_FORMAT = 1
_ALIAS = struct.Struct("<B")  # format; the rest is JSON
_ALIAS_FORMAT = 2
_LABEL = struct.Struct(f"<{len(FEATURES) + 2}f")  # features, whether one answer served both, weight
_ENTRY_ID = 64  # length of an entry's id
_WRONG = 1 << 32  # both counts of an entry's checks are one number: wrong ones count this much, right ones 1
_CHECKS_S = 14 * 86_400  # how long checks of an entry, and what was found wrong, are remembered
_INFINITE = float("inf")
_MAX_NOTES = 20_000  # request ids that wait to be written; further ones are not noted
_MAX_TRIPS = 2  # reads under way at once; what arrives meanwhile shares the next one
_MAX_SHARED = 64

# An alias never takes the place of an entry, nor does one go that has become an entry. KEYS: entry. ARGV: alias, expiry in ms.
_PUT_ALIAS = """
local there = redis.call('GETRANGE', KEYS[1], 0, 0)
if there == '' or there == '\\2' then redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2]) end
return 0
"""
_DROP_ALIAS = """
if redis.call('GETRANGE', KEYS[1], 0, 0) == '\\2' then redis.call('UNLINK', KEYS[1]) end
return 0
"""


@dataclass(slots=True)
class _Fetch:
    tenant: str
    keys: list[str]
    values: "asyncio.Future[list[bytes | str | None]]"


class RedisBodies:
    """Entries, versions, tags and request ids in Redis."""

    def __init__(self, redis: Redis, address: str, *, note_ttl: int) -> None:
        """`address` names it in messages; a request id lives `note_ttl` seconds."""
        self._redis = redis
        self._address = address
        self._note_ttl = note_ttl
        self._notes: dict[str, bytes] = {}
        self._writing_notes = asyncio.Lock()
        self._waiting: list[_Fetch] = []
        self._trips = 0
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself holds them weakly

    async def missing(self) -> str | None:
        """None when Redis answers."""
        try:
            await self._redis.ping()
        except (TimeoutError, RedisError, OSError):
            return f"redis at {self._address}"
        return None

    async def fetch(
        self, tenant: str, namespace: str, entry_ids: Sequence[str]
    ) -> tuple[int, list[Body | Alias | None]]:
        prefix = f"{{{tenant}}}:e:"
        version, *values = await self._values(tenant, namespace, [prefix + entry_id for entry_id in entry_ids])
        return int(version or 0), [_unpack(value) for value in values]

    async def candidates(
        self, tenant: str, namespace: str, asked: str, entry_ids: Sequence[str]
    ) -> tuple[int, list[Candidate]]:
        keys: list[str] = []
        for entry_id in entry_ids:
            keys += (
                _entry_key(tenant, entry_id),
                _blocked_key(tenant, asked, entry_id),
                _checks_key(tenant, entry_id),
                _group_key(tenant, entry_id),
            )
        version, *values = await self._values(tenant, namespace, keys)
        found = []
        for index in range(0, len(values), 4):
            body, blocked, checks = _unpack(values[index]), values[index + 1], int(values[index + 2] or 0)
            found.append(
                Candidate(
                    body if isinstance(body, Body) else None,
                    blocked is not None,
                    checks % _WRONG,
                    checks // _WRONG,
                    _text(values[index + 3]),
                )
            )
        return int(version or 0), found

    async def _values(self, tenant: str, namespace: str, more: list[str]) -> "list[bytes | str | None]":
        """The namespace's version and what is under the other keys, all of one tenant."""
        keys = [f"{{{tenant}}}:v:{namespace}", *more]
        loop = asyncio.get_running_loop()
        waiting = _Fetch(tenant, keys, loop.create_future())
        self._waiting.append(waiting)
        if self._trips < _MAX_TRIPS:
            self._trips += 1
            task = loop.create_task(self._fetch_waiting())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await waiting.values

    async def _fetch_waiting(self) -> None:
        """Reads for all calls that wait: under load a trip to Redis is shared, which is most of its cost."""
        try:
            while self._waiting:
                first, self._waiting = self._waiting[:_MAX_SHARED], self._waiting[_MAX_SHARED:]
                batch = [fetch for fetch in first if not fetch.values.done()]  # the others have given up
                if batch:
                    await self._fetch_batch(batch)
        finally:
            # Here, in the same step that saw nobody wait: by the time a callback of the task runs, another call may have
            # counted this trip among those under way, started none, and would wait for ever.
            self._trips -= 1

    async def _fetch_batch(self, batch: list[_Fetch]) -> None:
        by_tenant: dict[str, list[_Fetch]] = {}
        for fetch in batch:
            by_tenant.setdefault(fetch.tenant, []).append(fetch)
        groups = list(by_tenant.values())
        try:
            replies = await self._read([[key for fetch in group for key in fetch.keys] for group in groups])
            for group, reply in zip(groups, replies, strict=True):
                start = 0
                for fetch in group:
                    end = start + len(fetch.keys)
                    if not fetch.values.done():
                        fetch.values.set_result(reply[start:end])
                    start = end
        except Exception as error:  # whatever it is, the calls that wait must hear of it
            down = isinstance(error, RedisError | OSError | TimeoutError)
            for fetch in batch:
                if not fetch.values.done():
                    fetch.values.set_exception(StoreUnavailable(str(error)) if down else error)

    async def _read(self, groups: list[list[str]]) -> "list[list[bytes | str | None]]":
        """One MGET a group, since the keys of a group share a slot, all in one trip."""
        if len(groups) == 1:
            return [await self._redis.mget(groups[0])]
        async with self._redis.pipeline(transaction=False) as pipe:
            for keys in groups:
                pipe.mget(keys)
            replies: list[list[bytes | str | None]] = await pipe.execute()
            return replies

    async def put(self, tenant: str, entry_id: str, body: Body, header: Header) -> None:
        expires = body.expires_at
        async with self._redis.pipeline(transaction=True) as pipe:
            for tag in header.tags:
                key = _tag_key(tenant, header.namespace, tag)
                pipe.zremrangebyscore(key, "-inf", body.created_at)
                pipe.zadd(key, {entry_id: _INFINITE if expires is None else expires})
            if header.request_id:
                pipe.set(_request_key(tenant, header.request_id), entry_id, ex=self._note_ttl)
            value = _pack(body, header)
            if expires is None:
                pipe.set(_entry_key(tenant, entry_id), value)
            else:
                pipe.set(_entry_key(tenant, entry_id), value, pxat=int(expires * 1000))
            try:
                await pipe.execute()
            except (TimeoutError, RedisError, OSError) as error:
                raise StoreUnavailable from error

    async def put_alias(self, tenant: str, exact_key: str, alias: Alias, expires_at: float) -> None:
        ends = str(int(expires_at * 1000))
        await self._script(_PUT_ALIAS, _entry_key(tenant, exact_key), _pack_alias(alias), ends)

    async def drop_alias(self, tenant: str, exact_key: str) -> None:
        await self._script(_DROP_ALIAS, _entry_key(tenant, exact_key))

    async def _script(self, script: str, key: str, *arguments: bytes | str) -> None:
        try:
            await cast("Awaitable[object]", self._redis.eval(script, 1, key, *arguments))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error

    async def join(self, tenant: str, entry_id: str, known_id: str, group: str) -> None:
        try:
            joined = _text(await self._redis.get(_group_key(tenant, known_id)))
            await self._redis.set(_group_key(tenant, entry_id), joined or group, ex=_CHECKS_S)
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error

    async def mark(self, tenant: str, asked: str, entry_id: str, *, right: bool) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            checks = _checks_key(tenant, entry_id)
            pipe.incrby(checks, 1 if right else _WRONG)
            pipe.expire(checks, _CHECKS_S)
            if not right:
                pipe.set(_blocked_key(tenant, asked, entry_id), b"1", ex=_CHECKS_S)
            try:
                await pipe.execute()
            except (TimeoutError, RedisError, OSError) as error:
                raise StoreUnavailable from error

    def header(self, body: Body) -> Header:
        fields = json.loads(body.header_bytes)
        return Header(
            question=fields["q"],
            namespace=fields["n"],
            vector_model=fields["m"],
            dimensions=fields["d"],
            tags=tuple(fields["t"]),
            request_id=fields["r"],
            # One that does not say may be a user's own.
            per_user=fields.get("u", True),
            cost=fields.get("c"),
            answer=fields.get("a", ""),
        )

    async def remove(self, tenant: str, namespace: str, entry_ids: Sequence[str], tag: str | None = None) -> int:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.unlink(*(_entry_key(tenant, entry_id) for entry_id in entry_ids))
            if tag is not None:
                pipe.zrem(_tag_key(tenant, namespace, tag), *entry_ids)
            try:
                removed, *_ = await pipe.execute()
            except (TimeoutError, RedisError, OSError) as error:
                raise StoreUnavailable from error
        return int(removed)

    async def tagged(self, tenant: str, namespace: str, tag: str) -> list[str]:
        try:
            members = await self._redis.zrange(_tag_key(tenant, namespace, tag), 0, -1)
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        return [member.decode() for member in members if isinstance(member, bytes)]

    async def answered(self, tenant: str, request_id: str) -> Note | None:
        key = _request_key(tenant, request_id)
        await self.flush_notes()
        try:
            note = await self._redis.get(key)
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        return _unpack_note(note) if isinstance(note, bytes) else None

    def note_answer(self, tenant: str, request_id: str, note: Note) -> None:
        if len(self._notes) < _MAX_NOTES:
            self._notes[_request_key(tenant, request_id)] = _pack_note(note)

    async def first_word(self, tenant: str, request_id: str) -> bool:
        try:
            return bool(await self._redis.set(f"{{{tenant}}}:f:{request_id}", b"1", nx=True, ex=self._note_ttl))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error

    async def counts(self, tenant: str, namespace: str) -> dict[str, float]:
        try:
            found = await cast("Awaitable[dict[bytes, bytes]]", self._redis.hgetall(f"{{{tenant}}}:q:{namespace}"))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        return {name.decode(): float(count) for name, count in found.items()}

    async def labels(self, tenant: str, namespace: str) -> list[Label]:
        try:
            found = await cast("Awaitable[list[bytes]]", self._redis.lrange(f"{{{tenant}}}:ql:{namespace}", 0, -1))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error
        # Those of a version with other features are none of ours.
        return [_unpack_label(label) for label in found if len(label) == _LABEL.size]

    async def add(
        self, tenant: str, namespace: str, counts: Mapping[str, float], labels: Sequence[Label], kept: int
    ) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            for name, count in counts.items():
                pipe.hincrbyfloat(f"{{{tenant}}}:q:{namespace}", name, count)
            if labels:
                key = f"{{{tenant}}}:ql:{namespace}"
                pipe.rpush(key, *(_LABEL.pack(*label.features, label.same, label.weight) for label in labels))
                pipe.ltrim(key, -kept, -1)
            try:
                await pipe.execute()
            except (TimeoutError, RedisError, OSError) as error:
                raise StoreUnavailable from error

    async def bump(self, tenant: str, namespace: str) -> int:
        try:
            return int(await self._redis.incr(f"{{{tenant}}}:v:{namespace}"))
        except (TimeoutError, RedisError, OSError) as error:
            raise StoreUnavailable from error

    async def version(self, tenant: str, namespace: str) -> int:
        version, _ = await self.fetch(tenant, namespace, ())
        return version

    async def flush_notes(self) -> None:
        """Writes the request ids that wait; when it returns, every one noted before the call is written.

        What cannot be written waits on. Raises StoreUnavailable.
        """
        async with self._writing_notes:
            if not self._notes:
                return
            notes, self._notes = self._notes, {}
            written = False
            try:
                async with self._redis.pipeline(transaction=False) as pipe:
                    for key, note in notes.items():
                        pipe.set(key, note, ex=self._note_ttl)
                    await pipe.execute()
                written = True
            except (TimeoutError, RedisError, OSError) as error:
                raise StoreUnavailable from error
            finally:
                if not written:
                    newest = list({**notes, **self._notes}.items())[-_MAX_NOTES:]
                    self._notes = dict(newest)


@asynccontextmanager
async def open_redis(url: str, *, timeout: float, connections: int, note_ttl: int) -> AsyncIterator[RedisBodies]:
    """Bodies over a pool of connections that are made when first needed and again after a fault."""
    redis: Redis = Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        max_connections=connections,
        # One more try with a fresh connection: a kept one may have died unseen.
        retry=Retry(NoBackoff(), 1),
    )
    bodies = RedisBodies(redis, _address(url), note_ttl=note_ttl)
    try:
        yield bodies
    finally:
        with suppress(StoreUnavailable):
            await bodies.flush_notes()
        await redis.aclose()


def _address(url: str) -> str:
    """The URL without what may be secret: user, password, and the query, which may hold them too."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2] + parts.path


def _entry_key(tenant: str, entry_id: str) -> str:
    return f"{{{tenant}}}:e:{entry_id}"


def _checks_key(tenant: str, entry_id: str) -> str:
    return f"{{{tenant}}}:c:{entry_id}"


def _group_key(tenant: str, entry_id: str) -> str:
    return f"{{{tenant}}}:g:{entry_id}"


def _text(value: bytes | str | None) -> str:
    return value.decode() if isinstance(value, bytes) else value or ""


def _blocked_key(tenant: str, asked: str, entry_id: str) -> str:
    return f"{{{tenant}}}:x:{asked}:{entry_id}"


def _tag_key(tenant: str, namespace: str, tag: str) -> str:
    return f"{{{tenant}}}:t:{namespace}:{tag}"


def _request_key(tenant: str, request_id: str) -> str:
    return f"{{{tenant}}}:r:{request_id}"


def _pack(body: Body, header: Header) -> bytes:
    fields = {
        "q": header.question,
        "n": header.namespace,
        "m": header.vector_model,
        "d": header.dimensions,
        "t": header.tags,
        "r": header.request_id,
        "u": header.per_user,
        "c": header.cost,
        "a": header.answer,
    }
    head = json.dumps(fields, separators=(",", ":")).encode()
    return _PREFIX.pack(_FORMAT, body.created_at, body.expires_at or 0.0, len(head)) + head + body.payload


def _unpack(value: bytes | str | None) -> Body | Alias | None:
    """The entry or alias; None where there is none, or bytes of another format, which count as absent."""
    if not isinstance(value, bytes) or not value:
        return None
    if value[0] == _ALIAS_FORMAT:
        return _unpack_alias(value)
    if len(value) < _PREFIX.size or value[0] != _FORMAT:
        return None
    _, created, expires, length = _PREFIX.unpack_from(value)
    start = _PREFIX.size + length
    return Body(value[start:], created, expires or None, value[_PREFIX.size : start])


def _pack_alias(alias: Alias) -> bytes:
    fields = [
        alias.target,
        alias.born,
        alias.similarity,
        alias.model_id,
        alias.probability,
        alias.judged,
        None if alias.features is None else [round(value, 5) for value in alias.features],
    ]
    return _ALIAS.pack(_ALIAS_FORMAT) + json.dumps(fields, separators=(",", ":")).encode()


def _unpack_alias(value: bytes) -> Alias | None:
    try:
        target, born, similarity, model_id, probability, judged, features = json.loads(value[_ALIAS.size :])
    except (ValueError, TypeError):
        return None
    known = features is not None and len(features) == len(FEATURES)
    return Alias(target, born, similarity, model_id, probability, judged, tuple(features) if known else None)


def _pack_note(note: Note) -> bytes:
    """The entry's id, then what belongs to a hit: the namespace, which holds no line break, and the lesson."""
    if not note.lesson:
        return note.entry_id.encode()
    return f"{note.entry_id}{note.namespace}\n".encode() + note.lesson


def _unpack_note(value: bytes) -> Note:
    namespace, _, lesson = value[_ENTRY_ID:].partition(b"\n")
    return Note(value[:_ENTRY_ID].decode(), namespace.decode(), lesson)


def _unpack_label(value: bytes) -> Label:
    *features, same, weight = _LABEL.unpack(value)
    return Label(tuple(features), same > 0.5, weight)
