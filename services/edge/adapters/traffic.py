"""Kept questions and answers in Redis streams, two for each tenant and namespace: pairs, and what was said of them.

Every key carries the tenant as its hash tag and expires when nothing new came for as long as the policy keeps pairs.
"""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from llmmesh.common.v1 import chat_pb2
from services.common.chat import Answer, Chat
from services.common.chat_pb import answer_from_pb, answer_to_pb, chat_from_pb, chat_to_pb
from services.common.clock import Clock
from services.edge.adapters.redis import guard, tenant_key
from services.edge.domain.ports import Question
from services.edge.domain.traffic import Pair, Recording

MARKS_PER_PAIR = 4
PAGE = 100

Fields = dict[bytes, bytes]
FieldsOut = dict[bytes | bytearray | memoryview | str | int | float, bytes | bytearray | memoryview | str | int | float]


@dataclass(frozen=True, slots=True)
class KeptPair:
    """A pair as it was kept, at a unix time in seconds."""

    namespace: str
    request_id: str
    entry_id: str
    at: float
    model: str
    tier: str
    chat: Chat
    answer: Answer


@dataclass(frozen=True, slots=True)
class Marks:
    """Requests that callers called right or wrong, and the entries whose very answers some of them had got."""

    right: frozenset[str]
    wrong: frozenset[str]
    right_entries: frozenset[str]
    wrong_entries: frozenset[str]


class RedisTraffic:
    """Writes, reads and purges."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        """The client returns bytes."""
        self._redis = redis
        self._clock = clock

    async def keep(self, pair: Pair, limits: Recording) -> None:
        question = pair.question
        fields: FieldsOut = {
            "rid": question.request_id,
            "entry": pair.entry_id,
            "model": pair.model,
            "tier": pair.tier,
            "chat": chat_to_pb(question.chat).SerializeToString(),
            "answer": answer_to_pb(pair.answer).SerializeToString(),
        }
        await self._add(question.tenant, question.namespace, "pairs", fields, limits, limits.max_pairs)

    async def served(self, question: Question, entry_id: str, limits: Recording) -> None:
        await self._mark(question.tenant, question.namespace, {"rid": question.request_id, "entry": entry_id}, limits)

    async def judged(self, tenant: str, namespace: str, request_id: str, right: bool, limits: Recording) -> None:
        await self._mark(tenant, namespace, {"rid": request_id, "right": "1" if right else "0"}, limits)

    async def namespaces(self, tenant: str) -> list[str]:
        """Namespaces of which something is or was kept."""
        found = self._redis.smembers(_namespaces(tenant))
        return sorted(name.decode() for name in cast(set[bytes], await guard(cast(Awaitable[object], found))))

    async def count(self, tenant: str, namespace: str) -> int:
        """Pairs that are kept now."""
        return cast(int, await guard(self._redis.xlen(tenant_key(tenant, "traffic", namespace, "pairs"))))

    async def marks(self, tenant: str, namespace: str) -> Marks:
        """All that was said of a namespace's answers."""
        served: dict[str, str] = {}
        said: dict[str, bool] = {}
        async for _, fields in self._entries(tenant_key(tenant, "traffic", namespace, "marks")):
            request_id = fields[b"rid"].decode()
            if entry := fields.get(b"entry"):
                served[request_id] = entry.decode()
            else:
                # Once called wrong it stays so.
                said[request_id] = fields[b"right"] == b"1" and said.get(request_id, True)
        right = frozenset(request_id for request_id, good in said.items() if good)
        wrong = frozenset(said) - right
        return Marks(
            right,
            wrong,
            frozenset(served[request_id] for request_id in right & served.keys()),
            frozenset(served[request_id] for request_id in wrong & served.keys()),
        )

    async def pairs(self, tenant: str, namespace: str) -> AsyncIterator[KeptPair]:
        """The pairs of a namespace, newest first."""
        async for at, fields in self._entries(tenant_key(tenant, "traffic", namespace, "pairs")):
            yield KeptPair(
                namespace,
                fields[b"rid"].decode(),
                fields[b"entry"].decode(),
                at,
                fields[b"model"].decode(),
                fields[b"tier"].decode(),
                chat_from_pb(chat_pb2.Chat.FromString(fields[b"chat"])),
                answer_from_pb(chat_pb2.Answer.FromString(fields[b"answer"])),
            )

    async def purge(self, tenant: str, namespace: str) -> int:
        """Removes all that was kept; the number of pairs."""
        pairs, marks = (tenant_key(tenant, "traffic", namespace, kind) for kind in ("pairs", "marks"))
        pipe = self._redis.pipeline(transaction=True)
        pipe.xlen(pairs)
        pipe.delete(pairs, marks)
        pipe.srem(_namespaces(tenant), namespace)
        removed, *_ = cast(list[int], await guard(pipe.execute()))
        return removed

    async def _mark(self, tenant: str, namespace: str, fields: FieldsOut, limits: Recording) -> None:
        await self._add(tenant, namespace, "marks", fields, limits, limits.max_pairs * MARKS_PER_PAIR)

    async def _add(
        self, tenant: str, namespace: str, kind: str, fields: FieldsOut, limits: Recording, most: int
    ) -> None:
        key = tenant_key(tenant, "traffic", namespace, kind)
        oldest = int((self._clock.now() - limits.keep_s) * 1000)
        pipe = self._redis.pipeline(transaction=False)
        pipe.sadd(_namespaces(tenant), namespace)
        pipe.xadd(key, fields, maxlen=most, approximate=False)
        pipe.xtrim(key, minid=max(0, oldest), approximate=False)
        pipe.expire(key, int(limits.keep_s) + 1)
        await guard(pipe.execute())

    async def _entries(self, key: str) -> AsyncIterator[tuple[float, Fields]]:
        """Times in unix seconds and fields, newest first."""
        before = "+"
        while True:
            call = self._redis.xrevrange(key, before, "-", PAGE)
            page = cast(list[tuple[bytes, Fields]], await guard(cast(Awaitable[object], call)))
            for number, fields in page:
                yield int(number.split(b"-")[0]) / 1000, fields
            if len(page) < PAGE:
                return
            before = f"({page[-1][0].decode()}"


def _namespaces(tenant: str) -> str:
    return tenant_key(tenant, "traffic", "namespaces")
