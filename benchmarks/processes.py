"""Processes under measurement: all are ready, none dies unseen, all are stopped."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from services.cli.processes import Child, Events, Spec

START_TIMEOUT_S = 120.0


class StartError(Exception):
    """A process did not start; the message has the end of its log."""


@asynccontextmanager
async def started(specs: Sequence[Spec], folder: Path) -> AsyncIterator[Mapping[str, int]]:
    """Starts them in order, with their logs in `folder`; process ids by name. Raises StartError."""
    died: list[str] = []
    events = Events(lambda *_: None, lambda name, how, _again: died.append(f"{name}: {how}"), lambda: None)
    children = [Child(spec, folder / f"{spec.name}.log", events) for spec in specs]
    tasks = [asyncio.create_task(child.run()) for child in children]
    try:
        for child in children:
            await _until_ready(child)
        yield {child.spec.name: child.pid for child in children if child.pid is not None}
        if died:
            raise StartError(f"a process died during the measurement: {', '.join(died)}")
    except Exception as error:
        for child in children:
            if words := child.last_words(3):
                error.add_note(f"the log of {child.spec.name} ends:\n{words}")
        raise
    finally:
        for child in reversed(children):
            await child.stop(grace_s=5)
        await asyncio.gather(*tasks, return_exceptions=True)


async def _until_ready(child: Child) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (child.is_ready, child.failed)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=START_TIMEOUT_S)
    finally:
        for wait in waits:
            wait.cancel()
    if not child.is_ready.is_set():
        raise StartError(f"{child.spec.name} did not start; its log ends:\n{child.last_words()}")
