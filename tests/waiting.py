"""Waiting for what other tasks and processes do."""

import asyncio
from collections.abc import Awaitable, Callable

PATIENCE_S = 90.0


async def until(condition: Callable[[], bool], at_most_s: float = PATIENCE_S) -> None:
    """Returns once `condition()` holds. Raises TimeoutError."""
    async with asyncio.timeout(at_most_s):
        while not condition():  # noqa: ASYNC110 - it asks about other processes and files
            await asyncio.sleep(0.02)


async def until_answer(ask: Callable[[], Awaitable[bool]], at_most_s: float = PATIENCE_S) -> None:
    """Returns once `await ask()` is true. Raises TimeoutError."""
    async with asyncio.timeout(at_most_s):
        while not await ask():  # noqa: ASYNC110 - it asks another process
            await asyncio.sleep(0.1)
