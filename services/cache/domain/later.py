"""Work that no caller waits for."""

import asyncio
from collections.abc import Coroutine

MOST = 1_000
"""Tasks under way at once; what is more is left out: whatever runs here is tried again when its occasion comes again."""


class Later:
    """Tasks beside the calls that started them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself holds them weakly

    def start(self, work: Coroutine[object, object, None]) -> None:
        """Runs `work`, which must not raise."""
        if len(self._tasks) >= MOST:
            work.close()
            return
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Waits for what is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
