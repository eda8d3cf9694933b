"""The cache as those see it who look after it: how well it answers, and what people may look through."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Quality:
    """A namespace's record since its counters began. The true share of wrong hits in all lookups lies in `wrong_low` to
    `wrong_high`, at 95%; `error_budget` is the share that the policy accepts.

    `state` is "cautious", "open" or "tight"; `threshold` the probability that a semantic hit needs now.
    """

    lookups: int
    exact_hits: int
    semantic_hits: int
    near_misses: int
    checked: int
    wrong: int
    doubtful: int
    wrong_low: float
    wrong_high: float
    error_budget: float
    state: str
    threshold: float


class Verdict(StrEnum):
    """What is known about a pair."""

    UNCHECKED = "unchecked"
    RIGHT = "right"
    WRONG = "wrong"
    DOUBTFUL = "doubtful"


@dataclass(frozen=True, slots=True)
class Review:
    """Two questions, and what was decided about them. `hit`: the stored answer was served, else it nearly was.

    `at` is unix seconds; `answer` is empty once the entry is gone; `probability` is None where something else decided.
    """

    hit: bool
    verdict: Verdict
    at: float
    request_id: str
    entry_id: str
    asked: str
    stored: str
    answer: str
    similarity: float
    probability: float | None
    reason: str


class CacheUpkeep(Protocol):
    """What can be seen and done. Everything raises MeshError."""

    async def namespaces(self, tenant: str) -> list[str]:
        """Where the tenant ever looked something up, by name."""
        ...

    async def quality(self, tenant: str, namespace: str) -> Quality:
        """How well a namespace answers."""
        ...

    async def reviews(
        self, tenant: str, namespace: str, *, hits: bool | None, unsettled: bool, token: str
    ) -> tuple[list[Review], str]:
        """Some pairs, the newest first, and the token of the next page, "" on the last.

        `hits` None means both kinds; `unsettled` only what was found wrong or could not be told.
        """
        ...

    async def judge(self, tenant: str, namespace: str, request_id: str, *, right: bool) -> bool:
        """Takes somebody's word on an answer; False where it was judged before, or too long ago."""
        ...

    async def purge(self, tenant: str, namespace: str, entry_id: str) -> bool:
        """Removes an answer; False where it was gone."""
        ...
