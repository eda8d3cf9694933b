"""The walk of a request: exact lookup, embed once, semantic lookup, route, compress, reserve, generate, store, settle.

Any step but generate may fail: the walk goes on without it and says so in `degraded`.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

from services.common.chat import Answer, AnswerBuilder, Chat, Delta, FinishReason, deltas_of
from services.common.clock import Clock
from services.common.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    InvalidInput,
    MeshError,
    StreamCut,
    UnknownModel,
    Violation,
)
from services.common.money import Bill, CostItem, Rates, Usage, price
from services.common.tokens import estimate_chat_tokens, estimate_tokens
from services.edge.domain.bill import answer_bill, failure_bill, hit_bill
from services.edge.domain.ledger import Spool, UsageRecord
from services.edge.domain.ports import (
    Budgets,
    Cache,
    Charge,
    Compressor,
    Embedded,
    Embedder,
    Found,
    Provider,
    Question,
    Route,
    Router,
    StreamFinished,
    StreamStarted,
    Vector,
)

T = TypeVar("T")

BUDGETED_OUTPUT_TOKENS = 4096  # longest answer where a budget applies and the caller sets no limit
FAILED_ATTEMPTS = 3  # attempts before the one that answers, of which a vendor may bill the prompt
MAX_EMBED_BYTES = 65_536  # the embedder takes no longer text, and no paraphrase is that long


@dataclass(frozen=True, slots=True)
class NamespaceRules:
    """The part of a namespace's policy that the walk follows."""

    exact: bool
    semantic: bool
    max_temperature: float
    compress: bool
    compression_rate: float
    min_block_tokens: int
    default_tier: str
    budgeted: bool


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy as the walk sees it: namespaces, the models of each tier, and what any model and the baseline cost today."""

    namespaces: dict[str, NamespaceRules]
    tiers: dict[str, tuple[str, ...]]
    baseline: Callable[[], Rates]
    rates: Callable[[str], Rates | None]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where an answer came from and what it cost; `bill` is None while it is not known."""

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


@dataclass(slots=True)
class _Trip:
    """What is known about one request as it walks."""

    question: Question
    rules: NamespaceRules
    record_id: str
    outcome: str = "miss"
    vector: Vector | None = None
    degraded: list[str] = field(default_factory=list)
    overhead: list[CostItem] = field(default_factory=list)
    cache_reason: str = ""
    similarity: float | None = None
    route: Route | None = None
    namespace_version: int | None = None
    calling: Chat | None = None
    removed_tokens: int = 0
    reserved: bool = False
    unpriced: bool = False
    recorded: bool = False

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
        if cost:
            self.overhead.append(CostItem(component, model, cost, overhead=True))


class Walk:
    """Answers questions. One instance per process; it keeps no state between requests."""

    def __init__(
        self,
        rules: Rules,
        embedder: Embedder,
        cache: Cache,
        router: Router,
        compressor: Compressor,
        provider: Provider,
        budgets: Budgets,
        spool: Spool,
        clock: Clock,
        on_degraded: Callable[[str, MeshError], None],
    ) -> None:
        self._rules = rules
        self._embedder = embedder
        self._cache = cache
        self._router = router
        self._compressor = compressor
        self._provider = provider
        self._budgets = budgets
        self._spool = spool
        self._clock = clock
        self._on_degraded = on_degraded

    async def complete(self, question: Question) -> Completed:
        """The whole answer. Raises MeshError; whatever was spent until then is on record."""
        trip = self._start(question)
        try:
            found = await self._find(trip)
            if found is not None and found.answer is not None:
                usage, receipt = self._settle_hit(trip, found)
                return Completed(found.answer, usage, receipt)
            route, chat = await self._plan(trip)
            trip.calling = chat
            made = await self._provider.generate(question, chat, route.candidates)
            trip.calling = None
            return await self._settle_answer(trip, made.answer, made.usage, made.charge, made.model)
        except BaseException as error:
            await self._settle_failure(trip, error)
            raise

    async def stream(self, question: Question) -> AsyncGenerator[Event, None]:
        """The answer as it comes. Ends with Ended, or raises: a cut answer never looks finished."""
        trip = self._start(question)
        try:
            found = await self._find(trip)
            if found is not None and found.answer is not None:
                usage, receipt = self._settle_hit(trip, found)
                yield Began(receipt)
                for piece in deltas_of(found.answer):
                    yield piece
                yield Ended(found.answer.finish_reason, usage, receipt)
                return
            # Closed with us, before the settling below: it knows what was streamed until then.
            async with aclosing(self._generate_stream(trip)) as events:
                async for event in events:
                    yield event
        except BaseException as error:
            await self._settle_failure(trip, error)
            raise

    async def _generate_stream(self, trip: _Trip) -> AsyncGenerator[Event, None]:
        route, chat = await self._plan(trip)
        builder = AnswerBuilder()
        model, component = "", "provider"
        trip.calling = chat
        try:
            # The generator holds the upstream call: it is closed with us, whatever happens.
            async with aclosing(self._provider.stream(trip.question, chat, route.candidates)) as events:
                async for event in events:
                    match event:
                        case StreamStarted():
                            model, component = event.model, event.component
                            yield Began(self._receipt(trip, model, trip.tier))
                        case StreamFinished(reason, usage, charge):
                            trip.calling = None
                            done = await self._settle_answer(trip, builder.build(reason), usage, charge, model)
                            yield Ended(reason, usage, done.receipt)
                            return
                        case _:
                            builder.add(event)
                            yield event
            raise StreamCut("the answer broke off before it was finished")
        except BaseException as error:
            # A provider that is still there knows better than we do what the broken answer cost.
            if model and _wasted(error) is None and not trip.recorded:
                trip.calling = None
                self._charge_broken(trip, chat, builder.text, model, component)
            raise

    def _charge_broken(self, trip: _Trip, chat: Chat, text: str, model: str, component: str = "provider") -> None:
        """A vendor bills the prompt and what it wrote, also when nobody got the whole of it: an estimate, as overhead."""
        rates = self._rules.rates(model)
        if rates is None:
            trip.unpriced = True
            return
        usage = Usage(estimate_chat_tokens(chat), estimate_tokens(text), estimated=True)
        trip.spend(component, model, price(rates, usage))

    def _start(self, question: Question) -> _Trip:
        rules = self._rules.namespaces.get(question.namespace)
        if rules is None:
            known = ", ".join(sorted(self._rules.namespaces))
            raise InvalidInput(violations=(Violation("namespace", f"is not in the policy, which has: {known}"),))
        return _Trip(question, rules, uuid.uuid4().hex)

    async def _find(self, trip: _Trip) -> Found | None:
        """A stored answer that may serve, or None. Embeds at most once."""
        question, rules = trip.question, trip.rules
        if question.control.bypass or trip.too_hot or not (rules.exact or rules.semantic):
            trip.outcome = "bypass"
            trip.cache_reason = "temperature" if trip.too_hot else "bypass"
            return None
        if rules.exact:
            found = await self._try("cache", trip, self._cache.lookup(question, None))
            if found is None:
                return None
            trip.namespace_version = found.namespace_version
            if found.answer is not None:
                trip.outcome = "exact_hit"
                return found
        text = question.chat.last_user_text
        if not rules.semantic or not text.strip() or len(text.encode()) > MAX_EMBED_BYTES:
            return None
        embedded: Embedded | None = await self._try("embedder", trip, self._embedder.embed(text))
        if embedded is None:
            return None
        trip.spend("embedder", embedded.vector.model_id, embedded.cost)
        if embedded.truncated:
            # Two long texts with the same beginning would look the same, whatever they ask for at the end.
            trip.cache_reason = "too_long_to_compare"
            return None
        trip.vector = embedded.vector
        found = await self._try("cache", trip, self._cache.lookup(question, embedded.vector))
        if found is None:
            return None
        trip.namespace_version = found.namespace_version
        trip.cache_reason = found.reason
        trip.similarity = found.similarity
        trip.spend("verifier", embedded.vector.model_id, found.verifier_cost)
        if found.semantic_unavailable and "qdrant" not in trip.degraded:
            trip.degraded.append("qdrant")
        if found.answer is not None:
            trip.outcome = "semantic_hit" if found.semantic else "exact_hit"
        return found

    async def _plan(self, trip: _Trip) -> tuple[Route, Chat]:
        """Which models, which prompt, and the money for it set aside."""
        question, rules = trip.question, trip.rules
        route = await self._try("router", trip, self._router.route(question, trip.vector))
        if route is None:
            route = self._default_route(trip)
        trip.route = route
        trip.spend("router", "", route.cost)
        chat = question.chat
        if rules.compress:
            shorter = await self._try(
                "compressor",
                trip,
                self._compressor.compress(question.chat, rules.compression_rate, rules.min_block_tokens),
            )
            if shorter is not None:
                trip.spend("compressor", "", shorter.cost)
                if shorter.applied:
                    chat = shorter.chat
                    trip.removed_tokens = max(shorter.original_tokens - shorter.kept_tokens, 0)
        if rules.budgeted:
            if chat.sampling.max_output_tokens is None:
                # A reservation is a bound only when the answer has one.
                chat = replace(chat, sampling=replace(chat.sampling, max_output_tokens=BUDGETED_OUTPUT_TOKENS))
            # Off the loop: counting a long prompt's tokens would hold up everybody else's answers.
            bound = await asyncio.to_thread(self._upper_bound, route, chat)
            # Whoever leaves while this runs may have reserved, so the reservation is named before it is made.
            trip.reserved = True
            try:
                await self._budgets.reserve(question.tenant, question.namespace, bound, trip.record_id)
            except BudgetExceeded:
                trip.reserved = False
                raise
        return route, chat

    def _default_route(self, trip: _Trip) -> Route:
        """Without the router: a tier or model that was named is taken at its word; "auto" gets the default tier.

        Raises UnknownModel for any other name.
        """
        name = trip.question.model.removesuffix(":floor").removesuffix(":nitro")
        if name in ("", "auto"):
            tier = trip.rules.default_tier
            return Route(self._rules.tiers[tier], tier, "router is down: default tier")
        if name in self._rules.tiers:
            return Route(self._rules.tiers[name], name, "router is down: the tier was named")
        if self._rules.rates(name) is not None:
            return Route((name,), "", "router is down: the model was named")
        raise UnknownModel(f"no tier and no model is named {name!r}")

    def _upper_bound(self, route: Route, chat: Chat) -> int:
        """The most that this may cost in nano-USD: the dearest candidate's longest answer, after its prompt was billed in vain
        a few times. A prompt is taken to be a quarter longer than the estimate, and to be written to the dearest cache.
        """
        prompt = estimate_chat_tokens(chat) * 5 // 4
        output = chat.sampling.max_output_tokens or BUDGETED_OUTPUT_TOKENS
        known = [rates for model in route.candidates if (rates := self._rules.rates(model)) is not None]
        bounds = [
            (1 + FAILED_ATTEMPTS) * prompt * max(rates.input, rates.cache_write, rates.cache_write_long)
            + output * rates.output
            for rates in known
        ]
        return max(bounds, default=0) // 1_000_000 + 1

    def _settle_hit(self, trip: _Trip, found: Found) -> tuple[Usage, Receipt]:
        stored = found.usage
        usage = Usage(
            input_tokens=max(stored.input_tokens + found.input_token_delta, 1),
            output_tokens=stored.output_tokens,
            reasoning_output_tokens=stored.reasoning_output_tokens,
            estimated=stored.estimated or found.input_token_delta != 0,
        )
        bill = hit_bill(self._rules.baseline(), usage, trip.overhead)
        self._record(trip, found.model, found.tier, usage, bill)
        return usage, self._receipt(trip, found.model, found.tier, bill, found.entry_id)

    async def _settle_answer(self, trip: _Trip, answer: Answer, usage: Usage, charge: Charge, model: str) -> Completed:
        bill = answer_bill(self._rules.baseline(), model, usage, charge, trip.removed_tokens, trip.overhead)
        # First the money, then the cache: an answer that was paid for is on record whatever happens next.
        self._record(trip, model, trip.tier, usage, bill)
        entry_id = await self._store(trip, answer, usage, model, trip.tier)
        return Completed(answer, usage, self._receipt(trip, model, trip.tier, bill, entry_id))

    async def _store(self, trip: _Trip, answer: Answer, usage: Usage, model: str, tier: str) -> str:
        question, rules = trip.question, trip.rules
        unwanted = question.control.no_store or trip.too_hot or not (rules.exact or rules.semantic)
        # Without the router the answer may come from a lesser tier than the question deserves: good for now, not for an hour.
        if unwanted or "cache" in trip.degraded or "router" in trip.degraded:
            return ""
        # What the answer takes without our tricks: the baseline of the hits to come.
        plain = Usage(
            usage.input_tokens + trip.removed_tokens,
            usage.output_tokens,
            reasoning_output_tokens=usage.reasoning_output_tokens,
            estimated=usage.estimated or trip.removed_tokens > 0,
        )
        vector = trip.vector if rules.semantic else None
        call = self._cache.store(question, vector, answer, plain, model, tier, trip.namespace_version)
        return await self._try("cache", trip, call) or ""

    async def _settle_failure(self, trip: _Trip, error: BaseException) -> None:
        if trip.recorded:
            return
        reason = error.reason if isinstance(error, MeshError) else "CANCELLED"
        if isinstance(error, Exception) and not isinstance(error, MeshError):
            reason = "INTERNAL"
        trip.spend("provider", "", _wasted(error) or 0)
        left = not isinstance(error, MeshError) or isinstance(error, DeadlineExceeded)
        if left and trip.calling is not None and trip.route is not None and _wasted(error) is None:
            # Nobody tells what was written for a caller who left; the prompt at least was sent.
            self._charge_broken(trip, trip.calling, "", trip.route.candidates[0])
        trip.outcome = "error"
        bill = failure_bill(trip.overhead, trip.unpriced)
        model = next((item.model for item in trip.overhead if item.component in ("provider", "engine")), "")
        self._record(trip, model, trip.tier, Usage(), bill, reason)
        if trip.reserved and not bill.actual:
            # The caller may be gone: giving the reservation back must not depend on it.
            release = self._budgets.release(trip.question.tenant, trip.question.namespace, trip.record_id)
            await asyncio.shield(_quietly(release))

    def _record(self, trip: _Trip, model: str, tier: str, usage: Usage, bill: Bill, error: str = "") -> None:
        trip.recorded = True
        question = trip.question
        if trip.reserved:
            self._budgets.settle(question.tenant, question.namespace, trip.record_id, bill.actual)
        self._spool.append(
            UsageRecord(
                trip.record_id,
                question.request_id,
                self._clock.now(),
                question.tenant,
                question.namespace,
                question.endpoint,
                question.user,
                model,
                tier,
                trip.outcome,
                usage,
                bill,
                error,
                trip.record_id if trip.reserved else "",
            )
        )

    def _receipt(self, trip: _Trip, model: str, tier: str, bill: Bill | None = None, entry_id: str = "") -> Receipt:
        return Receipt(
            trip.question.request_id,
            trip.outcome,
            model,
            tier,
            bill,
            tuple(trip.degraded),
            trip.similarity,
            trip.cache_reason,
            trip.route.reason if trip.route else "",
            entry_id,
        )

    async def _try(self, service: str, trip: _Trip, call: Awaitable[T]) -> T | None:
        """The call's result, or None when the service failed: the walk goes on without it.

        The question was checked on arrival, so a service that calls it invalid is as good as down. What models there are, only
        the router knows.
        """
        try:
            return await call
        except UnknownModel:
            raise
        except MeshError as error:
            if service not in trip.degraded:
                trip.degraded.append(service)
            self._on_degraded(service, error)
            return None


def _wasted(error: BaseException) -> int | None:
    """What the provider says that the failed attempts cost, in nano-USD."""
    said = error.metadata.get("wasted_nanousd", "") if isinstance(error, MeshError) else ""
    return int(said) if said.isascii() and said.isdigit() else None


async def _quietly(call: Awaitable[None]) -> None:
    try:
        await call
    except MeshError:
        return  # the reservation expires by itself
