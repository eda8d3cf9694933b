"""API keys: out of a file, and shared; how they come and go."""

import json
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import FailedPrecondition, NotReady, PermissionDenied, Unauthenticated
from services.common.yaml_file import ConfigError
from services.edge.adapters.keys import KeyFile, KeyRing, hash_key
from services.edge.domain.keys import (
    DAY_S,
    SHOWN_S,
    KeptKey,
    Key,
    Scope,
    Wish,
    made,
    new_secret,
    revoked,
    rotated,
)

NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def write(path, keys: dict[str, str], stamp: int = 1) -> None:
    path.write_text(json.dumps({hash_key(key): {"tenant": tenant} for key, tenant in keys.items()}))
    os.utime(path, ns=(stamp, stamp))


def test_a_key_names_its_tenant(path):
    write(path, {"k-1": "acme", "k-2": "volta"})
    keys = KeyFile(path)
    assert keys.identify("Bearer k-1", Scope.INFERENCE).tenant == "acme"
    assert keys.identify("bearer  k-2 ", Scope.INFERENCE).tenant == "volta"


@pytest.mark.parametrize(
    "header",
    [None, "", "k-1", "Basic k-1", "Bearer", "Bearer ", "Bearer k-2", "Bearer k-1x", "Bearer k-1 k-1", "Béarer k-1"],
)
def test_anything_else_is_refused_without_a_word_about_why(path, header):
    write(path, {"k-1": "acme"})
    with pytest.raises(Unauthenticated) as caught:
        KeyFile(path).identify(header, Scope.INFERENCE)
    assert "k-1" not in caught.value.message
    assert "acme" not in caught.value.message


def test_the_hash_in_the_file_is_no_key(path):
    write(path, {"k-1": "acme"})
    with pytest.raises(Unauthenticated):
        KeyFile(path).identify(f"Bearer {hash_key('k-1')}", Scope.INFERENCE)


def test_keys_come_and_go_while_it_runs(path):
    write(path, {"old": "acme"}, stamp=1)
    keys = KeyFile(path)
    write(path, {"new": "acme"}, stamp=2)
    keys.reload()
    assert keys.identify("Bearer new", Scope.INFERENCE).tenant == "acme"
    with pytest.raises(Unauthenticated):
        keys.identify("Bearer old", Scope.INFERENCE)


def test_a_broken_edit_keeps_the_keys_that_were(path):
    write(path, {"k": "acme"}, stamp=1)
    keys = KeyFile(path)
    path.write_text("{")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"keys\.json"):
            keys.reload()
    assert keys.identify("Bearer k", Scope.INFERENCE).tenant == "acme"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b'{"x": "acme"}', b'{"x": {}}', b'{"x": {"tenant": 5}}', b'{"x": {"tenant": ""}}',
     b'{"x": {"tenant": "a", "requests_per_minute": -1}}', b'{"x": {"tenant": "a", "requests_per_minute": true}}',
     b'{"x": {"tenant": "a", "scopes": "admin"}}', b'{"x": {"tenant": "a", "scopes": ["root"]}}',
     b'{"x": {"tenant": "a b"}}', b'{"x": {"tenant": "a\\n"}}', b"\xff\xfe", b'{"x": null}'],
)  # fmt: skip
def test_a_malformed_file_is_a_configuration_error_that_names_it(path, content):
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        KeyFile(path)


def test_a_missing_file_is_a_configuration_error_that_names_it(path):
    with pytest.raises(ConfigError, match=r"keys\.json: No such file"):
        KeyFile(path)


def test_rights_and_a_limit_can_stand_in_the_file(path):
    entry = {"tenant": "acme", "scopes": ["costs"], "requests_per_minute": 60}
    path.write_text(json.dumps({hash_key("k"): entry, hash_key("free"): {"tenant": "acme"}}))
    keys = KeyFile(path)
    assert keys.identify("Bearer k", Scope.COSTS).requests_per_minute == 60
    assert keys.identify("Bearer free", Scope.COSTS).requests_per_minute is None
    for scope in (Scope.INFERENCE, Scope.ADMIN):
        with pytest.raises(PermissionDenied, match=scope):
            keys.identify("Bearer k", scope)


class Clock:
    at = NOW

    def now(self) -> float:
        return self.at


class Shared:
    """Shared keys in memory."""

    def __init__(self) -> None:
        self.keys: dict[str, KeptKey] = {}
        self.loaded = True
        self.uses: list[str] = []

    def find(self, digest: str) -> KeptKey | None:
        return self.keys.get(digest)

    def note_use(self, digest: str) -> None:
        self.uses.append(digest)

    def put(self, secret: str, **fields) -> KeptKey:
        digest = hash_key(secret)
        kept = KeptKey(digest, Key(f"key-{digest[:16]}", "volta"), created_at=NOW, **fields)
        self.keys[digest] = kept
        return kept


@pytest.fixture
def shared() -> Shared:
    return Shared()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ring(path, shared, clock) -> KeyRing:
    write(path, {"of-the-file": "acme", "both": "acme"})
    return KeyRing(shared, KeyFile(path), clock)


def tenant_of(ring: KeyRing, secret: str) -> str:
    return ring.identify(f"Bearer {secret}", Scope.INFERENCE).tenant


def test_the_ring_looks_in_both_places_and_notes_what_was_used(ring, shared):
    shared.put("shared")
    assert tenant_of(ring, "of-the-file") == "acme"
    assert tenant_of(ring, "shared") == "volta"
    with pytest.raises(Unauthenticated, match="not known"):
        tenant_of(ring, "neither")
    assert shared.uses == [hash_key("of-the-file"), hash_key("shared")]


def test_a_shared_key_goes_before_the_one_in_the_file(ring, shared):
    shared.put("both", revoked_at=NOW)
    with pytest.raises(Unauthenticated, match="revoked"):
        tenant_of(ring, "both")
    assert shared.uses == []


def test_a_key_ends_on_the_moment(ring, shared, clock):
    shared.put("short", expires_at=NOW + 1)
    assert tenant_of(ring, "short") == "volta"
    clock.at = NOW + 1
    with pytest.raises(Unauthenticated, match="expired at 2023-11-14"):
        tenant_of(ring, "short")


def test_before_the_shared_keys_were_read_nobody_is_called_unknown(ring, shared):
    shared.loaded = False
    assert tenant_of(ring, "of-the-file") == "acme"
    with pytest.raises(NotReady):
        tenant_of(ring, "may-be-shared")
    with pytest.raises(Unauthenticated):
        ring.identify(None, Scope.INFERENCE)


def test_an_admin_may_do_everything():
    key = Key("k", "acme", frozenset({Scope.ADMIN}))
    assert all(key.may(scope) for scope in Scope)


def test_a_secret_is_long_and_random_and_no_part_of_its_key():
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    for secret in secrets:
        assert re.fullmatch(r"lm-[A-Za-z0-9_-]{43}", secret)
        kept = made(Wish("acme", "for tests"), hash_key(secret), secret[:7], NOW)
        assert secret[7:] not in repr(kept)
        assert kept.key.id == f"key-{hash_key(secret)[:16]}"


def test_a_rotated_key_hands_its_rights_and_its_lifetime_on():
    scopes = frozenset({Scope.COSTS})
    old = made(Wish("acme", "reports", scopes, 60, 90 * DAY_S), "a" * 64, "lm-aaaa", NOW)
    later = NOW + 80 * DAY_S
    ending, new = rotated(old, DAY_S, "b" * 64, "lm-bbbb", later)
    assert (ending.expires_at, ending.key) == (later + DAY_S, old.key)
    assert (new.name, new.key.tenant, new.key.scopes, new.key.requests_per_minute) == ("reports", "acme", scopes, 60)
    assert (new.created_at, new.expires_at) == (later, later + 90 * DAY_S)
    assert new.key.id != old.key.id


def test_a_key_that_ended_is_not_rotated_and_not_revived():
    old = made(Wish("acme", lifetime_s=60), "a" * 64, "lm-aaaa", NOW)
    for ended, now in ((old, NOW + 60), (revoked(old, NOW), NOW)):
        with pytest.raises(FailedPrecondition, match="make a new one"):
            rotated(ended, DAY_S, "b" * 64, "lm-bbbb", now)
    assert revoked(revoked(old, NOW), NOW + 9).revoked_at == NOW


@given(st.floats(0, 30 * DAY_S), st.none() | st.floats(60, 90 * DAY_S), st.floats(0, 59))
def test_neither_grace_nor_revocation_prolongs_a_life(grace_s, lifetime_s, age_s):
    old = made(Wish("acme", lifetime_s=lifetime_s), "a" * 64, "lm-aaaa", NOW)
    now = NOW + age_s
    ending, _ = rotated(old, grace_s, "b" * 64, "lm-bbbb", now)
    assert ending.expires_at <= now + grace_s
    assert old.expires_at is None or ending.expires_at <= old.expires_at
    ended = revoked(ending, now)
    assert not ended.works(now)
    assert ended.shown(now)
    assert not ended.shown(now + SHOWN_S)
