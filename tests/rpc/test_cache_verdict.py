"""Verifier, aliases, judge, lessons, feedback and measures of the cache, behind a real channel over stores in memory."""

import dataclasses
import json

import grpc
import numpy as np
import pytest

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import caller_pb2, chat_pb2, usage_pb2, vector_pb2
from services.cache.app import SERVICE
from services.cache.convert import rules_of
from services.cache.domain.answers import digest
from services.cache.domain.lesson import unpack
from services.cache.domain.ports import Alias, Body, CacheRules
from services.cache.domain.signals import FEATURES
from services.cache.servicer import CacheServicer
from services.common.policy import Policy
from services.common.prices import PriceBook
from services.common.runtime import Service
from services.common.testing import serve
from tests.cache_memory import VERIFIED_MODEL, ScriptedEmbedder, ScriptedJudge, ScriptedVerifier, World

POLICY = """
baseline: big
tiers: {medium: {candidates: [big]}}
namespaces:
  default: {cache: {thresholds: {lookalike-test: 0.9}}}
  by-similarity: {cache: {verifier: false, thresholds: {lookalike-test: 0.9}}}
  private: {cache: {ttl_class: user}}
  judged: {cache: {judge: small, judge_ms: 800}}
  generous: {cache: {error_budget: 0.2}}
  standalone: {cache: {standalone: true}}
  unlearned: {cache: {learn: false}}
  unseen: {cache: {review: false}}
  both: {cache: {allow_cross_language: true}}
"""
PRICES = """
models:
  big: {source: test, prices: [{valid_from: 2024-01-01, input: 1, output: 1}]}
  small: {source: test, prices: [{valid_from: 2024-01-01, input: 0.01, output: 0.01}]}
"""
STORED = "How do I reset my password?"
ASKED = "I lost my login secret, what now?"
OTHER = "My sign-in word is gone, help"


class Cache:
    """The cache under test and short ways to call it."""

    def __init__(self, stub: cache_pb2_grpc.CacheServiceStub, world: World, rules: dict[str, CacheRules]) -> None:
        self.stub, self.world, self.rules = stub, world, rules

    async def lookup(self, text: str = ASKED, **more):
        return await self.stub.Lookup(cache_pb2.LookupRequest(**request(text, **more)))

    async def store(self, text: str = STORED, answer: str = "Click reset.", chance: float | None = 0.999, **more):
        """Stores, and has the verifier score this question's pairs with `chance`."""
        if chance is not None:
            self.world.verifier.chances[text] = chance
        more.setdefault("at", 0.0)
        return await self.stub.Store(
            cache_pb2.StoreRequest(
                **request(text, **more),
                answer=say(answer),
                model="big",
                tier="medium",
                usage=usage_pb2.Usage(input_tokens=1000, output_tokens=1000),
            )
        )

    async def outcome(self, *args, **more) -> str:
        return cache_pb2.Outcome.Name((await self.lookup(*args, **more)).outcome).removeprefix("OUTCOME_")

    async def learn(self, lesson: bytes, answer: str, kind: str = "MISS", namespace: str = "") -> str:
        learned = await self.stub.Learn(
            cache_pb2.LearnRequest(
                caller=caller_pb2.Caller(tenant="acme", namespace=namespace),
                lesson=lesson,
                answer=say(answer),
                kind=cache_pb2.LessonKind.Value(f"LESSON_KIND_{kind}"),
            )
        )
        return cache_pb2.Comparison.Name(learned.comparison).removeprefix("COMPARISON_")

    async def feedback(self, request_id: str, right: bool, tenant: str = "acme") -> bool:
        word = cache_pb2.FeedbackRequest(caller=caller_pb2.Caller(tenant=tenant), request_id=request_id, right=right)
        return (await self.stub.Feedback(word)).counted

    async def measure(self, namespace: str = "") -> cache_pb2.MeasureResponse:
        caller = caller_pb2.Caller(tenant="acme", namespace=namespace)
        return await self.stub.Measure(cache_pb2.MeasureRequest(caller=caller))

    async def reviews(self, namespace: str = "", **more) -> cache_pb2.ListReviewsResponse:
        caller = caller_pb2.Caller(tenant="acme", namespace=namespace)
        return await self.stub.ListReviews(cache_pb2.ListReviewsRequest(caller=caller, **more))

    async def review_verdicts(self, **more) -> list[str]:
        found = (await self.reviews(**more)).reviews
        return [cache_pb2.ReviewVerdict.Name(review.verdict).removeprefix("REVIEW_VERDICT_") for review in found]

    async def purge(self, namespace: str = "", **selector) -> int:
        caller = caller_pb2.Caller(tenant="acme", namespace=namespace)
        return (await self.stub.Invalidate(cache_pb2.InvalidateRequest(caller=caller, **selector))).removed

    async def settled(self) -> None:
        """Waits for what runs beside the calls."""
        await self.world.cache.close()

    async def served(self, text: str = ASKED, **more) -> cache_pb2.LookupResponse:
        """A semantic hit, with its alias written."""
        found = await self.lookup(text, **{"at": 0.1, **more})
        assert found.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT
        await self.settled()
        return found

    def aliases(self) -> list[str]:
        return [key for (_, key), record in self.world.bodies.entries.items() if isinstance(record, Alias)]


def request(text: str, *, chat=None, at=None, tenant="acme", namespace="", user="", request_id="", **more):
    if chat is None:
        chat = chat_pb2.Chat(messages=[message("You help.", chat_pb2.ROLE_SYSTEM), message(text)])
    fields = {
        "caller": caller_pb2.Caller(tenant=tenant, namespace=namespace, user=user, request_id=request_id),
        "chat": chat,
        "requested_model": "auto",
    }
    if at is not None:
        fields["vector"] = vector(at, more.pop("model_id", VERIFIED_MODEL))
    return {**fields, **more}


def message(text: str, role: int = chat_pb2.ROLE_USER) -> chat_pb2.Message:
    return chat_pb2.Message(role=role, parts=[chat_pb2.ContentPart(text=text)])


def vector(angle: float, model_id: str) -> vector_pb2.Vector:
    values = np.zeros(8, dtype="<f4")
    values[0], values[1] = np.cos(angle), np.sin(angle)
    return vector_pb2.Vector(values=values.tobytes(), model_id=model_id, dimensions=8)


def say(text: str) -> chat_pb2.Answer:
    return chat_pb2.Answer(message=message(text, chat_pb2.ROLE_ASSISTANT), finish_reason=chat_pb2.FINISH_REASON_STOP)


@pytest.fixture
async def cache(tmp_path):
    prices, policy = tmp_path / "prices.yaml", tmp_path / "policy.yaml"
    prices.write_text(PRICES)
    policy.write_text(POLICY)
    world = World(verifier=ScriptedVerifier(), judge=ScriptedJudge(), embedder=ScriptedEmbedder())
    rules = rules_of(Policy.load(policy, PriceBook.load(prices)))
    servicer = CacheServicer(world.cache, world.learning, world.reviews, rules, {})
    async with serve([Service(SERVICE, servicer, cache_pb2_grpc.add_CacheServiceServicer_to_server)]) as channel:
        yield Cache(cache_pb2_grpc.CacheServiceStub(channel), world, rules)


# The verifier.


async def test_a_pair_that_the_verifier_vouches_for_is_served_at_its_cost(cache):
    stored = await cache.store()
    found = await cache.lookup(at=0.5)
    assert (found.outcome, found.entry.entry_id) == (cache_pb2.OUTCOME_SEMANTIC_HIT, stored.entry_id)
    assert cache.world.verifier.asked == [[(STORED, ASKED)]]
    assert found.verifier_cost_nanousd == 10
    (candidate,) = found.verdict.candidates
    assert (candidate.reason, candidate.probability) == ("served", pytest.approx(0.999, abs=1e-3))
    assert candidate.verifier == pytest.approx(0.999)
    assert found.verdict.threshold == pytest.approx(0.98)


async def test_unsure_is_a_miss_that_says_how_unsure(cache):
    await cache.store(chance=0.9)
    found = await cache.lookup(at=0.0)
    assert (found.outcome, found.verdict.reason) == (cache_pb2.OUTCOME_MISS, "unsure")
    assert found.verdict.candidates[0].probability == pytest.approx(0.9)
    assert found.verifier_cost_nanousd == 10


async def test_the_first_is_read_alone_and_the_next_three_together(cache):
    for index in range(6):
        await cache.store(f"Where do I find my secret number {'abcdef'[index]}?", chance=0.5, at=index / 10)
    found = await cache.lookup(at=0.0)
    assert [len(pairs) for pairs in cache.world.verifier.asked] == [1, 3]
    assert found.verifier_cost_nanousd == 40
    reasons = [candidate.reason for candidate in found.verdict.candidates]
    assert sorted(reasons) == ["not_verified"] * 2 + ["unsure"] * 4


async def test_a_less_similar_candidate_that_is_right_is_served(cache):
    await cache.store("How do I change my user name?", chance=0.01, at=0.0)
    right = await cache.store(at=0.4)
    found = await cache.lookup(at=0.0)
    assert found.entry.entry_id == right.entry_id
    assert [candidate.reason for candidate in found.verdict.candidates] == ["served", "not_needed"]


async def test_what_is_certain_is_never_put_to_the_verifier(cache):
    await cache.store("Can I cancel within 24 hours?")
    found = await cache.lookup("Can I cancel within 48 hours?", at=0.0)
    assert (found.outcome, found.verdict.reason) == (cache_pb2.OUTCOME_MISS, "veto_numbers")
    assert cache.world.verifier.asked == []
    assert found.lesson == b""


@pytest.mark.parametrize(
    ("down", "namespace", "model"),
    [(True, "", VERIFIED_MODEL), (False, "by-similarity", VERIFIED_MODEL), (False, "", "another")],
)
async def test_without_a_verifier_vetoes_and_similarity_decide(cache, down, namespace, model):
    cache.world.verifier.down = down
    await cache.store(namespace=namespace, model_id=model)
    paraphrase = "how can i reset my password please"
    found = await cache.lookup(paraphrase, at=0.1, namespace=namespace, model_id=model)
    strict = found.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT
    assert strict == (model == VERIFIED_MODEL), "a model without a threshold never serves"
    assert not found.verdict.candidates[0].HasField("probability")
    assert await cache.outcome(ASKED, at=0.1, namespace=namespace, model_id=model) == "MISS"
    assert cache.world.verifier.asked == []


async def test_a_verifier_that_fails_halfway_leaves_what_it_read_unsure(cache):
    """Neither candidate is certain, and the verifier said no to the first."""
    await cache.store(chance=0.1)
    await cache.store("How do I set a new password up?", chance=0.999, at=0.3)
    cache.world.verifier.failures = [False, True]
    found = await cache.lookup("my password is forgotten, what do i do to get a new one", at=0.0)
    assert (found.outcome, found.verdict.reason) == (cache_pb2.OUTCOME_MISS, "unsure")


async def test_a_caller_can_only_tighten(cache):
    await cache.store()
    tight, loose = cache_pb2.Controls(min_similarity=0.99), cache_pb2.Controls(min_similarity=0.0)
    assert await cache.outcome(at=0.5, controls=tight) == "MISS"
    assert await cache.outcome(at=np.arccos(0.3), controls=loose) == "MISS"
    assert await cache.outcome(at=0.5, controls=loose) == "SEMANTIC_HIT"


async def test_explain_tells_what_the_verifier_made_of_it_and_leaves_no_trace(cache):
    await cache.store("Why can't I reset my password?")
    before = dict(cache.world.bodies.entries)
    explained = await cache.stub.Explain(cache_pb2.ExplainRequest(**request("can i reset my password", at=0.0)))
    assert explained.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT
    (candidate,) = explained.verdict.candidates
    assert candidate.question == "Why can't I reset my password?"
    assert "negation" in candidate.signals
    assert "negated" in candidate.detail
    assert candidate.HasField("verifier")
    await cache.settled()
    assert cache.world.bodies.entries == before
    assert (await cache.measure()).lookups == 0


async def test_a_vector_that_is_there_twice_is_one_candidate(cache):
    await cache.store(chance=0.5)
    (point,) = cache.world.vectors.points.values()
    search = cache.world.vectors.search

    async def doubled(*args, **more):
        return [*await search(*args, **more), *await search(*args, **more)]

    cache.world.vectors.search = doubled
    found = await cache.lookup(at=0.1)
    assert len(found.verdict.candidates) == 1
    assert point[1] == "acme"


# Languages and conversations.


async def test_only_questions_in_the_asked_language_are_candidates(cache):
    await cache.store("How do I reset my password, please?", at=0.0)
    spanish = "¿Cómo cambio la contraseña que olvidé?"
    assert (await cache.lookup(spanish, at=0.0)).verdict.reason == "no_candidate"
    await cache.store("How do I reset my password, please?", at=0.0, namespace="both")
    assert await cache.outcome(spanish, at=0.0, namespace="both") == "SEMANTIC_HIT"
    await cache.store("VPN?", at=0.0, chance=0.999)
    assert await cache.outcome(spanish, at=0.0) == "SEMANTIC_HIT", "of an unknown language"


def conversation(text: str) -> chat_pb2.Chat:
    earlier = [message("hi"), message("Hello!", chat_pb2.ROLE_ASSISTANT)]
    return chat_pb2.Chat(messages=[message("You help.", chat_pb2.ROLE_SYSTEM), *earlier, message(text)])


async def test_a_message_that_needs_no_history_is_served_across_conversations_where_the_policy_allows(cache):
    whole = "How do I reset the password of my customer account?"
    again = "I lost the password of my customer account, what now?"
    for namespace, outcome in (("", "MISS"), ("standalone", "SEMANTIC_HIT")):
        await cache.store(whole, namespace=namespace, tenant="a")
        assert await cache.outcome(chat=conversation(again), at=0.1, namespace=namespace, tenant="a") == outcome
        await cache.store(whole, chat=conversation(whole), namespace=namespace, tenant="b")
        assert await cache.outcome(again, at=0.1, namespace=namespace, tenant="b") == outcome


async def test_a_message_that_needs_its_history_stays_in_its_conversation(cache):
    await cache.store("and then?", chat=conversation("and then?"), namespace="standalone")
    assert (await cache.lookup("and after that?", at=0.0, namespace="standalone")).verdict.reason == "no_candidate"
    chat = conversation("and after that?")
    assert await cache.outcome(chat=chat, at=0.0, namespace="standalone") == "SEMANTIC_HIT"


async def test_another_system_text_is_another_scope_for_standing_messages_too(cache):
    whole = "How do I reset the password of my customer account?"
    await cache.store(whole, chat=conversation(whole), namespace="standalone")
    sold = chat_pb2.Chat(messages=[message("You sell.", chat_pb2.ROLE_SYSTEM), message(whole)])
    assert (await cache.lookup(chat=sold, at=0.0, namespace="standalone")).verdict.reason == "no_candidate"


# Aliases.


async def test_what_was_served_once_is_served_again_without_vector_and_verifier(cache):
    stored = await cache.store()
    first = await cache.served()
    before = cache.world.bodies.trips
    again = await cache.lookup()
    assert cache.world.bodies.trips == before + 2
    assert (again.outcome, again.entry) == (cache_pb2.OUTCOME_SEMANTIC_HIT, first.entry)
    assert (again.verdict.alias, again.verdict.reason) == (True, "alias")
    assert again.entry.entry_id == stored.entry_id
    assert again.verdict.candidates[0].probability == pytest.approx(0.999, abs=1e-3)
    assert again.verifier_cost_nanousd == 0
    assert again.input_token_delta == first.input_token_delta
    assert len(cache.world.verifier.asked) == 1
    measured = await cache.measure()
    assert (measured.semantic_hits, measured.alias_hits, measured.lookups) == (2, 1, 2)


async def test_an_alias_by_similarity_is_served_while_the_threshold_allows(cache):
    await cache.store(namespace="by-similarity")
    paraphrase = "how can i reset my password please"
    await cache.served(paraphrase, namespace="by-similarity")
    assert await cache.outcome(paraphrase, namespace="by-similarity") == "SEMANTIC_HIT"
    controls = cache_pb2.Controls(min_similarity=0.999)
    assert await cache.outcome(paraphrase, namespace="by-similarity", controls=controls) == "MISS"


async def test_an_alias_goes_with_its_entry(cache):
    for selector in ("entry_id", "tag", "expiry", "eviction", "written again"):
        stored = await cache.store(tags=["t"])
        await cache.served()
        match selector:
            case "entry_id":
                assert await cache.purge(entry_id=stored.entry_id) == 1
            case "tag":
                assert await cache.purge(tag="t") == 1
            case "expiry":
                cache.world.clock.time += 3601
            case "eviction":
                del cache.world.bodies.entries["acme", stored.entry_id]
            case _:
                cache.world.clock.time += 1
                await cache.store()
        assert cache.aliases(), selector
        assert await cache.outcome() == "MISS", selector
        await cache.settled()
        assert not cache.aliases(), selector
        cache.world.bodies.entries.clear()


async def test_a_new_version_of_the_namespace_leaves_no_alias(cache):
    await cache.store()
    await cache.served()
    await cache.purge(whole_namespace=True)
    assert await cache.outcome() == "MISS"


async def test_controls_hold_for_aliases(cache):
    await cache.store()
    await cache.served(at=0.3)
    cache.world.clock.time += 100
    young = cache_pb2.Controls()
    young.max_age.FromSeconds(99)
    assert await cache.outcome(controls=young) == "MISS"
    assert await cache.outcome(controls=cache_pb2.Controls(exact_only=True)) == "MISS"
    assert await cache.outcome(controls=cache_pb2.Controls(min_similarity=0.99)) == "MISS"
    assert await cache.outcome(controls=cache_pb2.Controls(min_similarity=0.9)) == "SEMANTIC_HIT"


async def test_an_alias_is_not_served_once_more_is_required(cache):
    await cache.store(chance=0.985)
    await cache.served()
    assert await cache.outcome() == "SEMANTIC_HIT"
    cache.world.quality.count("acme", "default", checked=10, wrong=8)
    assert await cache.outcome() == "MISS"
    assert cache.world.states[-1] == ("acme", "default", "cautious", "tight")


async def test_an_answer_of_ones_own_replaces_an_alias_and_stays(cache):
    await cache.store()
    await cache.served()
    own = await cache.store(ASKED, answer="Own.", at=0.1)
    assert await cache.outcome() == "EXACT_HIT"
    found = await cache.lookup(at=0.1, skip_exact=True)
    await cache.settled()
    assert found.outcome == cache_pb2.OUTCOME_SEMANTIC_HIT
    assert isinstance(cache.world.bodies.entries["acme", own.entry_id], Body)


async def test_a_users_answer_gets_no_alias_that_another_can_find(cache):
    await cache.store(user="ann", namespace="private")
    await cache.served(user="ann", namespace="private")
    assert await cache.outcome(user="ann", namespace="private") == "SEMANTIC_HIT"
    assert await cache.outcome(user="bob", namespace="private") == "MISS"
    assert await cache.outcome(namespace="private") == "MISS"
    await cache.store(user="ann", ttl_class=cache_pb2.TTL_CLASS_USER)
    await cache.served(user="ann")
    assert await cache.outcome(user="ann") == "SEMANTIC_HIT"
    assert await cache.outcome(user="bob", at=0.1) == "MISS"
    assert await cache.outcome() == "MISS"


async def test_a_users_answer_is_not_served_through_an_alias_of_everybody(cache):
    stored = await cache.store(user="ann", ttl_class=cache_pb2.TTL_CLASS_USER)
    found = await cache.lookup()
    body = cache.world.bodies.entries["acme", stored.entry_id]
    forged = Alias(stored.entry_id, body.created_at, 1.0, VERIFIED_MODEL, 0.999)
    cache.world.bodies.entries["acme", found.exact_key.hex()] = forged
    assert await cache.outcome() == "MISS"
    assert await cache.outcome(user="bob") == "MISS"


async def test_an_alias_of_a_pinned_answer_is_made_again_after_two_weeks(cache):
    ends = []
    put_alias = cache.world.bodies.put_alias

    async def noted(tenant, exact_key, alias, expires_at):
        ends.append(expires_at - cache.world.clock.now())
        await put_alias(tenant, exact_key, alias, expires_at)

    cache.world.bodies.put_alias = noted
    await cache.store(pinned=True)
    await cache.served()
    assert ends == [14 * 86_400]
    assert await cache.outcome() == "SEMANTIC_HIT"


async def test_an_alias_across_languages_ends_with_the_permission(cache):
    await cache.store("How do I reset my password, please?")
    spanish = "¿Cómo cambio la contraseña que olvidé?"
    allowed = dataclasses.replace(cache.rules["default"], cross_language=True)
    cache.rules["default"], forbidden = allowed, cache.rules["default"]
    await cache.served(spanish)
    assert await cache.outcome(spanish) == "SEMANTIC_HIT"
    cache.rules["default"] = forbidden
    assert await cache.outcome(spanish) == "MISS"


async def test_a_request_that_an_alias_answered_finds_the_entry_to_purge(cache):
    stored = await cache.store()
    await cache.served(request_id="first")
    await cache.lookup(request_id="by-alias")
    assert await cache.purge(request_id="by-alias") == 1
    assert ("acme", stored.entry_id) not in cache.world.bodies.entries
    assert await cache.outcome(at=0.1) == "MISS"


# Lessons.


async def test_a_miss_teaches_whether_the_candidate_would_have_done(cache):
    await cache.store(chance=0.9, answer="Click the blue button.")
    found = await cache.lookup(at=0.1)
    lesson = unpack(found.lesson)
    assert lesson is not None
    assert (lesson.asked, lesson.semantic) == (found.exact_key.hex(), True)
    assert ASKED not in found.lesson.decode()
    assert await cache.learn(found.lesson, "Click the blue button.") == "SAME"
    measured = await cache.measure()
    assert (measured.learned, measured.checked, measured.near_misses) == (1, 0, 1)
    (label,) = cache.world.bodies.kept_labels["acme", "default"]
    assert (label.same, label.weight) == (True, 1.0)
    assert label.features == pytest.approx(lesson.features)
    # What was answered the same stands with it from now on.
    (group,) = cache.world.bodies.groups.values()
    assert group == digest("Click the blue button.")
    assert list(cache.world.bodies.groups) == [("acme", lesson.asked)]


async def test_what_was_answered_otherwise_joins_no_group(cache):
    await cache.store(chance=0.9, answer="It costs 5 dollars.")
    found = await cache.lookup(at=0.1)
    assert await cache.learn(found.lesson, "It costs 9 dollars.") == "DIFFERENT"
    assert not cache.world.bodies.groups


async def test_labels_move_the_namespaces_own_calibration_only(cache):
    await cache.store(chance=0.9)
    await cache.store(chance=0.9, tenant="other")
    found = await cache.lookup(at=0.1)
    for _ in range(40):
        await cache.learn(found.lesson, "Click reset.")
    await cache.measure()
    again, elsewhere = await cache.lookup(at=0.1), await cache.lookup(at=0.1, tenant="other")
    before = found.verdict.candidates[0].probability
    assert again.verdict.candidates[0].probability > before + 0.03
    assert elsewhere.verdict.candidates[0].probability == pytest.approx(before)


async def test_doubt_is_counted_and_teaches_nothing(cache):
    await cache.store(chance=0.9)
    found = await cache.lookup(at=0.1)
    assert await cache.learn(found.lesson, "") == "DOUBT"
    measured = await cache.measure()
    assert (measured.doubtful, measured.learned) == (1, 0)
    assert not cache.world.bodies.kept_labels


async def test_a_shadow_answer_that_differs_keeps_the_pair_apart(cache):
    await cache.store(answer="It costs 5 dollars.")
    found = await cache.served()
    assert await cache.learn(found.lesson, "It costs 9 dollars.", "SHADOW") == "DIFFERENT"
    measured = await cache.measure()
    assert (measured.checked, measured.wrong, measured.learned) == (1, 1, 0)
    assert await cache.outcome() == "MISS", "by alias"
    refused = await cache.lookup(at=0.1)
    assert (refused.outcome, refused.verdict.reason) == (cache_pb2.OUTCOME_MISS, "found_wrong")
    assert (await cache.lookup(OTHER, at=0.1)).verdict.reason != "found_wrong", "other words are judged by themselves"


async def test_a_shadow_answer_that_agrees_counts_for_an_alias_too(cache):
    await cache.store()
    await cache.served()
    found = await cache.lookup()
    assert found.verdict.alias
    assert await cache.learn(found.lesson, "Click reset.", "SHADOW") == "SAME"
    measured = await cache.measure()
    assert (measured.checked, measured.wrong) == (1, 0)
    assert len(cache.world.bodies.kept_labels["acme", "default"]) == 1
    assert await cache.outcome() == "SEMANTIC_HIT"


async def test_a_stale_answer_is_counted_and_alarms_once_when_it_is_a_pattern(cache):
    await cache.store(answer="It costs 5 dollars.")
    found = await cache.lookup(STORED)
    assert found.outcome == cache_pb2.OUTCOME_EXACT_HIT
    assert await cache.learn(found.lesson, "It costs 5 dollars.", "STALENESS") == "SAME"
    for _ in range(5):
        assert await cache.learn(found.lesson, "It costs 7 dollars.", "STALENESS") == "DIFFERENT"
    measured = await cache.measure()
    assert (measured.stale_checked, measured.stale, measured.checked) == (6, 5, 0)
    ((tenant, namespace, share),) = cache.world.stale
    assert (tenant, namespace) == ("acme", "default")
    assert share > 0.05


@pytest.mark.parametrize("change", ["cut", "other version", "no json", "empty", "list", "nan", "short", "other kind"])
async def test_a_lesson_that_is_not_ours_teaches_nothing(cache, change):
    await cache.store(chance=0.9)
    lesson = (await cache.lookup(at=0.1)).lesson
    fields = json.loads(lesson)
    altered = {
        "cut": lesson[:-1],
        "other version": json.dumps({**fields, "v": 2}).encode(),
        "no json": b"\xff\x00",
        "empty": b"",
        "list": b"[1]",
        "nan": json.dumps({**fields, "f": [float("nan")] * len(fields["f"])}).encode(),
        "short": json.dumps({**fields, "f": [1.0]}).encode(),
        "other kind": lesson,
    }[change]
    kind = "STALENESS" if change == "other kind" else "MISS"
    assert await cache.learn(altered, "Click reset.", kind) == "UNSPECIFIED"
    measured = await cache.measure()
    assert measured.learned == measured.doubtful == measured.stale_checked == 0


async def test_an_answer_that_is_gone_or_was_written_again_is_not_compared(cache):
    stored = await cache.store(chance=0.9)
    lesson = (await cache.lookup(at=0.1)).lesson
    assert await cache.learn(lesson, "Click reset.", namespace="generous") == "UNSPECIFIED"
    cache.world.clock.time += 1
    await cache.store(chance=0.9)
    assert await cache.learn(lesson, "Click reset.") == "UNSPECIFIED"
    lesson = (await cache.lookup(at=0.1)).lesson
    await cache.purge(entry_id=stored.entry_id)
    assert await cache.learn(lesson, "Click reset.") == "UNSPECIFIED"


async def test_a_namespace_that_does_not_learn_gets_no_lesson_of_its_misses(cache):
    await cache.store(chance=0.9, namespace="unlearned")
    assert (await cache.lookup(at=0.1, namespace="unlearned")).lesson == b""


# Feedback.


async def test_a_wrong_semantic_answer_is_counted_once_and_kept_from_the_question(cache):
    await cache.store()
    await cache.served(request_id="r1")
    assert await cache.feedback("r1", right=False)
    assert not await cache.feedback("r1", right=False)
    assert not await cache.feedback("r1", right=True)
    measured = await cache.measure()
    assert (measured.feedback_wrong, measured.checked, measured.wrong) == (1, 1, 1)
    (label,) = cache.world.bodies.kept_labels["acme", "default"]
    assert not label.same
    assert await cache.outcome(at=0.1) == "MISS"
    assert await cache.outcome() == "MISS"


async def test_right_is_counted_and_does_nothing_else(cache):
    await cache.store()
    await cache.served(request_id="r1")
    assert await cache.feedback("r1", right=True)
    measured = await cache.measure()
    assert (measured.feedback_right, measured.checked, measured.learned) == (1, 0, 0)
    assert not cache.world.bodies.kept_labels
    assert not cache.world.bodies.checks


async def test_a_word_on_an_exact_answer_says_nothing_about_paraphrases(cache):
    await cache.store(request_id="writer")
    await cache.lookup(STORED, request_id="reader")
    assert await cache.feedback("reader", right=False)
    measured = await cache.measure()
    assert (measured.feedback_wrong, measured.checked, measured.wrong) == (1, 0, 0)


async def test_requests_that_the_cache_did_not_answer_are_not_judged(cache):
    await cache.store(request_id="writer")
    await cache.served(request_id="reader")
    assert not await cache.feedback("writer", right=False)
    assert not await cache.feedback("nobody", right=False)
    assert not await cache.feedback("reader", right=False, tenant="other")
    assert (await cache.measure()).feedback_wrong == 0


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (("Feedback", cache_pb2.FeedbackRequest(request_id="r")), "right"),
        (("Feedback", cache_pb2.FeedbackRequest(right=True)), "request_id"),
        (("Learn", cache_pb2.LearnRequest(answer=say("a"))), "kind"),
        (("Learn", cache_pb2.LearnRequest(kind=cache_pb2.LESSON_KIND_MISS)), "answer"),
    ],
)
async def test_malformed_calls_name_the_field(cache, call, field):
    method, pb = call
    pb.caller.tenant = "acme"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(cache.stub, method)(pb)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in (caught.value.details() or "")


# Measures.


async def test_a_new_namespace_is_cautious_and_knows_nothing(cache):
    measured = await cache.measure("generous")
    assert measured.state == "cautious"
    assert (measured.wrong_rate_low, measured.wrong_rate_high) == (0.0, 0.0)
    assert measured.error_budget == pytest.approx(0.2)
    assert 0.7 <= measured.threshold < 1


async def test_what_other_replicas_counted_is_measured_too(cache):
    await cache.store()
    await cache.served()
    await cache.world.bodies.add("acme", "default", {"semantic_hits": 2.0, "unknown": 1.0, "risk:999": 1.0}, [], 10)
    assert (await cache.measure()).semantic_hits == 3


async def test_a_larger_budget_serves_what_a_smaller_one_refuses(cache):
    for namespace, outcome in (("", "MISS"), ("generous", "SEMANTIC_HIT")):
        await cache.store(chance=0.95, namespace=namespace)
        assert await cache.outcome(at=0.1, namespace=namespace) == outcome


async def test_a_namespace_that_overspent_tightens_and_opens_again_when_checks_bear_it_out(cache):
    await cache.store(chance=0.985)
    quality = cache.world.quality
    assert await cache.outcome(at=0.1) == "SEMANTIC_HIT"
    quality.count("acme", "default", checked=10, wrong=4)
    assert await cache.outcome(at=0.1) == "MISS"
    assert (await cache.measure()).state == "tight"
    quality.count("acme", "default", checked=5000, lookups=10_000, semantic_hits=5000)
    measured = await cache.measure()
    assert measured.state == "open"
    assert await cache.outcome(at=0.1) == "SEMANTIC_HIT"
    assert [state for *_, state in cache.world.states] == ["tight", "open"]


async def test_a_namespace_that_goes_by_similarity_tightens_too(cache):
    paraphrase = "how can i reset my password please"
    await cache.store(namespace="by-similarity")
    assert await cache.outcome(paraphrase, at=0.4, namespace="by-similarity") == "SEMANTIC_HIT"
    cache.world.quality.count("acme", "by-similarity", checked=10, wrong=4)
    found = await cache.lookup(paraphrase, at=0.4, namespace="by-similarity", skip_exact=True)
    assert (found.verdict.reason, found.verdict.threshold) == ("below_threshold", pytest.approx(0.95))
    assert await cache.outcome(paraphrase, namespace="by-similarity") == "MISS", "by alias"
    assert await cache.outcome(paraphrase, at=0.1, namespace="by-similarity") == "SEMANTIC_HIT"


async def test_the_store_being_down_is_said_and_nothing_counted_is_lost(cache):
    await cache.store()
    await cache.served(request_id="r1")
    cache.world.bodies.down = True
    for call in (cache.measure(), cache.feedback("r1", right=False), cache.learn(b"", "x")):
        if call.__name__ == "learn":
            assert await call == "UNSPECIFIED"
            continue
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    cache.world.bodies.down = False
    assert (await cache.measure()).semantic_hits == 1


# The judge.


async def test_the_judge_decides_what_the_verifier_cannot(cache):
    stored = await cache.store(chance=0.8, namespace="judged")
    found = await cache.served(namespace="judged")
    assert found.entry.entry_id == stored.entry_id
    assert (found.verdict.reason, found.verdict.candidates[0].reason) == ("judged", "judged")
    assert found.verifier_cost_nanousd == 17
    ((model, text, timeout),) = cache.world.judge.asked
    assert (model, timeout) == ("small", 0.8)
    assert all(part in text for part in (STORED, "Click reset.", ASKED))
    measured = await cache.measure("judged")
    assert (measured.judged, measured.semantic_hits) == (1, 1)
    (label,) = cache.world.bodies.kept_labels["acme", "judged"]
    assert (label.same, label.weight) == (True, 0.5)
    assert await cache.outcome(namespace="judged") == "SEMANTIC_HIT", "by alias, though its probability was low"
    assert len(cache.world.judge.asked) == 1


@pytest.mark.parametrize(("answer", "reason", "cost"), [(False, "judge_refused", 17), (None, "unsure", 13)])
async def test_a_judge_that_says_no_or_nothing_leaves_a_miss(cache, answer, reason, cost):
    cache.world.judge.answer = answer
    await cache.store(chance=0.8, namespace="judged")
    found = await cache.lookup(at=0.1, namespace="judged")
    assert (found.outcome, found.verdict.reason) == (cache_pb2.OUTCOME_MISS, reason)
    assert found.verifier_cost_nanousd == cost
    labels = [] if answer is None else [False]
    await cache.measure("judged")
    assert [label.same for label in cache.world.bodies.kept_labels.get(("acme", "judged"), [])] == labels


@pytest.mark.parametrize(
    ("chance", "namespace", "answer"),
    [
        (0.1, "judged", "Click reset."),  # nearly always no
        (0.999, "judged", "Click reset."),  # sure enough
        (0.8, "", "Click reset."),  # the policy names none
        (0.8, "judged", "x" * 5000),  # the judge would not see it whole
    ],
)
async def test_the_judge_is_asked_only_where_it_may_help(cache, chance, namespace, answer):
    await cache.store(chance=chance, namespace=namespace, answer=answer)
    await cache.lookup(at=0.1, namespace=namespace)
    assert cache.world.judge.asked == []


async def test_the_judge_is_not_asked_where_generating_is_cheaper(cache):
    cache.world.verifier.chances[STORED] = 0.8
    fields = request(STORED, at=0.0, namespace="judged")
    for model, usage in (("big", usage_pb2.Usage(input_tokens=1, output_tokens=1)), ("unknown", usage_pb2.Usage())):
        await cache.stub.Store(cache_pb2.StoreRequest(**fields, answer=say("Yes."), model=model, usage=usage))
        await cache.lookup(at=0.1, namespace="judged")
    assert cache.world.judge.asked == []


async def test_explain_does_not_pay_a_judge(cache):
    await cache.store(chance=0.8, namespace="judged")
    fields = request(ASKED, at=0.1, namespace="judged")
    explained = await cache.stub.Explain(cache_pb2.ExplainRequest(**fields))
    assert explained.outcome == cache_pb2.OUTCOME_MISS
    assert cache.world.judge.asked == []


# An entry's own record.


async def test_checks_of_an_entry_are_known_to_its_next_verdict(cache):
    await cache.store()
    found = await cache.served()
    for _ in range(3):
        await cache.learn(found.lesson, "Click reset.", "SHADOW")
    lesson = unpack((await cache.lookup(OTHER, at=0.2)).lesson)
    assert lesson is not None
    assert dataclasses.asdict(lesson)["features"][FEATURES.index("record")] == pytest.approx(np.log(4), abs=1e-4)


# Reviews.


async def test_a_semantic_hit_and_a_near_miss_are_kept_to_be_looked_through(cache):
    stored = await cache.store()
    await cache.served(request_id="r1")
    cache.world.clock.time += 1
    await cache.store("How do I delete my account?", answer="Write to us.", chance=0.6, at=1.0)
    assert await cache.outcome(OTHER, at=1.1, request_id="r2") == "MISS"
    near, hit = (await cache.reviews()).reviews
    assert near.kind == cache_pb2.REVIEW_KIND_NEAR_MISS
    assert (near.asked, near.stored, near.answer) == (OTHER, "How do I delete my account?", "Write to us.")
    assert hit.kind == cache_pb2.REVIEW_KIND_HIT
    assert (hit.asked, hit.stored, hit.answer, hit.reason) == (ASKED, STORED, "Click reset.", "served")
    assert (hit.request_id, hit.entry_id, hit.at.seconds) == ("r1", stored.entry_id, 1_000_000)
    assert (hit.similarity, hit.probability) == (pytest.approx(np.cos(0.1), abs=1e-4), pytest.approx(0.999, abs=1e-3))
    assert {review.verdict for review in (near, hit)} == {cache_pb2.REVIEW_VERDICT_UNCHECKED}
    (only,) = (await cache.reviews(kind=cache_pb2.REVIEW_KIND_NEAR_MISS)).reviews
    assert only == near


async def test_a_pair_that_is_asked_again_is_kept_once_under_its_newest_request(cache):
    await cache.store()
    await cache.served(request_id="r1")
    await cache.served(request_id="r2")
    (review,) = (await cache.reviews()).reviews
    assert (review.request_id, review.reason) == ("r2", "alias")


async def test_exact_hits_explanations_and_plain_misses_are_no_reviews(cache):
    await cache.store()
    assert await cache.outcome(STORED, at=0.0) == "EXACT_HIT"
    await cache.stub.Explain(cache_pb2.ExplainRequest(**request(ASKED, at=0.1)))
    cache.world.verifier.chances[STORED] = 0.01
    assert await cache.outcome(OTHER, at=0.5) == "MISS"
    assert not (await cache.reviews()).reviews


async def test_a_policy_can_switch_reviews_off(cache):
    await cache.store(namespace="unseen")
    assert await cache.outcome(at=0.1, namespace="unseen") == "SEMANTIC_HIT"
    assert not (await cache.reviews("unseen")).reviews


MENU = "Open the settings and choose the second entry of the list."


@pytest.mark.parametrize(
    ("answer", "verdict"), [(MENU, "RIGHT"), ("It depends on which of the plans you have.", "WRONG")]
)
async def test_a_shadow_check_settles_the_pair(cache, answer, verdict):
    await cache.store(answer=MENU)
    found = await cache.served(request_id="r1")
    await cache.learn(found.lesson, answer, "SHADOW")
    assert await cache.review_verdicts() == [verdict]


async def test_a_doubtful_check_says_so_until_somebody_knows(cache):
    await cache.store()
    found = await cache.served(request_id="r1")
    assert await cache.learn(found.lesson, "Call 555 4000.", "SHADOW") == "DOUBT"
    assert await cache.review_verdicts() == ["DOUBTFUL"]
    assert await cache.feedback("r1", right=True)
    assert await cache.review_verdicts() == ["RIGHT"]


async def test_a_lesson_of_a_near_miss_settles_it(cache):
    await cache.store(chance=0.6)
    found = await cache.lookup(at=0.1)
    assert await cache.learn(found.lesson, "Click reset.") == "SAME"
    assert await cache.review_verdicts() == ["RIGHT"]


async def test_a_callers_wrong_stays_whoever_says_right_later(cache):
    await cache.store()
    await cache.served(request_id="r1")
    await cache.served(request_id="r2")
    assert await cache.feedback("r1", right=False)
    assert await cache.review_verdicts() == ["WRONG"]
    assert await cache.feedback("r2", right=True)
    assert await cache.review_verdicts(unsettled_only=True) == ["WRONG"]


async def test_an_entry_that_is_written_again_is_another_pair_and_the_old_one_has_no_answer(cache):
    await cache.store()
    await cache.served(request_id="r1")
    assert await cache.feedback("r1", right=True)
    cache.world.clock.time += 1
    await cache.store(answer="Ask the desk.")
    await cache.served(request_id="r2")
    new, old = (await cache.reviews()).reviews
    assert (new.answer, new.verdict) == ("Ask the desk.", cache_pb2.REVIEW_VERDICT_UNCHECKED)
    assert (old.answer, old.verdict) == ("", cache_pb2.REVIEW_VERDICT_RIGHT)


async def test_reviews_come_in_pages(cache):
    await cache.store()
    for index in range(7):
        cache.world.clock.time += 1
        await cache.lookup(f"{ASKED} {'please ' * index}", at=0.1, request_id=f"r{index}")
    pages, token = [], ""
    while True:
        page = await cache.reviews(page_size=3, page_token=token)
        pages.append([review.request_id for review in page.reviews])
        token = page.next_page_token
        if not token:
            break
    assert pages == [["r6", "r5", "r4"], ["r3", "r2", "r1"], ["r0"]]


@pytest.mark.parametrize(
    ("change", "field"),
    [({"page_size": 201}, "page_size"), ({"kind": 9}, "kind"), ({"page_token": "x" * 65}, "page_token")],
)
async def test_a_review_request_out_of_range_is_refused(cache, change, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cache.reviews(**change)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in caught.value.details()


async def test_another_tenant_sees_neither_reviews_nor_namespaces(cache):
    await cache.store()
    await cache.served(request_id="r1")
    await cache.lookup(namespace="generous")
    other = caller_pb2.Caller(tenant="other")
    assert not (await cache.stub.ListReviews(cache_pb2.ListReviewsRequest(caller=other))).reviews
    assert not (await cache.stub.ListNamespaces(cache_pb2.ListNamespacesRequest(caller=other))).namespaces
    listed = await cache.stub.ListNamespaces(cache_pb2.ListNamespacesRequest(caller=caller_pb2.Caller(tenant="acme")))
    assert list(listed.namespaces) == ["default", "generous"]


async def test_what_cannot_be_written_waits(cache):
    await cache.store()
    cache.world.review_store.down = True
    await cache.served(request_id="r1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await cache.reviews()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert await cache.feedback("r1", right=False)
    cache.world.review_store.down = False
    assert await cache.review_verdicts() == ["WRONG"]
