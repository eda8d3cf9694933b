"""What the edge is made of."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress

import structlog

from llmmesh.edge.v1.batch_pb2_grpc import add_BatchServiceServicer_to_server
from llmmesh.edge.v1.costs_pb2_grpc import add_CostServiceServicer_to_server
from llmmesh.edge.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from services.common.channels import open_channel
from services.common.clock import SystemClock
from services.common.errors import MeshError
from services.common.money import Rates
from services.common.policy import Policy, TtlClass
from services.common.prices import PriceBook
from services.common.runtime import Service
from services.common.yaml_file import ConfigError
from services.edge.adapters.batch_provider import BatchProviderPeer
from services.edge.adapters.keys import KeyFile
from services.edge.adapters.peers import CachePeer, CompressorPeer, EmbedderPeer, LeasePeer, ProviderPeer, RouterPeer
from services.edge.adapters.redis import RedisBudgets, RedisLedger, open_redis
from services.edge.adapters.redis_batches import RedisBatches
from services.edge.adapters.spans import check_span
from services.edge.adapters.spool import FileSpool
from services.edge.adapters.traffic import RedisTraffic
from services.edge.batch_servicer import BatchServicer
from services.edge.domain.batch_items import ItemSteps, Records
from services.edge.domain.batch_worker import BatchWorker
from services.edge.domain.ledger import Spool
from services.edge.domain.steps import Steps
from services.edge.domain.traffic import Recording
from services.edge.domain.trip import NamespaceRules, Rules
from services.edge.domain.walk import Walk
from services.edge.servicer import CostServicer, InferenceServicer
from services.edge.settings import EdgeSettings

log = structlog.get_logger()

KEYS_RELOAD_S = 1.0


async def build(settings: EdgeSettings, stack: AsyncExitStack) -> Sequence[Service]:
    """The composition root."""
    prices = PriceBook.load(settings.prices_file)
    policy = Policy.load(settings.policy_file, prices)
    keys = KeyFile(settings.keys_file)
    clock = SystemClock()
    redis = open_redis(settings.redis_url.get_secret_value())
    stack.push_async_callback(redis.aclose)
    ledger = RedisLedger(redis)
    limits = {name: rules.budget.usd_per_day for name, rules in policy.namespaces.items()}
    spool = await stack.enter_async_context(
        FileSpool(settings.spool_dir, ledger, settings.flush_seconds, settings.spool_fsync_seconds)
    )
    names = ("embedder", "cache", "router", "compressor", "provider")
    channels = {name: await stack.enter_async_context(open_channel(getattr(settings, name))) for name in names}
    on_degraded = note_degraded()
    budgets = RedisBudgets(redis, limits, settings.budget_replicas, clock)

    def steps_to(records: Spool) -> Steps:
        return Steps(
            rules_of(policy, prices),
            EmbedderPeer(channels["embedder"], settings.embed_timeout_seconds),
            CachePeer(channels["cache"], settings.cache_timeout_seconds, settings.store_timeout_seconds),
            RouterPeer(channels["router"], settings.route_timeout_seconds),
            CompressorPeer(channels["compressor"], settings.compress_timeout_seconds),
            ProviderPeer(channels["provider"]),
            budgets,
            records,
            clock,
            on_degraded,
            random.random,
            check_span,
            RedisTraffic(redis, clock),
        )

    walk = Walk(steps_to(spool), LeasePeer(channels["cache"], settings.cache_timeout_seconds), on_degraded)
    stack.push_async_callback(walk.close)
    batches, records = RedisBatches(redis), Records(spool)
    batch_steps = steps_to(records)
    stack.push_async_callback(batch_steps.close)
    worker = BatchWorker(
        batches,
        BatchProviderPeer(channels["provider"]),
        ItemSteps(batch_steps, records),
        ledger,
        budgets,
        clock,
        on_degraded,
        _note_defect,
    )
    await _keep(stack, worker.run())
    await _keep(stack, _reload_forever(keys))
    return [
        Service(
            "llmmesh.edge.v1.InferenceService",
            InferenceServicer(walk, keys, settings.default_timeout_seconds),
            add_InferenceServiceServicer_to_server,
        ),
        Service(
            "llmmesh.edge.v1.CostService",
            CostServicer(ledger, spool, keys, clock),
            add_CostServiceServicer_to_server,
            missing=ledger.missing,
        ),
        Service(
            "llmmesh.edge.v1.BatchService",
            BatchServicer(batches, keys, clock, batch_steps.rules_of, worker.wake),
            add_BatchServiceServicer_to_server,
            missing=ledger.missing,
        ),
    ]


def rules_of(policy: Policy, prices: PriceBook) -> Rules:
    """The policy as the walk sees it."""

    def baseline(input_tokens: int) -> Rates:
        rates = prices.rates(policy.baseline, input_tokens=input_tokens)
        if rates is None:  # the policy was checked against the price book when it was loaded
            raise ConfigError(f"no price is known for the baseline model {policy.baseline!r}")
        return rates

    return Rules(
        {
            name: NamespaceRules(
                exact=rules.cache.exact,
                semantic=rules.cache.semantic,
                max_temperature=rules.cache.max_temperature,
                per_user=rules.cache.ttl_class is TtlClass.USER,
                store_tool_calls=rules.cache.store_tool_calls,
                learn=rules.cache.learn,
                shadow_share=rules.cache.shadow_share,
                stale_share=rules.cache.stale_share,
                canary_share=rules.cache.canary_share,
                compress=rules.compression.enabled,
                compression_rate=rules.compression.rate,
                min_block_tokens=rules.compression.min_block_tokens,
                default_tier=rules.default_tier,
                budgeted=rules.budget.usd_per_day is not None,
                hedge=rules.resilience.hedge,
                recording=Recording(frozenset(rules.record.tenants), rules.record.max_pairs, rules.record.keep),
            )
            for name, rules in policy.namespaces.items()
        },
        {name: tier.candidates for name, tier in policy.tiers.items()},
        baseline,
        prices.rates,
    )


def note_degraded() -> Callable[[str, MeshError], None]:
    """Logs that a service was skipped, at most about once a second for each."""
    last: dict[str, float] = {}

    def note(service: str, error: MeshError) -> None:
        now = asyncio.get_running_loop().time()
        if now - last.get(service, -1.0) >= 1.0:
            last[service] = now
            log.warning("degraded", skipped=service, reason=error.reason, error=error.message)

    return note


def _note_defect(batch_id: str, error: Exception) -> None:
    log.error("batch_worker_failed", batch=batch_id, exc_info=error)


async def _keep(stack: AsyncExitStack, work: Coroutine[None, None, None]) -> None:
    """Runs `work` in the background until the service stops."""
    task = asyncio.create_task(work)

    async def stop() -> None:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    stack.push_async_callback(stop)


async def _reload_forever(keys: KeyFile) -> None:
    while True:
        await asyncio.sleep(KEYS_RELOAD_S)
        try:
            keys.reload()
        except ConfigError as error:
            log.error("keys_not_reloaded", error=str(error))
