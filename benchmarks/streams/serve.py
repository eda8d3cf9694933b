"""`python -m benchmarks.streams.serve provider --lag FILE`: a service whose event loop is watched; FILE is written at its end."""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from services.common.runtime import Service, run
from services.edge import app as edge
from services.edge.settings import EdgeSettings
from services.provider import app as provider
from services.provider.settings import ProviderSettings

INTERVAL_S = 0.01


def main() -> None:
    """Runs the service until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("service", choices=("provider", "edge"))
    parser.add_argument("--lag", type=Path, required=True)
    options = parser.parse_args()

    async def build_provider(settings: ProviderSettings, stack: AsyncExitStack) -> Sequence[Service]:
        _watch(options.lag, stack)
        return await provider.build(settings, stack)

    async def build_edge(settings: EdgeSettings, stack: AsyncExitStack) -> Sequence[Service]:
        _watch(options.lag, stack)
        return await edge.build(settings, stack)

    if options.service == "provider":
        run("provider", ProviderSettings, build_provider)
    else:
        run("edge", EdgeSettings, build_edge)


def _watch(path: Path, stack: AsyncExitStack) -> None:
    """Notes how late the loop wakes a sleeper: [unix seconds, milliseconds] each time."""
    seen: list[tuple[float, float]] = []

    async def look() -> None:
        while True:
            due = time.monotonic() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            seen.append((round(time.time(), 3), round((time.monotonic() - due) * 1000, 2)))

    task = asyncio.get_running_loop().create_task(look())
    stack.callback(lambda: path.write_text(json.dumps(seen), encoding="utf-8"))
    stack.callback(task.cancel)


if __name__ == "__main__":
    main()
