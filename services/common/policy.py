"""The policy: one YAML file that says how each namespace may be answered. Every service reads the part it needs.

Unknown fields, unknown models and missing prices are errors at start that name file and line.
"""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.common.prices import PriceBook
from services.common.settings import parse_duration
from services.common.yaml_file import ConfigError, find_line, load_yaml_model

SHIPPED = Path(__file__).parent / "data" / "policy.yaml"


def _seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


Seconds = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]


class TtlClass(StrEnum):
    """How long an answer lives."""

    REALTIME = "realtime"
    USER = "user"
    FAQ = "faq"
    STATIC = "static"
    ARCHIVE = "archive"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CachePolicy(_Strict):
    """What the cache may do in a namespace."""

    exact: bool = Field(True, description="Answer identical requests from the cache.")
    semantic: bool = Field(True, description="Answer paraphrases in the same scope from the cache.")
    error_budget: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="Wrong answers out of the semantic cache that are accepted, as a share of lookups.",
    )
    floor: float = Field(0.5, ge=0, le=1, description="Similarity below which nothing is a candidate.")
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict,
        description="Lowest similarity to serve where no verifier judges (there is none, it is down, or the embedding "
        "model is not its own); vetoes apply. A model not named never serves that way.",
    )
    verifier: bool = Field(True, description="Let the verifier judge pairs; without it similarity and vetoes decide.")
    judge: str | None = Field(
        None, description="A model that is asked about pairs of which the verifier is unsure; unset asks none."
    )
    judge_ms: float = Field(1500.0, gt=0, description="How long the judge may take; later is a miss.")
    learn: bool = Field(True, description="Compare the fresh answer of a miss with the candidate's, and learn from it.")
    shadow_share: float = Field(
        0.01, ge=0, le=1, description="Share of semantic hits that are generated again off path, to count wrong ones."
    )
    stale_share: float = Field(
        0.0, ge=0, le=1, description="Share of exact hits that are generated again off path, to count stale ones."
    )
    canary_share: float = Field(
        0.0, ge=0, le=1, description="Share of requests that bypass the cache, to compare cost, latency and feedback."
    )
    standalone: bool = Field(
        False, description="A message that needs no history may be served what was answered in another conversation."
    )
    ttl_class: TtlClass = Field(TtlClass.FAQ, description="Lifetime class of answers unless the caller names one.")
    max_temperature: float = Field(
        1.0, ge=0, le=2, description="Requests above this temperature are neither served nor stored."
    )
    allow_cross_language: bool = Field(False, description="An answer may serve a question in another language.")
    store_tool_calls: bool = Field(False, description="Answers that call tools may be stored.")
    review: bool = Field(
        True,
        description="Keep the last semantic hits and near misses, with both questions, for people to look through.",
    )


class CompressionPolicy(_Strict):
    """Whether and how far prompts are compressed."""

    enabled: bool = Field(False, description="Compress long context.")
    rate: float = Field(0.5, ge=0.33, le=1, description="Share of tokens to keep.")
    min_block_tokens: int = Field(256, ge=1, description="Shorter texts stay as they are.")


class ResiliencePolicy(_Strict):
    """What may be spent for a quick answer."""

    hedge: bool = Field(
        False, description="Start a second candidate beside a slow one; the tokens of the slower one are paid as well."
    )


class BudgetPeriod(StrEnum):
    """How long a budget lasts, in UTC."""

    DAY = "day"
    MONTH = "month"


class BudgetMode(StrEnum):
    """What happens when a budget is used up."""

    HARD = "hard"
    SOFT = "soft"


class BudgetPolicy(_Strict):
    """A spending limit. It holds within a tenant, for all requests or for those of an endpoint, user or namespace."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="How receipts and tables call it.")
    tenant: str = Field(
        "*", min_length=1, description='The tenant that it is for; "*" gives every tenant one of its own.'
    )
    endpoint: str | None = Field(
        None,
        min_length=1,
        description='The endpoint that it is for; "*" gives each one of its own; unset: all share it.',
    )
    user: str | None = Field(None, min_length=1, description="The user that it is for, likewise.")
    namespace: str | None = Field(None, min_length=1, description="The namespace that it is for, likewise.")
    period: BudgetPeriod = Field(description="When it begins anew: day or month, at midnight UTC.")
    # The sums of a window stay exact in Redis's scripts up to 2^53 nano-USD.
    usd: float = Field(ge=1e-6, le=9_000_000, description="The limit in dollars.")
    mode: BudgetMode = Field(
        BudgetMode.HARD,
        description="When it is used up, hard refuses requests that need a model, soft sends them to a cheaper tier.",
    )
    degrade_to: str | None = Field(
        None, description="That tier of a soft budget; unset means the one whose preferred model is the cheapest."
    )


class RecordPolicy(_Strict):
    """Whose questions and answers are kept, to train a model of theirs on (`llmmesh export finetune`)."""

    tenants: tuple[str, ...] = Field((), description="Tenants who opted in; nothing is kept of anybody else.")
    keep: Seconds = Field(30 * 86_400.0, description="How long a question and its answer are kept.")
    max_pairs: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Most questions kept of a tenant in this namespace, each of at most 256 KiB; older ones go.",
    )


class NamespacePolicy(_Strict):
    """The rules of one namespace."""

    cache: CachePolicy = Field(default_factory=CachePolicy)
    compression: CompressionPolicy = Field(default_factory=CompressionPolicy)
    resilience: ResiliencePolicy = Field(default_factory=ResiliencePolicy)
    record: RecordPolicy = Field(default_factory=RecordPolicy)
    default_tier: str = Field("medium", description="Tier when the router is down.")


class TierPolicy(_Strict):
    """Models of one tier, the preferred one first."""

    candidates: tuple[str, ...] = Field(min_length=1)
    expected_output_tokens: int = Field(
        300, ge=1, description="Typical answer length, to price candidates before the call."
    )


class Policy(_Strict):
    """The whole file."""

    baseline: str = Field(description="The model that everything would have gone to: savings are counted against it.")
    tiers: dict[str, TierPolicy] = Field(min_length=1)
    ttl_classes: dict[TtlClass, Seconds] = Field(default_factory=dict)
    namespaces: dict[str, NamespacePolicy] = Field(default_factory=lambda: {"default": NamespacePolicy()})
    budgets: tuple[BudgetPolicy, ...] = ()

    @classmethod
    def load(cls, path: Path, prices: PriceBook) -> "Policy":
        """Reads a policy and checks its models against the price book. Raises ConfigError naming file and line."""
        policy = load_yaml_model(path, cls)
        problems = []
        for name, namespace in policy.namespaces.items():
            if namespace.default_tier not in policy.tiers:
                line = find_line(path, "namespaces", name, "default_tier")
                problems.append(
                    f"{path}:{line}: namespaces.{name}.default_tier: no tier is named {namespace.default_tier!r}"
                )
            judge = namespace.cache.judge
            if judge is not None and prices.rates(judge) is None:
                line = find_line(path, "namespaces", name, "cache", "judge")
                problems.append(f"{path}:{line}: namespaces.{name}.cache.judge: no price is known for model {judge!r}")
        for tier, rules in policy.tiers.items():
            for index, model in enumerate(rules.candidates):
                if prices.rates(model) is None:
                    line = find_line(path, "tiers", tier, "candidates", index)
                    problems.append(f"{path}:{line}: tiers.{tier}: no price is known for model {model!r}")
        if prices.rates(policy.baseline) is None:
            line = find_line(path, "baseline")
            problems.append(f"{path}:{line}: baseline: no price is known for model {policy.baseline!r}")
        for index, (field, problem) in policy._budget_problems():
            line = find_line(path, "budgets", index, field)
            problems.append(f"{path}:{line}: budgets.{index}.{field}: {problem}")
        if problems:
            raise ConfigError("\n".join(problems))
        return policy

    def _budget_problems(self) -> Iterator[tuple[int, tuple[str, str]]]:
        """What is wrong with budgets beyond their form: index, field and what."""
        names: set[str] = set()
        for index, budget in enumerate(self.budgets):
            if budget.name in names:
                yield index, ("name", f"another budget is named {budget.name!r}")
            names.add(budget.name)
            if budget.namespace not in (None, "*", *self.namespaces):
                yield index, ("namespace", f"no namespace is named {budget.namespace!r}")
            if budget.degrade_to is not None and budget.mode is BudgetMode.HARD:
                yield index, ("degrade_to", "a hard budget refuses; only a soft one degrades")
            elif budget.degrade_to not in (None, *self.tiers):
                yield index, ("degrade_to", f"no tier is named {budget.degrade_to!r}")

    def cheapest_tier(self, prices: PriceBook) -> str:
        """The tier whose preferred model is the cheapest, for a prompt and an answer of the same length."""

        def cost(tier: str) -> int:
            rates = prices.rates(self.tiers[tier].candidates[0])
            return rates.input + rates.output if rates else 0  # all have a price: load() saw to it

        return min(self.tiers, key=cost)

    def namespace(self, name: str) -> NamespacePolicy | None:
        """Rules of a namespace; empty means "default"; None when the policy does not have it."""
        return self.namespaces.get(name or "default")

    def ttl(self, kind: TtlClass) -> float:
        """Lifetime of a class in seconds."""
        return self.ttl_classes.get(kind, DEFAULT_TTL[kind])


DEFAULT_TTL = {
    TtlClass.REALTIME: 45.0,
    TtlClass.USER: 600.0,
    TtlClass.FAQ: 3600.0,
    TtlClass.STATIC: 86_400.0,
    TtlClass.ARCHIVE: 14 * 86_400.0,
}
