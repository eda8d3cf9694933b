"""Sums over a log in memory that does not grow with it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

OTHERS = "(others)"
_STEP = math.log(1.15)
_BUCKETS = 160
_LONG = 4.0
_FAIR = 2.0
_LEAST_ANSWERS = 30


@dataclass(slots=True)
class Spent:
    """Requests, their tokens, and what they cost, in nano-USD."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    nanousd: int = 0

    def add(self, input_tokens: int, output_tokens: int, nanousd: int) -> None:
        """One more request."""
        self.requests += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        self.nanousd += nanousd


class By:
    """What was spent by name: the first `limit` names, and the others together."""

    def __init__(self, limit: int = 2_000) -> None:
        self._limit = limit
        self._spent: dict[str, Spent] = {}

    def of(self, name: str) -> Spent:
        """The sums of a name."""
        found = self._spent.get(name)
        if found is None:
            name = name if len(self._spent) < self._limit else OTHERS
            found = self._spent.setdefault(name, Spent())
        return found

    def rows(self) -> list[tuple[str, Spent]]:
        """Names and sums, the dearest first."""
        return sorted(self._spent.items(), key=lambda item: -item[1].nanousd)

    def __len__(self) -> int:
        return len(self._spent)


@dataclass(frozen=True, slots=True)
class Oversized:
    """Answers of a kind that are more than four times as long as its median. `nanousd` is what lies beyond twice the median."""

    kind: str
    median_tokens: int
    answers: int
    long_answers: int
    unlimited: int
    nanousd: int


@dataclass(slots=True)
class _Lengths:
    counts: list[int] = field(default_factory=lambda: [0] * _BUCKETS)
    tokens: list[int] = field(default_factory=lambda: [0] * _BUCKETS)
    costs: list[int] = field(default_factory=lambda: [0] * _BUCKETS)
    unlimited: list[int] = field(default_factory=lambda: [0] * _BUCKETS)


class AnswerLengths:
    """How long the answers of each kind are: histograms with buckets of 15%."""

    def __init__(self, limit: int = 500) -> None:
        self._limit = limit
        self._kinds: dict[str, _Lengths] = {}

    def add(self, kind: str, tokens: int, nanousd: int, *, limited: bool) -> None:
        """An answer of `tokens` (1 or more), and what its tokens cost; `limited`: the request said how long it may become."""
        if kind not in self._kinds and len(self._kinds) >= self._limit:
            kind = OTHERS
        lengths = self._kinds.setdefault(kind, _Lengths())
        bucket = min(int(math.log(tokens) / _STEP), _BUCKETS - 1)
        lengths.counts[bucket] += 1
        lengths.tokens[bucket] += tokens
        lengths.costs[bucket] += nanousd
        lengths.unlimited[bucket] += not limited

    def oversized(self) -> list[Oversized]:
        """Kinds with such answers, the dearest first."""
        return sorted(self._oversized(), key=lambda found: -found.nanousd)

    def _oversized(self) -> Iterator[Oversized]:
        for kind, lengths in self._kinds.items():
            answers = sum(lengths.counts)
            if answers < _LEAST_ANSWERS:
                continue
            below, median = 0, 0.0
            for count, tokens in zip(lengths.counts, lengths.tokens, strict=True):
                below += count
                if 2 * below >= answers:
                    median = tokens / count
                    break
            found, unlimited, cost = 0, 0, 0
            for bucket, count in enumerate(lengths.counts):
                mean = lengths.tokens[bucket] / count if count else 0.0
                if mean > _LONG * median:
                    found += count
                    unlimited += lengths.unlimited[bucket]
                    cost += int(lengths.costs[bucket] * (1 - _FAIR * median / mean))
            if found:
                yield Oversized(kind, round(median), answers, found, unlimited, cost)
