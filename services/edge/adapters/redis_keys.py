"""Keys in Redis, without their secrets. All of them are in the memory of every replica: nobody waits for Redis to be let in.

{llmmesh:keys}:by_hash   hash: sha256 of the key, hex → JSON of all but the secret
{llmmesh:keys}:version   a random word that changes with every change
{llmmesh:keys}:used      hash: sha256 of the key, hex → the minute of its last use, unix seconds

The tag is none that a tenant may have. Nothing expires, so nothing is evicted.
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import cast

import structlog
from redis.asyncio import Redis

from services.common.clock import Clock
from services.common.errors import NotReady, UnknownKey
from services.edge.adapters.redis import guard
from services.edge.domain.keys import KeptKey, Key, scopes_of

log = structlog.get_logger()

POLL_S = 0.5
WRITE_USES_S = 20.0
ATTEMPTS = 10
BATCH = 500

BY_HASH, VERSION, USED = (f"{{llmmesh:keys}}:{name}" for name in ("by_hash", "version", "used"))

# Changes keys if they are what they were. KEYS: keys, version, last uses. ARGV: the new version, then for each key its hash, what
# it was and what it becomes; empty for one that is not there.
_SWAP = """
for i = 2, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 2, #ARGV, 3 do
  if ARGV[i + 2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
    redis.call('HDEL', KEYS[3], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
end
redis.call('SET', KEYS[2], ARGV[1])
return 1
"""

# KEYS: last uses. ARGV: hash and minute in turn. A later minute that is there already stays.
_USE = """
for i = 1, #ARGV, 2 do
  if tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or 0) < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
return 0
"""


class RedisKeys:
    """The shared keys, followed. While Redis is away all stays as it was seen last: known keys work, revoked ones do not."""

    def __init__(self, redis: Redis, clock: Clock) -> None:
        """The client returns bytes."""
        self._redis = redis
        self._clock = clock
        self._swap = redis.register_script(_SWAP)
        self._use = redis.register_script(_USE)
        self._reading = asyncio.Lock()
        self._loaded = False
        self._version: bytes | None = None
        self._raw: dict[bytes, bytes] = {}
        self._keys: dict[str, KeptKey] = {}
        self._used: dict[str, int] = {}
        self._written: dict[str, int] = {}

    @property
    def loaded(self) -> bool:
        return self._loaded

    def find(self, digest: str) -> KeptKey | None:
        return self._keys.get(digest)

    def note_use(self, digest: str) -> None:
        self._used[digest] = int(self._clock.now())

    async def follow(self) -> None:
        """Reads what changes and writes last uses, until it is cancelled."""
        loop = asyncio.get_running_loop()
        write_at = loop.time() + WRITE_USES_S
        away = False
        try:
            while True:
                try:
                    await self.refresh()
                    if loop.time() >= write_at:
                        await self.write_uses()
                        write_at = loop.time() + WRITE_USES_S
                    if away:
                        log.info("keys_followed_again", keys=len(self._keys))
                    away = False
                except NotReady as error:
                    if not away:
                        log.warning("keys_not_followed", error=error.message, known=len(self._keys))
                    away = True
                await asyncio.sleep(POLL_S)
        finally:
            if not away:
                await self._write_uses_at_the_end()

    async def refresh(self) -> None:
        """Reads the keys if they changed. Raises NotReady."""
        async with self._reading:  # else what was read earlier might be taken later
            await self._refresh()

    async def _refresh(self) -> None:
        version = cast(bytes | None, await guard(self._redis.get(VERSION)))
        if self._loaded and version == self._version:
            return
        pipe = self._redis.pipeline(transaction=True)
        pipe.get(VERSION)
        pipe.hgetall(BY_HASH)
        version, found = cast(tuple[bytes | None, dict[bytes, bytes]], await guard(pipe.execute()))
        if self._keys and not found:
            log.error("keys_are_gone", known=len(self._keys))
        self._install(found)
        self._version, self._loaded = version, True

    def _install(self, found: dict[bytes, bytes]) -> None:
        for digest in self._raw.keys() - found.keys():
            self._keys.pop(digest.decode(), None)
        for digest, raw in found.items():
            # A change concerns a key or two: the others are not parsed again.
            if self._raw.get(digest) != raw:
                kept = _parsed(digest, raw)
                if kept is None:
                    self._keys.pop(digest.decode(), None)
                else:
                    self._keys[kept.digest] = kept
        self._raw = found

    async def write_uses(self) -> None:
        """Writes the last uses that are not written yet. Raises NotReady."""
        minutes = {digest: at // 60 * 60 for digest, at in self._used.items()}
        fresh = [(digest, at) for digest, at in minutes.items() if self._written.get(digest) != at]
        for start in range(0, len(fresh), BATCH):
            batch = fresh[start : start + BATCH]
            args = [part for use in batch for part in use]
            await guard(cast(Awaitable[object], self._use(keys=[USED], args=args)))
            self._written.update(batch)

    async def _write_uses_at_the_end(self) -> None:
        try:
            await self.write_uses()
        except NotReady as error:
            log.warning("last_uses_lost", error=error.message)

    async def kept(self) -> list[KeptKey]:
        found = await self._read()
        now = self._clock.now()
        return [kept for _, kept in found.values() if kept.shown(now)]

    async def last_uses(self) -> Mapping[str, float]:
        call = cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(USED))
        uses = {digest.decode(): float(at) for digest, at in (await guard(call)).items()}
        for digest, at in self._used.items():
            uses[digest] = max(uses.get(digest, 0.0), at // 60 * 60)
        return uses

    async def add(self, key: KeptKey) -> None:
        await self._change(lambda _: [key])

    async def change(self, key_id: str, how: Callable[[KeptKey], Sequence[KeptKey]]) -> Sequence[KeptKey]:
        def of_one(found: Sequence[KeptKey]) -> Sequence[KeptKey]:
            one = next((kept for kept in found if kept.key.id == key_id), None)
            if one is None:
                raise UnknownKey("there is no key with this id")
            return how(one)

        return await self._change(of_one)

    async def _change(self, how: Callable[[Sequence[KeptKey]], Sequence[KeptKey]]) -> Sequence[KeptKey]:
        """Writes what `how` makes of the keys, and drops those that ended long ago; again if another was quicker."""
        for _ in range(ATTEMPTS):
            found = await self._read()
            now = self._clock.now()
            after = how([kept for _, kept in found.values() if kept.shown(now)])
            args: list[str | bytes] = [uuid.uuid4().hex]
            for kept in after:
                was, _ = found.get(kept.digest, (b"", kept))
                args += [kept.digest, was, _written(kept)]
            for digest, (raw, kept) in found.items():
                if not kept.shown(now):
                    args += [digest, raw, ""]
            if await guard(cast(Awaitable[object], self._swap(keys=[BY_HASH, VERSION, USED], args=args))):
                # Who made a key can use it at once, here at least.
                await self.refresh()
                return after
        raise NotReady("the keys change too quickly: try again")

    async def _read(self) -> dict[str, tuple[bytes, KeptKey]]:
        call = cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(BY_HASH))
        parsed = ((raw, _parsed(digest, raw)) for digest, raw in (await guard(call)).items())
        return {kept.digest: (raw, kept) for raw, kept in parsed if kept is not None}


def _written(kept: KeptKey) -> str:
    key = kept.key
    fields = {
        "id": key.id,
        "tenant": key.tenant,
        "scopes": sorted(scope.value for scope in key.scopes),
        "requests_per_minute": key.requests_per_minute,
        "name": kept.name,
        "hint": kept.hint,
        "created_at": kept.created_at,
        "lifetime_s": kept.lifetime_s,
        "expires_at": kept.expires_at,
        "revoked_at": kept.revoked_at,
    }
    return json.dumps({name: value for name, value in fields.items() if value not in (None, "")}, separators=(",", ":"))


def _parsed(digest: bytes, raw: bytes) -> KeptKey | None:
    """The key; None for what is none, which lets nobody in."""
    try:
        fields = json.loads(raw)
        key = Key(fields["id"], fields["tenant"], scopes_of(fields["scopes"]), fields.get("requests_per_minute"))
        return KeptKey(
            digest.decode(),
            key,
            fields.get("name", ""),
            fields.get("hint", ""),
            fields["created_at"],
            fields.get("lifetime_s"),
            fields.get("expires_at"),
            fields.get("revoked_at"),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        log.error("key_unreadable", digest=digest[:12].decode("ascii", "replace"))
        return None
