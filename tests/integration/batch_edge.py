"""A process that goes on with batches until it is killed: `batch_edge.py REDIS_URL PROVIDER_ADDRESS`. Time flies for it."""

import asyncio
import sys

import grpc

from services.common.channels import open_channel
from services.common.clock import SystemClock
from services.common.errors import MeshError
from services.edge.adapters.batch_provider import BatchProviderPeer
from services.edge.adapters.redis import RedisLedger, open_redis
from services.edge.adapters.redis_batches import RedisBatches
from services.edge.domain.batch_items import ItemSteps, Records
from services.edge.domain.batch_worker import BatchWorker, Pace
from services.edge.domain.steps import Steps
from services.edge.domain.trip import Rules
from tests.unit.edge.fakes import BASELINE, BOOK, TIERS, World, namespace_rules

PACE = Pace(
    idle_s=0.02,
    hold_s=1.0,
    send_s=1.0,
    settle_s=0.5,
    first_poll_s=0.02,
    longest_poll_s=0.1,
    longest_pause_s=0.3,
)


def item_steps(around: World) -> ItemSteps:
    """The real steps over services in memory."""
    records = Records(around.spool)
    steps = Steps(
        Rules(
            {"default": namespace_rules()}, TIERS, lambda _: BASELINE, lambda model, *, input_tokens=0: BOOK.get(model)
        ),
        around.embedder,
        around.cache,
        around.router,
        around.compressor,
        around.provider,
        around.budgets,
        records,
        SystemClock(),
        lambda service, error: None,
        lambda: 0.5,
        around._check_scope,
        around.traffic,
    )
    return ItemSteps(steps, records)


async def work(redis_url: str, provider: grpc.aio.Channel) -> None:
    """Until it is cancelled."""

    def defect(batch_id: str, error: Exception) -> None:
        print(f"{batch_id}: {error!r}", file=sys.stderr, flush=True)

    def degraded(service: str, error: MeshError) -> None:
        print(f"{service}: {error!r}", file=sys.stderr, flush=True)

    redis = open_redis(redis_url)
    around = World()
    worker = BatchWorker(
        RedisBatches(redis),
        BatchProviderPeer(provider),
        item_steps(around),
        RedisLedger(redis),
        around.budgets,
        SystemClock(),
        degraded,
        defect,
        PACE,
    )
    print("at work", flush=True)
    try:
        await worker.run()
    finally:
        await redis.aclose()


async def main() -> None:
    async with open_channel(sys.argv[2]) as channel:
        await work(sys.argv[1], channel)


if __name__ == "__main__":
    asyncio.run(main())
