"""What is kept to train a model on: nothing, unless the policy names the tenant."""

import pytest

from services.common.chat import Answer, FinishReason, Message, Role, TextPart
from services.common.errors import NotReady
from services.common.policy import SHIPPED, NamespacePolicy, Policy, RecordPolicy
from services.common.prices import PriceBook
from services.edge.app import rules_of
from services.edge.domain.ports import CacheControl
from services.edge.domain.traffic import AT_ONCE, MAX_PAIR_BYTES, WAITING, Recording
from tests.unit.edge.fakes import World, hit, question
from tests.waiting import until

ACME = Recording(frozenset({"acme"}))


async def asked(world: World, **fields) -> None:
    """One question; what is kept of it is kept when this returns."""
    await world.walk.complete(question(**fields))
    await world.walk.close()


def test_the_shipped_policy_keeps_nothing_of_anybody() -> None:
    rules = rules_of(Policy.load(SHIPPED, PriceBook.load()), PriceBook.load())
    assert {rule.recording.tenants for rule in rules.namespaces.values()} == {frozenset()}
    assert NamespacePolicy().record.tenants == ()


def test_the_policy_names_who_opted_in() -> None:
    shipped = Policy.load(SHIPPED, PriceBook.load())
    record = RecordPolicy.model_validate({"tenants": ["acme"], "keep": "7d", "max_pairs": 50})
    policy = shipped.model_copy(update={"namespaces": {"default": NamespacePolicy(record=record)}})
    (rules,) = rules_of(policy, PriceBook.load()).namespaces.values()
    assert rules.recording == Recording(frozenset({"acme"}), max_pairs=50, keep_s=7 * 86_400.0)


async def test_nothing_is_kept_by_default() -> None:
    world = World()
    await world.walk.complete(question())
    async for _ in world.walk.stream(question()):
        pass
    await world.walk.feedback("acme", "default", "r-1", right=False)
    await asked(world)
    assert world.traffic.calls == 0


async def test_nothing_is_kept_of_a_tenant_who_is_not_named() -> None:
    world = World(recording=Recording(frozenset({"volta"})))
    await world.walk.feedback("acme", "default", "r-1", right=False)
    await asked(world)
    assert world.traffic.calls == 0


async def test_question_and_answer_are_kept_as_they_were_asked_and_given() -> None:
    world = World(recording=ACME, compress=True)
    await asked(world)
    (pair,) = world.traffic.pairs
    assert pair.question == question()
    assert pair.answer == world.provider.answer
    assert (pair.model, pair.tier) == (world.record.model, world.record.tier)
    assert pair.entry_id


async def test_a_streamed_answer_is_kept_whole() -> None:
    world = World(recording=ACME)
    async for _ in world.walk.stream(question()):
        pass
    await world.walk.close()
    assert [pair.answer.message.text for pair in world.traffic.pairs] == ["Yes."]


async def test_a_hit_is_kept_only_as_a_pointer_to_its_answer() -> None:
    world = World(recording=ACME)
    world.cache.exact = hit()
    await asked(world)
    assert world.traffic.pairs == []
    assert world.traffic.served_entries == [("r-1", hit().entry_id)]


async def test_of_a_hit_in_other_words_nothing_is_kept() -> None:
    world = World(recording=ACME)
    world.cache.semantic = hit(semantic=True)
    await asked(world)
    assert world.traffic.calls == 0


async def test_a_word_on_an_answer_is_kept_whoever_gave_the_answer() -> None:
    world = World(recording=ACME)
    assert not await world.walk.feedback("acme", "default", "unknown", right=False)
    await world.walk.close()
    assert world.traffic.judgements == [("unknown", False)]


async def test_what_the_caller_forbids_to_store_is_not_kept() -> None:
    world = World(recording=ACME)
    await asked(world, control=CacheControl(no_store=True))
    assert world.traffic.calls == 0


@pytest.mark.parametrize("reason", [FinishReason.LENGTH, FinishReason.CONTENT_FILTER])
async def test_half_an_answer_is_not_kept(reason: FinishReason) -> None:
    world = World(recording=ACME)
    world.provider.answer = Answer(Message(Role.ASSISTANT, (TextPart("Ye"),)), reason)
    await asked(world)
    assert world.traffic.calls == 0


async def test_a_long_conversation_is_not_kept() -> None:
    world = World(recording=ACME)
    await asked(world, text="x" * (MAX_PAIR_BYTES + 1))
    assert world.traffic.calls == 0


async def test_a_store_that_is_down_holds_nobody_up() -> None:
    world = World(recording=ACME)
    world.traffic.error = NotReady("redis: gone")
    await asked(world)
    assert world.degraded == [("recording", "NOT_READY")]
    assert world.record.outcome == "miss"


async def test_more_than_can_be_kept_at_once_is_dropped() -> None:
    world = World(recording=ACME)
    most = AT_ONCE + WAITING
    world.traffic.free.clear()
    for _ in range(most + 5):
        await world.walk.complete(question())
    world.traffic.free.set()
    await until(lambda: len(world.traffic.pairs) == most)
    await world.walk.close()
    assert len(world.traffic.pairs) == most
