import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cache_quality import contestants, measure, plot, sets, thresholds
from benchmarks.cache_quality.models import Remembered, RememberedPairs, remembered
from benchmarks.cache_quality.sets import Pairs, Stream
from benchmarks.cache_quality.table import table
from services.cache.convert import rules_of
from services.cache.domain.calibration import Calibration
from services.cache.domain.signals import FEATURES
from services.common.policy import SHIPPED, Policy
from services.common.prices import PriceBook
from services.embedder.domain import Encoded, ModelInfo, Scored


class Encoder:
    """Texts that share their first word are alike."""

    def __init__(self, model_id="all-MiniLM-L6-v2"):
        self.info = ModelInfo(model_id, 3, 128, "fake")
        self.read: list[str] = []

    def encode(self, texts):
        self.read += texts
        rows = [np.eye(3)[len(text.split()[0]) % 3] * 0.8 + np.array([0, 0.6, 0]) for text in texts]
        unit = np.array(rows, dtype=np.float32)
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        return Encoded(unit, (1,) * len(texts), tuple("cut" in text for text in texts), 0.0)


class Verifier(Encoder):
    def __init__(self):
        super().__init__("lookalike-1")
        self.scored: list[tuple[str, str]] = []

    def score(self, pairs):
        self.scored += pairs
        return Scored(tuple(0.9999 if a.split()[0] == b.split()[0] else 0.001 for a, b in pairs), 0.0)


def read(model, *texts) -> Remembered:
    encoder = remembered(model)
    encoder.read(texts, lambda done: None)
    return encoder


def test_a_text_is_embedded_once_and_progress_covers_all():
    model, done = Encoder(), []
    encoder = remembered(model)
    encoder.read(["a", "b", "a"], done.append)
    encoder.read(["b", "c cut"], done.append)
    assert model.read == ["a", "b", "c cut"]
    assert sum(done) == 5
    assert encoder.encode(["c cut", "a"]).truncated == (True, False)


def test_a_pair_is_scored_once_and_owed_by_who_asks_again():
    model = Verifier()
    encoder = remembered(model)
    assert isinstance(encoder, RememberedPairs)
    first = encoder.score([("x y", "x z"), ("x y", "x z")])
    assert model.scored == [("x y", "x z")]
    assert first.probabilities == (0.9999, 0.9999)
    assert encoder.owed_s >= 0


def test_an_encoder_without_pairs_is_no_verifier():
    assert not isinstance(remembered(Encoder()), RememberedPairs)


def test_a_threshold_stores_what_it_does_not_serve():
    similarities = np.array(
        [[1, 0.9, 0.2, 0.9], [0.9, 1, 0.2, 0.9], [0.2, 0.2, 1, 0.3], [0.9, 0.9, 0.3, 1]], dtype=np.float32
    )
    counts = thresholds.on_stream(similarities, ["a", "a", "b", "c"], 0.85)
    assert (counts.rows, counts.served, counts.wrong) == (4, 2, 1)
    assert counts.hit_share == 0.5
    assert counts.wrong_share == 0.25


def test_a_threshold_on_pairs_counts_traps_as_wrong():
    counts = thresholds.on_pairs(np.array([0.9, 0.8, 0.95]), np.array([True, True, False]), 0.85)
    assert (counts.served, counts.wrong) == (2, 1)


def test_hindsight_takes_the_threshold_that_hits_most_within_the_budget():
    counts = {0.7: thresholds.Counts(100, 50, 9), 0.8: thresholds.Counts(100, 20, 1), 0.9: thresholds.Counts(100, 5, 0)}
    assert thresholds.best(counts, 0.01) == 0.8
    assert thresholds.best({0.7: thresholds.Counts(100, 50, 9)}, 0.01) > 1


def test_a_question_out_of_scope_has_its_own_answer():
    assert [a for _, a in sets.own_answers([("x", "oos"), ("y", "oos"), ("z", "bill")])] == ["oos:0", "oos:1", "bill"]


def test_orders_hold_the_same_items_and_differ():
    items = [(str(i), str(i)) for i in range(50)]
    first, second = sets.shuffled("s", items, 2, seed=1)
    assert sorted(first.items) == sorted(second.items) == sorted(items)
    assert first.items != second.items
    assert sets.shuffled("s", items, 2, seed=1) == [first, second]


def test_sets_that_are_absent_are_named_and_the_written_ones_are_there(tmp_path):
    found = sets.load(tmp_path, seed=1, part=1.0)
    assert {stream.name for stream in found.streams} == {sets.HELP_DESK}
    assert {pairs.name: len(pairs.pairs) for pairs in found.pairs} == {sets.PAIRS_EN: 450, sets.PAIRS_ES: 450}
    assert len(found.skipped) == 4


def test_a_part_of_each_set(tmp_path):
    (tmp_path / "cache").mkdir()
    rows = [json.dumps({"text": f"q {i}", "intent": f"i{i % 7}"}) for i in range(4_000)]
    (tmp_path / "cache" / "banking77_en_train.jsonl").write_text("\n".join(rows))
    found = sets.load(tmp_path, seed=1, part=0.1)
    banking = [stream for stream in found.streams if stream.name == sets.BANKING]
    assert [len(stream.items) for stream in banking] == [300] * 5


def test_the_verifiers_word_alone():
    bare = contestants.verifier_alone(Calibration.load())
    features = [0.7 if name == "similarity" else 1.0 for name in FEATURES]
    features[FEATURES.index("verifier")] = 0.0
    assert bare.probability(features) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"reason": "exact", "probability": None, "similarity": 1.0}, 1.0),
        ({"reason": "unsure", "probability": 0.4, "similarity": 0.9}, 0.4),
        ({"reason": "below_threshold", "probability": None, "similarity": 0.6}, 0.6),
    ],
)
def test_how_sure_a_contestant_was(line, expected):
    assert measure.score({"served": False, "right": None, **line}) == expected


def test_a_refused_pair_is_below_all_others():
    refused = {"served": False, "right": None, "reason": "veto_numbers", "probability": None, "similarity": 0.99}
    assert measure.score(refused) < -1


STREAM = Stream("s", 1, (("x one", "x"), ("x two", "x"), ("yy one", "y"), ("x one", "x")))
PAIRS = Pairs("p", (("x one", "x two", True), ("x one", "yy two", False), ("yy a", "x b", False)))
RULES = rules_of(Policy.load(SHIPPED, PriceBook.load()))["default"]


def everything():
    ours = read(Verifier(), *(t for t, _ in STREAM.items), *(t for a, b, _ in PAIRS.pairs for t in (a, b)))
    plain = read(Encoder(), *(t for t, _ in STREAM.items), *(t for a, b, _ in PAIRS.pairs for t in (a, b)))
    rows, curves = [], []
    for contestant in contestants.ours(ours, RULES, Calibration.load()):
        rows.append(measure.our_stream(STREAM, ours, contestant, RULES))
        row, curve = measure.our_pairs(PAIRS, ours, contestant, RULES)
        rows.append(row)
        curves.append(curve)
    for encoder, own in ((ours, True), (plain, False)):
        for found, curve in (
            measure.plain_stream(STREAM, encoder, own=own),
            measure.plain_pairs(PAIRS, encoder, own=own),
        ):
            rows += found
            curves.append(curve)
    return rows, curves


def test_every_contestant_gets_a_row_on_streams_and_pairs():
    rows, _ = everything()
    names = {(row["contestant"].partition(" (")[0], row["kind"]) for row in rows}
    for name in (contestants.OURS, contestants.NO_LEARNING, contestants.HINDSIGHT, *contestants.PEERS, "cosine 0.79"):
        assert {(name, "stream"), (name, "pairs")} <= names
    for row in rows:
        assert row["kept"] == (row["wrong_share"] <= row["delta"])
        assert (row["auc"] is None) == (row["kind"] == "stream")


def test_exact_repetitions_are_hits_of_everybody():
    rows, _ = everything()
    assert all(
        row["hit_share"] >= 0.25
        for row in rows
        if row["kind"] == "stream" and row["contestant"] != contestants.HINDSIGHT
    )


def test_table_and_picture_are_made(tmp_path):
    rows, curves = everything()
    for row in rows:
        row["set"] = sets.BANKING
    results = {
        "machine": {"cores": 1, "cpu": "", "python": "", "load_average": 0.0},
        "quick": True,
        "seed": 1,
        "skipped": [],
        "encoders": [],
        "rows": rows,
        "curves": [{**curve, "set": sets.BANKING} for curve in curves],
    }
    assert table(results).row_count > 10
    assert plot.save(results, Path(tmp_path, "p.png"))
    assert Path(tmp_path, "p.png").stat().st_size > 1_000
