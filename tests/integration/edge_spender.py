"""An edge without its peers: asks on behalf of one tenant as fast as it can, and spends real money of a real Redis.

Prints how often it was answered and refused. After `hang_after` answers models answer no more, which it says, too.
"""

import asyncio
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from services.common.chat import Chat
from services.common.errors import BudgetExceeded, MeshError
from services.common.money import Usage, price
from services.common.telemetry import configure_logging
from services.common.tokens import estimate_chat_tokens
from services.edge.adapters.redis import RedisLedger, open_redis
from services.edge.adapters.redis_budgets import RedisBudgets
from services.edge.adapters.spool import FileSpool
from services.edge.domain.budgets import Budget, BudgetBook, Mode, Period
from services.edge.domain.ports import Charge, Generated, Question, Route, Vector
from services.edge.domain.steps import Steps
from services.edge.domain.trip import Rules
from services.edge.domain.walk import Walk
from tests.unit.edge.fakes import BASELINE, BOOK, TIERS, World, chat, namespace_rules, text_answer

DOLLAR = 1_000_000_000
NOON = 1_772_366_400.0  # 2026-03-01T12:00 UTC
LONGEST = 1000  # tokens of an answer
REQUESTS, AT_ONCE = 120, 4
BUDGETS = (
    Budget("all", DOLLAR, Period.DAY),
    Budget("month", DOLLAR * 60 // 100, Period.MONTH),
    Budget("each-endpoint", DOLLAR * 40 // 100, Period.DAY, endpoint="*"),
    Budget("each-user", DOLLAR * 20 // 100 + 1, Period.MONTH, user="*"),
    Budget("faq", DOLLAR // 10, Period.DAY, Mode.SOFT, endpoint="faq", degrade_to="simple"),
)


class FixedClock:
    def __init__(self, at: float = NOON) -> None:
        self.at = at

    def now(self) -> float:
        return self.at


class Model:
    """Answers of any length up to the longest, of any of the candidates."""

    def __init__(self, dice: random.Random, hang_after: int) -> None:
        self._dice = dice
        self._left = hang_after

    async def generate(
        self, question: Question, chat: Chat, candidates: Sequence[str], *, hedge: bool = False
    ) -> Generated:
        await asyncio.sleep(0)
        if not self._left:
            print("hangs", flush=True)
            await asyncio.Event().wait()
        self._left -= 1
        model = self._dice.choice(candidates)
        usage = Usage(estimate_chat_tokens(chat), self._dice.randint(1, LONGEST))
        return Generated(text_answer(), usage, Charge(price(BOOK[model], usage), BOOK[model]), model, "vendor")


class FreeRouter:
    async def route(self, question: Question, vector: Vector | None) -> Route:
        return Route(("gpt-4o-mini", "gpt-4o"), "medium", "")


async def main(url: str, spool_dir: str, seed: int, hang_after: int) -> None:
    dice, clock, redis, around = random.Random(seed), FixedClock(), open_redis(url), World()
    book = BudgetBook(BUDGETS)

    def degraded(service: str, error: MeshError) -> None:
        if service != "budget":
            print(f"{service}: {error!r}", file=sys.stderr, flush=True)

    configure_logging("edge", "info")  # not among the counts
    async with FileSpool(Path(spool_dir), RedisLedger(redis), 0.02, 0.1) as spool:
        rules = Rules(
            {"default": namespace_rules(exact=False, semantic=False)},
            TIERS,
            lambda _: BASELINE,
            lambda model, *, input_tokens=0: BOOK.get(model),
            book,
        )
        steps = Steps(
            rules,
            around.embedder,
            around.cache,
            FreeRouter(),
            around.compressor,
            Model(dice, hang_after),  # type: ignore[arg-type]
            RedisBudgets(redis, book, 8, clock),
            spool,
            clock,
            degraded,
            lambda: 0.5,
            around._check_scope,
            around.traffic,
        )
        walk = Walk(steps, around.leases, degraded)
        counts = {"answered": 0, "refused": 0, "cheaper": 0}
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # all begin together

        async def ask() -> None:
            for _ in range(REQUESTS // AT_ONCE):
                asked = Question(
                    "acme",
                    "r",
                    chat(max_output_tokens=LONGEST),
                    endpoint=dice.choice(("faq", "search", "mail/in")),
                    user=dice.choice(("", "ann", "böb:x", "cy", "dee")),
                )
                try:
                    done = await walk.complete(asked)
                    counts["answered"] += 1
                    counts["cheaper"] += bool(done.receipt.budget_notice)
                except BudgetExceeded:
                    counts["refused"] += 1

        await asyncio.gather(*(ask() for _ in range(AT_ONCE if hang_after else 0)))
        await walk.close()
    await redis.aclose()
    print(*counts.values(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
