"""The steps of the walk: exact lookup, embed once, semantic lookup, route, compress, reserve, generate, store, settle.

Any step but generate may fail: the walk goes on without it and says so in `degraded`.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from services.common.chat import Answer, AnswerBuilder, Chat
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
from services.common.money import Bill, Usage, price
from services.common.tokens import estimate_chat_tokens, estimate_tokens
from services.edge.domain.bill import answer_bill, failure_bill, hit_bill, shadow_bill
from services.edge.domain.budgets import Budgets, Spender, Window, degraded, notice
from services.edge.domain.flights import Landing
from services.edge.domain.kinds import kind_of
from services.edge.domain.ledger import Spool, UsageRecord
from services.edge.domain.lessons import CheckScope, Lessons
from services.edge.domain.ports import (
    Cache,
    Charge,
    Compressor,
    Embedded,
    Embedder,
    Found,
    LessonKind,
    Provider,
    Question,
    Route,
    Router,
    StreamFinished,
    StreamStarted,
)
from services.edge.domain.traffic import Pair, Traffic, TrafficStore
from services.edge.domain.trip import Began, Completed, Ended, Event, NamespaceRules, Receipt, Rules, Trip

T = TypeVar("T")

BUDGETED_OUTPUT_TOKENS = 4096  # longest answer where a budget applies and the caller sets no limit
FAILED_ATTEMPTS = 3  # attempts before the one that answers, of which a vendor may bill the prompt
MAX_EMBED_BYTES = 65_536  # the embedder takes no longer text, and no paraphrase is that long


class Steps:
    """What can be done for one request. One instance per process; it keeps no state between requests."""

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
        chance: Callable[[], float],
        check_scope: CheckScope,
        traffic: TrafficStore,
    ) -> None:
        """`chance` gives a random number from 0 up to and without 1; `check_scope` surrounds the checks of hits."""
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
        self._chance = chance
        self._lessons = Lessons(cache, self.check, on_degraded, check_scope)
        self._traffic = Traffic(traffic, on_degraded)

    def start(self, question: Question) -> Trip:
        """A request sets out. Raises InvalidInput for a namespace that the policy lacks."""
        return Trip(question, self.rules_of(question.namespace), uuid.uuid4().hex)

    async def feedback(self, tenant: str, namespace: str, request_id: str, right: bool) -> bool:
        """Passes a caller's word on an answer on; False when the cache did not give it. Raises MeshError."""
        rules = self.rules_of(namespace)
        self._traffic.judged(tenant, namespace, request_id, right, rules.recording)
        return await self._cache.feedback(tenant, namespace, request_id, right)

    async def close(self) -> None:
        """Ends what runs in the background."""
        await self._lessons.close()
        await self._traffic.close()

    def rules_of(self, namespace: str) -> NamespaceRules:
        """What the policy says. Raises InvalidInput for a namespace that it lacks."""
        rules = self._rules.namespaces.get(namespace)
        if rules is None:
            known = ", ".join(sorted(self._rules.namespaces))
            raise InvalidInput(violations=(Violation("namespace", f"is not in the policy, which has: {known}"),))
        return rules

    async def find_exact(self, trip: Trip) -> Found | None:
        """The answer that this very request was given before; None where there is none, or the cache is not to be asked."""
        question, rules = trip.question, trip.rules
        if question.control.bypass or trip.too_hot or not (rules.exact or rules.semantic):
            trip.outcome = "bypass"
            trip.cache_reason = "temperature" if trip.too_hot else "bypass"
            return None
        if rules.canary_share and not trip.key and self._chance() < rules.canary_share:
            trip.outcome = trip.cache_reason = "canary"
            return None
        if not rules.exact:
            return None
        found = await self._try("cache", trip, self._cache.lookup(question, None))
        if found is None:
            return None
        trip.namespace_version = found.namespace_version
        trip.key = found.exact_key
        if found.answer is None:
            return None
        if found.semantic:  # an alias: other words' answer, which these words were served before
            trip.cache_reason, trip.similarity = found.reason, found.similarity
        return self._hit(trip, found)

    async def find_semantic(self, trip: Trip) -> Found | None:
        """An answer to the same question in other words, after the exact lookup found none. Embeds at most once."""
        question, rules = trip.question, trip.rules
        if trip.outcome in ("bypass", "canary") or "cache" in trip.degraded:
            return None
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
        trip.lesson = found.lesson
        trip.spend("verifier", embedded.vector.model_id, found.verifier_cost)
        if found.semantic_unavailable and "qdrant" not in trip.degraded:
            trip.degraded.append("qdrant")
        return None if found.answer is None else self._hit(trip, found)

    def _hit(self, trip: Trip, found: Found) -> Found:
        trip.outcome = "semantic_hit" if found.semantic else "exact_hit"
        trip.alias, trip.lesson = found.alias, found.lesson
        return found

    async def generate(self, trip: Trip) -> Completed:
        """A new answer, stored and settled."""
        route, chat = await self.plan(trip)
        trip.calling = chat
        made = await self._provider.generate(trip.question, chat, route.candidates, hedge=trip.rules.hedge)
        trip.calling = None
        return await self.settle_answer(trip, made.answer, made.usage, made.charge, made.model)

    async def generate_stream(self, trip: Trip) -> AsyncGenerator[Event, None]:
        """A new answer as it comes. Ends with Ended, stored and settled, or raises."""
        route, chat = await self.plan(trip)
        builder = AnswerBuilder()
        model, component = "", "provider"
        trip.calling = chat
        try:
            # The generator holds the upstream call: it is closed with us, whatever happens.
            stream = self._provider.stream(trip.question, chat, route.candidates, hedge=trip.rules.hedge)
            async with aclosing(stream) as events:
                async for event in events:
                    match event:
                        case StreamStarted():
                            model, component = event.model, event.component
                            yield Began(trip.receipt(model, trip.tier))
                        case StreamFinished(reason, usage, charge):
                            trip.calling = None
                            done = await self.settle_answer(trip, builder.build(reason), usage, charge, model)
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

    def _charge_broken(self, trip: Trip, chat: Chat, text: str, model: str, component: str = "provider") -> None:
        """A vendor bills the prompt and what it wrote, also when nobody got the whole of it: an estimate, as overhead."""
        usage = Usage(estimate_chat_tokens(chat), estimate_tokens(text), estimated=True)
        rates = self._rules.rates(model, input_tokens=usage.input_tokens)
        if rates is None:
            trip.unpriced = True
            return
        trip.spend(component, model, price(rates, usage))

    async def plan(self, trip: Trip, *, compress: bool = True, reserve: bool = True) -> tuple[Route, Chat]:
        """Which models, which prompt, and with `reserve` the money for it set aside."""
        question, rules = trip.question, trip.rules
        route = await self._try("router", trip, self._router.route(question, trip.vector))
        if route is None:
            route = self._default_route(trip)
        trip.route = route
        trip.spend("router", "", route.cost)
        chat = question.chat
        if rules.compress and compress:
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
        windows = self.windows(question) if reserve else ()
        if windows:
            chat = bounded(chat)
            # Off the loop: counting a long prompt's tokens would hold up everybody else's answers.
            tokens = await asyncio.to_thread(estimate_chat_tokens, chat)
            route = trip.route = await self._reserve(trip, windows, route, chat, tokens)
        return route, chat

    def _default_route(self, trip: Trip) -> Route:
        """Without the router: a tier or model that was named is taken at its word; "auto" gets the default tier.

        Raises UnknownModel for any other name.
        """
        name = trip.question.model.removesuffix(":floor").removesuffix(":nitro").removesuffix(":balanced")
        if name in ("", "auto"):
            tier = trip.rules.default_tier
            return Route(self._rules.tiers[tier], tier, "router is down: default tier")
        if name in self._rules.tiers:
            return Route(self._rules.tiers[name], name, "router is down: the tier was named")
        if self._rules.rates(name) is not None:
            return Route((name,), "", "router is down: the model was named")
        raise UnknownModel(f"no tier and no model is named {name!r}")

    def windows(self, spender: Spender) -> tuple[Window, ...]:
        """The budgets that the spender's costs count against now."""
        return self._rules.budgets.windows(spender, self._clock.now())

    async def _reserve(self, trip: Trip, windows: tuple[Window, ...], route: Route, chat: Chat, tokens: int) -> Route:
        """The money set aside, and the route that it is for: a cheaper one where soft budgets are used up."""
        tenant = trip.question.tenant
        # Whoever leaves while this runs may have reserved, so the reservation is named before it is made.
        trip.reserved, trip.windows = True, tuple(window.name for window in windows)
        try:
            so_far = sum(item.cost for item in trip.overhead)
            models = 2 if trip.rules.hedge else 1  # of two that are asked, both are paid
            bound = so_far + models * self.upper_bound(route.candidates, chat, tokens)
            overdrawn = await self._budgets.reserve(tenant, windows, bound, trip.record_id)
            if overdrawn:
                asked = route
                route = self.degrade(asked, overdrawn, chat, tokens)
                trip.budget_notice, trip.lesser = notice(overdrawn, asked, route), route != asked
                self._on_degraded("budget", BudgetExceeded(trip.budget_notice))
                if trip.outcome == "shadow":  # what is compared with a lesser answer looks wrong
                    raise BudgetExceeded(trip.budget_notice)
                bound = so_far + models * self.upper_bound(route.candidates, chat, tokens)
                await self._budgets.reserve(tenant, windows, bound, trip.record_id, past_soft=True)
        except BudgetExceeded:
            trip.reserved, trip.windows = False, ()
            raise
        return route

    def degrade(self, route: Route, overdrawn: Sequence[Window], chat: Chat, tokens: int) -> Route:
        """The cheapest way that the soft budgets which are used up ask for. `tokens` estimate the prompt."""
        tiers = self._rules.tiers

        def cost(model: str) -> int | None:
            return self._bound(model, chat, tokens)

        ways = [degraded(route, w.budget.degrade_to, tiers[w.budget.degrade_to], cost) for w in overdrawn]
        return min(ways, key=lambda way: cost(way.candidates[0]) or 0)

    def upper_bound(self, candidates: Sequence[str], chat: Chat, tokens: int) -> int:
        """The most that this may cost in nano-USD: the dearest candidate's longest answer, after its prompt was billed in vain
        a few times. `tokens` estimate the prompt.
        """
        return max((self._bound(model, chat, tokens) or 0 for model in candidates), default=0) + 1

    def _bound(self, model: str, chat: Chat, tokens: int) -> int | None:
        """The most that a model may cost, None where no price is known.

        A prompt is taken to be a quarter longer than the estimate, and to be written to the dearest cache.
        """
        prompt = tokens * 5 // 4
        rates = self._rules.rates(model, input_tokens=prompt)
        if rates is None:
            return None
        output = chat.sampling.max_output_tokens or BUDGETED_OUTPUT_TOKENS
        dearest = max(rates.input, rates.cache_write, rates.cache_write_long)
        return ((1 + FAILED_ATTEMPTS) * prompt * dearest + output * rates.output) // 1_000_000

    def settle_shared(self, trip: Trip, landing: Landing) -> Completed:
        """The bill and the record of an answer that another request made: none of it was billed to this one."""
        trip.outcome, trip.budget_notice = "coalesced", landing.budget_notice
        found = Found(
            landing.answer, entry_id=landing.entry_id, model=landing.model, tier=landing.tier, usage=landing.usage
        )
        usage, receipt = self.settle_hit(trip, found)
        return Completed(landing.answer, usage, receipt)

    def settle_hit(self, trip: Trip, found: Found) -> tuple[Usage, Receipt]:
        """The bill and the record of a stored answer; some are made again in the background."""
        share = trip.rules.shadow_share if found.semantic else trip.rules.stale_share
        if found.lesson and share and self._chance() < share:
            kind = LessonKind.SHADOW if found.semantic else LessonKind.STALENESS
            trip.checked = self._lessons.after_hit(trip, kind)
        stored = found.usage
        usage = Usage(
            input_tokens=max(stored.input_tokens + found.input_token_delta, 1),
            output_tokens=stored.output_tokens,
            reasoning_output_tokens=stored.reasoning_output_tokens,
            estimated=stored.estimated or found.input_token_delta != 0,
        )
        if not found.semantic:
            self._traffic.served(trip.question, found.entry_id, trip.rules.recording)
        bill = hit_bill(self._rules.baseline(usage.input_tokens), usage, trip.overhead)
        self._record(trip, found.model, found.tier, usage, bill)
        return usage, trip.receipt(found.model, found.tier, bill, found.entry_id)

    async def settle_answer(self, trip: Trip, answer: Answer, usage: Usage, charge: Charge, model: str) -> Completed:
        """The bill and the record of a model's answer; it is stored."""
        baseline = self._rules.baseline(usage.input_tokens + trip.removed_tokens)
        bill = answer_bill(baseline, model, usage, charge, trip.removed_tokens, trip.overhead)
        # First the money, then the cache: an answer that was paid for is on record whatever happens next.
        self._record(trip, model, trip.tier, usage, bill)
        entry_id = await self._store(trip, answer, usage, model, trip.tier)
        self._traffic.made(Pair(trip.question, answer, model, trip.tier, entry_id), trip.rules.recording)
        # An answer that is not worth storing is not worth comparing either.
        if entry_id and trip.lesson and trip.rules.learn:
            self._lessons.after_miss(trip, answer)
        return Completed(answer, usage, trip.receipt(model, trip.tier, bill, entry_id))

    async def _store(self, trip: Trip, answer: Answer, usage: Usage, model: str, tier: str) -> str:
        question, rules = trip.question, trip.rules
        unwanted = question.control.no_store or trip.too_hot or not (rules.exact or rules.semantic)
        unwanted = unwanted or trip.outcome == "canary"
        # Without the router, or with a soft budget used up, the answer may come from a lesser tier than the question deserves:
        # good for now, not for an hour.
        if unwanted or trip.lesser or "cache" in trip.degraded or "router" in trip.degraded:
            return ""
        vector = trip.vector if rules.semantic else None
        call = self._cache.store(question, vector, answer, plain(trip, usage), model, tier, trip.namespace_version)
        return await self._try("cache", trip, call) or ""

    async def check(self, trip: Trip) -> Answer:
        """Makes the answer of a hit again, on a trip of its own: all of its cost is overhead. Raises MeshError."""
        trip.outcome = "shadow"
        try:
            route, chat = await self.plan(trip, compress=False)
            trip.calling = chat
            made = await self._provider.generate(trip.question, chat, route.candidates)
            trip.calling = None
        except BaseException as error:
            await self.settle_failure(trip, error)
            raise
        bill = shadow_bill(made.model, made.charge, trip.overhead)
        self._record(trip, made.model, trip.tier, made.usage, bill)
        return made.answer

    async def settle_failure(self, trip: Trip, error: BaseException) -> None:
        """The record of a request without an answer, unless it has one."""
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
        if trip.outcome != "shadow":
            trip.outcome = "error"
        bill = failure_bill(trip.overhead, trip.unpriced)
        model = next((item.model for item in trip.overhead if item.component in ("provider", "engine")), "")
        self._record(trip, model, trip.tier, Usage(), bill, reason)
        if trip.reserved and not bill.actual:
            # The caller may be gone: giving the reservation back must not depend on it.
            release = self._budgets.release(trip.question.tenant, trip.windows, trip.record_id)
            await asyncio.shield(_quietly(release))

    def _record(self, trip: Trip, model: str, tier: str, usage: Usage, bill: Bill, error: str = "") -> None:
        trip.recorded = True
        question = trip.question
        if trip.reserved:
            self._budgets.settle(question.tenant, trip.windows, trip.record_id, bill.actual)
        now = self._clock.now()
        windows = trip.windows
        if bill.actual and not windows:  # nothing was reserved for it, such as what finding a hit cost
            windows = tuple(window.name for window in self.windows(question))
        self._spool.append(
            UsageRecord(
                trip.record_id,
                question.request_id,
                now,
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
                question.kind or kind_of(question.chat),
                windows,
            )
        )

    async def _try(self, service: str, trip: Trip, call: Awaitable[T]) -> T | None:
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


def bounded(chat: Chat) -> Chat:
    """The chat with an end to its answer: a reservation is a bound only when the answer has one."""
    if chat.sampling.max_output_tokens is not None:
        return chat
    return replace(chat, sampling=replace(chat.sampling, max_output_tokens=BUDGETED_OUTPUT_TOKENS))


def plain(trip: Trip, usage: Usage) -> Usage:
    """What an answer takes without our tricks: the baseline of those who get it without a model."""
    return Usage(
        usage.input_tokens + trip.removed_tokens,
        usage.output_tokens,
        reasoning_output_tokens=usage.reasoning_output_tokens,
        estimated=usage.estimated or trip.removed_tokens > 0,
    )


def _wasted(error: BaseException) -> int | None:
    """What the provider says that the failed attempts cost, in nano-USD."""
    said = error.metadata.get("wasted_nanousd", "") if isinstance(error, MeshError) else ""
    return int(said) if said.isascii() and said.isdigit() else None


async def _quietly(call: Awaitable[None]) -> None:
    try:
        await call
    except MeshError:
        return  # the reservation expires by itself
