"""The declared families, and what serves them."""

import re
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from services.common import metrics
from services.common.metrics import EVERY, FAMILIES, MOST_VALUES, Capped, Following

SERVICES = ("edge", "embedder", "cache", "router", "compressor", "provider", "engine")


def test_names_are_ours_and_unique():
    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names)
    for family in FAMILIES:
        assert re.fullmatch(r"(llm|llmmesh|semantic_cache)_[a-z_]+", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert family.help.endswith("."), family.name
        assert family.service in (*SERVICES, EVERY)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("semantic_cache_requests_total", {"result"}),
        ("llm_request_latency_seconds", {"endpoint", "outcome"}),
        ("llm_cost_dollars_total", {"model", "endpoint"}),
        ("llm_tokens_total", {"type", "model"}),
        ("llm_savings_dollars_total", {"layer"}),
    ],
)
def test_names_that_other_tools_rely_on_are_kept(name, labels):
    (family,) = [family for family in FAMILIES if family.name == name]
    assert set(family.labels) == labels


def test_no_label_tells_a_person_a_request_or_a_text_or_collides_with_those_of_a_scrape():
    for family in FAMILIES:
        assert not {"user", "request_id", "prompt", "text", "entry_id"} & set(family.labels), family.name
        assert not {"job", "instance", "service_name", "le"} & set(family.labels), family.name
        assert ("tenant" in family.labels) == family.name.startswith("llm_tenant_"), family.name


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_exposes_its_own_families_and_those_of_all(service):
    text = metrics.exposition(service).decode()
    told = {family.name for family in text_string_to_metric_families(text)}
    told |= {f"{name}_total" for name in told}
    for family in FAMILIES:
        assert (family.name in told) == (family.service in (service, EVERY)), family.name
    assert "process_cpu_seconds_total" in told
    assert "_created" not in text


def test_latency_buckets_tell_a_hit_from_a_long_answer():
    assert metrics.LATENCY_S[0] == 0.001
    assert metrics.LATENCY_S[-1] == 60.0
    assert list(metrics.LATENCY_S) == sorted(metrics.LATENCY_S)


def test_what_callers_choose_is_capped():
    capped = Capped()
    first = [f"endpoint-{n}" for n in range(MOST_VALUES)]
    assert [capped(value) for value in first] == first
    assert capped("one more") == "other"
    assert capped(first[7]) == first[7]
    assert capped("") == "none"


def test_a_total_is_followed_and_may_begin_anew():
    added: list[float] = []
    follow = Following(added.append)
    for total in (3.0, 3.0, 10.0, 2.0):
        follow(total)
    assert added == [3.0, 0.0, 7.0, 2.0]


def test_scrapes_are_answered_until_it_is_closed(unused_tcp_port):
    close = metrics.serve("router", "127.0.0.1", unused_tcp_port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/metrics", timeout=20) as response:
            assert b"llmmesh_rpc_seconds" in response.read()
    finally:
        close()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{unused_tcp_port}/metrics", timeout=20)
