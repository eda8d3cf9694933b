"""Carries an attempt plan out: calls, falls over, charges."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from services.common.chat import AnswerBuilder, Chat, Delta, FinishReason, ToolCallDelta
from services.common.chat_pb import Caller
from services.common.money import RatesOf, Usage, price
from services.common.tokens import estimate_chat_tokens, estimate_tokens
from services.provider.domain.breaker import Entry
from services.provider.domain.charge import Charge, list_charge, measured_charge, reported
from services.provider.domain.hedge import HedgeRules, Pace
from services.provider.domain.limits import Limits, LocalLimits, expected_tokens
from services.provider.domain.plan import Attempt, Candidate, Plan, RetryRules
from services.provider.domain.prompt_cache import PromptCacheReport
from services.provider.domain.prompt_cache.prompts import PromptCache
from services.provider.domain.vendor import Call, Completion, Reason, VendorError, Watch

MAX_ANSWER_CHARS = 4 * 1024 * 1024
"""Longer answers are taken for a fault of the vendor: they fit in no message, and we will not hold them."""


class UnknownCandidate(Exception):
    """No vendor serves any of the candidates."""

    def __init__(self, models: Sequence[str]) -> None:
        super().__init__(f"no vendor serves the model {' or '.join(models)}")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be generated. `deadline` is on the dispatcher's monotonic clock; `hedge` allows a second call beside one
    that is slow.
    """

    chat: Chat
    caller: Caller
    candidates: Sequence[str]
    streaming: bool
    deadline: float | None
    max_attempts: int | None = None
    hedge: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """A candidate began to answer; `component` is where its cost arises: "provider" or "engine"."""

    model: str
    vendor: str
    component: str = "provider"


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete."""

    finish_reason: FinishReason
    usage: Usage
    charge: Charge
    wasted: int
    attempts: tuple[Attempt, ...]
    prompt_cache: PromptCacheReport


class _Outrun(Exception):
    """Another call gave its first piece before this one."""


@dataclass(slots=True)
class _Race:
    """Calls of which the first to give a piece answers."""

    winner: "_Run | None" = None

    def won_by(self, run: "_Run") -> bool:
        """Whether it is this one's; it is if nobody's yet."""
        if self.winner is None:
            self.winner = run
        return self.winner is run


@dataclass(slots=True, eq=False)
class _Run:
    """A call that has its slot, the breaker's leave and room within the limits: `aclose` ends it and gives them back.

    `tokens` is what the vendor will have counted. `number` counts the calls of an order, from 1.
    """

    candidate: Candidate
    entry: Entry
    number: int
    race: _Race
    tokens: int = 0
    events: AsyncGenerator[Delta | Finished] = field(init=False)
    held: AsyncExitStack = field(init=False)

    async def aclose(self) -> None:
        await self.held.aclose()


class Dispatcher:
    """Answers orders by calling vendors."""

    def __init__(
        self,
        candidates: Mapping[str, Sequence[Candidate]],
        rates: RatesOf,
        rules: RetryRules,
        watch: Watch,
        *,
        monotonic: Callable[[], float],
        random: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        limits: Limits | None = None,
        hedging: HedgeRules | None = None,
        prompts: PromptCache | None = None,
    ) -> None:
        """`candidates` by the price book's name of the model: the vendors that serve it, in order of preference.

        Without `limits` calls are counted in this process alone.
        """
        self._candidates = candidates
        self._rates = rates
        self._rules = rules
        self._watch = watch
        self._monotonic = monotonic
        self._random = random
        self._sleep = sleep
        self._limits = limits or LocalLimits(monotonic)
        self._hedging = hedging or HedgeRules()
        self.prompts = prompts or PromptCache(rates, monotonic)
        self._paces: defaultdict[tuple[Candidate, bool], Pace] = defaultdict(Pace)  # streams and whole answers apart

    @property
    def models(self) -> list[tuple[str, str]]:
        """(model, vendor), by name."""
        return sorted((c.model, c.vendor) for served in self._candidates.values() for c in served)

    async def answer(self, order: Order) -> AsyncGenerator[Started | Delta | Finished]:
        """Started, the pieces, Finished. Another candidate takes over only before the first piece.

        Raises UnknownCandidate and NoAnswer; its reason is STREAM_CUT when the answer broke off after it had begun.
        """
        plan = self._plan(order)
        while (step := plan.next()) is not None:
            if step.wait_s:
                await self._sleep(step.wait_s)
            async with AsyncExitStack() as runs:
                run = await self._admit(order, plan, step.candidate, _Race(), patient=True)
                if run is None:
                    continue
                runs.push_async_callback(run.aclose)
                try:
                    if order.hedge:
                        run, event = await self._race(order, plan, run, runs)
                    else:
                        event = await anext(run.events)
                except VendorError:
                    continue
                yield Started(run.candidate.model, run.candidate.vendor, run.candidate.component)
                yield event
                try:
                    async for event in run.events:
                        yield event
                except VendorError as error:
                    raise plan.cut(run.candidate, error) from error
                return
        raise plan.no_answer()

    async def _race(self, order: Order, plan: Plan, first: _Run, runs: AsyncExitStack) -> tuple[_Run, Delta | Finished]:
        """Who gives a piece first, and the piece: `first`, or another candidate that is started when `first` is slow.

        The other one of both is cancelled. Raises VendorError when all failed.
        """
        racing = {asyncio.ensure_future(anext(first.events)): first}
        try:
            done, _ = await asyncio.wait(
                racing, timeout=self._hedging.delay_s(self._paces[first.candidate, order.streaming])
            )
            if not done and (second := await self._second(order, plan, first)) is not None:
                runs.push_async_callback(second.aclose)
                racing[asyncio.ensure_future(anext(second.events))] = second
            while True:
                done, _ = await asyncio.wait(racing, return_when=asyncio.FIRST_COMPLETED)
                for piece in done:
                    run = racing.pop(piece)
                    try:
                        return run, piece.result()
                    except (VendorError, _Outrun):
                        await run.aclose()
                        if not racing:
                            raise
        finally:
            for piece in racing:
                piece.cancel()
            await asyncio.gather(*racing, return_exceptions=True)
            for run in racing.values():
                await run.aclose()

    async def _second(self, order: Order, plan: Plan, first: _Run) -> _Run | None:
        """Who runs beside `first`: the next candidate that is free at once; nobody when `first` has begun meanwhile."""
        for candidate in plan.beside(first.candidate):
            second = await self._admit(order, plan, candidate, first.race, patient=False)
            if second is not None:
                if first.race.winner is None:
                    return second
                await second.aclose()
                return None
        return None

    async def _admit(
        self, order: Order, plan: Plan, candidate: Candidate, race: _Race, *, patient: bool
    ) -> _Run | None:
        """A slot, the breaker's leave and room within the limits; None without one of them.

        `patient`: it waits for a slot, and the plan is told what was missing.
        """
        async with AsyncExitStack() as held:
            if not await candidate.slots.acquire(plan.left_s if patient else 0.0):
                if patient:
                    self._watch.passed_over(candidate.vendor, "slots", 0.0)
                    plan.busy(candidate)
                return None
            held.callback(candidate.slots.release)
            # Asked again: while this one waited, others may have found the vendor ill, or sent the one probe.
            if plan.late or (entry := candidate.breaker.enter()) is None:
                return None
            held.callback(candidate.breaker.left, entry)
            run = _Run(candidate, entry, len(plan.attempts) + (1 if patient else 2), race)
            if candidate.quotas:
                taken = await self._limits.take(candidate.quotas, expected_tokens(order.chat))
                if isinstance(taken, float):
                    if patient:
                        self._watch.passed_over(candidate.vendor, "limits", taken)
                        plan.limited(candidate, taken)
                    return None
                held.callback(lambda: self._limits.settle(taken, run.tokens))
            run.events = self._attempt(order, plan, run)
            held.push_async_callback(run.events.aclose)
            run.held = held.pop_all()
            return run

    def _plan(self, order: Order) -> Plan:
        candidates: list[Candidate] = []
        for model in order.candidates:
            if model not in self._candidates:
                self._watch.not_served(model)
                continue
            candidates.extend(c for c in self._candidates[model] if c not in candidates)
        if not candidates:
            raise UnknownCandidate(order.candidates)
        rules = self._rules
        if order.max_attempts is not None:
            rules = RetryRules(order.max_attempts, rules.base_pause_s, rules.max_pause_s)
        prompt = self.prompts.prepare(order.chat, order.caller, candidates)
        return Plan(prompt, prompt.ordered(candidates), rules, order.deadline, self._monotonic, self._random)

    async def _attempt(self, order: Order, plan: Plan, run: _Run) -> AsyncGenerator[Delta | Finished]:
        candidate, entry = run.candidate, run.entry
        began = self._monotonic()
        timeout_s = candidate.timeout_s if order.streaming else candidate.unary_timeout_s
        answer = AnswerBuilder()
        watch = self._watch.attempt(candidate.model, candidate.vendor, run.number)
        pace = self._paces[candidate, order.streaming]
        decided = False
        written = 0

        def took_ms() -> int:
            return round((self._monotonic() - began) * 1000)

        def cost_of_failure() -> int:
            usage = estimated_usage(order.chat, answer.text)
            run.tokens = usage.input_tokens + usage.output_tokens
            rates = self._rates(candidate.model, input_tokens=usage.input_tokens)
            return 0 if rates is None else price(rates, usage)

        try:
            call = Call(
                candidate.vendor_model,
                plan.prompt.chat,
                order.caller,
                order.streaming,
                timeout_s,
                plan.left_s,
                watch.trace,
                plan.prompt.hints(candidate),
            )
            async with aclosing(candidate.calls.call(call)) as events:
                completion = None
                while completion is None:
                    event = await self._next(events, timeout_s, order.deadline)
                    written += 0 if isinstance(event, Completion) else _length(event)
                    if written > MAX_ANSWER_CHARS:
                        raise VendorError(
                            Reason.UNAVAILABLE, f"{candidate.vendor} wrote more than an answer can hold", billed=True
                        )
                    if run.race.winner is None:
                        pace.note(self._monotonic() - began)
                        if order.streaming:
                            watch.began()
                    if not run.race.won_by(run):
                        raise _Outrun
                    if isinstance(event, Completion):
                        completion = event
                    else:
                        answer.add(event)
                        yield event
            decided = True
            candidate.breaker.succeeded(entry)
            usage = reported(completion.usage, answer.text) or estimated_usage(order.chat, answer.text)
            if completion.compute is not None:
                charge = measured_charge(completion.compute, usage)
            else:
                charge = list_charge(self._rates(candidate.model, input_tokens=usage.input_tokens), usage)
            run.tokens = usage.input_tokens + usage.output_tokens
            report = plan.prompt.answered(candidate, usage)
            watch.answered(completion, usage, charge)
            watch.kept(report)
            plan.answered(candidate, charge.cost, took_ms())
            yield Finished(completion.finish_reason, usage, charge, plan.wasted, tuple(plan.attempts), report)
        except VendorError as error:
            decided = True
            if error.reason.is_fault:
                candidate.breaker.failed(entry)
            else:
                candidate.breaker.left(entry)
            if error.retry_after_s and candidate.component == "provider":  # the engine's queue moves with every answer
                candidate.breaker.hold(error.retry_after_s)
            cost = cost_of_failure() if error.billed or answer.text else 0
            watch.failed(error.reason, cost)
            plan.failed(candidate, error, cost, took_ms())
            raise
        finally:
            if not decided:
                candidate.breaker.left(entry)
                # The vendor bills the prompt and what it wrote, also when nobody waits for the rest.
                cost = cost_of_failure()
                if run.race.winner in (None, run):
                    plan.cancelled(candidate, cost, took_ms())
                    watch.cancelled(cost, plan.wasted)
                else:
                    pace.note(self._monotonic() - began)
                    plan.lost(candidate, cost, took_ms())
                    watch.lost(cost)
            watch.end()

    async def _next(
        self, events: AsyncGenerator[Delta | Completion], timeout_s: float, deadline: float | None
    ) -> Delta | Completion:
        left = timeout_s if deadline is None else min(timeout_s, deadline - self._monotonic())
        try:
            async with asyncio.timeout(left):
                return await anext(events)
        except TimeoutError:
            if left < timeout_s:
                raise VendorError(Reason.DEADLINE, "the deadline passed during the call", billed=True) from None
            raise VendorError(Reason.UNAVAILABLE, f"nothing came for {timeout_s:g} s", billed=True) from None
        except StopAsyncIteration:
            raise VendorError(Reason.CUT, "the answer ended without a finish reason", billed=True) from None


def estimated_usage(chat: Chat, text: str) -> Usage:
    """Our guess at the tokens of a call whose vendor reports none."""
    return Usage(input_tokens=estimate_chat_tokens(chat), output_tokens=estimate_tokens(text), estimated=True)


def _length(delta: Delta) -> int:
    return len(delta.arguments_json if isinstance(delta, ToolCallDelta) else delta.text)
