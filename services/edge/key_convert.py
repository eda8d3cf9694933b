"""Keys on the wire."""

from collections.abc import Iterable, Mapping

from google.protobuf.duration_pb2 import Duration

from llmmesh.edge.v1 import keys_pb2
from services.common.chat_pb import Checker
from services.edge.adapters.keys import MAX_REQUESTS_PER_MINUTE, TENANT
from services.edge.domain.keys import DAY_S, DEFAULT_SCOPES, KeptKey, Scope, Wish, scopes_of

MIN_LIFETIME_S, MAX_LIFETIME_S = 60.0, 3653 * DAY_S
DEFAULT_GRACE_S, MAX_GRACE_S = DAY_S, 30 * DAY_S
MAX_NAME = 128
_SCOPES = {scope.value for scope in Scope}
_TENANT_FORM = "1 to 64 of A-Z a-z 0-9 . _ -"


def wish_from_pb(pb: keys_pb2.CreateKeyRequest) -> Wish:
    """What the key is to be. Raises InvalidInput with every field that is wrong."""
    check = Checker()
    check.need(bool(TENANT.fullmatch(pb.tenant)), "tenant", _TENANT_FORM)
    good = len(pb.name) <= MAX_NAME and (pb.name.isprintable() or not pb.name)
    check.need(good, "name", f"at most {MAX_NAME} printable characters")
    for index, name in enumerate(pb.scopes):
        check.need(name in _SCOPES, f"scopes[{index}]", f"one of {', '.join(sorted(_SCOPES))}")
    per_minute = pb.requests_per_minute
    in_range = 0 <= per_minute <= MAX_REQUESTS_PER_MINUTE
    check.need(in_range, "requests_per_minute", f"0 to {MAX_REQUESTS_PER_MINUTE:,}; 0 means no limit")
    lifetime_s = _seconds_of(pb.lifetime) if pb.HasField("lifetime") else None
    in_range = lifetime_s is None or MIN_LIFETIME_S <= lifetime_s <= MAX_LIFETIME_S
    check.need(in_range, "lifetime", "a minute to ten years")
    check.done()
    scopes = scopes_of(pb.scopes) if pb.scopes else DEFAULT_SCOPES
    return Wish(pb.tenant, pb.name, scopes, per_minute or None, lifetime_s)


def tenant_from_pb(pb: keys_pb2.ListKeysRequest) -> str | None:
    """Whose keys are meant; None for everybody's. Raises InvalidInput."""
    check = Checker()
    check.need(not pb.tenant or bool(TENANT.fullmatch(pb.tenant)), "tenant", _TENANT_FORM)
    check.done()
    return pb.tenant or None


def id_from(key_id: str) -> str:
    """A key's id. Raises InvalidInput for what cannot be one."""
    check = Checker()
    check.need(0 < len(key_id) <= 64, "id", "the id of a key, as ListKeys tells it")
    check.done()
    return key_id


def grace_from_pb(pb: keys_pb2.RotateKeyRequest) -> float:
    """For how many seconds the old key goes on. Raises InvalidInput."""
    grace_s = _seconds_of(pb.grace) if pb.HasField("grace") else DEFAULT_GRACE_S
    check = Checker()
    check.need(0 <= grace_s <= MAX_GRACE_S, "grace", "not negative, at most 30 days")
    check.done()
    return grace_s


def key_to_pb(kept: KeptKey, last_used_at: float | None = None) -> keys_pb2.Key:
    """The key without its secret."""
    key = kept.key
    pb = keys_pb2.Key(
        id=key.id,
        tenant=key.tenant,
        name=kept.name,
        scopes=sorted(scope.value for scope in key.scopes),
        requests_per_minute=key.requests_per_minute or 0,
        hint=kept.hint,
    )
    times = (
        (pb.created_at, kept.created_at),
        (pb.expires_at, kept.expires_at),
        (pb.revoked_at, kept.revoked_at),
        (pb.last_used_at, last_used_at),
    )
    for stamp, at in times:
        if at is not None:
            stamp.FromMilliseconds(int(at * 1000))
    return pb


def keys_to_pb(keys: Iterable[KeptKey], last_uses: Mapping[str, float]) -> keys_pb2.ListKeysResponse:
    """By tenant and age; those of the file, whose age nobody knows, stand first."""
    ordered = sorted(keys, key=lambda kept: (kept.key.tenant, kept.created_at or 0.0, kept.key.id))
    return keys_pb2.ListKeysResponse(keys=[key_to_pb(kept, last_uses.get(kept.digest)) for kept in ordered])


def _seconds_of(pb: Duration) -> float:
    # Its own methods raise outside of its range, which is ours to name.
    return pb.seconds + pb.nanos / 1e9
