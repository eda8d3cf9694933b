"""API keys out of a file."""

import json
import os

import pytest

from services.common.errors import Unauthenticated
from services.common.yaml_file import ConfigError
from services.edge.adapters.keys import KeyFile, hash_key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def write(path, keys: dict[str, str], stamp: int = 1) -> None:
    path.write_text(json.dumps({hash_key(key): {"tenant": tenant} for key, tenant in keys.items()}))
    os.utime(path, ns=(stamp, stamp))


def test_a_key_names_its_tenant(path):
    write(path, {"k-1": "acme", "k-2": "volta"})
    keys = KeyFile(path)
    assert keys.tenant("Bearer k-1") == "acme"
    assert keys.tenant("bearer  k-2 ") == "volta"


@pytest.mark.parametrize(
    "header",
    [None, "", "k-1", "Basic k-1", "Bearer", "Bearer ", "Bearer k-2", "Bearer k-1x", "Bearer k-1 k-1", "Béarer k-1"],
)
def test_anything_else_is_refused_without_a_word_about_why(path, header):
    write(path, {"k-1": "acme"})
    with pytest.raises(Unauthenticated) as caught:
        KeyFile(path).tenant(header)
    assert "k-1" not in caught.value.message
    assert "acme" not in caught.value.message


def test_the_hash_in_the_file_is_no_key(path):
    write(path, {"k-1": "acme"})
    with pytest.raises(Unauthenticated):
        KeyFile(path).tenant(f"Bearer {hash_key('k-1')}")


def test_keys_come_and_go_while_it_runs(path):
    write(path, {"old": "acme"}, stamp=1)
    keys = KeyFile(path)
    write(path, {"new": "acme"}, stamp=2)
    keys.reload()
    assert keys.tenant("Bearer new") == "acme"
    with pytest.raises(Unauthenticated):
        keys.tenant("Bearer old")


def test_a_broken_edit_keeps_the_keys_that_were(path):
    write(path, {"k": "acme"}, stamp=1)
    keys = KeyFile(path)
    path.write_text("{")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"keys\.json"):
            keys.reload()
    assert keys.tenant("Bearer k") == "acme"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b'{"x": "acme"}', b'{"x": {}}', b'{"x": {"tenant": 5}}', b'{"x": {"tenant": ""}}',
     b'{"x": {"tenant": "a b"}}', b'{"x": {"tenant": "a\\n"}}', b"\xff\xfe", b'{"x": null}'],
)  # fmt: skip
def test_a_malformed_file_is_a_configuration_error_that_names_it(path, content):
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"keys\.json"):
        KeyFile(path)


def test_a_missing_file_is_a_configuration_error_that_names_it(path):
    with pytest.raises(ConfigError, match=r"keys\.json: No such file"):
        KeyFile(path)
