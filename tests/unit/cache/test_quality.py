"""What a namespace learns: written and read beside the lookups, shared by replicas, and deaf to floods of words."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.cache.domain import quality as module
from services.cache.domain.budget import CAUTIOUS, OPEN, TIGHT, Record
from services.cache.domain.calibration import Calibration, Label, adapted
from services.cache.domain.paraphrases import HEARSAY
from services.cache.domain.ports import StoreUnavailable
from services.cache.domain.quality import Quality
from services.cache.domain.signals import FEATURES
from tests.cache_memory import CALIBRATION, Clock, MemoryBodies

KEY = ("acme", "default")


def features(verifier: float, **others: float) -> tuple[float, ...]:
    return tuple({"verifier": verifier, **others}.get(name, 0.0) for name in FEATURES)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def quality(clock):
    return Quality(CALIBRATION, clock)


@pytest.fixture
def store():
    return MemoryBodies()


async def test_counts_and_labels_outlive_the_process(quality, store, clock):
    quality.saw(*KEY, 0.01)
    quality.count(*KEY, semantic_hits=1)
    quality.learn(*KEY, Label(features(3.0), same=False))
    await quality.sync(store)
    other = Quality(CALIBRATION, clock)
    assert other.record(*KEY) == Record()
    await other.sync(store)
    assert other.record(*KEY) == quality.record(*KEY)
    assert (other.record(*KEY).lookups, other.record(*KEY).semantic_hits, sum(other.record(*KEY).risks)) == (1, 1, 1)
    assert other.calibration(*KEY) == quality.calibration(*KEY) != CALIBRATION


async def test_replicas_see_the_sum_and_nothing_is_counted_twice(quality, store, clock):
    other = Quality(CALIBRATION, clock)
    for _ in range(3):
        for replica in (quality, other):
            replica.count(*KEY, semantic_hits=1)
            replica.learn(*KEY, Label(features(1.0), same=True))
            await replica.sync(store)
    clock.time += module.REFRESH_S + 1
    for replica in (quality, other):
        replica.record(*KEY)
        await replica.sync(store)
        assert replica.record(*KEY).semantic_hits == 6
        assert len(replica._of(KEY).labels) == 6
    assert store.counters[KEY]["semantic_hits"] == 6


async def test_what_could_not_be_written_is_kept_with_what_comes_meanwhile(quality, store):
    quality.count(*KEY, wrong=1)
    quality.learn(*KEY, Label(features(1.0), same=False))
    store.down = True
    with pytest.raises(StoreUnavailable):
        await quality.sync(store)
    quality.count(*KEY, wrong=1, checked=1)
    store.down = False
    await quality.sync(store)
    assert store.counters[KEY] == {"wrong": 2, "checked": 1, "labels": 1}
    assert quality.record(*KEY).wrong == 2


async def test_what_arrives_while_the_store_is_read_is_not_lost(quality, store):
    counts = store.counts

    async def meanwhile(*key):
        quality.count(*KEY, wrong=1)
        quality.learn(*KEY, Label(features(2.0), same=False))
        return await counts(*key)

    store.counts = meanwhile
    quality.count(*KEY, wrong=1)
    quality.learn(*KEY, Label(features(1.0), same=False))
    await quality.sync(store)
    assert quality.record(*KEY).wrong == 2
    assert len(quality._of(KEY).labels) == 2
    store.counts = counts
    await quality.sync(store)
    assert store.counters[KEY] == {"wrong": 2, "labels": 2}


async def test_idle_namespaces_are_left_alone_and_labels_are_read_only_when_there_are_new_ones(quality, store, clock):
    quality.learn(*KEY, Label(features(1.0), same=False))
    await quality.sync(store)
    trips = store.trips
    clock.time += 60
    await quality.sync(store)
    assert store.trips == trips
    quality.record(*KEY)
    await quality.sync(store)
    assert store.trips == trips + 1


async def test_a_clock_that_jumps_does_not_stop_the_reading(quality, store, clock):
    await quality.sync(store)
    for jump in (86_400, -2 * 86_400):
        clock.time += jump
        store.counters[KEY] = {"wrong": store.counters.get(KEY, {}).get("wrong", 0) + 1}
        quality.record(*KEY)
        await quality.sync(store)
        assert quality.record(*KEY).wrong == store.counters[KEY]["wrong"]


async def test_memory_is_bounded_and_what_is_not_written_stays(quality, store, monkeypatch):
    monkeypatch.setattr(module, "REMEMBERED", 3)
    for index in range(3):
        quality.record("acme", f"idle{index}")
    for index in range(3):
        quality.count("acme", f"busy{index}", wrong=1)
    assert set(quality._namespaces) == {("acme", f"busy{index}") for index in range(3)}
    quality.count("acme", "one more", wrong=1)
    await quality.sync(store)
    assert len(store.counters) == 4


def test_a_change_of_state_is_told_once(clock):
    heard = []
    quality = Quality(CALIBRATION, clock, lambda *told: heard.append((*told[:3], told[3].state)))
    quality.count(*KEY, lookups=100, semantic_hits=50, checked=10, wrong=5)
    for _ in range(3):
        quality.highest_risk(*KEY, 0.01)
    assert heard == [(*KEY, CAUTIOUS, TIGHT)]


async def test_a_namespace_that_was_tight_is_tight_after_a_restart(store, clock):
    # Between reopening and tightening: only the past tells.
    store.counters[KEY] = {"lookups": 10_000.0, "semantic_hits": 5_000.0, "checked": 400.0, "wrong": 6.0}
    quality = Quality(CALIBRATION, clock)
    quality.record(*KEY)
    await quality.sync(store)
    quality.highest_risk(*KEY, 0.01)
    assert quality.record(*KEY).state == TIGHT
    store.counters[KEY]["checked"] = 4_000.0
    clock.time += 60
    await quality.sync(store)
    quality.highest_risk(*KEY, 0.01)
    assert quality.record(*KEY).state == OPEN


words = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=80)
records = st.builds(
    lambda lookups, hits, checked, wrong: {
        "lookups": lookups,
        "semantic_hits": min(hits, lookups),
        "checked": min(checked, hits, lookups),
        "wrong": min(wrong, checked, hits, lookups),
    },
    st.integers(0, 5_000),
    st.integers(0, 5_000),
    st.integers(0, 500),
    st.integers(0, 20),
)


@settings(max_examples=200, deadline=None)
@given(records, words, st.sampled_from([0.001, 0.01, 0.05]), st.lists(st.integers(0, 67), max_size=20))
def test_no_sequence_of_words_raises_the_risk_that_may_be_served(before, said, delta, seen):
    """As `Learning.feedback` counts them: a word on a paraphrase or on an exact answer, right or wrong."""
    quality = Quality(CALIBRATION, Clock())
    quality.count(*KEY, **{name: float(count) for name, count in before.items()})
    for index in seen:
        quality.record(*KEY).risks[index] += 100
    limit = quality.highest_risk(*KEY, delta)
    for right, semantic in said:
        if right:
            quality.count(*KEY, feedback_right=1)
        else:
            quality.count(*KEY, feedback_wrong=1)
            if semantic:
                quality.count(*KEY, checked=1, wrong=1)
                quality.learn(*KEY, Label(features(5.0), same=False, weight=HEARSAY))
        after = quality.highest_risk(*KEY, delta)
        assert after <= limit
        limit = after


def test_a_wrong_word_does_not_open_a_namespace_that_was_never_checked(quality):
    quality.count(*KEY, lookups=100_000, semantic_hits=10)
    before = quality.highest_risk(*KEY, 0.01)
    quality.count(*KEY, checked=1, wrong=1)
    assert quality.highest_risk(*KEY, 0.01) <= before
    assert quality.record(*KEY).state == CAUTIOUS


@pytest.mark.parametrize("calibration", [CALIBRATION, Calibration.load()], ids=["plain", "shipped"])
def test_no_flood_of_words_on_served_pairs_gets_a_refused_pair_served(calibration):
    source = random.Random(5)
    varied = [name for name in FEATURES if name not in ("verifier", "similarity", "record")]

    def pair() -> tuple[float, ...]:
        others = {name: source.choice([0.0, 0.0, 0.5, 1.0]) for name in varied}
        return features(source.uniform(-8, 8), similarity=source.uniform(0.5, 1), **others)

    pairs = [pair() for _ in range(3_000)]
    required = 1 - calibration.first_risk(0.01)
    served = [p for p in pairs if calibration.probability(p) >= required]
    refused = [p for p in pairs if calibration.probability(p) < required]
    assert served
    assert refused
    for flood in (source.sample(served, min(60, len(served))), [served[0]] * 60, [max(served)] * 60):
        after = adapted(calibration, [Label(p, same=False, weight=HEARSAY) for p in flood])
        assert not [p for p in refused if after.probability(p) >= required]


def test_words_never_drive_out_what_was_found_out(quality):
    for _ in range(200):
        quality.learn(*KEY, Label(features(1.0), same=True))
    for _ in range(2_000):
        quality.learn(*KEY, Label(features(5.0), same=False, weight=HEARSAY))
    labels = quality._of(KEY).labels
    assert sum(label.weight < 1 for label in labels) == module.HEARSAY_KEPT
    assert sum(label.weight == 1 for label in labels) == 200
    for _ in range(2_000):
        quality.learn(*KEY, Label(features(1.0), same=True))
    assert len(quality._of(KEY).labels) == module.LABELS_KEPT


def test_a_namespace_of_its_own_risks_gets_its_own_limit():
    safe, risky = Quality(CALIBRATION, Clock()), Quality(CALIBRATION, Clock())
    for _ in range(3_000):
        safe.saw(*KEY, 0.0001)
        risky.saw(*KEY, 0.05)
    assert risky.highest_risk(*KEY, 0.01) < safe.highest_risk(*KEY, 0.01)
