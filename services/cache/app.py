"""What the cache is made of."""

import asyncio
from contextlib import AsyncExitStack, suppress

import structlog

from llmmesh.cache.v1.cache_pb2_grpc import add_CacheServiceServicer_to_server
from services.cache.adapters.background import repeated
from services.cache.adapters.embedder import EmbedderPeer
from services.cache.adapters.leases import open_leases
from services.cache.adapters.metrics import count, watch_standings
from services.cache.adapters.provider import ProviderJudge
from services.cache.adapters.qdrant import open_qdrant
from services.cache.adapters.redis import RedisBodies, open_redis
from services.cache.adapters.redis_reviews import open_reviews
from services.cache.convert import answer_text, rules_of
from services.cache.domain.budget import Record, wrong_share
from services.cache.domain.calibration import Calibration
from services.cache.domain.later import Later
from services.cache.domain.learning import Learning
from services.cache.domain.lookup import SemanticCache
from services.cache.domain.paraphrases import Paraphrases
from services.cache.domain.ports import StoreUnavailable
from services.cache.domain.quality import Quality
from services.cache.domain.reviews import Reviews
from services.cache.servicer import CacheServicer
from services.cache.settings import CacheSettings
from services.common.channels import open_channel
from services.common.clock import SystemClock
from services.common.policy import Policy
from services.common.prices import PriceBook
from services.common.runtime import Service

log = structlog.get_logger()

SERVICE = "llmmesh.cache.v1.CacheService"
NOTE_INTERVAL_S = 0.05


async def build(settings: CacheSettings, stack: AsyncExitStack) -> list[Service]:
    """Reads the policy and opens the stores, which may be absent."""
    prices = PriceBook.load(settings.prices_file)
    policy = Policy.load(settings.policy_file, prices)
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
    embedder = judge = None
    if settings.embedder:
        embedder = EmbedderPeer(
            await stack.enter_async_context(open_channel(settings.embedder)),
            verifier_timeout=settings.verifier_timeout_seconds,
            embed_timeout=settings.embed_timeout_seconds,
        )
    if settings.provider:
        judge = ProviderJudge(await stack.enter_async_context(open_channel(settings.provider)))

    quality = Quality(Calibration.load(), clock, _state_changed, count)
    # Written once more when everything else is closed; what cannot be written then is lost.
    stack.push_async_callback(_last_sync, quality, bodies)
    await stack.enter_async_context(
        repeated(lambda: quality.sync(bodies), settings.quality_seconds, "quality_not_synced")
    )
    watch_standings(quality)
    reviews = Reviews(
        bodies,
        await stack.enter_async_context(
            open_reviews(settings.redis_url.get_secret_value(), timeout=settings.redis_timeout_seconds)
        ),
        clock,
        answer_text,
    )
    stack.push_async_callback(_last_reviews, reviews)
    await stack.enter_async_context(repeated(reviews.flush, settings.quality_seconds, "reviews_not_written"))
    later = Later()
    paraphrases = Paraphrases(
        bodies,
        vectors,
        quality,
        clock,
        later,
        prices=prices.price,
        answer_text=answer_text,
        reviews=reviews,
        verifier=embedder,
        judge=judge,
    )
    cache = SemanticCache(bodies, vectors, paraphrases, quality, clock, later, prices.price, reviews)
    stack.push_async_callback(cache.close)
    learning = Learning(
        bodies, quality, bodies, answer_text=answer_text, stale=_stale, reviews=reviews, embedder=embedder
    )

    async def missing() -> str | None:
        absent = [name for name in await asyncio.gather(bodies.missing(), vectors.missing()) if name]
        return " and ".join(absent) or None

    servicer = CacheServicer(cache, learning, reviews, rules_of(policy), settings.dimensions)
    servicer.leases = await stack.enter_async_context(
        open_leases(
            settings.redis_url.get_secret_value(),
            timeout=settings.redis_timeout_seconds,
            connections=settings.redis_connections,
        )
    )
    return [Service(SERVICE, servicer, add_CacheServiceServicer_to_server, missing)]


async def _last_sync(quality: Quality, bodies: RedisBodies) -> None:
    with suppress(StoreUnavailable):
        await quality.sync(bodies)


async def _last_reviews(reviews: Reviews) -> None:
    with suppress(StoreUnavailable):
        await reviews.flush()


def _state_changed(tenant: str, namespace: str, before: str, record: Record) -> None:
    low, high = wrong_share(record)
    log.warning(
        "cache_state_changed",
        tenant=tenant,
        namespace=namespace,
        before=before,
        state=record.state,
        wrong_rate_low=round(low, 5),
        wrong_rate_high=round(high, 5),
    )


def _stale(tenant: str, namespace: str, share: float) -> None:
    log.warning("stale_answers", tenant=tenant, namespace=namespace, least_share=round(share, 4))
