import asyncio

from services.provider.domain.slots import Slots


async def test_the_queue_is_bounded() -> None:
    slots = Slots(1, 1, 60.0)
    assert await slots.acquire()
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    assert not await slots.acquire()
    slots.release()
    assert await waiting


async def test_the_wait_is_bounded_by_its_limit_and_by_the_callers() -> None:
    slots = Slots(1, 9, 0.001)
    assert await slots.acquire()
    assert not await slots.acquire()
    patient = Slots(1, 9, 60.0)
    assert await patient.acquire()
    assert not await patient.acquire(0.001)
    assert not await patient.acquire(-1.0)


async def test_who_gives_up_takes_no_slot_with_him() -> None:
    slots = Slots(1, 1, 60.0)
    assert await slots.acquire()
    waiting = asyncio.create_task(slots.acquire())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    slots.release()
    assert await slots.acquire()
    assert not await slots.acquire(0.001)
