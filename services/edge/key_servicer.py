"""KeyService of the edge. Every change is a line in the log that names who made it, by key id."""

import structlog

from llmmesh.edge.v1 import keys_pb2, keys_pb2_grpc
from services.common.clock import Clock
from services.common.errors import FailedPrecondition
from services.edge import key_convert as convert
from services.edge.adapters.keys import KeyFile, hash_key
from services.edge.domain.keys import HINT, Key, Keys, KeyStore, Scope, made, new_secret, revoked, rotated
from services.edge.servicer import Context, headers_of

log = structlog.get_logger()


class KeyServicer(keys_pb2_grpc.KeyServiceServicer):
    """Makes and ends keys, of every tenant, for who has an admin key."""

    def __init__(self, store: KeyStore, file: KeyFile, keys: Keys, clock: Clock) -> None:
        self._store = store
        self._file = file
        self._keys = keys
        self._clock = clock

    async def CreateKey(self, request: keys_pb2.CreateKeyRequest, context: Context) -> keys_pb2.CreateKeyResponse:
        admin = self._admin(context)
        wish = convert.wish_from_pb(request)
        secret = new_secret()
        kept = made(wish, hash_key(secret), secret[:HINT], self._clock.now())
        await self._store.add(kept)
        log.info("key_created", key_id=kept.key.id, key_tenant=wish.tenant, scopes=sorted(wish.scopes), by=admin.id)
        return keys_pb2.CreateKeyResponse(key=convert.key_to_pb(kept), secret=secret)

    async def ListKeys(self, request: keys_pb2.ListKeysRequest, context: Context) -> keys_pb2.ListKeysResponse:
        self._admin(context)
        tenant = convert.tenant_from_pb(request)
        keys = [*self._file.kept(), *await self._store.kept()]
        wanted = [kept for kept in keys if tenant in (None, kept.key.tenant)]
        return convert.keys_to_pb(wanted, await self._store.last_uses())

    async def RotateKey(self, request: keys_pb2.RotateKeyRequest, context: Context) -> keys_pb2.RotateKeyResponse:
        admin = self._admin(context)
        key_id, grace_s = self._changeable(request.id), convert.grace_from_pb(request)
        secret = new_secret()
        digest, now = hash_key(secret), self._clock.now()
        old, new = await self._store.change(key_id, lambda kept: rotated(kept, grace_s, digest, secret[:HINT], now))
        log.info("key_rotated", key_id=old.key.id, new_key_id=new.key.id, grace_s=grace_s, by=admin.id)
        return keys_pb2.RotateKeyResponse(key=convert.key_to_pb(new), secret=secret, old=convert.key_to_pb(old))

    async def RevokeKey(self, request: keys_pb2.RevokeKeyRequest, context: Context) -> keys_pb2.RevokeKeyResponse:
        admin = self._admin(context)
        now = self._clock.now()
        (kept,) = await self._store.change(self._changeable(request.id), lambda kept: (revoked(kept, now),))
        log.info("key_revoked", key_id=kept.key.id, by=admin.id)
        return keys_pb2.RevokeKeyResponse(key=convert.key_to_pb(kept))

    def _admin(self, context: Context) -> Key:
        authorization, _ = headers_of(context)
        return self._keys.identify(authorization, Scope.ADMIN)

    def _changeable(self, key_id: str) -> str:
        """The id. Raises FailedPrecondition for a key that stands in the file, where only an editor changes it."""
        if any(kept.key.id == convert.id_from(key_id) for kept in self._file.kept()):
            raise FailedPrecondition(
                "the key stands in the key file: make another with CreateKey and take it out there"
            )
        return key_id
