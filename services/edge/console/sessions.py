"""Who is signed in. The browser holds a random token, Redis its hash and which key it stands for.

    {llmmesh:console}:<sha256 of the token>  hash of the admin key; expires

A session ends with its key: that is looked up with every page.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from redis.asyncio import Redis

from services.common.clock import Clock
from services.edge.adapters.keys import hash_key
from services.edge.adapters.redis import guard
from services.edge.domain.keys import KeptKey, Key, Keys, Scope

LIFETIME_S = 12 * 3600
COOKIE = "llmmesh_console"
LOGIN_COOKIE = "llmmesh_login"


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody with an admin key."""

    token: str
    key: Key

    @property
    def csrf(self) -> str:
        """What every form of this session carries."""
        return csrf_of(self.token)


class Sessions:
    """Sessions of all replicas. Every method raises NotReady while Redis cannot be reached."""

    def __init__(self, redis: Redis, keys: Keys, find: Callable[[str], KeptKey | None], clock: Clock) -> None:
        """`find` gives the key with a hash, whether it works or not."""
        self._redis = redis
        self._keys = keys
        self._find = find
        self._clock = clock

    async def open(self, secret: str) -> Session:
        """A session for an admin key. Raises Unauthenticated or PermissionDenied."""
        key = self._keys.identify(f"Bearer {secret}", Scope.ADMIN)
        token = new_token()
        await guard(self._redis.set(_name(token), hash_key(secret.strip()), ex=LIFETIME_S))
        return Session(token, key)

    async def of(self, token: str | None) -> Session | None:
        """The session of a token; None where there is none, or its key is none (of an admin) any more."""
        if not token or len(token) > 128:
            return None
        digest = cast(bytes | None, await guard(self._redis.get(_name(token))))
        kept = None if digest is None else self._find(digest.decode())
        if kept is None or not kept.works(self._clock.now()) or not kept.key.may(Scope.ADMIN):
            return None
        return Session(token, kept.key)

    async def close(self, session: Session) -> None:
        """Ends a session."""
        await guard(self._redis.delete(_name(session.token)))


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def csrf_of(token: str) -> str:
    """What only who can read pages made for this token can know; the token itself cannot be told from it."""
    return hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()


def csrf_fits(token: str | None, given: str) -> bool:
    """Whether a form comes from a page that was made for this token."""
    return bool(token) and hmac.compare_digest(csrf_of(token or ""), given)


def _name(token: str) -> str:
    return f"{{llmmesh:console}}:{hashlib.sha256(token.encode()).hexdigest()}"
