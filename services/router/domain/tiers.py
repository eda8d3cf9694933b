"""The rungs of difficulty and a judgement that can be explained."""

from dataclasses import dataclass
from enum import IntEnum


class Tier(IntEnum):
    """The four rungs, easiest first. A tier spans a quarter of the score's range."""

    SIMPLE = 0
    MEDIUM = 1
    COMPLEX = 2
    REASONING = 3

    @property
    def label(self) -> str:
        """The name that policies use."""
        return self.name.lower()

    @property
    def lowest_score(self) -> float:
        """The least score, in 0 to 0.75, that belongs to the tier."""
        return self / len(Tier)

    @classmethod
    def of(cls, score: float) -> "Tier":
        """The tier of a score in 0 to 1."""
        return cls(min(int(score * len(cls)), len(cls) - 1))


@dataclass(frozen=True, slots=True)
class Signal:
    """One observation and what it adds to the score (negative: it makes the request easier)."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Difficulty:
    """A judged request. `score` is 0 (simple) to 1 (reasoning); `signals` are listed strongest first."""

    score: float
    tier: Tier
    signals: tuple[Signal, ...]

    @property
    def reason(self) -> str:
        """The signals that decided, in words, such as "proof +0.70, maths +0.20"."""
        if not self.signals:
            return "no signal: a short plain question"
        return ", ".join(f"{signal.name} {signal.weight:+.2f}" for signal in self.signals)
