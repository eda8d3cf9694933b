"""What a key lets its holder do, and how keys come and go."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from services.common.errors import FailedPrecondition

DAY_S = 86_400.0
SHOWN_S = 30 * DAY_S  # for so long a key that works no more is still listed
HINT = 7  # characters of a secret by which people tell their keys apart
DIGEST_IN_ID = 16  # hexadecimal digits


class Scope(StrEnum):
    """A right of a key. An admin may do everything, for every tenant."""

    INFERENCE = "inference"
    COSTS = "costs"
    ADMIN = "admin"


DEFAULT_SCOPES = frozenset({Scope.INFERENCE, Scope.COSTS})


@dataclass(frozen=True, slots=True)
class Key:
    """Who asks: the key's public name, its tenant, its rights. The key itself is nowhere.

    `requests_per_minute` is None where the key has no limit of its own.
    """

    id: str
    tenant: str
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    requests_per_minute: int | None = None

    def may(self, scope: Scope) -> bool:
        """Whether the key has a right."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class KeptKey:
    """A key as it is kept: all but the secret, of which there is only the hash. Times are unix seconds.

    `created_at` is None for a key out of the file; `expires_at` None for one that works for good. `lifetime_s` is how long it
    was meant to work when it was made: what takes its place gets as much.
    """

    digest: str
    key: Key
    name: str = ""
    hint: str = ""
    created_at: float | None = None
    lifetime_s: float | None = None
    expires_at: float | None = None
    revoked_at: float | None = None

    @property
    def ends_at(self) -> float | None:
        """From when on it works no more; None for never."""
        return min((at for at in (self.expires_at, self.revoked_at) if at is not None), default=None)

    def works(self, now: float) -> bool:
        """Whether it is any good."""
        return self.ends_at is None or now < self.ends_at

    def shown(self, now: float) -> bool:
        """Whether it is still listed."""
        return self.ends_at is None or now < self.ends_at + SHOWN_S


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new key is to be."""

    tenant: str
    name: str = ""
    scopes: frozenset[Scope] = DEFAULT_SCOPES
    requests_per_minute: int | None = None
    lifetime_s: float | None = None


def new_secret() -> str:
    """256 random bits. Who has it is the key's holder."""
    return f"lm-{secrets.token_urlsafe(32)}"


def made(wish: Wish, digest: str, hint: str, now: float) -> KeptKey:
    """A key as it was wished for. Its id is made of the hash: it tells nothing of the secret."""
    key = Key(f"key-{digest[:DIGEST_IN_ID]}", wish.tenant, wish.scopes, wish.requests_per_minute)
    expires_at = None if wish.lifetime_s is None else now + wish.lifetime_s
    return KeptKey(digest, key, wish.name, hint, now, wish.lifetime_s, expires_at)


def rotated(old: KeptKey, grace_s: float, digest: str, hint: str, now: float) -> tuple[KeptKey, KeptKey]:
    """The old key, which ends after its grace or when it would have ended anyway, and the new one with its rights.

    Raises FailedPrecondition for a key that works no more: nobody could go on with it meanwhile.
    """
    if not old.works(now):
        raise FailedPrecondition("the key works no more: make a new one")
    ends_at = now + grace_s if old.expires_at is None else min(old.expires_at, now + grace_s)
    wish = Wish(old.key.tenant, old.name, old.key.scopes, old.key.requests_per_minute, old.lifetime_s)
    return replace(old, expires_at=ends_at), made(wish, digest, hint, now)


def revoked(key: KeptKey, now: float) -> KeptKey:
    """The key, ended. One that was revoked stays as it is."""
    return key if key.revoked_at is not None else replace(key, revoked_at=now)


class Keys(Protocol):
    """The keys that there are. Never waits: who asks stands on the hot path."""

    def identify(self, authorization: str | None, scope: Scope) -> Key:
        """The key of an `authorization` header. Raises Unauthenticated, or PermissionDenied where it lacks the right."""
        ...


class SharedKeys(Protocol):
    """The keys that all replicas share, as far as this one knows them. Never waits."""

    @property
    def loaded(self) -> bool:
        """Whether they were read at all since this replica started."""
        ...

    def find(self, digest: str) -> KeptKey | None:
        """The key with this hash, whether it works or not."""
        ...

    def note_use(self, digest: str) -> None:
        """Remembers that a key was used now; written down later."""
        ...


class KeyStore(Protocol):
    """Where the shared keys are kept. Raises NotReady while it cannot be reached."""

    async def kept(self) -> list[KeptKey]:
        """All keys, as they are now."""
        ...

    async def last_uses(self) -> Mapping[str, float]:
        """When keys were used last: hash to unix seconds, to the minute."""
        ...

    async def add(self, key: KeptKey) -> None:
        """Keeps a new key."""
        ...

    async def change(self, key_id: str, how: Callable[[KeptKey], Sequence[KeptKey]]) -> Sequence[KeptKey]:
        """Replaces a key by what `how` makes of it, at once and whole; returns that. Raises UnknownKey."""
        ...


class Limits(Protocol):
    """How often a key may ask. Every door calls it once a request, after `identify` and before anything that costs."""

    async def admit(self, key: Key) -> None:
        """Lets one request of the key pass. Raises RateLimited with the time until the next minute.

        Returns at once for a key without a limit of its own; never fails because a store is down.
        """
        ...


def scopes_of(names: Iterable[str]) -> frozenset[Scope]:
    """Rights by name. Raises ValueError for a name that is none."""
    return frozenset(Scope(name) for name in names)
