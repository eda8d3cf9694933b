"""A vendor's concurrent calls, with a bounded queue before them."""

import asyncio


class Slots:
    """At most `limit` calls at once. At most `max_waiting` further ones wait, each for `max_wait_s` seconds at most."""

    def __init__(self, limit: int, max_waiting: int, max_wait_s: float) -> None:
        self._free = asyncio.Semaphore(limit)
        self._max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._waiting = 0

    async def acquire(self, at_most_s: float | None = None) -> bool:
        """Waits for a slot; False when the queue is full or the time (or `at_most_s`, in seconds) is over."""
        if not self._free.locked():
            return await self._free.acquire()
        if self._waiting >= self._max_waiting:
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(self._max_wait_s if at_most_s is None else min(self._max_wait_s, at_most_s)):
                return await self._free.acquire()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1

    def release(self) -> None:
        """The call is over."""
        self._free.release()
