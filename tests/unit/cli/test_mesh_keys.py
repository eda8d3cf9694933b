"""The keys of a mesh on this machine."""

import json
import stat

import pytest

from services.cli.mesh import LocalMesh, Reporter
from services.common.errors import PermissionDenied
from services.edge.adapters.keys import KeyFile
from services.edge.domain.keys import Scope


def loaded(state) -> tuple[dict[str, str], str]:
    nobody = Reporter(lambda *_: None, lambda *_: None)
    return LocalMesh(state, nobody)._load_keys()


def test_keys_stay_what_they_are_over_starts_and_only_the_owner_reads_them(tmp_path):
    first = loaded(tmp_path)
    assert loaded(tmp_path) == first
    keys, admin = first
    assert len({*keys.values(), admin}) == len(keys) + 1
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    hashed = (tmp_path / "keys.json").read_text()
    assert not any(key in hashed for key in (*keys.values(), admin))


def test_the_admin_key_may_what_the_tenants_may_not(tmp_path):
    keys, admin = loaded(tmp_path)
    file = KeyFile(tmp_path / "keys.json")
    file.identify(f"Bearer {admin}", Scope.ADMIN)
    for tenant, key in keys.items():
        assert file.identify(f"Bearer {key}", Scope.INFERENCE).tenant == tenant
        with pytest.raises(PermissionDenied):
            file.identify(f"Bearer {key}", Scope.ADMIN)


def test_a_folder_of_before_gets_an_admin_key_and_keeps_the_others(tmp_path):
    (tmp_path / "keys.plain.json").write_text(json.dumps({"acme-shop": "lm-of-before"}))
    keys, admin = loaded(tmp_path)
    assert keys == {"acme-shop": "lm-of-before"}
    KeyFile(tmp_path / "keys.json").identify(f"Bearer {admin}", Scope.ADMIN)
