"""What the cache is made of."""

import asyncio
from contextlib import AsyncExitStack

from llmmesh.cache.v1.cache_pb2_grpc import add_CacheServiceServicer_to_server
from services.cache.adapters.background import repeated
from services.cache.adapters.qdrant import open_qdrant
from services.cache.adapters.redis import open_redis
from services.cache.convert import rules_of
from services.cache.domain.lookup import SemanticCache
from services.cache.servicer import CacheServicer
from services.cache.settings import CacheSettings
from services.common.clock import SystemClock
from services.common.policy import Policy
from services.common.prices import PriceBook
from services.common.runtime import Service

SERVICE = "llmmesh.cache.v1.CacheService"
NOTE_INTERVAL_S = 0.05


async def build(settings: CacheSettings, stack: AsyncExitStack) -> list[Service]:
    """Reads the policy and opens the stores, which may be absent."""
    policy = Policy.load(settings.policy_file, PriceBook.load(settings.prices_file))
    bodies = await stack.enter_async_context(
        open_redis(
            settings.redis_url.get_secret_value(),
            timeout=settings.redis_timeout_seconds,
            connections=settings.redis_connections,
            note_ttl=settings.request_memory_seconds,
        )
    )
    vectors = await stack.enter_async_context(
        open_qdrant(
            settings.qdrant_address,
            api_key=settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None,
            tls=settings.qdrant_tls,
            prefix=settings.qdrant_prefix,
            timeout=settings.qdrant_timeout_seconds,
        )
    )
    clock = SystemClock()
    # So that a hit does not wait until it is noted which entry answered the request.
    await stack.enter_async_context(repeated(bodies.flush_notes, NOTE_INTERVAL_S, "requests_not_noted"))
    await stack.enter_async_context(
        repeated(lambda: vectors.remove_expired(clock.now()), settings.sweep_seconds, "vectors_not_swept")
    )
    cache = SemanticCache(bodies, vectors, clock)
    stack.push_async_callback(cache.close)

    async def missing() -> str | None:
        absent = [name for name in await asyncio.gather(bodies.missing(), vectors.missing()) if name]
        return " and ".join(absent) or None

    servicer = CacheServicer(  # type: ignore[abstract]  # what is planned answers UNIMPLEMENTED
        cache, rules_of(policy), settings.dimensions
    )
    return [Service(SERVICE, servicer, add_CacheServiceServicer_to_server, missing)]
