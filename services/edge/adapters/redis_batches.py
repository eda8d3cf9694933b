"""Batches in Redis. What belongs to one carries its tenant as hash tag, so each step runs on one slot of a cluster.

{tenant}:batches                    sorted set: batch by time of creation
{tenant}:batches:open               set: batches that have not ended
{tenant}:batches:keys               hash: idempotency key → batch
{tenant}:batch:<id>                 hash: what it is, its status, who holds it, its sums, its submissions
{tenant}:batch:<id>:items           hash: index → item as it came; goes when the batch ends
{tenant}:batch:<id>:plans           hash: index → how a miss goes on; goes when the batch ends
{tenant}:batch:<id>:results         hash: index → result as it is streamed
{tenant}:batch:<id>:records         hash: usage record id → record that the ledger may not have
batches:due, batches:ended          sorted sets over all tenants: "tenant/batch" by the time to look after it, and of its end

Nothing expires by itself: what has a lifetime may be evicted before its time. A hold is a field and no key, for the same reason.
"""

import asyncio
import base64
import json
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

from redis.asyncio import Redis

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import batch_pb2
from services.common.chat_pb import chat_from_pb, chat_to_pb
from services.common.errors import FailedPrecondition, NotReady, RateLimited
from services.common.money import CostItem
from services.edge.adapters.redis import guard, tenant_key
from services.edge.batch_convert import outcome_to_pb
from services.edge.domain.batch import (
    MAX_OPEN,
    Batch,
    BatchItem,
    BatchStatus,
    Held,
    HoldLost,
    ItemFailure,
    Mode,
    Outcome,
    Plan,
    Ref,
    Submission,
    Tally,
    Work,
)
from services.edge.domain.ledger import UsageRecord
from services.edge.domain.ports import CacheControl, Vector

_DUE, _ENDED = "batches:due", "batches:ended"
_CHUNK = 500  # items in one command
_ORPHAN_S = 3600.0  # a batch that was announced so long ago and has no head will never have one
_SUMS = ("answered", "cached", "failed", "cancelled", "unpriced", "actual", "baseline", "overhead")
_LAYERS = ("cache", "routing", "compression", "prompt_cache", "batch")
_COUNTERS = (*_SUMS, *(f"saved.{layer}" for layer in _LAYERS))
_SHOWN = ["head", "status", "ended_at", *_COUNTERS]

# KEYS: head, batches, open, keys. ARGV: id, head, created at, most open ones, idempotency key. Returns 1, 0 when too many are
# open, or the id that the key made before.
_CREATE = """
if ARGV[5] ~= '' then
  local known = redis.call('HGET', KEYS[4], ARGV[5])
  if known then return known end
end
if redis.call('SCARD', KEYS[3]) >= tonumber(ARGV[4]) then return 0 end
redis.call('HSET', KEYS[1], 'head', ARGV[2], 'status', 'in_progress', 'fence', 0, 'holder', '', 'until', 0)
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
if ARGV[5] ~= '' then redis.call('HSET', KEYS[4], ARGV[5], ARGV[1]) end
return 1
"""

# KEYS: head. ARGV: holder, milliseconds. Returns the fence, 0 while another one holds it, -1 when it is not there.
_HOLD = """
local head = redis.call('HMGET', KEYS[1], 'holder', 'until', 'fence')
if not head[3] then return -1 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local mine = head[1] == ARGV[1]
if not mine and head[1] ~= '' and tonumber(head[2]) > now then return 0 end
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'until', now + tonumber(ARGV[2]))
if mine then return tonumber(head[3]) end
return redis.call('HINCRBY', KEYS[1], 'fence', 1)
"""

_FENCE = "if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return -1 end\n"

# KEYS: head. ARGV: fence. Returns the status.
_RELEASE = (
    _FENCE
    + """
redis.call('HSET', KEYS[1], 'holder', '', 'until', 0)
return redis.call('HGET', KEYS[1], 'status')
"""
)

# KEYS: head, a hash. ARGV: fence, then field and value in turn.
_PUT = (
    _FENCE
    + """
for i = 2, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
return 1
"""
)

# KEYS: head, results, records. ARGV: fence, number of counters, their names, then for each item: index, result, record id,
# record and an amount for each counter.
_COMMIT = (
    _FENCE
    + """
local counters = tonumber(ARGV[2])
for i = 3 + counters, #ARGV, 4 + counters do
  if redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) == 1 then
    redis.call('HSET', KEYS[3], ARGV[i + 2], ARGV[i + 3])
    for c = 1, counters do
      if ARGV[i + 3 + c] ~= '0' then redis.call('HINCRBY', KEYS[1], ARGV[2 + c], ARGV[i + 3 + c]) end
    end
  end
end
return 1
"""
)

# KEYS: head, open, items, plans. ARGV: fence, id, status, time.
_END = (
    _FENCE
    + """
redis.call('HSET', KEYS[1], 'status', ARGV[3], 'ended_at', ARGV[4])
redis.call('SREM', KEYS[2], ARGV[2])
redis.call('UNLINK', KEYS[3], KEYS[4])
return 1
"""
)

# KEYS: head.
_CANCEL = """
if redis.call('HGET', KEYS[1], 'status') == 'in_progress' then redis.call('HSET', KEYS[1], 'status', 'cancelling') end
return 1
"""


class RedisBatches:
    """Where batches are kept."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, batch: Batch, items: Sequence[BatchItem]) -> Batch:
        ref = Ref(batch.tenant, batch.id)
        # Announced first: a batch that nobody would look after must not come to be.
        await guard(self._redis.zadd(_DUE, {_member(ref): batch.created_at}))
        for start in range(0, len(items), _CHUNK):
            chunk = {str(start + i): _item_bytes(item) for i, item in enumerate(items[start : start + _CHUNK])}
            await guard(self._redis.hset(_key(ref, "items"), mapping=cast(Any, chunk)))
        made = await self._eval(
            _CREATE,
            (_key(ref), *(_of_tenant(ref, name) for name in ("batches", "batches:open", "batches:keys"))),
            (batch.id, _head_json(batch), repr(batch.created_at), MAX_OPEN, batch.key),
        )
        if made == 1:
            return batch
        await guard(self._redis.unlink(_key(ref, "items")))
        await guard(self._redis.zrem(_DUE, _member(ref)))
        if made == 0:
            raise RateLimited(f"{MAX_OPEN} batches are open; wait until one has ended", retry_after_s=60.0)
        known = await self.get(Ref(batch.tenant, cast(bytes, made).decode()))
        if known is None:
            raise NotReady("the batch of this idempotency key is being removed")
        if known.digest != batch.digest:
            raise FailedPrecondition("this idempotency key belongs to a batch with another content")
        return known

    async def get(self, ref: Ref) -> Batch | None:
        # By name: its submissions are large.
        raw = await guard(cast(Awaitable[list[bytes | None]], self._redis.hmget(_key(ref), _SHOWN)))
        fields = {name.encode(): value for name, value in zip(_SHOWN, raw, strict=True) if value is not None}
        return _batch(ref, fields) if fields else None

    async def page(self, tenant: str, limit: int, after: str) -> list[Batch]:
        key = _of_tenant(Ref(tenant, ""), "batches")
        start = 0
        if after:
            rank = await guard(cast(Awaitable[int | None], self._redis.zrevrank(key, after)))
            if rank is None:
                return []
            start = rank + 1
        ids = await guard(cast(Awaitable[list[bytes]], self._redis.zrevrange(key, start, start + limit - 1)))
        found = [await self.get(Ref(tenant, id_.decode())) for id_ in ids]
        return [batch for batch in found if batch is not None]

    async def cancel(self, ref: Ref) -> Batch | None:
        if await self.get(ref) is None:
            return None
        await self._eval(_CANCEL, (_key(ref),), ())
        # Somebody else's hold goes on; who has it sees the new status when its turn is over.
        await guard(self._redis.zadd(_DUE, {_member(ref): 0}, xx=True))
        return await self.get(ref)

    async def results(self, ref: Ref, indices: Sequence[int]) -> list[batch_pb2.StreamBatchResultsResponse]:
        """The results that there are of these items, in their order."""
        if not indices:
            return []
        raw = await self._hmget(_key(ref, "results"), indices)
        return [batch_pb2.StreamBatchResultsResponse.FromString(value) for value in raw if value is not None]

    async def ended(self, ref: Ref) -> list[int]:
        """Which items have a result, in order."""
        return sorted(await self._indices(_key(ref, "results")))

    async def due(self, now: float, at_most: int) -> list[Ref]:
        raw = await guard(
            cast(Awaitable[list[bytes]], self._redis.zrangebyscore(_DUE, "-inf", now, start=0, num=at_most))
        )
        return [_ref(member) for member in raw]

    async def hold(self, ref: Ref, holder: str, for_s: float, now: float) -> Held | None:
        fence = cast(int, await self._eval(_HOLD, (_key(ref),), (holder, int(for_s * 1000))))
        member = _member(ref)
        if fence == -1:
            announced = await guard(self._redis.zscore(_DUE, member))
            if announced is not None and announced < now - _ORPHAN_S:
                await guard(self._redis.zrem(_DUE, member))
                await guard(self._redis.unlink(_key(ref, "items")))
            return None
        if fence == 0:
            return None
        # The others look again when the hold could have ended.
        await guard(self._redis.zadd(_DUE, {member: now + for_s}, xx=True))
        return Held(ref, holder, fence)

    async def release(self, held: Held, due_at: float | None, *, cancelling: bool) -> None:
        status = await self._fenced(held, _RELEASE, (_key(held.ref),), ())
        # Should this not come about any more, somebody looks when the hold would have ended.
        if due_at is None:
            await guard(self._redis.zrem(_DUE, _member(held.ref)))
        else:
            at_once = status == b"cancelling" and not cancelling
            await guard(self._redis.zadd(_DUE, {_member(held.ref): 0 if at_once else due_at}, xx=True))

    async def work(self, held: Held) -> Work:
        ref = held.ref
        fields = await guard(cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(_key(ref))))
        if fields.get(b"fence") != str(held.fence).encode():
            raise HoldLost
        submissions = [_submission(value) for name, value in fields.items() if name.startswith(b"sub:")]
        return Work(
            _batch(ref, fields),
            tuple(sorted(submissions, key=lambda s: (s.made, s.id))),
            await self._indices(_key(ref, "plans")),
            await self._indices(_key(ref, "results")),
        )

    async def items(self, ref: Ref, indices: Sequence[int]) -> dict[int, BatchItem]:
        raw = await self._hmget(_key(ref, "items"), indices)
        # Off the loop: reading thousands of chats would hold up everybody else.
        return await asyncio.to_thread(
            lambda: {index: _item(value) for index, value in zip(indices, raw, strict=True) if value is not None}
        )

    async def plans(self, ref: Ref, indices: Sequence[int]) -> dict[int, Plan]:
        raw = await self._hmget(_key(ref, "plans"), indices)
        return {index: _plan(value) for index, value in zip(indices, raw, strict=True) if value is not None}

    async def save_plans(self, held: Held, plans: Mapping[int, Plan]) -> None:
        args = [arg for index, plan in plans.items() for arg in (index, _plan_json(plan))]
        await self._fenced(held, _PUT, (_key(held.ref), _key(held.ref, "plans")), args)

    async def save_submission(self, held: Held, submission: Submission) -> None:
        head = _key(held.ref)
        await self._fenced(held, _PUT, (head, head), (f"sub:{submission.id}", _submission_json(submission)))

    async def commit(self, held: Held, outcomes: Sequence[Outcome]) -> None:
        args: list[str | int | bytes] = [len(_COUNTERS), *_COUNTERS]
        for outcome in outcomes:
            tally, record = outcome.tally, outcome.record
            args += [
                outcome.index,
                outcome_to_pb(outcome).SerializeToString(),
                record.record_id,
                _dumps(record.to_json()),
            ]
            args += [getattr(tally, name) for name in _SUMS]
            args += tally.savings
        ref = held.ref
        await self._fenced(held, _COMMIT, (_key(ref), _key(ref, "results"), _key(ref, "records")), args)

    async def unrecorded(self, ref: Ref) -> list[UsageRecord]:
        raw = await guard(cast(Awaitable[list[bytes]], self._redis.hvals(_key(ref, "records"))))
        return [UsageRecord.from_json(json.loads(value)) for value in raw]

    async def recorded(self, ref: Ref, records: Sequence[UsageRecord]) -> None:
        if records:
            names = [record.record_id for record in records]
            await guard(self._redis.hdel(_key(ref, "records"), *names))

    async def end(self, held: Held, status: BatchStatus, at: float) -> None:
        ref = held.ref
        # First where it is found for removal: what is not there any more does not need to be removed.
        await guard(self._redis.zadd(_ENDED, {_member(ref): at}))
        keys = (_key(ref), _of_tenant(ref, "batches:open"), _key(ref, "items"), _key(ref, "plans"))
        await self._fenced(held, _END, keys, (ref.id, status.value, repr(at)))

    async def remove_old(self, before: float) -> None:
        raw = await guard(cast(Awaitable[list[bytes]], self._redis.zrangebyscore(_ENDED, "-inf", before)))
        for ref in map(_ref, raw):
            batch = await self.get(ref)
            if batch is not None and batch.status.ended:
                parts = ("items", "plans", "results", "records")
                if batch.key:
                    keys = _of_tenant(ref, "batches:keys")
                    await guard(self._redis.hdel(keys, batch.key))
                await guard(self._redis.zrem(_of_tenant(ref, "batches"), ref.id))
                await guard(self._redis.unlink(_key(ref), *(_key(ref, part) for part in parts)))
            await guard(self._redis.zrem(_ENDED, _member(ref)))

    async def _indices(self, key: str) -> frozenset[int]:
        return frozenset(map(int, await guard(cast(Awaitable[list[bytes]], self._redis.hkeys(key)))))

    async def _hmget(self, key: str, indices: Sequence[int]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for start in range(0, len(indices), _CHUNK):
            names = [str(index) for index in indices[start : start + _CHUNK]]
            found += await guard(cast(Awaitable[list[bytes | None]], self._redis.hmget(key, names)))
        return found

    async def _fenced(
        self, held: Held, script: str, keys: Sequence[str], args: Sequence[str | int | bytes]
    ) -> bytes | int:
        answer = await self._eval(script, keys, (held.fence, *args))
        if answer == -1:
            raise HoldLost
        return answer

    async def _eval(self, script: str, keys: Sequence[str], args: Sequence[str | int | bytes]) -> bytes | int:
        call = self._redis.eval(script, len(keys), *keys, *args)
        return await guard(cast(Awaitable[bytes | int], call))


def _key(ref: Ref, *part: str) -> str:
    return tenant_key(ref.tenant, "batch", ref.id, *part)


def _of_tenant(ref: Ref, name: str) -> str:
    return tenant_key(ref.tenant, name)


def _member(ref: Ref) -> str:
    return f"{ref.tenant}/{ref.id}"


def _ref(member: bytes) -> Ref:
    tenant, _, id_ = member.decode().partition("/")
    return Ref(tenant, id_)


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _head_json(batch: Batch) -> str:
    return _dumps(
        {
            "total": batch.total,
            "created_at": batch.created_at,
            "namespace": batch.namespace,
            "endpoint": batch.endpoint,
            "user": batch.user,
            "control": asdict(batch.control),
            "key": batch.key,
            "digest": batch.digest,
        }
    )


def _batch(ref: Ref, fields: Mapping[bytes, bytes]) -> Batch:
    head = json.loads(fields[b"head"])
    control = head.pop("control")
    sums = {name: int(fields.get(name.encode(), 0)) for name in _COUNTERS}
    ended_at = fields.get(b"ended_at")
    return Batch(
        ref.id,
        ref.tenant,
        **head,
        control=CacheControl(**(control | {"tags": tuple(control["tags"])})),
        status=BatchStatus(fields[b"status"].decode()),
        ended_at=None if ended_at is None else float(ended_at),
        tally=Tally(
            **{name: sums[name] for name in _SUMS},
            savings=cast(tuple[int, int, int, int, int], tuple(sums[f"saved.{layer}"] for layer in _LAYERS)),
        ),
    )


def _item_bytes(item: BatchItem) -> bytes:
    chat = item.wire if isinstance(item.wire, chat_pb2.Chat) else chat_to_pb(item.chat)
    return batch_pb2.BatchItem(custom_id=item.custom_id, chat=chat, model=item.model).SerializeToString()


def _item(raw: bytes) -> BatchItem:
    pb = batch_pb2.BatchItem.FromString(raw)
    return BatchItem(pb.custom_id, chat_from_pb(pb.chat), pb.model, pb.chat)


def _plan_json(plan: Plan) -> str:
    chat = "" if plan.chat is None else _text(chat_to_pb(plan.chat).SerializeToString())
    vector = plan.vector and [_text(plan.vector.values), plan.vector.model_id, plan.vector.dimensions]
    fields = {name: getattr(plan, name) for name in Plan.__slots__}
    overhead = [(i.component, i.model, i.cost) for i in plan.overhead]
    return _dumps(fields | {"chat": chat, "vector": vector, "overhead": overhead, "lesson": _text(plan.lesson)})


def _plan(raw: bytes) -> Plan:
    fields = json.loads(raw)
    chat, vector = fields["chat"], fields["vector"]
    return Plan(
        **fields
        | {
            "candidates": tuple(fields["candidates"]),
            "degraded": tuple(fields["degraded"]),
            "chat": chat_from_pb(chat_pb2.Chat.FromString(base64.b64decode(chat))) if chat else None,
            "vector": vector and Vector(base64.b64decode(vector[0]), vector[1], vector[2]),
            "overhead": tuple(
                CostItem(component, model, cost, overhead=True) for component, model, cost in fields["overhead"]
            ),
            "lesson": base64.b64decode(fields["lesson"]),
        }
    )


def _submission_json(submission: Submission) -> str:
    return _dumps(
        asdict(replace(submission, failures_of={}))
        | {"failures_of": [asdict(failure) for failure in submission.failures_of.values()]}
    )


def _submission(raw: bytes) -> Submission:
    fields = json.loads(raw)
    failures = [ItemFailure(**failure) for failure in fields["failures_of"]]
    return Submission(
        **fields
        | {
            "mode": Mode(fields["mode"]),
            "candidates": tuple(fields["candidates"]),
            "items": tuple(fields["items"]),
            "windows": tuple(fields.get("windows", ())),
            "failures_of": {failure.index: failure for failure in failures},
        }
    )


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
