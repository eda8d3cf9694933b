"""Work that no caller waits for."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context

from services.common.errors import MeshError

CLOSE_S = 2.0

Work = Callable[[], Coroutine[object, object, None]]


class Background:
    """A few works at once, a few more in a queue; what does not fit is dropped and counted."""

    def __init__(self, at_once: int, waiting: int, on_failure: Callable[[MeshError], None]) -> None:
        self._at_once = at_once
        self._waiting = waiting
        self._on_failure = on_failure
        self._queue: deque[Work] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self.dropped = 0
        self.failed = 0

    def offer(self, work: Work) -> bool:
        """Takes a work on, unless there is too much of it already. It has neither the caller's deadline nor its trace."""
        if len(self._tasks) < self._at_once:
            self._start(work)
        elif len(self._queue) < self._waiting:
            self._queue.append(work)
        else:
            self.dropped += 1
            return False
        return True

    async def close(self) -> None:
        """Drops what waits, gives what has begun a moment, and ends it."""
        self.dropped += len(self._queue)
        self._queue.clear()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _start(self, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(self._run(work), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._queue:
            self._start(self._queue.popleft())

    async def _run(self, work: Work) -> None:
        try:
            await work()
        except MeshError as error:
            self.failed += 1
            self._on_failure(error)
