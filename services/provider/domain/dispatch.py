"""Carries an attempt plan out: calls, falls over, charges."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from services.common.chat import AnswerBuilder, Chat, Delta, FinishReason
from services.common.chat_pb import Caller
from services.common.money import Rates, Usage, price
from services.common.tokens import estimate_chat_tokens, estimate_tokens
from services.provider.domain.breaker import Entry
from services.provider.domain.charge import Charge, list_charge, measured_charge
from services.provider.domain.plan import Attempt, Candidate, Plan, RetryRules
from services.provider.domain.vendor import Call, Completion, Reason, VendorError, Watch


class UnknownCandidate(Exception):
    """No vendor serves any of the candidates."""

    def __init__(self, models: Sequence[str]) -> None:
        super().__init__(f"no vendor serves the model {' or '.join(models)}")


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be generated. `deadline` is on the dispatcher's monotonic clock."""

    chat: Chat
    caller: Caller
    candidates: Sequence[str]
    streaming: bool
    deadline: float | None
    max_attempts: int | None = None


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


class Dispatcher:
    """Answers orders by calling vendors."""

    def __init__(
        self,
        candidates: Mapping[str, Sequence[Candidate]],
        rates: Callable[[str], Rates | None],
        rules: RetryRules,
        watch: Watch,
        *,
        monotonic: Callable[[], float],
        random: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`candidates` by the price book's name of the model: the vendors that serve it, in order of preference."""
        self._candidates = candidates
        self._rates = rates
        self._rules = rules
        self._watch = watch
        self._monotonic = monotonic
        self._random = random
        self._sleep = sleep

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
            candidate = step.candidate
            if not await candidate.slots.acquire(plan.left_s):
                plan.busy(candidate)
                continue
            started = False
            try:
                # Asked again: while this one waited, others may have found the vendor ill, or sent the one probe.
                if plan.late or (entry := candidate.breaker.enter()) is None:
                    continue
                async with aclosing(self._attempt(order, plan, candidate, entry)) as events:
                    async for event in events:
                        if not started:
                            started = True
                            yield Started(candidate.model, candidate.vendor, candidate.component)
                        yield event
                return
            except VendorError as error:
                if started:
                    raise plan.cut(candidate, error) from error
            finally:
                candidate.slots.release()
        raise plan.no_answer()

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
        return Plan(candidates, rules, order.deadline, self._monotonic, self._random)

    async def _attempt(
        self, order: Order, plan: Plan, candidate: Candidate, entry: Entry
    ) -> AsyncGenerator[Delta | Finished]:
        began = self._monotonic()
        timeout_s = candidate.timeout_s if order.streaming else candidate.unary_timeout_s
        answer = AnswerBuilder()
        watch = self._watch.attempt(candidate.model, candidate.vendor, len(plan.attempts) + 1)
        decided = False

        def took_ms() -> int:
            return round((self._monotonic() - began) * 1000)

        try:
            call = Call(
                candidate.vendor_model, order.chat, order.caller, order.streaming, timeout_s, plan.left_s, watch.trace
            )
            async with aclosing(candidate.calls.call(call)) as events:
                completion = None
                while completion is None:
                    event = await self._next(events, timeout_s, order.deadline)
                    if isinstance(event, Completion):
                        completion = event
                    else:
                        answer.add(event)
                        yield event
            decided = True
            candidate.breaker.succeeded(entry)
            usage = completion.usage or estimated_usage(order.chat, answer.text)
            if completion.compute is not None:
                charge = measured_charge(completion.compute, usage)
            else:
                charge = list_charge(self._rates(candidate.model), usage)
            watch.answered(completion, usage, charge)
            plan.answered(candidate, charge.cost, took_ms())
            yield Finished(completion.finish_reason, usage, charge, plan.wasted, tuple(plan.attempts))
        except VendorError as error:
            decided = True
            if error.reason.is_fault:
                candidate.breaker.failed(entry)
            else:
                candidate.breaker.left(entry)
            cost = self._cost_of_failure(order.chat, answer.text, candidate.model) if error.billed or answer.text else 0
            watch.failed(error.reason, cost)
            plan.failed(candidate, error, cost, took_ms())
            raise
        finally:
            if not decided:
                candidate.breaker.left(entry)
                # The vendor bills the prompt and what it wrote, also when nobody waits for the rest.
                cost = self._cost_of_failure(order.chat, answer.text, candidate.model)
                plan.cancelled(candidate, cost, took_ms())
                watch.cancelled(cost, plan.wasted)
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

    def _cost_of_failure(self, chat: Chat, text: str, model: str) -> int:
        rates = self._rates(model)
        return 0 if rates is None else price(rates, estimated_usage(chat, text))


def estimated_usage(chat: Chat, text: str) -> Usage:
    """Our guess at the tokens of a call whose vendor reports none."""
    return Usage(input_tokens=estimate_chat_tokens(chat), output_tokens=estimate_tokens(text), estimated=True)
