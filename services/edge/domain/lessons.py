"""What the cache learns from fresh answers: of misses that had a candidate, and of hits that are checked. Never waited for."""

import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager

from services.common.chat import Answer
from services.common.deadline import set_remaining
from services.common.errors import MeshError
from services.edge.domain.background import Background
from services.edge.domain.ports import Cache, LessonKind, Question
from services.edge.domain.trip import Trip

CHECK_S = 120.0  # how long the answer of a check may take
CHECKS, CHECKS_WAITING = 2, 8  # a check costs a generation: few at once, and none is worth much waiting
LESSONS, LESSONS_WAITING = 4, 256

CheckScope = Callable[[Question, LessonKind], AbstractContextManager[object]]


class Lessons:
    """Hands fresh answers to the cache."""

    def __init__(
        self,
        cache: Cache,
        check: Callable[[Trip], Awaitable[Answer]],
        on_failure: Callable[[str, MeshError], None],
        check_scope: CheckScope,
    ) -> None:
        """`check` makes the answer of a trip again."""
        self._cache = cache
        self._check = check
        self._check_scope = check_scope
        self._learning = Background(LESSONS, LESSONS_WAITING, lambda error: on_failure("learning", error))
        self._checking = Background(CHECKS, CHECKS_WAITING, lambda error: on_failure("checking", error))

    def after_miss(self, trip: Trip, answer: Answer) -> None:
        """A miss had a candidate, and now there are two answers to compare."""
        question, lesson = trip.question, trip.lesson
        self._learning.offer(lambda: self._cache.learn(question, lesson, answer, LessonKind.MISS))

    def after_hit(self, trip: Trip, kind: LessonKind) -> bool:
        """Makes the answer of a hit again to see whether it is right, or still is; False when too many wait for that."""
        question, lesson = trip.question, trip.lesson
        again = Trip(question, trip.rules, uuid.uuid4().hex, vector=trip.vector)

        async def work() -> None:
            set_remaining(CHECK_S)
            with self._check_scope(question, kind):
                answer = await self._check(again)
                await self._cache.learn(question, lesson, answer, kind)

        return self._checking.offer(work)

    async def close(self) -> None:
        """Ends both."""
        await self._checking.close()
        await self._learning.close()
