"""How the engine fares, for scrapes."""

import asyncio

from services.common import metrics
from services.common.metrics import Following
from services.engine.domain.engine import Engine

INTERVAL_S = 1.0


async def tell_forever(engine: Engine) -> None:
    """Sets the gauges every second. Not at the scrape: that is another thread, and the meter belongs to this one."""
    seconds = {state: Following(metrics.ENGINE_SECONDS.labels(state).inc) for state in ("busy", "idle", "unbilled")}
    tokens = {kind: Following(metrics.ENGINE_TOKENS.labels(kind).inc) for kind in ("input", "cached", "output")}
    answers = Following(metrics.ENGINE_ANSWERS.inc)
    while True:
        now = engine.status()
        seconds["busy"](now.busy_ns / 1e9)
        seconds["idle"](now.idle_ns / 1e9)
        seconds["unbilled"](now.unbilled_ns / 1e9)
        tokens["input"](now.input_tokens)
        tokens["cached"](now.cached_tokens)
        tokens["output"](now.output_tokens)
        answers(now.answers)
        metrics.ENGINE_REQUESTS.labels("running").set(now.running)
        metrics.ENGINE_REQUESTS.labels("waiting").set(now.waiting)
        metrics.ENGINE_SLOTS.set(now.max_running)
        if now.kv_cache_use is not None:
            metrics.ENGINE_KV_CACHE.set(now.kv_cache_use)
        await asyncio.sleep(INTERVAL_S)
