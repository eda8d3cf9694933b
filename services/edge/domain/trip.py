"""What is known about a request: the rules it goes by, what happened to it so far, and what its caller is told."""

from collections.abc import Callable
from dataclasses import dataclass, field

from services.common.chat import Answer, Chat, Delta, FinishReason
from services.common.money import Bill, CostItem, Rates, RatesOf, Usage
from services.edge.domain.budgets import BudgetBook
from services.edge.domain.ports import Question, Route, Vector
from services.edge.domain.traffic import Recording


@dataclass(frozen=True, slots=True)
class NamespaceRules:
    """The part of a namespace's policy that the walk follows. Shares lie between 0 and 1.

    `per_user`: an answer serves nobody but the user who asked. `store_tool_calls`: answers that call tools may be shared.
    `hedge`: a second model may be asked beside one that is slow. `recording`: whose traffic is kept.
    """

    exact: bool
    semantic: bool
    max_temperature: float
    per_user: bool
    store_tool_calls: bool
    learn: bool
    shadow_share: float
    stale_share: float
    canary_share: float
    compress: bool
    compression_rate: float
    min_block_tokens: int
    default_tier: str
    hedge: bool = False
    recording: Recording = field(default_factory=Recording)


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy as the walk sees it: namespaces, the models of each tier, what any model and the baseline cost today, budgets.

    What the baseline costs depends on the input tokens that it would be sent.
    """

    namespaces: dict[str, NamespaceRules]
    tiers: dict[str, tuple[str, ...]]
    baseline: Callable[[int], Rates]
    rates: RatesOf
    budgets: BudgetBook = field(default_factory=BudgetBook)


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an answer came from and what it cost; `bill` is None while it is not known.

    `alias`: these very words were served that answer before. `checked`: the answer is made again, to see whether it is right.
    `budget_notice` says why a cheaper tier was asked; empty where none was.
    """

    request_id: str
    outcome: str
    model: str
    tier: str
    bill: Bill | None = None
    degraded: tuple[str, ...] = ()
    similarity: float | None = None
    cache_reason: str = ""
    route_reason: str = ""
    entry_id: str = ""
    alias: bool = False
    checked: bool = False
    budget_notice: str = ""


@dataclass(frozen=True, slots=True)
class Completed:
    """A whole answer."""

    answer: Answer
    usage: Usage
    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Began:
    """First event of a streamed answer."""

    receipt: Receipt


@dataclass(frozen=True, slots=True)
class Ended:
    """Last event of a streamed answer."""

    finish_reason: FinishReason
    usage: Usage
    receipt: Receipt


Event = Began | Delta | Ended


@dataclass(slots=True, eq=False)
class Trip:
    """What is known about one request as it walks.

    `outcome` is miss, exact_hit, semantic_hit, bypass, canary, coalesced, shadow or error. `key` is the identity of the
    request, empty until the cache has told it. A trip that was `led` is settled by the flight that it led. `windows` names those
    of the budgets in which it has `reserved`; where a soft one is used up there is a `budget_notice`, and the answer is `lesser`
    when it comes from a cheaper tier than it would have.
    """

    question: Question
    rules: NamespaceRules
    record_id: str
    outcome: str = "miss"
    key: bytes = b""
    vector: Vector | None = None
    lesson: bytes = b""
    degraded: list[str] = field(default_factory=list)
    overhead: list[CostItem] = field(default_factory=list)
    cache_reason: str = ""
    similarity: float | None = None
    alias: bool = False
    checked: bool = False
    route: Route | None = None
    namespace_version: int | None = None
    calling: Chat | None = None
    removed_tokens: int = 0
    reserved: bool = False
    windows: tuple[str, ...] = ()
    budget_notice: str = ""
    lesser: bool = False
    unpriced: bool = False
    recorded: bool = False
    led: bool = False

    @property
    def too_hot(self) -> bool:
        """Whether the answer is left to chance beyond what the policy lets the cache repeat."""
        temperature = self.question.chat.sampling.temperature
        return temperature is not None and temperature > self.rules.max_temperature

    @property
    def tier(self) -> str:
        """Where it was routed; empty before, and for a model that was named."""
        return self.route.tier if self.route else ""

    def spend(self, component: str, model: str, cost: int) -> None:
        """Notes what was spent on the way, in nano-USD."""
        if cost:
            self.overhead.append(CostItem(component, model, cost, overhead=True))

    def receipt(self, model: str, tier: str, bill: Bill | None = None, entry_id: str = "") -> Receipt:
        """What the caller is told now."""
        return Receipt(
            self.question.request_id,
            # A canary is for the ledger alone: to its caller the cache was bypassed.
            "bypass" if self.outcome == "canary" else self.outcome,
            model,
            tier,
            bill,
            tuple(self.degraded),
            self.similarity,
            self.cache_reason,
            self.route.reason if self.route else "",
            entry_id,
            self.alias,
            self.checked,
            self.budget_notice,
        )
