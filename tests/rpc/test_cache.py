"""The cache behind a real channel, over stores in memory."""

import grpc
import numpy as np
import pytest

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import caller_pb2, chat_pb2, vector_pb2
from services.cache.app import SERVICE
from services.cache.convert import rules_of
from services.cache.domain import lookup
from services.cache.servicer import CacheServicer
from services.common.policy import Policy
from services.common.runtime import Service
from services.common.testing import serve
from tests.cache_memory import Clock, MemoryBodies, MemoryVectors, World

MODEL = "all-MiniLM-L6-v2"


POLICY = """
baseline: big
tiers: {medium: {candidates: [big]}}
namespaces:
  default: {cache: {thresholds: {all-MiniLM-L6-v2: 0.8}}}
  private: {cache: {ttl_class: user, thresholds: {all-MiniLM-L6-v2: 0.8}}}
  exact-only: {cache: {semantic: false}}
  semantic-only: {cache: {exact: false, thresholds: {all-MiniLM-L6-v2: 0.8}}}
  no-model: {}
  "off": {cache: {exact: false, semantic: false}}
  strict: {cache: {max_temperature: 0}}
  tools: {cache: {store_tool_calls: true}}
"""


class Cache:
    """The cache under test, its stores, and short ways to call it."""

    def __init__(
        self, stub: cache_pb2_grpc.CacheServiceStub, bodies: MemoryBodies, vectors: MemoryVectors, clock: Clock
    ):
        self.stub, self.bodies, self.vectors, self.clock = stub, bodies, vectors, clock

    async def lookup(self, text: str = "How do I reset my password?", **more):
        return await self.stub.Lookup(cache_pb2.LookupRequest(**request(text, **more)))

    async def store(self, text: str = "How do I reset my password?", answer: chat_pb2.Answer | None = None, **more):
        answer = answer if answer is not None else say("Click reset.")
        return await self.stub.Store(
            cache_pb2.StoreRequest(**request(text, **more), answer=answer, model="big", tier="medium")
        )

    async def outcome(self, *args, **more) -> str:
        return cache_pb2.Outcome.Name((await self.lookup(*args, **more)).outcome).removeprefix("OUTCOME_")


def request(
    text: str, *, chat=None, at: float | None = None, tenant="acme", namespace="", user="", request_id="", **more
):
    if chat is None:
        chat = chat_pb2.Chat(messages=[message("You help.", chat_pb2.ROLE_SYSTEM), message(text)])
    fields = {
        "caller": caller_pb2.Caller(tenant=tenant, namespace=namespace, user=user, request_id=request_id),
        "chat": chat,
        "requested_model": "auto",
    }
    if at is not None:
        fields["vector"] = vector(at)
    return {**fields, **more}


def message(text: str, role: int = chat_pb2.ROLE_USER) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=text)])


def vector(angle: float, dimensions: int = 384) -> vector_pb2.Vector:
    values = np.zeros(dimensions, dtype="<f4")
    values[0], values[1] = np.cos(angle), np.sin(angle)
    return vector_pb2.Vector(values=values.tobytes(), model_id=MODEL, dimensions=dimensions)


def say(text: str, reason: int = chat_pb2.FINISH_REASON_STOP, calls: int = 0) -> chat_pb2.Answer:
    answer = chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT)
    if text:
        answer.parts.add(text=text)
    for index in range(calls):
        answer.tool_calls.add(id=f"c{index}", name="pay", arguments_json="{}")
    return chat_pb2.Answer(message=answer, finish_reason=reason)


@pytest.fixture
async def cache(tmp_path):
    from services.common.prices import PriceBook

    prices, policy = tmp_path / "prices.yaml", tmp_path / "policy.yaml"
    prices.write_text("models: {big: {source: test, prices: [{valid_from: 2024-01-01, input: 1, output: 1}]}}")
    policy.write_text(POLICY)
    world = World()
    rules = rules_of(Policy.load(policy, PriceBook.load(prices)))
    servicer = CacheServicer(world.cache, world.learning, world.reviews, rules, {MODEL: 384})
    async with serve([Service(SERVICE, servicer, cache_pb2_grpc.add_CacheServiceServicer_to_server)]) as channel:
        cache = Cache(cache_pb2_grpc.CacheServiceStub(channel), world.bodies, world.vectors, world.clock)
        cache.domain = world.cache
        yield cache


async def test_the_same_request_is_an_exact_hit_in_one_round_trip(cache):
    stored = await cache.store()
    before = cache.bodies.trips
    found = await cache.lookup()
    assert cache.bodies.trips == before + 1
    assert found.outcome == cache_pb2.OUTCOME_EXACT_HIT
    assert found.entry.entry_id == stored.entry_id == found.exact_key.hex()
    assert found.entry.answer == say("Click reset.")
    assert (found.entry.model, found.entry.tier) == ("big", "medium")
    assert len(found.scope_key) == 32
    assert not found.HasField("verdict")


async def test_a_paraphrase_is_a_semantic_hit_that_says_why(cache):
    stored = await cache.store(at=0.0)
    found = await cache.lookup("how can i reset my password please", at=0.1)
    assert found.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT
    assert found.entry.entry_id == stored.entry_id
    assert found.verdict.reason == "served"
    assert [c.reason for c in found.verdict.candidates] == ["served"]
    assert found.verdict.candidates[0].similarity == pytest.approx(np.cos(0.1), abs=1e-6)
    assert found.verdict.candidates[0].question == ""
    assert found.input_token_delta == 0


async def test_an_equal_vector_does_not_help_another_question(cache):
    await cache.store("How do I cancel my order?", at=0.0)
    found = await cache.lookup("Can I cancel after 48 hours?", at=0.0)
    assert found.outcome == cache_pb2.OUTCOME_MISS
    assert found.verdict.reason == "veto_numbers"


async def test_below_the_threshold_is_a_miss_and_below_the_floor_no_candidate(cache):
    await cache.store(at=0.0)
    near = await cache.lookup("how can i reset my password", at=np.arccos(0.7))
    far = await cache.lookup("how can i reset my password", at=np.arccos(0.3))
    assert (near.outcome, near.verdict.reason) == (cache_pb2.OUTCOME_MISS, "below_threshold")
    assert (far.outcome, far.verdict.reason) == (cache_pb2.OUTCOME_MISS, "no_candidate")


async def test_the_best_candidate_that_nothing_speaks_against_is_served(cache):
    await cache.store("How do I change my password?", at=0.0)
    right = await cache.store(at=0.3)
    found = await cache.lookup("how can I reset my password", at=0.0)
    assert found.entry.entry_id == right.entry_id
    assert [c.reason for c in found.verdict.candidates] == ["served", "veto_substitution"]


async def test_other_tenant_system_history_tools_format_model_or_namespace_miss(cache):
    await cache.store(at=0.0)
    text = "How do I reset my password?"
    question, system = message(text), message("You help.", chat_pb2.ROLE_SYSTEM)
    schema = chat_pb2.ResponseFormat(kind=chat_pb2.ResponseFormat.KIND_JSON_OBJECT)
    turns = [message("hi"), message("Hello!", chat_pb2.ROLE_ASSISTANT)]
    others = {
        "tenant": {"tenant": "other"},
        "namespace": {"namespace": "no-model"},
        "model": {"requested_model": "big"},
        "system": {"chat": chat_pb2.Chat(messages=[message("You sell.", chat_pb2.ROLE_SYSTEM), question])},
        "history": {"chat": chat_pb2.Chat(messages=[system, *turns, question])},
        "tools": {"chat": chat_pb2.Chat(messages=[system, question], tools=[chat_pb2.Tool(name="pay")])},
        "format": {"chat": chat_pb2.Chat(messages=[system, question], response_format=schema)},
        "sampling": {
            "chat": chat_pb2.Chat(messages=[system, question], sampling=chat_pb2.Sampling(max_output_tokens=5))
        },
    }
    for name, change in others.items():
        assert await cache.outcome(text, **{"at": 0.0, **change}) == "MISS", name
    assert await cache.outcome(text, at=0.0) == "EXACT_HIT"


async def test_a_caller_can_only_tighten(cache):
    await cache.store(at=0.0)
    loose = cache_pb2.Controls(min_similarity=0.1)
    tight = cache_pb2.Controls(min_similarity=0.99)
    paraphrase = "how can i reset my password"
    assert await cache.outcome(paraphrase, at=np.arccos(0.7), controls=loose) == "MISS"
    assert await cache.outcome(paraphrase, at=np.arccos(0.95)) == "SEMANTIC_HIT"
    assert await cache.outcome(paraphrase, at=np.arccos(0.95), controls=tight) == "MISS"
    assert await cache.outcome(paraphrase, at=0.0, controls=cache_pb2.Controls(exact_only=True)) == "MISS"


async def test_max_age_refuses_older_answers_of_both_kinds(cache):
    await cache.store(at=0.0)
    cache.clock.time += 100
    controls = cache_pb2.Controls()
    controls.max_age.FromSeconds(99)
    assert await cache.outcome(at=0.0, controls=controls) == "MISS"
    assert (await cache.lookup("how can i reset my password", at=0.0, controls=controls)).verdict.reason == "too_old"
    controls.max_age.FromSeconds(101)
    assert await cache.outcome(at=0.0, controls=controls) == "EXACT_HIT"


async def test_skip_exact_goes_straight_to_the_semantic_lookup(cache):
    await cache.store(at=0.0)
    assert await cache.outcome(at=0.0, skip_exact=True) == "SEMANTIC_HIT"


async def test_lifetime_is_fixed_when_written(cache):
    await cache.store(at=0.0, ttl_class=cache_pb2.TTL_CLASS_REALTIME)
    cache.clock.time += 44
    assert await cache.outcome() == "EXACT_HIT"
    cache.clock.time += 2
    assert await cache.outcome(at=0.0) == "MISS"


async def test_a_pinned_answer_never_expires_and_goes_first(cache):
    pinned = await cache.store("How can I reset my password?", at=0.3, pinned=True)
    await cache.store(at=0.0)
    cache.clock.time += 1e9
    await cache.store("how to reset my password", at=0.0)
    found = await cache.lookup("how do I reset my password please", at=0.0)
    assert found.entry.entry_id == pinned.entry_id
    assert found.entry.pinned
    assert not found.entry.HasField("expires_at")


@pytest.mark.parametrize(
    ("answer", "namespace", "reason"),
    [
        (say("cut", chat_pb2.FINISH_REASON_LENGTH), "", "truncated"),
        (say("", chat_pb2.FINISH_REASON_CONTENT_FILTER), "", "filtered"),
        (say("", chat_pb2.FINISH_REASON_TOOL_CALLS, calls=1), "", "tool_calls"),
        (say(""), "", "empty"),
        (say(" \n"), "", "empty"),
        (say("fine"), "off", "policy"),
        (say("fine"), "private", "policy"),
        (say("fine"), "", ""),
        (say("", chat_pb2.FINISH_REASON_TOOL_CALLS, calls=1), "tools", ""),
    ],
)
async def test_answers_that_are_not_stored(cache, answer, namespace, reason):
    stored = await cache.store(answer=answer, namespace=namespace)
    assert (stored.stored, stored.reason) == (not reason, reason)
    assert bool(cache.bodies.entries) == stored.stored


async def test_too_hot_requests_are_neither_stored_nor_served(cache):
    chat = chat_pb2.Chat(messages=[message("q")], sampling=chat_pb2.Sampling(temperature=0.5))
    assert (await cache.store(chat=chat, namespace="strict")).reason == "temperature"
    assert (await cache.store(chat=chat)).stored
    assert await cache.outcome(chat=chat) == "EXACT_HIT"
    assert await cache.outcome(chat=chat, namespace="strict") == "MISS"


async def test_a_users_own_answer_is_for_that_user_alone(cache):
    await cache.store(at=0.0, user="ana", ttl_class=cache_pb2.TTL_CLASS_USER)
    assert await cache.outcome(at=0.0, user="ana") == "EXACT_HIT"
    assert await cache.outcome("how can i reset my password", at=0.0, user="ana") == "SEMANTIC_HIT"
    for user in ("bob", ""):
        assert await cache.outcome(at=0.0, user=user) == "MISS"
        assert await cache.outcome("how can i reset my password", at=0.0, user=user) == "MISS"


async def test_a_namespace_without_the_exact_cache_answers_by_meaning_alone(cache):
    stored = await cache.store(at=0.0, namespace="semantic-only")
    assert (stored.stored, stored.reason) == (True, "")
    assert await cache.outcome(namespace="semantic-only") == "MISS"
    assert await cache.outcome(at=0.0, namespace="semantic-only") == "SEMANTIC_HIT"
    controls = cache_pb2.Controls(exact_only=True)
    assert await cache.outcome(at=0.0, namespace="semantic-only", controls=controls) == "MISS"
    explained = await cache.stub.Explain(
        cache_pb2.ExplainRequest(**request("How do I reset my password?", at=0.0, namespace="semantic-only"))
    )
    assert explained.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT


async def test_a_namespace_without_the_semantic_cache_answers_exactly_alone(cache):
    assert (await cache.store(at=0.0, namespace="exact-only")).stored
    assert await cache.outcome(at=0.0, namespace="exact-only") == "EXACT_HIT"
    assert await cache.outcome("how can i reset my password", at=0.0, namespace="exact-only") == "MISS"


async def test_in_a_namespace_of_user_answers_all_keys_are_the_users(cache):
    await cache.store(at=0.0, user="ana", namespace="private")
    ana, bob = [await cache.lookup(at=0.0, user=user, namespace="private") for user in ("ana", "bob")]
    assert (ana.outcome, bob.outcome) == (cache_pb2.OUTCOME_EXACT_HIT, cache_pb2.OUTCOME_MISS)
    assert ana.exact_key != bob.exact_key
    assert ana.scope_key != bob.scope_key
    assert await cache.outcome(at=0.0, namespace="private") == "MISS"


async def test_a_vector_without_its_body_is_a_miss_and_is_deleted(cache):
    stored = await cache.store(at=0.0)
    cache.bodies.entries.clear()
    found = await cache.lookup("how can i reset my password", at=0.0)
    assert (found.outcome, found.verdict.reason) == (cache_pb2.OUTCOME_MISS, "gone")
    await cache.domain.close()
    assert stored.entry_id not in cache.vectors.points


async def test_a_model_without_a_threshold_never_serves(cache):
    await cache.store(at=0.0, namespace="no-model")
    found = await cache.lookup("how can i reset my password", at=0.0, namespace="no-model")
    assert (found.outcome, found.verdict.reason) == (cache_pb2.OUTCOME_MISS, "no_threshold")


async def test_vectors_down_leaves_the_exact_cache(cache):
    cache.vectors.down = True
    stored = await cache.store(at=0.0)
    assert (stored.stored, stored.semantic_unavailable) == (True, True)
    assert await cache.outcome(at=0.0) == "EXACT_HIT"
    found = await cache.lookup("how can i reset my password", at=0.0)
    assert (found.outcome, found.semantic_unavailable) == (cache_pb2.OUTCOME_MISS, True)


async def test_bodies_down_is_unavailable(cache):
    cache.bodies.down = True
    for call in (cache.lookup(), cache.store()):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_new_namespace_version_makes_everything_unreachable(cache):
    await cache.store(at=0.0)
    caller = caller_pb2.Caller(tenant="acme")
    bumped = await cache.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, whole_namespace=True))
    assert (bumped.removed, bumped.namespace_version) == (-1, 1)
    assert await cache.outcome(at=0.0) == "MISS"
    await cache.store(at=0.0)
    assert await cache.outcome(at=0.0) == "EXACT_HIT"


async def test_a_version_raised_elsewhere_is_seen_by_the_next_lookup(cache):
    await cache.store(at=0.0)
    cache.bodies.versions[("acme", "default")] = 5
    assert await cache.outcome(at=0.0) == "MISS"
    await cache.store(at=0.0)
    assert await cache.outcome(at=0.0) == "EXACT_HIT"


async def purge(cache, **selector) -> cache_pb2.InvalidateResponse:
    caller = caller_pb2.Caller(tenant="acme", namespace=selector.pop("namespace", ""))
    return await cache.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, **selector))


async def test_every_lookup_of_what_may_be_stored_tells_the_namespace_version(cache):
    await purge(cache, whole_namespace=True)
    assert (await cache.lookup()).namespace_version == 1
    await cache.store(at=0.0)
    for text, change in {
        "How do I reset my password?": {},
        "how can i reset my password": {"at": 0.0},
        "Where is my order?": {"at": 2.0, "skip_exact": True},
        "What is that?": {"controls": cache_pb2.Controls(exact_only=True)},
    }.items():
        assert (text, (await cache.lookup(text, **change)).namespace_version) == (text, 1)
    for namespace in ("private", "semantic-only"):
        await purge(cache, whole_namespace=True, namespace=namespace)
        controls = cache_pb2.Controls(exact_only=True)
        assert (await cache.lookup(namespace=namespace, controls=controls)).namespace_version == 1


async def test_an_answer_that_was_begun_before_a_purge_is_not_stored(cache):
    before = (await cache.lookup()).namespace_version
    await purge(cache, whole_namespace=True)
    late = await cache.store(at=0.0, namespace_version=before)
    assert (late.stored, late.reason, late.entry_id) == (False, "purged", "")
    assert not cache.bodies.entries
    assert not cache.vectors.points
    now = (await cache.lookup()).namespace_version
    assert (await cache.store(at=0.0, namespace_version=now)).stored
    assert await cache.outcome() == "EXACT_HIT"


async def test_version_zero_is_a_version_like_any_other(cache):
    assert (await cache.store(namespace_version=0)).stored
    await purge(cache, whole_namespace=True)
    assert (await cache.store(namespace_version=0)).reason == "purged"


async def test_what_is_purged_while_it_is_looked_for_is_not_served(cache):
    await cache.store(at=0.0)
    cache.vectors.during_search = lambda: cache.bodies.versions.update({("acme", "default"): 1})
    found = await cache.lookup("how can i reset my password", at=0.0)
    assert (found.outcome, found.verdict.reason) == (cache_pb2.OUTCOME_MISS, "gone")


async def test_a_purge_between_the_two_reads_of_a_new_version_is_seen(cache):
    await cache.store()
    await purge(cache, whole_namespace=True)
    await cache.store()
    cache.domain._versions.clear()
    fetch = cache.bodies.fetch

    async def purged_after(*args):
        result = await fetch(*args)
        if cache.bodies.versions["acme", "default"] == 1:
            cache.bodies.versions["acme", "default"] = 2
        return result

    cache.bodies.fetch = purged_after
    found = await cache.lookup()
    assert (found.outcome, found.namespace_version) == (cache_pb2.OUTCOME_MISS, 2)


async def test_the_memory_of_versions_is_bounded_and_forgetting_one_is_harmless(cache, monkeypatch):
    monkeypatch.setattr(lookup, "REMEMBERED_VERSIONS", 2)
    tenants = [f"t{index}" for index in range(5)]
    for tenant in tenants:
        await cache.store(tenant=tenant)
        caller = caller_pb2.Caller(tenant=tenant)
        await cache.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, whole_namespace=True))
    assert len(cache.domain._versions) == 2
    for tenant in tenants:
        assert await cache.outcome(tenant=tenant) == "MISS"
        await cache.store(tenant=tenant)
        assert await cache.outcome(tenant=tenant) == "EXACT_HIT"
    assert len(cache.domain._versions) == 2


async def test_a_tag_of_many_entries_goes_in_pieces(cache, monkeypatch):
    monkeypatch.setattr(lookup, "REMOVED_TOGETHER", 2)
    for index in range(5):
        await cache.store(f"question {index}", at=index / 10, tags=["all"])
    removed = await purge(cache, tag="all")
    assert (removed.removed, removed.namespace_version) == (5, 0)
    assert cache.bodies.tags == {("acme", "default", "all"): []}
    await cache.domain.close()
    assert not cache.vectors.points


@pytest.mark.parametrize("kind", ["tag", "entry_id", "request_id"])
async def test_entries_are_removed_by_tag_id_and_request(cache, kind):
    stored = await cache.store(at=0.0, tags=["prices"], request_id="r1")
    kept = await cache.store("Where is my order?", at=1.0, request_id="r2")
    value = {"tag": "prices", "entry_id": stored.entry_id, "request_id": "r1"}[kind]
    foreign = caller_pb2.Caller(tenant="other")
    nothing = await cache.stub.Invalidate(cache_pb2.InvalidateRequest(caller=foreign, **{kind: value}))
    assert nothing.removed == 0
    caller = caller_pb2.Caller(tenant="acme")
    removed = await cache.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, **{kind: value}))
    assert removed.removed == 1
    assert await cache.outcome(at=0.0) == "MISS"
    await cache.domain.close()
    assert list(cache.vectors.points) == [kept.entry_id]


async def test_the_request_that_was_answered_finds_the_entry(cache):
    await cache.store(at=0.0, request_id="writer")
    await cache.lookup("how can i reset my password", at=0.0, request_id="reader")
    caller = caller_pb2.Caller(tenant="acme")
    removed = await cache.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, request_id="reader"))
    assert removed.removed == 1


async def test_explain_tells_questions_and_details_and_leaves_no_trace(cache):
    await cache.store("How do I cancel my order?", at=0.0)
    requests = dict(cache.bodies.requests)
    explained = await cache.stub.Explain(
        cache_pb2.ExplainRequest(**request("Can I cancel after 48 hours?", at=0.0, request_id="x"))
    )
    assert explained.outcome == cache_pb2.OUTCOME_MISS
    (candidate,) = explained.verdict.candidates
    assert (candidate.reason, candidate.question) == ("veto_numbers", "How do I cancel my order?")
    assert "172800 seconds" in candidate.detail
    assert cache.bodies.requests == requests


def nan_vector() -> vector_pb2.Vector:
    return vector_pb2.Vector(values=np.full(384, np.nan, "<f4").tobytes(), model_id=MODEL, dimensions=384)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"vector": nan_vector()}, "vector.values"),
        ({"vector": vector(0.0, 128)}, "vector.dimensions"),
        ({"namespace": "nowhere"}, "caller.namespace"),
        ({"tenant": ""}, "caller.tenant"),
        ({"chat": chat_pb2.Chat()}, "chat.messages"),
        ({"controls": cache_pb2.Controls(min_similarity=1.5)}, "controls.min_similarity"),
        ({"requested_model": "m" * 300}, "requested_model"),
    ],
)
async def test_bad_lookups_name_the_field(cache, change, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cache.lookup(**change)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")


@pytest.mark.parametrize(
    ("selector", "field"),
    [
        ({}, "selector"),
        ({"tag": ""}, "tag"),
        ({"entry_id": "xyz"}, "entry_id"),
        ({"whole_namespace": False}, "whole_namespace"),
    ],
)
async def test_bad_selectors_name_the_field(cache, selector, field):
    call = cache_pb2.InvalidateRequest(caller=caller_pb2.Caller(tenant="acme"), **selector)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cache.stub.Invalidate(call)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")
