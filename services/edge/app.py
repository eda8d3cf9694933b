"""What the edge is made of."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress

import structlog

from llmmesh.edge.v1.batch_pb2_grpc import add_BatchServiceServicer_to_server
from llmmesh.edge.v1.costs_pb2_grpc import add_CostServiceServicer_to_server
from llmmesh.edge.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from llmmesh.edge.v1.keys_pb2_grpc import add_KeyServiceServicer_to_server
from services.common.channels import open_channel
from services.common.clock import Clock, SystemClock
from services.common.errors import MeshError, NotReady
from services.common.money import NANO, Rates
from services.common.policy import BudgetPolicy, Policy, TtlClass
from services.common.prices import PriceBook
from services.common.runtime import Service
from services.common.yaml_file import ConfigError
from services.edge.adapters.batch_provider import BatchProviderPeer
from services.edge.adapters.keys import KeyFile, KeyRing
from services.edge.adapters.metrics import MeteredLedger, MeteredSpool, MeteredWalk, RecordMetrics, counted, watch_spool
from services.edge.adapters.peers import (
    CachePeer,
    CompressorPeer,
    EmbedderPeer,
    LeasePeer,
    ProviderPeer,
    RouterPeer,
    UpkeepPeer,
)
from services.edge.adapters.redis import RedisLedger, open_redis
from services.edge.adapters.redis_batches import RedisBatches
from services.edge.adapters.redis_budgets import RedisBudgets
from services.edge.adapters.redis_keys import RedisKeys
from services.edge.adapters.redis_rate_limits import RedisRateLimits
from services.edge.adapters.spans import check_span
from services.edge.adapters.spool import FileSpool
from services.edge.adapters.traffic import RedisTraffic
from services.edge.batch_servicer import BatchServicer
from services.edge.cost_servicer import CostServicer
from services.edge.domain.batch_items import ItemSteps, Records
from services.edge.domain.batch_worker import BatchWorker
from services.edge.domain.budgets import Budget, BudgetBook, Mode, Period
from services.edge.domain.costs import Costs
from services.edge.domain.keys import DAY_S
from services.edge.domain.ledger import Spool, hour_of
from services.edge.domain.steps import Steps
from services.edge.domain.traffic import Recording
from services.edge.domain.trip import NamespaceRules, Rules
from services.edge.door import Door
from services.edge.key_servicer import KeyServicer
from services.edge.servicer import InferenceServicer
from services.edge.settings import EdgeSettings

log = structlog.get_logger()

KEYS_RELOAD_S = 1.0
SWEEP_S = 3600.0


async def build(settings: EdgeSettings, stack: AsyncExitStack) -> Sequence[Service]:
    """The composition root."""
    prices = PriceBook.load(settings.prices_file)
    policy = Policy.load(settings.policy_file, prices)
    key_file = KeyFile(settings.keys_file)
    clock = SystemClock()
    redis = open_redis(settings.redis_url.get_secret_value())
    stack.push_async_callback(redis.aclose)
    shared_keys = RedisKeys(redis, clock)
    with suppress(NotReady):
        await shared_keys.refresh()
    keys = KeyRing(shared_keys, key_file, clock)
    rate_limits = RedisRateLimits(redis, settings.budget_replicas, clock)
    ledger = RedisLedger(redis)
    spool = await stack.enter_async_context(
        FileSpool(settings.spool_dir, ledger, settings.flush_seconds, settings.spool_fsync_seconds)
    )
    names = ("embedder", "cache", "router", "compressor", "provider")
    channels = {name: await stack.enter_async_context(open_channel(getattr(settings, name))) for name in names}
    on_degraded = counted(note_degraded())
    watch_spool(spool, clock.now)
    record_metrics = RecordMetrics(tenants=settings.metrics_tenants)
    metered = MeteredSpool(spool, record_metrics)
    rules = rules_of(policy, prices)
    budgets = RedisBudgets(redis, rules.budgets, settings.budget_replicas, clock)
    costs = Costs(ledger, spool.flush)

    def steps_to(records: Spool) -> Steps:
        return Steps(
            rules,
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

    walk = MeteredWalk(steps_to(metered), LeasePeer(channels["cache"], settings.cache_timeout_seconds), on_degraded)
    stack.push_async_callback(walk.close)
    door = Door(walk, keys, rate_limits, settings.default_timeout_seconds)
    batches, records = RedisBatches(redis), Records(metered)
    batch_steps = steps_to(records)
    stack.push_async_callback(batch_steps.close)
    worker = BatchWorker(
        batches,
        BatchProviderPeer(channels["provider"]),
        ItemSteps(batch_steps, records),
        MeteredLedger(redis, record_metrics),
        budgets,
        clock,
        on_degraded,
        _note_defect,
    )
    await _keep(stack, worker.run())
    await _keep(stack, _sweep_forever(ledger, settings, clock))
    await _keep(stack, shared_keys.follow())
    await _keep(stack, _reload_forever(key_file))
    if settings.http_port is not None:
        # Imported here: an edge without this door has no need of its libraries.
        from starlette.routing import BaseRoute

        from services.edge.console.pages import Console
        from services.edge.console.sessions import Sessions
        from services.edge.http.app import Api, make_app
        from services.edge.http.server import serve_http

        embedder = EmbedderPeer(channels["embedder"], settings.default_timeout_seconds)
        api = Api(door, model_names(policy), embedder, metered, ledger.missing, settings.max_message_bytes)
        console: list[BaseRoute] = []
        if settings.console:
            sessions = Sessions(redis, keys, lambda digest: shared_keys.find(digest) or key_file.find(digest), clock)
            upkeep = UpkeepPeer(channels["cache"])
            console = Console(
                sessions,
                costs,
                upkeep,
                budgets,
                shared_keys,
                lambda: list(key_file.kept()),
                clock,
            ).routes()
        await stack.enter_async_context(
            serve_http(make_app(api, console), settings.host, settings.http_port, settings.grace_seconds)
        )
    return [
        Service(
            "llmmesh.edge.v1.InferenceService",
            InferenceServicer(door),
            add_InferenceServiceServicer_to_server,
        ),
        Service(
            "llmmesh.edge.v1.CostService",
            CostServicer(costs, budgets, keys, clock, lambda: spool.pending),
            add_CostServiceServicer_to_server,
            missing=ledger.missing,
        ),
        Service(
            "llmmesh.edge.v1.BatchService",
            BatchServicer(batches, keys, rate_limits, clock, batch_steps.rules_of, worker.wake),
            add_BatchServiceServicer_to_server,
            missing=ledger.missing,
        ),
        Service(
            "llmmesh.edge.v1.KeyService",
            KeyServicer(shared_keys, key_file, keys, clock),
            add_KeyServiceServicer_to_server,
            missing=ledger.missing,
        ),
    ]


def model_names(policy: Policy) -> list[str]:
    """What a request may ask for: "auto", the tiers, and their models."""
    models = (model for tier in policy.tiers.values() for model in tier.candidates)
    return list(dict.fromkeys(("auto", *policy.tiers, *models)))


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
                hedge=rules.resilience.hedge,
                recording=Recording(frozenset(rules.record.tenants), rules.record.max_pairs, rules.record.keep),
            )
            for name, rules in policy.namespaces.items()
        },
        {name: tier.candidates for name, tier in policy.tiers.items()},
        baseline,
        prices.rates,
        BudgetBook(tuple(_budget(budget, policy, prices) for budget in policy.budgets)),
    )


def _budget(rules: BudgetPolicy, policy: Policy, prices: PriceBook) -> Budget:
    return Budget(
        rules.name,
        round(rules.usd * NANO),
        Period(rules.period),
        Mode(rules.mode),
        rules.tenant,
        rules.endpoint,
        rules.user,
        rules.namespace,
        rules.degrade_to or policy.cheapest_tier(prices),
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


async def _sweep_forever(ledger: RedisLedger, settings: EdgeSettings, clock: Clock) -> None:
    while True:
        now = clock.now()
        records_before = hour_of(now - settings.records_days * DAY_S)
        rollups_before = hour_of(now - max(settings.rollups_days, settings.records_days) * DAY_S)
        try:
            removed = await ledger.sweep(records_before, rollups_before)
            if removed:
                log.info("ledger_swept", hours=removed)
        except MeshError as error:
            log.warning("ledger_not_swept", error=error.message)
        await asyncio.sleep(SWEEP_S)


async def _reload_forever(keys: KeyFile) -> None:
    while True:
        await asyncio.sleep(KEYS_RELOAD_S)
        try:
            keys.reload()
        except ConfigError as error:
            log.error("keys_not_reloaded", error=str(error))
