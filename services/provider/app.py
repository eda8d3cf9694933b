"""What the provider service is made of."""

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from llmmesh.provider.v1 import batch_pb2_grpc, provider_pb2_grpc
from services.common.clock import SystemClock
from services.common.prices import PriceBook
from services.common.runtime import Service
from services.provider.adapters.metrics import CountingWatch, watch_breakers
from services.provider.adapters.redis import open_limits
from services.provider.adapters.spans import SpanWatch
from services.provider.batch_servicer import BatchServicer
from services.provider.cache_rules import CacheRules
from services.provider.domain.batch import BatchDesk, BatchVendor
from services.provider.domain.breaker import Breaker
from services.provider.domain.dispatch import Dispatcher
from services.provider.domain.hedge import HedgeRules
from services.provider.domain.limits import Limits, LocalLimits
from services.provider.domain.plan import Candidate, RetryRules
from services.provider.domain.prompt_cache import NO_CACHE
from services.provider.domain.prompt_cache.prompts import PromptCache
from services.provider.domain.slots import Slots
from services.provider.servicer import ProviderServicer
from services.provider.settings import ProviderSettings
from services.provider.vendors import load_vendors


async def build(settings: ProviderSettings, stack: AsyncExitStack) -> Sequence[Service]:
    """The provider's service. It is ready at once: vendors that are down are met when they are called."""
    candidates: dict[str, list[Candidate]] = {}
    cache_rules = CacheRules.load(settings.prompt_cache_file)
    batch_vendors: dict[str, BatchVendor] = {}
    batch_models: dict[tuple[str, str], str] = {}
    for config in load_vendors(settings.vendors_file):
        vendor = await config.open(stack)
        if isinstance(vendor, BatchVendor):
            batch_vendors[config.name] = vendor
            batch_models |= {(config.name, model): vendor_model for model, vendor_model in config.models.items()}
        slots = Slots(config.max_concurrency, config.max_waiting, config.max_wait_s)
        for model, vendor_model in config.models.items():
            breaker = Breaker(settings.breaker_faults, settings.breaker_open_s, time.monotonic)
            candidate = Candidate(
                model,
                config.name,
                vendor_model,
                vendor,
                breaker,
                config.timeout_s,
                config.unary_timeout_s,
                slots,
                component=config.component,
                quotas=config.quotas(model),
                cache=config.cache_of(model, cache_rules) if settings.prompt_cache else NO_CACHE,
            )
            candidates.setdefault(model, []).append(candidate)
    watch_breakers([candidate for served in candidates.values() for candidate in served])
    prices = PriceBook.load(settings.prices_file)
    dispatcher = Dispatcher(
        candidates,
        prices.rates,
        RetryRules(settings.max_attempts, settings.backoff_base_s, settings.backoff_max_s),
        CountingWatch(SpanWatch()),
        limits=_limits(settings, stack),
        hedging=HedgeRules(settings.hedge_quantile, settings.hedge_floor_s),
        prompts=PromptCache(prices.rates, time.monotonic, move_volatile=settings.prompt_cache_move_volatile),
        monotonic=time.monotonic,
        random=random.random,
    )
    desk = BatchDesk(
        batch_vendors,
        batch_models,
        dispatcher,
        prices.rates,
        prices.batch_rates,
        SystemClock().now,
        settings.batch_concurrency,
    )
    return [
        Service(
            "llmmesh.provider.v1.ProviderService",
            ProviderServicer(dispatcher),
            provider_pb2_grpc.add_ProviderServiceServicer_to_server,
        ),
        Service(
            "llmmesh.provider.v1.BatchService", BatchServicer(desk), batch_pb2_grpc.add_BatchServiceServicer_to_server
        ),
    ]


def _limits(settings: ProviderSettings, stack: AsyncExitStack) -> Limits:
    local = LocalLimits(time.monotonic, settings.limit_replicas)
    if settings.redis_url is None:
        return local
    limits = open_limits(settings.redis_url.get_secret_value(), local, time.monotonic)
    stack.push_async_callback(limits.close)
    return limits
