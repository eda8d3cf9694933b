"""What the provider service is made of."""

import os
import random
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from llmmesh.provider.v1 import provider_pb2_grpc
from services.common.channels import open_channel
from services.common.prices import PriceBook
from services.common.runtime import Service
from services.provider.adapters.engine import EngineVendor
from services.provider.adapters.openai import OpenAI
from services.provider.adapters.spans import SpanWatch
from services.provider.domain.breaker import Breaker
from services.provider.domain.dispatch import Dispatcher
from services.provider.domain.plan import Candidate, RetryRules
from services.provider.domain.slots import Slots
from services.provider.domain.vendor import Vendor
from services.provider.servicer import ProviderServicer
from services.provider.settings import OpenAIVendor, ProviderSettings, VendorConfig, load_vendors


async def build(settings: ProviderSettings, stack: AsyncExitStack) -> Sequence[Service]:
    """The provider's service. It is ready at once: vendors that are down are met when they are called."""
    candidates: dict[str, list[Candidate]] = {}
    for config in load_vendors(settings.vendors_file):
        vendor = await _open(config, stack)
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
                component="engine" if isinstance(vendor, EngineVendor) else "provider",
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


async def _open(config: VendorConfig, stack: AsyncExitStack) -> Vendor:
    if isinstance(config, OpenAIVendor):
        vendor = OpenAI(
            config.name,
            base_url=config.base_url,
            api_key=os.environ[config.api_key_env] if config.api_key_env else "none",
            output_limit_field=config.output_limit_field,
        )
        stack.push_async_callback(vendor.close)
        return vendor
    return EngineVendor(config.name, await stack.enter_async_context(open_channel(config.address)))
