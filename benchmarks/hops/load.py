"""The client of every case: a closed loop of callers, their latencies, and the CPU that the processes used meanwhile."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.machine import cpu_ms

Call = Callable[[], Awaitable[None]]


class WrongAnswerError(Exception):
    """A call ended otherwise than its case says; its figures would mean nothing."""


@dataclass
class Sample:
    """Calls of one case at one concurrency; several rounds add up. Milliseconds; `cpu` by process."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)

    def percentile(self, share: float) -> float:
        """The latency that `share` of the calls do not exceed."""
        ordered = sorted(self.latencies)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]

    @property
    def rps(self) -> float:
        """Calls per second."""
        return len(self.latencies) / self.seconds


async def drive(call: Call, concurrency: int, seconds: float, pids: Mapping[str, int], into: Sample) -> None:
    """Lets `concurrency` callers call one after the other for `seconds`. A call that fails ends everything.

    A call that raises StopAsyncIteration has nothing left to ask: its caller ends.
    """
    before = {name: cpu_ms(pid) for name, pid in pids.items()}
    started = time.perf_counter()
    end = started + seconds

    async def caller() -> None:
        while (begin := time.perf_counter()) < end:
            try:
                await call()
            except StopAsyncIteration:
                return
            into.latencies.append((time.perf_counter() - begin) * 1000)

    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(concurrency):
                callers.create_task(caller())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None  # one says enough
    into.seconds += time.perf_counter() - started
    for name, pid in pids.items():
        into.cpu[name] = into.cpu.get(name, 0.0) + cpu_ms(pid) - before[name]
