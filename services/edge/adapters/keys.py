"""API keys out of a file: {sha256 of the key, hex: {"tenant": …}}. The keys themselves are nowhere."""

import hashlib
import json
import re
from pathlib import Path

from services.common.errors import Unauthenticated
from services.common.yaml_file import ConfigError

_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


def hash_key(key: str) -> str:
    """How a key stands in the file. Keys are random and long, so a plain hash is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyFile:
    """Tenants by key. Re-read when the file changes, so that keys come and go without a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = 0
        self._tenants: dict[str, str] = {}
        self.reload()

    def tenant(self, authorization: str | None) -> str:
        """Tenant of an `authorization` header. Raises Unauthenticated."""
        if not authorization:
            raise Unauthenticated("a key is required: metadata `authorization: Bearer <key>`")
        scheme, _, key = authorization.partition(" ")
        tenant = self._tenants.get(hash_key(key.strip())) if scheme.lower() == "bearer" else None
        if tenant is None:
            raise Unauthenticated("the key is not known")
        return tenant

    def reload(self) -> None:
        """Reads the file if it changed. Raises ConfigError when it is missing or malformed."""
        try:
            stamp = self._path.stat().st_mtime_ns
            if stamp == self._stamp:
                return
            content = json.loads(self._path.read_text(encoding="utf-8"))
            tenants = {digest: entry["tenant"] for digest, entry in content.items()}
        except OSError as error:
            raise ConfigError(f"{self._path}: {error.strerror}: the key file is required") from None
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ConfigError(f'{self._path}: expected {{"<sha256 of the key>": {{"tenant": "<name>"}}}}') from None
        wrong = [t for t in tenants.values() if not isinstance(t, str) or not _TENANT.fullmatch(t)]
        if wrong:
            raise ConfigError(f"{self._path}: {wrong[0]!r} is not a tenant's name: 1 to 64 of A-Z a-z 0-9 . _ -")
        self._tenants, self._stamp = tenants, stamp
