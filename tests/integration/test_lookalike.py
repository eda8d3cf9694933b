"""The shipped text model: vectors and verdicts of the real files."""

import numpy as np
import pytest

from services.cache.convert import rules_of
from services.cache.domain.calibration import Calibration
from services.cli.evaluate.cache import CacheTrial, serve_pairs
from services.common.policy import SHIPPED, Policy
from services.common.prices import PriceBook
from services.embedder.adapters.lookalike import DIMENSIONS, FOLDER, MAX_TOKENS, Lookalike

CANCEL = "How do I cancel my order?"
LATE = "Can I cancel after 48 hours?"
CALLED_OFF = "I want to call off a purchase I made, what are the steps?"


@pytest.fixture(scope="module")
def model() -> Lookalike:
    return Lookalike(threads=1)


def test_the_verifier_is_no_larger_than_promised() -> None:
    assert sum((FOLDER / name).stat().st_size for name in ("verifier.onnx", "tokenizer.json")) <= 45_000_000


def test_vectors_are_unit_length_and_do_not_depend_on_neighbours(model: Lookalike) -> None:
    alone = model.encode([CANCEL]).vectors[0]
    among = model.encode([LATE, CANCEL, "¿Dónde está mi paquete?"]).vectors[1]
    assert alone.shape == (DIMENSIONS,)
    assert np.linalg.norm(alone) == pytest.approx(1.0, abs=1e-5)
    assert np.array_equal(alone, among)


def test_a_score_does_not_depend_on_its_neighbours(model: Lookalike) -> None:
    alone = model.score([(CANCEL, LATE)]).probabilities
    assert model.score([(CALLED_OFF, CANCEL), (CANCEL, LATE)]).probabilities[1] == alone[0]


@pytest.mark.parametrize(
    ("question", "same", "other"),
    [
        (
            "¿Cómo cambio la contraseña de mi cuenta?",
            "quiero poner otra clave para entrar, ¿qué pasos sigo?",
            "¿Por qué no puedo cambiar la contraseña de mi cuenta?",
        ),
        (
            "How much does it cost to send a parcel to Spain?",
            "price of shipping a package to Spain",
            "How long does it take to send a parcel to Spain?",
        ),
    ],
)
def test_a_rewording_is_likelier_to_share_the_answer_than_a_look_alike(
    model: Lookalike, question: str, same: str, other: str
) -> None:
    right, wrong = model.score([(question, same), (question, other)]).probabilities
    assert right > wrong


def test_the_classic_look_alike_is_not_served(model: Lookalike) -> None:
    rules = rules_of(Policy.load(SHIPPED, PriceBook.load()))["default"]
    pairs = [(CANCEL, LATE, False), (LATE, CANCEL, False)]
    lines = serve_pairs(pairs, model, lambda: CacheTrial(model, rules, 0.01, Calibration.load()), rules)
    assert [line["served"] for line in lines] == [False, False]


def test_letters_it_cannot_read_and_text_it_cuts_are_told(model: Lookalike) -> None:
    texts = [
        CANCEL,
        "¿Cuántos años tengo que cotizar?",
        "如何取消我的订单",
        "Как отменить заказ?",
        "word " * (2 * MAX_TOKENS),
    ]
    assert model.encode(texts).truncated == (False, False, True, True, True)
