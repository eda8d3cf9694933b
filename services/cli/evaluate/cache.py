"""`llmmesh evaluate cache`: the cache's verdict on labelled questions, with the very code of the service."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from services.cache.convert import rules_of
from services.cache.domain import cascade, guards, verdict
from services.cache.domain.calibration import Calibration, Label
from services.cache.domain.ports import CacheRules, Scores
from services.cache.domain.quality import Quality
from services.cache.domain.signals import hinted
from services.cache.domain.verdict import CANDIDATES, Suspect, Verdict
from services.cli.evaluate.rows import read_rows, write_rows
from services.common.policy import Policy
from services.common.prices import PriceBook
from services.common.yaml_file import ConfigError
from services.embedder.adapters.loader import load_encoder
from services.embedder.domain import PairModel, TextModel
from services.embedder.settings import EmbedderSettings

BATCH = 64
TENANT = "evaluated"

Vectors = NDArray[np.float32]
Pair = tuple[str, str, bool | None]


class Line(TypedDict):
    """One line of OUT. `right` is null where nothing was served; `probability` where the floor, a veto or, without a verifier,
    the similarity decided.
    """

    served: bool
    right: bool | None
    probability: float | None
    similarity: float | None
    reason: str


class _Row(BaseModel):
    """A pair (`a`, `b`, `same_answer`) or an item of a stream (`text`, `answer_id`)."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    a: str | None = Field(None, min_length=1)
    b: str | None = Field(None, min_length=1)
    same_answer: bool | None = None
    text: str | None = Field(None, min_length=1)
    answer_id: str | None = None


class Trial(Protocol):
    """A semantic cache's decision, from the first request of a namespace on."""

    async def judge(self, question: str, suspects: Sequence[Suspect]) -> Verdict:
        """Which of the stored questions' answers to serve."""
        ...

    def learn(self, decided: Verdict, same: bool) -> None:
        """Takes in whether the best candidate of a miss would have been right."""
        ...


class CacheTrial:
    """The verdict of the cache service, in a namespace without a history."""

    def __init__(
        self, encoder: TextModel, rules: CacheRules, delta: float, calibration: Calibration, *, learns: bool = True
    ) -> None:
        """`delta` is the error budget; the verifier judges where `encoder` is it and the policy lets it."""
        self._rules = rules
        self._delta = delta
        self._learns = learns
        self._clock = _Clock()
        self._quality = Quality(calibration, self._clock)
        able = rules.verifier and encoder.info.model_id == calibration.model_id
        self._verifier = _Verifier(encoder) if able and isinstance(encoder, PairModel) else None
        self._threshold = rules.thresholds.get(encoder.info.model_id)

    async def judge(self, question: str, suspects: Sequence[Suspect]) -> Verdict:
        self._clock.seconds += 1
        limits = verdict.Rules(
            floor=self._rules.floor,
            threshold=self._threshold,
            oldest=0.0,
            cross_language=self._rules.cross_language,
            highest_risk=self._quality.highest_risk(TENANT, "", self._delta),
        )
        if self._verifier is None:
            return verdict.decide(question, suspects, limits)
        calibration = self._quality.calibration(TENANT, "")
        decided, _ = await cascade.judge(question, suspects, limits, calibration, self._verifier)
        best = decided.judged[0].probability if decided.judged else None
        self._quality.saw(TENANT, "", 1.0 if best is None else 1.0 - best)
        if decided.served is not None:
            self._quality.count(TENANT, "", semantic_hits=1)
        return decided

    def learn(self, decided: Verdict, same: bool) -> None:
        best = decided.judged[0]
        if self._learns and best.features is not None and not (same and hinted(best.features)):
            self._quality.learn(TENANT, "", Label(best.features, same))


class _Verifier:
    """The verifier in this process."""

    def __init__(self, model: PairModel) -> None:
        self._model = model

    async def score(self, pairs: Sequence[tuple[str, str]]) -> Scores:
        return Scores(self._model.score(pairs).probabilities)


class _Clock:
    """A second passes with every request."""

    def __init__(self) -> None:
        self.seconds = 1.0

    def now(self) -> float:
        return self.seconds


def run(file: Path, delta: float, out: Path | None, policy_file: Path, model: str | None) -> dict[str, object]:
    """Serves each row of `file` as the cache would, and counts.

    Pairs: each in a fresh scope, would b be served a's answer? Stream: in order, one scope; what is not served is stored, and its
    answer tells whether the best candidate's would have been right. `delta` is the error budget: wrong answers as a share of
    the rows.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta {delta:g} must be between 0 and 1")
    rows = list(read_rows(file, _Row))
    if not rows:
        raise ConfigError(f"{file}: no rows")
    settings = EmbedderSettings.load()
    encoder = load_encoder(model or settings.models[0], settings)
    rules = rules_of(Policy.load(policy_file, PriceBook.load()))["default"]
    calibration = Calibration.load()
    started = time.process_time()
    pairs = [(r.a, r.b, r.same_answer) for r in rows if r.a is not None and r.b is not None]
    stream = [(r.text, r.answer_id) for r in rows if r.text is not None and r.answer_id is not None]
    if len(pairs) == len(rows):
        lines = serve_pairs(pairs, encoder, lambda: CacheTrial(encoder, rules, delta, calibration), rules)
        wanted = sum(bool(same) for _, _, same in pairs)
    elif len(stream) == len(rows):
        lines = serve_stream(stream, encoder, CacheTrial(encoder, rules, delta, calibration), rules)
        wanted = len(stream) - len({answer for _, answer in stream})
    else:
        raise ConfigError(
            f"{file}: every row needs `a` and `b` (pairs), or every row `text` and `answer_id` (a stream)"
        )
    if out is not None:
        write_rows(out, lines)
    return summary(lines, wanted, delta) | {
        "model": encoder.info.model_id,
        "cpu_ms": 1000 * (time.process_time() - started) / len(rows),
    }


def summary(lines: Sequence[Line], wanted: int, delta: float) -> dict[str, object]:
    """Counts of a trial; `wanted` is how many rows an earlier answer would have served."""
    served = sum(line["served"] for line in lines)
    wrong = sum(line["right"] is False for line in lines)
    reasons: dict[str, int] = {}
    for line in lines:
        reasons[line["reason"]] = reasons.get(line["reason"], 0) + 1
    return {
        "rows": len(lines),
        "served": served,
        "wrong": wrong,
        "hit_share": served / len(lines),
        "wrong_share": wrong / len(lines),
        "wrong_share_of_hits": wrong / served if served else 0.0,
        "within_delta": wrong <= delta * len(lines),
        "delta": delta,
        "should_hit": wanted,
        "should_hit_served": (served - wrong) / wanted if wanted else None,
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])),
    }


def serve_pairs(pairs: Sequence[Pair], encoder: TextModel, trial: Callable[[], Trial], rules: CacheRules) -> list[Line]:
    """Each pair in a scope and a namespace of its own."""
    first, a_read = _encode(encoder, [a for a, _, _ in pairs])
    second, b_read = _encode(encoder, [b for _, b, _ in pairs])

    async def serve() -> list[Line]:
        lines: list[Line] = []
        for i, (a, b, same) in enumerate(pairs):
            similarity = float(first[i] @ second[i])
            if a == b:  # an exact hit: it never gets as far as a verdict
                lines.append(_line(True, same, None, 1.0, "exact"))
                continue
            suspects = [_suspect(0, similarity, a)] if a_read[i] and b_read[i] else []
            decided = await trial().judge(b, _in_language(b, suspects, rules))
            lines.append(_of(decided, same, similarity))
        return lines

    return asyncio.run(serve())


def serve_stream(stream: Sequence[tuple[str, str]], encoder: TextModel, trial: Trial, rules: CacheRules) -> list[Line]:
    """All rows in order, in one scope."""
    texts = [text for text, _ in stream]
    vectors, readable = _encode(encoder, texts)

    async def serve() -> list[Line]:
        stored: list[int] = []
        groups: dict[int, str] = {}
        exact: dict[str, int] = {}
        lines: list[Line] = []
        for index, (text, answer) in enumerate(stream):
            if text in exact:
                lines.append(_line(True, stream[exact[text]][1] == answer, None, 1.0, "exact"))
                continue
            suspects = _nearest(vectors, stored, index, texts, rules, groups) if readable[index] else []
            decided = await trial.judge(text, suspects)
            similarity = suspects[0].similarity if suspects else None
            if decided.served is not None:
                lines.append(_of(decided, stream[int(decided.served)][1] == answer, similarity))
                continue
            lines.append(_of(decided, None, similarity))
            if decided.judged:
                best = int(decided.judged[0].entry_id)
                same = stream[best][1] == answer
                trial.learn(decided, same)
                if same:
                    groups[index] = groups.get(best, str(best))
            exact[text] = index
            if readable[index]:
                stored.append(index)
        return lines

    return asyncio.run(serve())


def _encode(encoder: TextModel, texts: Sequence[str]) -> tuple[Vectors, list[bool]]:
    """Unit vectors, (texts, dimensions), and whether each text was read whole: only such are compared."""
    batches = [encoder.encode(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)]
    return np.concatenate([b.vectors for b in batches]), [not cut for b in batches for cut in b.truncated]


def _suspect(entry: int, similarity: float, question: str, group: str = "") -> Suspect:
    return Suspect(str(entry), similarity, question, created_at=1.0, pinned=False, group=group)


def _nearest(
    vectors: Vectors,
    stored: list[int],
    index: int,
    texts: Sequence[str],
    rules: CacheRules,
    groups: Mapping[int, str],
) -> list[Suspect]:
    """The candidates of a search: the nearest stored questions in the asked one's language."""
    if not stored:
        return []
    similarities = vectors[stored] @ vectors[index]
    found: list[Suspect] = []
    for i in np.argsort(-similarities):
        if len(found) == CANDIDATES or similarities[i] < rules.floor:
            break
        known = _suspect(stored[i], float(similarities[i]), texts[stored[i]], groups.get(stored[i], ""))
        found += _in_language(texts[index], [known], rules)
    return found


def _in_language(question: str, suspects: list[Suspect], rules: CacheRules) -> list[Suspect]:
    """Those that a search for `question` would return: in its language, or of none that could be told."""
    language = guards.read(question).language
    if rules.cross_language or not language:
        return suspects
    return [s for s in suspects if guards.read(s.question or "").language in ("", language)]


def _of(decided: Verdict, right: bool | None, similarity: float | None) -> Line:
    probability = decided.judged[0].probability if decided.judged else None
    return _line(decided.served is not None, right, probability, similarity, decided.reason)


def _line(served: bool, right: bool | None, probability: float | None, similarity: float | None, reason: str) -> Line:
    return {
        "served": served,
        "right": right if served else None,
        "probability": None if probability is None else round(probability, 6),
        "similarity": None if similarity is None else round(similarity, 4),
        "reason": reason,
    }
