"""Advice on a namespace's record, and whose answers a command means."""

import json

import pytest

from llmmesh.cache.v1 import cache_pb2
from services.cli.cache.record import advice
from services.cli.cache.target import Asked, Where, find, text_or_file
from services.cli.mesh import MeshError, MeshJson

MESH: MeshJson = {
    "edge": "h:1",
    "http": "http://127.0.0.1:4",
    "services": {"cache": {"pid": 1, "address": "h:2"}, "embedder": {"pid": 2, "address": "h:3"}},
    "redis": "",
    "qdrant": "",
    "keys": {"acme": "key-a", "volta": "key-v"},
}


@pytest.fixture
def state(tmp_path):
    (tmp_path / "mesh.json").write_text(json.dumps(MESH))
    return tmp_path


def record(**fields) -> cache_pb2.MeasureResponse:
    return cache_pb2.MeasureResponse(**{"error_budget": 0.01, "state": "open", **fields})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "Nothing was asked"),
        ({"lookups": 9, "state": "tight", "wrong": 5, "checked": 9}, "overspent"),
        ({"lookups": 9, "stale_checked": 100, "stale": 30}, "age"),
        ({"lookups": 9}, "No question in other words"),
        ({"lookups": 100, "semantic_hits": 30}, "shadow_share"),
        ({"lookups": 100, "semantic_hits": 30, "checked": 9, "wrong_rate_high": 0.09}, "more checks would show"),
        ({"lookups": 100, "semantic_hits": 30, "checked": 9, "wrong": 1, "wrong_rate_high": 0.09}, "not sure yet"),
        ({"lookups": 900, "semantic_hits": 30, "checked": 9, "near_misses": 99}, "calibrate"),
        ({"lookups": 900, "semantic_hits": 30, "checked": 9, "doubtful": 9}, "cannot tell"),
        ({"lookups": 900, "semantic_hits": 30, "checked": 9}, "nothing to do"),
    ],
)
def test_each_record_has_its_advice(fields, said):
    assert said in advice(record(**fields))


def test_the_first_tenant_is_meant_unless_another_is_named(state):
    assert find(Where(state)).tenant == "acme"
    assert find(Where(state, tenant="volta")).tenant == "volta"
    assert find(Where(state, key="key-v")).tenant == "volta"
    assert (find(Where(state)).cache, find(Where(state)).embedder) == ("h:2", "h:3")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"tenant": "nobody"}, "acme, volta"),
        ({"key": "wrong"}, "acme, volta"),
        ({"tenant": "acme", "key": "key-a"}, "exclude"),
        ({"cache": "h:9", "tenant": "acme"}, "exclude"),
        ({"embedder": "h:9"}, "--cache"),
    ],
)
def test_who_is_not_known_is_an_error_that_names_who_is(state, where, said):
    with pytest.raises(MeshError, match=said) as error:
        find(Where(state, **where))
    assert "key-a" not in str(error.value)


def test_a_mesh_elsewhere_is_found_by_its_addresses():
    there = find(Where(cache="h:9", embedder="h:8", tenant="acme"), embeds=True)
    assert (there.cache, there.embedder, there.tenant) == ("h:9", "h:8", "acme")
    for where in (Where(cache="h:9"), Where(cache="h:9", key="k"), Where(cache="h:9", tenant="acme")):
        with pytest.raises(MeshError):
            find(where, embeds=True)


def test_where_no_mesh_runs_is_said_with_the_command_that_starts_one(tmp_path):
    with pytest.raises(MeshError, match="llmmesh up"):
        find(Where(tmp_path))


def test_the_chat_is_that_of_a_caller_with_the_same_request():
    chat = Asked("Be kind.", temperature=0.0, max_tokens=9).chat("Hello?")
    assert [message.parts[0].text for message in chat.messages] == ["Be kind.", "Hello?"]
    assert (chat.sampling.temperature, chat.sampling.max_output_tokens) == (0.0, 9)
    assert not Asked().chat("Hello?").HasField("sampling")
    assert len(Asked("Be kind.").chat("Hello?", "").messages) == 1


def test_a_system_text_may_stand_in_a_file(tmp_path):
    (tmp_path / "system.txt").write_text("Be kind.\n")
    assert text_or_file(str(tmp_path / "system.txt")) == "Be kind.\n"
    for text in ("Be kind.", "x" * 5000, "two\nlines", "nul\0"):
        assert text_or_file(text) == text
