"""Which models to try for one request, in which order, at what price."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from services.common.chat import Chat
from services.common.money import Tariff, Usage, price
from services.common.tokens import estimate_chat_tokens
from services.router.domain.difficulty import assess
from services.router.domain.tiers import Tier

AUTO = "auto"


class Objective(StrEnum):
    """What decides the order within a tier.

    POLICY is the policy's own order, CHEAPEST the least price of this request, FASTEST the least expected time of it, and
    BALANCED the least product of both: twice the speed is worth twice the price.
    """

    POLICY = "policy"
    CHEAPEST = "cheapest"
    FASTEST = "fastest"
    BALANCED = "balanced"


_SUFFIXES = {":floor": Objective.CHEAPEST, ":nitro": Objective.FASTEST, ":balanced": Objective.BALANCED}


class UnknownModelName(LookupError):
    """Neither the policy nor the price book has the requested name; `name` is what was asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no tier and no model is named {name!r}")
        self.name = name


@dataclass(frozen=True, slots=True)
class TierRules:
    """A tier's models, the preferred one first, and the answer length (tokens) to price them by."""

    models: tuple[str, ...]
    expected_output_tokens: int


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a model is expected to be: seconds until its answer begins, and tokens (above 0) a second from then on."""

    first_token_s: float
    tokens_per_s: float

    def seconds(self, output_tokens: int) -> float:
        """How long an answer takes."""
        return self.first_token_s + output_tokens / self.tokens_per_s


@dataclass(frozen=True)
class Catalogue:
    """What may be routed to: at least one tier by name, and by model prices and, where known, speeds."""

    tiers: Mapping[str, TierRules]
    prices: Mapping[str, Tariff]
    speeds: Mapping[str, Speed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """A request to route. `warm_tokens`: prompt tokens that a vendor holds in its prompt cache, by model."""

    chat: Chat
    requested: str = ""
    warm_tokens: Mapping[str, int] = field(default_factory=dict)
    batch: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model with its estimated price, in nano-USD, for one request; `unpriced` where no price is known.

    `seconds` is how long its answer is expected to take, None where its speed is not known.
    """

    model: str
    cost: int
    input_tokens: int
    output_tokens: int
    unpriced: bool
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """The order to try. `tier` is empty when the caller named a model."""

    tier: str
    candidates: tuple[Candidate, ...]
    reason: str
    score: float
    objective: Objective


def route(question: Question, catalogue: Catalogue) -> Route:
    """Decides for one request. Raises UnknownModelName.

    "auto" takes the tier that the request's difficulty asks for; a tier's name takes that tier. The tier's own models come
    first; those of the next harder tier follow as fallbacks (of the next easier one behind the hardest), so that an outage of
    a whole tier is still answered. A model's name takes that model alone. Models without a price come last.
    """
    name, objective = _split(question.requested, catalogue)
    prompt_tokens = estimate_chat_tokens(question.chat)
    difficulty = assess(question.chat, prompt_tokens)
    nearest = _nearest_tier(difficulty.tier, catalogue)
    reason = f"{difficulty.tier.label} ({difficulty.score:.2f}): {difficulty.reason}"

    def candidates(rules: TierRules) -> list[Candidate]:
        priced = [_priced(model, rules, question, catalogue, prompt_tokens) for model in rules.models]
        return _ordered(priced, objective)

    if name != AUTO and name not in catalogue.tiers:
        alone = TierRules((name,), catalogue.tiers[nearest].expected_output_tokens)
        reason = f"model {name} was asked for; {reason}"
        return Route("", tuple(candidates(alone)), reason, difficulty.score, objective)

    if name != AUTO:
        tier, reason = name, f"tier {name} was asked for; {reason}"
    elif nearest != difficulty.tier.label:
        tier, reason = nearest, f"{reason}; the policy has no such tier, {nearest} is the nearest"
    else:
        tier = nearest
    found: dict[str, Candidate] = {}
    for step in (tier, *_fallback_tiers(tier, catalogue)):
        for candidate in candidates(catalogue.tiers[step]):
            found.setdefault(candidate.model, candidate)
    ordered = sorted(found.values(), key=lambda candidate: candidate.unpriced)
    return Route(tier, tuple(ordered), reason, difficulty.score, objective)


def _split(requested: str, catalogue: Catalogue) -> tuple[str, Objective]:
    """The name without its suffix, and the objective. A model whose own name ends like a suffix is still found."""
    name, objective = requested or AUTO, Objective.POLICY
    if name not in catalogue.prices:
        for suffix, named in _SUFFIXES.items():
            if name.endswith(suffix):
                name, objective = name.removesuffix(suffix) or AUTO, named
    known = name == AUTO or name in catalogue.tiers or name in catalogue.prices
    if not known and not any(name in rules.models for rules in catalogue.tiers.values()):
        raise UnknownModelName(name)
    return name, objective


def _nearest_tier(tier: Tier, catalogue: Catalogue) -> str:
    """The judged tier, else the next harder one that the policy has, else the next easier one, else the policy's first."""
    harder = [other for other in Tier if other >= tier]
    easier = [other for other in reversed(Tier) if other < tier]
    names = (other.label for other in (*harder, *easier))
    return next((name for name in names if name in catalogue.tiers), next(iter(catalogue.tiers)))


def _fallback_tiers(tier: str, catalogue: Catalogue) -> list[str]:
    """The tiers to fall back on: the next harder one; for the hardest, the next easier one. None for a tier of one's own."""
    ladder = [rung.label for rung in Tier if rung.label in catalogue.tiers]
    if tier not in ladder or len(ladder) == 1:
        return []
    place = ladder.index(tier)
    return [ladder[place + 1] if place + 1 < len(ladder) else ladder[place - 1]]


def _priced(model: str, rules: TierRules, question: Question, catalogue: Catalogue, prompt_tokens: int) -> Candidate:
    """The model with the price of this request."""
    limit = question.chat.sampling.max_output_tokens
    output_tokens = rules.expected_output_tokens if limit is None else min(limit, rules.expected_output_tokens)
    speed = catalogue.speeds.get(model)
    seconds = None if speed is None else speed.seconds(output_tokens)
    known = catalogue.prices.get(model)
    if known is None:
        return Candidate(model, 0, prompt_tokens, output_tokens, unpriced=True, seconds=seconds)
    tariff = known.at(prompt_tokens)
    warm = min(max(question.warm_tokens.get(model, 0), 0), prompt_tokens)
    usage = Usage(prompt_tokens, output_tokens, cache_read_input_tokens=warm)
    cost = price(tariff.batch if question.batch else tariff.rates, usage)
    return Candidate(model, cost, prompt_tokens, output_tokens, unpriced=False, seconds=seconds)


def _ordered(candidates: list[Candidate], objective: Objective) -> list[Candidate]:
    """Sorted for the objective; ties keep the policy's order.

    A model whose speed is not known is never taken for fast: it comes behind those that are known, and where time is weighed
    against price it is as slow as the slowest of them.
    """
    slowest = max((candidate.seconds for candidate in candidates if candidate.seconds is not None), default=1.0)

    def seconds(candidate: Candidate) -> float:
        return slowest if candidate.seconds is None else candidate.seconds

    match objective:
        case Objective.POLICY:
            return candidates
        case Objective.CHEAPEST:
            return sorted(candidates, key=lambda candidate: candidate.cost)
        case Objective.FASTEST:
            return sorted(candidates, key=lambda candidate: (candidate.seconds is None, seconds(candidate)))
        case Objective.BALANCED:
            return sorted(candidates, key=lambda candidate: candidate.cost * seconds(candidate))
