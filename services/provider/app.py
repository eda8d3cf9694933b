"""What the provider service is made of."""

import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from llmmesh.provider.v1 import provider_pb2_grpc
from services.common.prices import PriceBook
from services.common.runtime import Service
from services.provider.adapters.spans import SpanWatch
from services.provider.domain.breaker import Breaker
from services.provider.domain.dispatch import Dispatcher
from services.provider.domain.plan import Candidate, RetryRules
from services.provider.domain.slots import Slots
from services.provider.servicer import ProviderServicer
from services.provider.settings import ProviderSettings
from services.provider.vendors import load_vendors


async def build(settings: ProviderSettings, stack: AsyncExitStack) -> Sequence[Service]:
    """The provider's service. It is ready at once: vendors that are down are met when they are called."""
    candidates: dict[str, list[Candidate]] = {}
    for config in load_vendors(settings.vendors_file):
        vendor = await config.open(stack)
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
            )
            candidates.setdefault(model, []).append(candidate)
    dispatcher = Dispatcher(
        candidates,
        PriceBook.load(settings.prices_file).rates,
        RetryRules(settings.max_attempts, settings.backoff_base_s, settings.backoff_max_s),
        SpanWatch(),
        monotonic=time.monotonic,
        random=random.random,
    )
    return [
        Service(
            "llmmesh.provider.v1.ProviderService",
            ProviderServicer(dispatcher),
            provider_pb2_grpc.add_ProviderServiceServicer_to_server,
        )
    ]
