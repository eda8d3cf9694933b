"""Work that is done again and again beside the calls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

log = structlog.get_logger()


@asynccontextmanager
async def repeated(work: Callable[[], Awaitable[None]], interval: float, failure: str) -> AsyncIterator[None]:
    """Does `work` every `interval` seconds while the context is open.

    A failure does not end it: the first one in a row is logged as the event `failure`.
    """

    async def forever() -> None:
        failing = False
        while True:
            await asyncio.sleep(interval)
            try:
                await work()
            except Exception as error:
                if not failing:
                    log.warning(failure, error=f"{type(error).__name__}: {error}")
                failing = True
            else:
                failing = False

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
