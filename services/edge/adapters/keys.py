"""API keys: out of a file, {sha256 of the key, hex: {"tenant": …, "scopes": […]}}, and out of the store that all replicas share.

The keys themselves are nowhere. One hash and at most two look-ups say whose a key is.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from services.common.clock import Clock
from services.common.errors import NotReady, PermissionDenied, Unauthenticated
from services.common.yaml_file import ConfigError
from services.edge.domain.keys import DEFAULT_SCOPES, KeptKey, Key, Scope, SharedKeys, scopes_of

TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
MAX_REQUESTS_PER_MINUTE = 1_000_000


def hash_key(key: str) -> str:
    """How a key is kept. Keys are random and long, so a plain hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyFile:
    """Keys by hash. Re-read when the file changes, so that keys come and go without a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = 0
        self._keys: dict[str, KeptKey] = {}
        self.reload()

    def identify(self, authorization: str | None, scope: Scope) -> Key:
        kept = self.find(_digest_of(authorization))
        if kept is None:
            raise _unknown()
        return _allowed(kept.key, scope)

    def find(self, digest: str) -> KeptKey | None:
        """The key with this hash."""
        return self._keys.get(digest)

    def kept(self) -> Iterable[KeptKey]:
        """All keys of the file."""
        return self._keys.values()

    def reload(self) -> None:
        """Reads the file if it changed. Raises ConfigError when it is missing or malformed."""
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp == self._stamp:
                return
            content = json.loads(self._path.read_text(encoding="utf-8"))
            keys = {digest: _key_of(digest, entry) for digest, entry in content.items()}
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}: the key file is required") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(
                f'{self._path}: expected {{"<sha256 of the key>": {{"tenant": "<name>", "scopes": ["inference", "costs"]}}}}'
            ) from None
        tenants = [kept.key.tenant for kept in keys.values()]
        wrong = [tenant for tenant in tenants if not isinstance(tenant, str) or not TENANT.fullmatch(tenant)]
        if wrong:
            raise ConfigError(f"{self._path}: {wrong[0]!r} is not a tenant's name: 1 to 64 of A-Z a-z 0-9 . _ -")
        self._keys, self._stamp = keys, stamp


class KeyRing:
    """The shared keys and those of the file. Where both have a key the shared one counts: it can be revoked."""

    def __init__(self, shared: SharedKeys, file: KeyFile, clock: Clock) -> None:
        self._shared = shared
        self._file = file
        self._clock = clock

    def identify(self, authorization: str | None, scope: Scope) -> Key:
        """As `Keys` says; raises NotReady for a key that may be one of those that could not be read so far."""
        digest = _digest_of(authorization)
        kept = self._shared.find(digest) or self._file.find(digest)
        if kept is None:
            if not self._shared.loaded:
                raise NotReady("the keys could not be read yet")
            raise _unknown()
        if kept.ends_at is not None and not kept.works(self._clock.now()):
            # Only who has the secret learns it.
            how = "was revoked" if kept.revoked_at is not None else "expired"
            raise Unauthenticated(f"the key {how} at {datetime.fromtimestamp(kept.ends_at, UTC):%Y-%m-%d %H:%M} UTC")
        self._shared.note_use(digest)
        return _allowed(kept.key, scope)


def _digest_of(authorization: str | None) -> str:
    if not authorization:
        raise Unauthenticated("a key is required: metadata `authorization: Bearer <key>`")
    scheme, _, secret = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise _unknown()
    return hash_key(secret.strip())


def _unknown() -> Unauthenticated:
    return Unauthenticated("the key is not known")


def _allowed(key: Key, scope: Scope) -> Key:
    if not key.may(scope):
        raise PermissionDenied(f"the key lacks the scope {scope.value!r}")
    return key


def _key_of(digest: str, entry: dict[str, object]) -> KeptKey:
    scopes = entry.get("scopes")
    if scopes is None:
        rights = DEFAULT_SCOPES
    elif isinstance(scopes, list):
        rights = scopes_of(scopes)
    else:
        raise TypeError("scopes must be a list")
    per_minute = entry.get("requests_per_minute", 0)
    if type(per_minute) is not int or not 0 <= per_minute <= MAX_REQUESTS_PER_MINUTE:
        raise TypeError("requests_per_minute must be a whole number")
    tenant = entry["tenant"]
    return KeptKey(digest, Key(f"file-{digest[:12]}", tenant, rights, per_minute or None))  # type: ignore[arg-type] # checked with the others
