"""`llmmesh calibrate` with an encoder that says what it is told: the verdict itself is the service's."""

import io
import json

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from services.cli.__main__ import app
from services.cli.cache import calibrate, page
from services.cli.cache.calibrate import PairRow, calibrated
from services.common.policy import SHIPPED, Policy
from services.common.prices import PriceBook
from services.common.yaml_file import ConfigError
from services.embedder.domain import Encoded, ModelInfo, Scored
from tests.cache_memory import CALIBRATION, VERIFIED_MODEL

WORDS = ("red", "blue", "green", "black", "white", "brown", "grey", "pink", "gold", "silver")


class Told:
    """Every pair is close; `b` ends in its probability."""

    info = ModelInfo(VERIFIED_MODEL, 8, 128, "test")

    def encode(self, texts):
        vectors = np.zeros((len(texts), 8), dtype=np.float32)
        vectors[:, 0] = 1.0
        return Encoded(vectors, (1,) * len(texts), (False,) * len(texts), 0.0)

    def score(self, pairs):
        return Scored(tuple(float(b.split("~")[1]) for _, b in pairs), 0.0)


class Plain:
    """An encoder that scores no pairs."""

    info = ModelInfo("plain", 8, 128, "test")
    encode = Told.encode


def rows(right: int = 300, wrong: int = 300) -> list[PairRow]:
    """`right` pairs with probabilities from 0.995 down to 0.9, `wrong` ones from 0.85 down."""
    made = []
    for index in range(right):
        made.append(
            PairRow(a="How do I open it?", b=f"How is it opened~{0.995 - 0.095 * index / right:.5f}", same_answer=True)
        )
    for index in range(wrong):
        chance = 0.85 - 0.8 * index / wrong
        made.append(PairRow(a="How do I open it?", b=f"How is it <closed>~{chance:.5f}", same_answer=False))
    return made


def found(data=None, delta: float = 0.01, encoder=None):
    policy = Policy.load(SHIPPED, PriceBook.load())
    return calibrated("mine.jsonl", data or rows(), delta, policy, encoder or Told(), CALIBRATION)


def text_of(result, width: int = 100) -> str:
    out = io.StringIO()
    calibrate.show(result, Console(width=width, file=out))
    return out.getvalue()


def test_the_suggestion_lies_where_wrong_hits_begin():
    result = found()
    assert result.today.threshold == pytest.approx(0.98)
    assert result.today.wrong == 0
    point = result.suggestion.point
    assert point is not None
    assert point.hits >= 300
    assert point.interval[1] <= 0.01
    assert point.threshold < 0.98
    assert result.suggestion.error_budget is not None
    assert "the better setting" in result.verdict


def test_a_setting_that_is_too_loose_is_called_so():
    loose = [
        PairRow(a="x is it?", b=f"is it y~{0.99 if i % 20 else 0.9999}", same_answer=i % 4 != 1) for i in range(1000)
    ]
    result = found(loose)
    assert result.today.interval[0] > 0.01
    assert "beyond 1.00%" in result.verdict


def test_too_few_pairs_are_said_to_be_too_few():
    result = found(rows(20, 20))
    assert result.suggestion.point is None
    assert "too few pairs" in text_of(result)


def test_pairs_of_the_same_words_are_left_out():
    result = found([*rows(), PairRow(a="same", b="same", same_answer=True)])
    assert (result.identical, result.curve.rows) == (1, 600)
    assert "1 pair is left out" in text_of(result)


def test_the_table_fits_and_names_both_settings():
    text = text_of(found())
    assert max(map(len, text.splitlines())) <= 100
    assert "today" in text
    assert "suggested" in text
    assert "…" not in text


def test_the_examples_are_the_worst_and_the_best():
    result = found(rows(300, 400))
    assert all(not e.b.startswith("How is it opened") for e in result.worst)
    assert all(e.b.startswith("How is it opened") for e in result.missed)
    assert list(result.worst) == sorted(result.worst, key=lambda e: -(e.probability or 0))


def test_the_page_stands_alone_and_shows_no_foreign_markup(tmp_path):
    result = found(delta=0.02)
    image, html = page.write(result, tmp_path / "out")
    assert image.read_bytes().startswith(b"\x89PNG")
    text = html.read_text()
    assert "data:image/png;base64," in text
    assert "http" not in text
    assert "<closed>" not in text
    assert result.verdict.replace("'", "&#x27;") in text


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--out"):
        page.write(found(), tmp_path / "file")


def test_an_encoder_without_a_verifier_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match="LLMMESH_EMBEDDER_MODELS"):
        found(encoder=Plain())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ('{"a": "x", "b": "y"}', ":1: same_answer"),
        ('{"a": "x", "b": "y", "same_answer": true}\nnonsense', ":2: "),
        ('{"a": "", "b": "y", "same_answer": true}', ":1: a"),
        ('{"a": "x", "b": "y", "same_answer": "perhaps"}', ":1: same_answer"),
    ],
)
def test_malformed_pairs_end_with_the_line_and_status_1(tmp_path, text, message):
    file = tmp_path / "pairs.jsonl"
    file.write_text(text)
    done = CliRunner().invoke(app, ["calibrate", str(file), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert message in done.output.replace("\n", "")
    assert "Traceback" not in done.output


def test_the_figures_are_json():
    shown = json.loads(json.dumps(calibrate.as_json(found())))
    assert shown["suggested"]["wrong_high"] <= 0.01
    assert shown["pairs"] == 600
    assert shown["no_suggestion"] is None
