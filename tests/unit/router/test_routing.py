"""Which models are tried, in which order, at what price."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.chat import Chat, Message, Role, Sampling, TextPart
from services.common.money import Rates, Tariff, batch_rates
from services.router.domain.routing import (
    Catalogue,
    Objective,
    Question,
    Speed,
    TierRules,
    UnknownModelName,
    route,
)

SIMPLE = "What is a server?"
HARD = "Prove by induction that the sum of the first n odd numbers is n squared."


def price(dollars_in: float, dollars_out: float, cached: float | None = None, batch: str = "1") -> Tariff:
    nano = 1_000_000_000
    read = dollars_in if cached is None else cached
    rates = Rates(int(dollars_in * nano), int(dollars_out * nano), int(read * nano))
    return Tariff(rates, batch_rates(rates, Decimal(batch)))


CATALOGUE = Catalogue(
    tiers={
        "simple": TierRules(("tiny", "mini"), 100),
        "medium": TierRules(("mini", "big"), 200),
        "complex": TierRules(("big", "claude"), 400),
        "reasoning": TierRules(("thinker", "big"), 800),
        "house": TierRules(("claude",), 50),
    },
    prices={
        "tiny": price(0.01, 0.04),
        "mini": price(0.15, 0.6, cached=0.075, batch="0.5"),
        "big": price(2.5, 10, cached=1.25, batch="0.5"),
        "claude": price(3, 15, cached=0.3),
        "thinker": price(15, 60),
    },
    # Nobody knows how fast "tiny" is.
    speeds={"mini": Speed(0.5, 100), "big": Speed(0.5, 50), "claude": Speed(0.1, 400), "thinker": Speed(20, 100)},
)


def ask(text: str = SIMPLE, requested: str = "", **fields) -> Question:
    sampling = fields.pop("sampling", Sampling())
    return Question(Chat((Message(Role.USER, (TextPart(text),)),), sampling=sampling), requested, **fields)


def models(question: Question, catalogue: Catalogue = CATALOGUE) -> list[str]:
    return [candidate.model for candidate in route(question, catalogue).candidates]


@pytest.mark.parametrize("requested", ["", "auto"])
def test_auto_takes_the_tier_that_the_question_needs(requested):
    assert route(ask(SIMPLE, requested), CATALOGUE).tier == "simple"
    assert route(ask(HARD, requested), CATALOGUE).tier == "reasoning"


def test_a_tiers_own_models_come_first_and_the_next_harder_tiers_follow():
    assert models(ask(SIMPLE)) == ["tiny", "mini", "big"]
    assert models(ask(requested="medium")) == ["mini", "big", "claude"]


def test_the_hardest_tier_falls_back_on_the_next_easier_one():
    assert models(ask(HARD)) == ["thinker", "big", "claude"]


def test_a_tier_of_ones_own_has_no_fallback():
    assert models(ask(requested="house")) == ["claude"]
    assert route(ask(requested="house"), CATALOGUE).tier == "house"


def test_a_pinned_model_is_used_alone_and_has_no_tier():
    pinned = route(ask(requested="thinker"), CATALOGUE)
    assert [candidate.model for candidate in pinned.candidates] == ["thinker"]
    assert pinned.tier == ""


@pytest.mark.parametrize("name", ["gpt-9", "simpel", "gpt-9:floor", "big:turbo", "auto:turbo"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(UnknownModelName, match=name.partition(":floor")[0]):
        route(ask(requested=name), CATALOGUE)


def test_floor_puts_the_cheapest_of_the_tier_first():
    found = route(ask(requested="reasoning:floor"), CATALOGUE)
    assert found.objective is Objective.CHEAPEST
    assert [candidate.model for candidate in found.candidates] == ["big", "thinker", "claude"]


def test_without_a_suffix_the_policys_order_holds():
    found = route(ask(requested="complex"), CATALOGUE)
    assert (found.objective, found.candidates[0].model) == (Objective.POLICY, "big")


def test_nitro_puts_the_model_first_whose_answer_is_expected_soonest():
    # 400 tokens: big 0.5 + 400/50 = 8.5 s, claude 0.1 + 400/400 = 1.1 s.
    found = route(ask(requested="complex:nitro"), CATALOGUE)
    assert found.objective is Objective.FASTEST
    assert [(c.model, c.seconds) for c in found.candidates[:2]] == [("claude", 1.1), ("big", 8.5)]


def test_the_length_of_the_answer_decides_whether_the_first_token_or_the_pace_counts():
    eager, steady = Speed(0.1, 20), Speed(1.0, 200)
    catalogue = Catalogue({"simple": TierRules(("a", "b"), 1000)}, CATALOGUE.prices, {"a": eager, "b": steady})
    assert models(ask(requested="simple:nitro"), catalogue) == ["b", "a"]
    short = Sampling(max_output_tokens=10)
    assert models(ask(requested="simple:nitro", sampling=short), catalogue) == ["a", "b"]


def test_a_model_of_unknown_speed_is_never_taken_for_fast():
    assert models(ask(requested="simple:nitro"))[:2] == ["mini", "tiny"]
    nobody_knows = Catalogue(CATALOGUE.tiers, CATALOGUE.prices)
    assert models(ask(requested="simple:nitro"), nobody_knows)[:2] == ["tiny", "mini"]


def test_balanced_weighs_price_against_time():
    # The reasoning tier: thinker 800 x 60 = 48 m$ in 28 s, big 800 x 10 = 8 m$ in 16.5 s: dearer and slower loses.
    found = route(ask(requested="reasoning:balanced"), CATALOGUE)
    assert found.objective is Objective.BALANCED
    assert [c.model for c in found.candidates[:2]] == ["big", "thinker"]
    # The complex tier: claude costs 1.5 times as much and answers 7.7 times as fast.
    assert models(ask(requested="complex:balanced"))[0] == "claude"
    assert models(ask(requested="complex:floor"))[0] == "big"


@pytest.mark.parametrize(("seconds", "first"), [(1.9, "dear"), (2.1, "cheap")])
def test_twice_the_speed_is_worth_twice_the_price(seconds, first):
    catalogue = Catalogue(
        {"simple": TierRules(("cheap", "dear"), 100)},
        {"cheap": price(1, 1), "dear": price(2, 2)},
        {"cheap": Speed(4, 1e5), "dear": Speed(seconds, 1e5)},
    )
    assert models(ask(requested="simple:balanced"), catalogue)[0] == first


def test_where_time_is_weighed_an_unknown_speed_is_as_slow_as_the_slowest_known():
    catalogue = Catalogue(
        {"simple": TierRules(("unknown", "slow", "quick"), 100)},
        {"unknown": price(1, 1), "slow": price(1.1, 1.1), "quick": price(2, 2)},
        {"slow": Speed(4, 1e5), "quick": Speed(1, 1e5)},
    )
    assert models(ask(requested="simple:balanced"), catalogue) == ["quick", "unknown", "slow"]
    nothing_known = Catalogue(catalogue.tiers, catalogue.prices)
    assert models(ask(requested="simple:balanced"), nothing_known) == ["unknown", "slow", "quick"]


def test_a_long_prompt_has_the_price_of_long_prompts():
    short = price(1, 1, batch="0.5")
    tariff = Tariff(short.rates, short.batch, long=price(2, 3, batch="0.5"), long_from=1000)
    catalogue = Catalogue({"simple": TierRules(("m",), 100)}, {"m": tariff})
    (below,) = route(ask("word " * 900, "m"), catalogue).candidates
    assert below.input_tokens <= 1000
    assert below.cost == (below.input_tokens + 100) * 1000
    (above,) = route(ask("word " * 2000, "m"), catalogue).candidates
    assert above.input_tokens > 1000
    assert above.cost == above.input_tokens * 2000 + 100 * 3000
    (batch,) = route(ask("word " * 2000, "m", batch=True), catalogue).candidates
    assert batch.cost * 2 == above.cost


@pytest.mark.parametrize("requested", [":floor", "auto:floor"])
def test_a_suffix_alone_means_auto(requested):
    found = route(ask(requested=requested), CATALOGUE)
    assert (found.tier, found.objective) == ("simple", Objective.CHEAPEST)


def test_a_model_whose_name_ends_like_a_suffix_is_still_a_model():
    catalogue = Catalogue(CATALOGUE.tiers, {**CATALOGUE.prices, "llama:nitro": price(1, 1)})
    found = route(ask(requested="llama:nitro"), catalogue)
    assert ([candidate.model for candidate in found.candidates], found.objective) == (
        ["llama:nitro"],
        Objective.POLICY,
    )


def test_the_price_is_input_and_expected_output_at_the_models_rates():
    mini = route(ask(requested="mini"), CATALOGUE).candidates[0]
    assert mini.output_tokens == 100
    assert mini.cost == mini.input_tokens * 150 + 100 * 600


def test_the_callers_output_limit_lowers_the_expected_output():
    mini = route(ask(requested="mini", sampling=Sampling(max_output_tokens=7)), CATALOGUE).candidates[0]
    assert mini.output_tokens == 7


def test_a_warm_prefix_is_priced_at_the_cached_rate():
    cold = route(ask(requested="big"), CATALOGUE).candidates[0]
    warm = route(ask(requested="big", warm_tokens={"big": 5}), CATALOGUE).candidates[0]
    assert cold.cost - warm.cost == 5 * (2500 - 1250)


def test_a_warm_prefix_never_exceeds_the_prompt():
    everything = route(ask(requested="big", warm_tokens={"big": 10**9}), CATALOGUE).candidates[0]
    assert everything.cost == everything.input_tokens * 1250 + everything.output_tokens * 10_000


def test_a_warm_prefix_can_make_a_dearer_model_the_cheapest():
    question = ask("word " * 2000, requested="complex:floor")
    assert models(question)[0] == "big"
    warm = ask("word " * 2000, requested="complex:floor", warm_tokens={"claude": 2000})
    assert models(warm)[0] == "claude"


def test_who_can_wait_is_priced_as_a_batch():
    now = route(ask(requested="big"), CATALOGUE).candidates[0]
    later = route(ask(requested="big", batch=True), CATALOGUE).candidates[0]
    assert later.cost * 2 == now.cost


def test_a_model_without_a_price_is_flagged_and_comes_last():
    catalogue = Catalogue(
        {"simple": TierRules(("new", "tiny"), 10), "medium": TierRules(("mini",), 10)}, CATALOGUE.prices
    )
    found = route(ask(SIMPLE), catalogue).candidates
    assert [candidate.model for candidate in found] == ["tiny", "mini", "new"]
    assert [candidate.unpriced for candidate in found] == [False, False, True]
    assert found[-1].cost == 0


def test_a_policy_without_the_judged_tier_uses_the_nearest():
    catalogue = Catalogue({"simple": TierRules(("tiny",), 10), "complex": TierRules(("big",), 10)}, CATALOGUE.prices)
    assert route(ask("Explain how DNS works"), catalogue).tier == "complex"
    assert route(ask(HARD), catalogue).tier == "complex"
    own = Catalogue({"house": TierRules(("claude",), 10)}, CATALOGUE.prices)
    assert route(ask(HARD), own).tier == "house"


@settings(deadline=None)
@given(
    st.sampled_from(["", "auto", "simple", "medium", "complex", "reasoning", "house", "tiny", "big"]),
    st.sampled_from(["", ":floor", ":nitro", ":balanced"]),
    st.text(max_size=200),
    st.integers(0, 10_000),
    st.booleans(),
)
def test_every_known_name_yields_distinct_priced_candidates(name, suffix, text, warm, batch):
    found = route(ask(text, name + suffix, warm_tokens={"big": warm}, batch=batch), CATALOGUE)
    names = [candidate.model for candidate in found.candidates]
    assert names
    assert len(set(names)) == len(names)
    assert all(isinstance(candidate.cost, int) and candidate.cost >= 0 for candidate in found.candidates)
    assert 0 <= found.score <= 1
