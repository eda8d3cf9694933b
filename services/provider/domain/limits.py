"""Requests and tokens per minute: what a vendor lets us do, counted over the last minute."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from services.common.chat import Chat
from services.common.tokens import estimate_chat_tokens

WINDOW_S = 60
USUAL_OUTPUT_TOKENS = 300
"""What is set aside for an answer whose request names no limit; the real count takes its place afterwards."""


@dataclass(frozen=True, slots=True)
class Quota:
    """At most `limit` requests or tokens of a vendor in any 60 seconds; `model` is empty where all models share it."""

    vendor: str
    model: str
    unit: Literal["requests", "tokens"]
    limit: int

    def amount(self, tokens: int, limit: int) -> int:
        """What a call of so many tokens takes. One that is larger than the limit takes all of it, or would never be sent."""
        return 1 if self.unit == "requests" else min(tokens, limit)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A call that has room: `amounts` were taken from `quotas` in `second` on the clock of who counts.

    `shared`: counted over all replicas.
    """

    quotas: tuple[Quota, ...]
    amounts: tuple[int, ...]
    second: int
    shared: bool = False

    def corrections(self, tokens: int) -> list[tuple[Quota, int]]:
        """What is to be added where tokens are counted, now that their number is known."""
        return [
            (quota, tokens - amount)
            for quota, amount in zip(self.quotas, self.amounts, strict=True)
            if quota.unit == "tokens" and tokens != amount
        ]


class Limits(Protocol):
    """Counts calls against quotas."""

    async def take(self, quotas: Sequence[Quota], tokens: int) -> Ticket | float:
        """Room for a call of about so many tokens in all quotas of one vendor, or the seconds until there may be some."""
        ...

    def settle(self, ticket: Ticket, tokens: int) -> None:
        """The call is over and took so many tokens. Does not wait."""
        ...


class Window:
    """A sum over the last minute, kept by the second. A second counts until its last moment is a minute ago."""

    def __init__(self) -> None:
        self._by_second: dict[int, int] = {}
        self._sum = 0

    def wait_s(self, amount: int, limit: int, now: float) -> float:
        """Seconds until `amount`, at most `limit`, fits; 0 when it does now."""
        for second in [s for s in self._by_second if s + 1 + WINDOW_S <= now]:
            self._sum -= self._by_second.pop(second)
        over = self._sum + amount - limit
        if over <= 0:
            return 0.0
        for second, used in self._by_second.items():  # seconds come in order
            over -= used
            if over <= 0:
                return second + 1 + WINDOW_S - now
        raise ValueError(f"{amount} never fits into {limit}")

    def add(self, second: int, amount: int) -> None:
        """Takes `amount` in this second, which is the newest."""
        self._by_second[second] = self._by_second.get(second, 0) + amount
        self._sum += amount

    def correct(self, second: int, amount: int) -> None:
        """Changes what was taken in a second, unless it counts no more."""
        if second in self._by_second:
            self.add(second, amount)


class LocalLimits:
    """Counts in this process alone, which has its share of every limit."""

    def __init__(self, monotonic: Callable[[], float], replicas: int = 1) -> None:
        self._monotonic = monotonic
        self._replicas = replicas
        self._windows: dict[Quota, Window] = {}

    async def take(self, quotas: Sequence[Quota], tokens: int) -> Ticket | float:
        now = self._monotonic()
        limits = [max(quota.limit // self._replicas, 1) for quota in quotas]
        amounts = tuple(quota.amount(tokens, limit) for quota, limit in zip(quotas, limits, strict=True))
        windows = [self._windows.setdefault(quota, Window()) for quota in quotas]
        wait = max(
            (w.wait_s(amount, limit, now) for w, amount, limit in zip(windows, amounts, limits, strict=True)),
            default=0.0,
        )
        if wait > 0:
            return wait
        for window, amount in zip(windows, amounts, strict=True):
            window.add(int(now), amount)
        return Ticket(tuple(quotas), amounts, int(now))

    def settle(self, ticket: Ticket, tokens: int) -> None:
        for quota, amount in ticket.corrections(tokens):
            self._windows[quota].correct(ticket.second, amount)


def expected_tokens(chat: Chat) -> int:
    """What is set aside for a call: our estimate of the prompt, and the answer's limit where the request has one."""
    limit = chat.sampling.max_output_tokens
    return estimate_chat_tokens(chat) + (USUAL_OUTPUT_TOKENS if limit is None else limit)
