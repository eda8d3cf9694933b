"""What is done again and again goes on after a failure."""

import asyncio

from structlog.testing import capture_logs

from services.cache.adapters.background import repeated


async def test_a_failure_is_logged_once_in_a_row_and_does_not_end_it():
    outcomes = ["", "bug", "bug", "", "bug", ""]
    done = asyncio.Event()

    async def work() -> None:
        if not outcomes:
            done.set()
        elif outcomes.pop(0):
            raise RuntimeError("bug")

    with capture_logs() as logs:
        async with repeated(work, 0.0, "not_done"), asyncio.timeout(10):
            await done.wait()
    assert [(entry["event"], entry["error"]) for entry in logs] == [("not_done", "RuntimeError: bug")] * 2


async def test_it_ends_with_its_context():
    calls = 0

    async def work() -> None:
        nonlocal calls
        calls += 1

    async with repeated(work, 0.0, "not_done"):
        pass
    ended = calls
    await asyncio.sleep(0)
    assert calls == ended
