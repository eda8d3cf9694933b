import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.chat import Chat, Delta, FinishReason, Message, Role, TextDelta, TextPart
from services.common.chat_pb import Caller
from services.common.money import Rates, Usage, price
from services.provider.domain.breaker import Breaker
from services.provider.domain.charge import Charge, Compute
from services.provider.domain.dispatch import (
    MAX_ANSWER_CHARS,
    Dispatcher,
    Finished,
    Order,
    Started,
    UnknownCandidate,
    estimated_usage,
)
from services.provider.domain.hedge import HedgeRules
from services.provider.domain.limits import Quota
from services.provider.domain.plan import Candidate, NoAnswer, RetryRules
from services.provider.domain.prompt_cache import PromptCacheReport
from services.provider.domain.slots import Slots
from services.provider.domain.vendor import Call, Completion, Reason, VendorError

CHAT = Chat((Message(Role.USER, (TextPart("Where is my order?"),)),))
CALLER = Caller("acme", "default", "", "", "r1")
USAGE = Usage(input_tokens=100, output_tokens=10)
RATES = {"cheap": Rates(input=1_000_000, output=2_000_000), "dear": Rates(input=10_000_000, output=20_000_000)}
OK = (TextDelta("On its "), TextDelta("way."), Completion(FinishReason.STOP, USAGE, "model-1"))

Event = Delta | Completion | VendorError


def error(reason: Reason, retry_after_s: float | None = None) -> VendorError:
    return VendorError(reason, f"says {reason}", retry_after_s=retry_after_s)


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class ScriptedVendor:
    """Answers each call with the next script; the last one stays."""

    def __init__(self, *scripts: Sequence[Event]) -> None:
        self._scripts = list(scripts)
        self.calls: list[Call] = []
        self.cancelled = 0

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        self.calls.append(call)
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        try:
            for event in script:
                if isinstance(event, VendorError):
                    raise event
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise


class Silent:
    """A vendor that never says anything."""

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        await asyncio.Event().wait()
        yield TextDelta("")


class NoWatch:
    """Notes what it is told."""

    trace: tuple[tuple[str, str], ...] = (("traceparent", "00-1-2-01"),)

    def __init__(self) -> None:
        self.notes: list[str] = []

    def attempt(self, model: str, vendor: str, number: int) -> "NoWatch":
        self.notes.append(f"{number} {model} {vendor}")
        return self

    def answered(self, completion: Completion, usage: Usage, charge: Charge) -> None:
        self.notes.append(f"answered {charge.cost}")

    def kept(self, report: PromptCacheReport) -> None:
        pass

    def failed(self, reason: Reason, cost_nanousd: int) -> None:
        self.notes.append(f"failed {reason} {cost_nanousd}")

    def cancelled(self, cost_nanousd: int, wasted_nanousd: int) -> None:
        self.notes.append(f"cancelled {cost_nanousd} of {wasted_nanousd}")

    def lost(self, cost_nanousd: int) -> None:
        self.notes.append(f"lost {cost_nanousd}")

    def began(self) -> None:
        pass

    def passed_over(self, vendor: str, why: str, wait_s: float) -> None:
        pass

    def not_served(self, model: str) -> None:
        self.notes.append(f"nobody serves {model}")

    def end(self) -> None:
        self.notes.append("end")


class Bench:
    """A dispatcher over scripted vendors."""

    def __init__(
        self,
        vendors: dict[str, ScriptedVendor | Silent],
        *,
        max_attempts: int = 4,
        random: Callable[[], float] = lambda: 1.0,
        timeout_s: float = 30.0,
        unary_timeout_s: float = 600.0,
        same_vendor: bool = False,
        faults: int = 100,
        slots: Slots | None = None,
        engine: str = "",
        hedging: HedgeRules | None = None,
        quotas: Mapping[str, tuple[Quota, ...]] = MappingProxyType({}),
    ) -> None:
        self.time = Time()
        self.watch = NoWatch()
        self.slots = slots or Slots(8, 8, 5.0)
        candidates = {
            model: [
                Candidate(
                    model,
                    "one" if same_vendor else f"vendor-of-{model}",
                    f"{model}-id",
                    vendor,
                    Breaker(faults, 10.0, self.time),
                    timeout_s,
                    unary_timeout_s,
                    self.slots if slots is None or model == "cheap" else Slots(8, 8, 5.0),
                    component="engine" if model == engine else "provider",
                    quotas=quotas.get(model, ()),
                )
            ]
            for model, vendor in vendors.items()
        }
        self.dispatcher = Dispatcher(
            candidates,
            lambda model, *, input_tokens=0: RATES.get(model),
            RetryRules(max_attempts, 0.2, 5.0),
            self.watch,
            monotonic=self.time,
            random=random,
            sleep=self.time.sleep,
            hedging=hedging,
        )

    def breaker(self, model: str) -> Breaker:
        return self.dispatcher._candidates[model][0].breaker

    def order(
        self,
        *models: str,
        deadline_s: float | None = 60.0,
        max_attempts: int | None = None,
        streaming: bool = True,
        hedge: bool = False,
    ) -> Order:
        deadline = None if deadline_s is None else self.time.now + deadline_s
        return Order(CHAT, CALLER, models, streaming, deadline, max_attempts, hedge)

    async def events(
        self,
        *models: str,
        deadline_s: float | None = 60.0,
        max_attempts: int | None = None,
        streaming: bool = True,
        hedge: bool = False,
    ) -> list[Started | Delta | Finished]:
        order = self.order(*models, deadline_s=deadline_s, max_attempts=max_attempts, streaming=streaming, hedge=hedge)
        return [event async for event in self.dispatcher.answer(order)]

    async def failure(self, *models: str, deadline_s: float | None = 60.0) -> NoAnswer:
        with pytest.raises(NoAnswer) as caught:
            await self.events(*models, deadline_s=deadline_s)
        return caught.value


def finished(events: list[Started | Delta | Finished]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def outcomes(done: Finished) -> list[tuple[str, str]]:
    return [(attempt.model, attempt.outcome) for attempt in done.attempts]


async def test_the_first_candidate_answers() -> None:
    vendor = ScriptedVendor(OK)
    bench = Bench({"cheap": vendor, "dear": ScriptedVendor(OK)})
    events = await bench.events("cheap", "dear")
    assert events[:3] == [Started("cheap", "vendor-of-cheap"), TextDelta("On its "), TextDelta("way.")]
    done = finished(events)
    assert done.charge == Charge(100 + 20, RATES["cheap"], "provider")
    assert (done.usage, done.wasted, outcomes(done)) == (USAGE, 0, [("cheap", "ok")])
    assert vendor.calls[0].model == "cheap-id"
    assert vendor.calls[0].trace == bench.watch.trace
    assert bench.watch.notes == ["1 cheap vendor-of-cheap", "answered 120", "end"]


@pytest.mark.parametrize("reason", [Reason.UNAVAILABLE, Reason.RATE_LIMITED, Reason.REJECTED, Reason.CREDENTIAL])
async def test_the_next_candidate_takes_over_without_a_pause(reason: Reason) -> None:
    bench = Bench({"cheap": ScriptedVendor([error(reason)]), "dear": ScriptedVendor(OK)})
    done = finished(await bench.events("cheap", "dear"))
    assert outcomes(done) == [("cheap", reason.value), ("dear", "ok")]
    assert bench.time.slept == []


async def test_the_same_candidate_is_tried_again_after_a_growing_pause() -> None:
    vendor = ScriptedVendor([error(Reason.UNAVAILABLE)], [error(Reason.UNAVAILABLE)], OK)
    bench = Bench({"cheap": vendor})
    done = finished(await bench.events("cheap"))
    assert [outcome for _, outcome in outcomes(done)] == ["UPSTREAM_UNAVAILABLE", "UPSTREAM_UNAVAILABLE", "ok"]
    assert bench.time.slept == [pytest.approx(0.2), pytest.approx(0.4)]


async def test_pauses_have_full_jitter() -> None:
    bench = Bench({"cheap": ScriptedVendor([error(Reason.UNAVAILABLE)], OK)}, random=lambda: 0.25)
    await bench.events("cheap")
    assert bench.time.slept == [pytest.approx(0.05)]


async def test_retry_after_is_honoured_when_it_fits_the_deadline() -> None:
    bench = Bench({"cheap": ScriptedVendor([error(Reason.RATE_LIMITED, 7.0)], OK)})
    await bench.events("cheap")
    assert bench.time.slept == [pytest.approx(7.0)]


async def test_retry_after_beyond_the_deadline_ends_the_plan() -> None:
    bench = Bench({"cheap": ScriptedVendor([error(Reason.RATE_LIMITED, 7.0)], OK)})
    failure = await bench.failure("cheap", deadline_s=5.0)
    assert (failure.reason, failure.retry_after_s) == ("RATE_LIMITED", 7.0)
    assert bench.time.slept == []


async def test_all_rate_limited_names_the_smallest_wait() -> None:
    vendors: dict[str, ScriptedVendor | Silent] = {
        "cheap": ScriptedVendor([error(Reason.RATE_LIMITED, 90.0)]),
        "dear": ScriptedVendor([error(Reason.RATE_LIMITED, 80.0)]),
    }
    failure = await Bench(vendors).failure("cheap", "dear")
    assert (failure.reason, failure.retry_after_s) == ("RATE_LIMITED", 80.0)


async def test_all_failed_names_every_attempt() -> None:
    vendors: dict[str, ScriptedVendor | Silent] = {
        "cheap": ScriptedVendor([error(Reason.REJECTED)]),
        "dear": ScriptedVendor([error(Reason.UNAVAILABLE)]),
    }
    failure = await Bench(vendors, max_attempts=3).failure("cheap", "dear")
    assert failure.reason == "ALL_CANDIDATES_FAILED"
    assert failure.message == (
        "no candidate answered: cheap at vendor-of-cheap: UPSTREAM_REJECTED; "
        "dear at vendor-of-dear: UPSTREAM_UNAVAILABLE; dear at vendor-of-dear: UPSTREAM_UNAVAILABLE"
    )


async def test_a_vendor_that_refuses_our_key_is_not_asked_for_another_model() -> None:
    cheap, dear = ScriptedVendor([error(Reason.CREDENTIAL)]), ScriptedVendor(OK)
    failure = await Bench({"cheap": cheap, "dear": dear}, same_vendor=True).failure("cheap", "dear")
    assert failure.reason == Reason.CREDENTIAL
    assert (len(cheap.calls), len(dear.calls)) == (1, 0)


@pytest.mark.parametrize("reason", [Reason.REJECTED, Reason.INVALID_INPUT])
async def test_what_one_model_refuses_another_of_the_same_vendor_may_take(reason: Reason) -> None:
    cheap = ScriptedVendor([error(reason)])
    bench = Bench({"cheap": cheap, "dear": ScriptedVendor(OK)}, same_vendor=True)
    done = finished(await bench.events("cheap", "dear"))
    assert outcomes(done) == [("cheap", reason.value), ("dear", "ok")]
    assert len(cheap.calls) == 1


@pytest.mark.parametrize("reason", [Reason.REJECTED, Reason.INVALID_INPUT])
async def test_a_refused_request_is_not_repeated(reason: Reason) -> None:
    cheap = ScriptedVendor([error(reason)])
    failure = await Bench({"cheap": cheap}).failure("cheap")
    assert failure.reason == reason
    assert len(cheap.calls) == 1


@pytest.mark.parametrize(
    ("cheap", "dear", "reason"),
    [
        ([Reason.INVALID_INPUT], [Reason.REJECTED], "INVALID_INPUT"),
        ([Reason.INVALID_INPUT], [Reason.UNAVAILABLE], "ALL_CANDIDATES_FAILED"),
        ([Reason.UNAVAILABLE, Reason.INVALID_INPUT], [Reason.INVALID_INPUT], "INVALID_INPUT"),
    ],
)
async def test_what_no_candidate_takes_is_the_requests_fault(
    cheap: list[Reason], dear: list[Reason], reason: str
) -> None:
    vendors: dict[str, ScriptedVendor | Silent] = {
        "cheap": ScriptedVendor(*[[error(r)] for r in cheap]),
        "dear": ScriptedVendor(*[[error(r)] for r in dear]),
    }
    assert (await Bench(vendors).failure("cheap", "dear")).reason == reason


async def test_a_cut_after_the_first_piece_is_an_error_and_never_finished() -> None:
    dear = ScriptedVendor(OK)
    bench = Bench({"cheap": ScriptedVendor([TextDelta("On its "), error(Reason.UNAVAILABLE)]), "dear": dear})
    events = []
    with pytest.raises(NoAnswer) as caught:  # noqa: PT012 (what came before the error is the point)
        async for event in bench.dispatcher.answer(bench.order("cheap", "dear")):
            events.append(event)
    assert events == [Started("cheap", "vendor-of-cheap"), TextDelta("On its ")]
    assert caught.value.reason == "STREAM_CUT"
    assert caught.value.wasted > 0
    assert dear.calls == []


async def test_a_stream_without_an_end_is_cut() -> None:
    bench = Bench({"cheap": ScriptedVendor([TextDelta("On its ")])})
    assert (await bench.failure("cheap")).reason == "STREAM_CUT"


async def test_a_silent_vendor_is_left_after_its_time() -> None:
    bench = Bench({"cheap": Silent(), "dear": ScriptedVendor(OK)}, timeout_s=0.01)
    done = finished(await bench.events("cheap", "dear"))
    assert outcomes(done) == [("cheap", "UPSTREAM_UNAVAILABLE"), ("dear", "ok")]
    # What a vendor computed and did not deliver is on its invoice: the prompt at least.
    assert done.wasted == done.attempts[0].cost_nanousd > 0


async def test_the_callers_deadline_is_no_fault_of_the_vendor() -> None:
    bench = Bench({"cheap": Silent()}, faults=1, max_attempts=1)
    assert (await bench.failure("cheap", deadline_s=0.01)).reason == "DEADLINE_EXCEEDED"
    assert bench.breaker("cheap").open_for_s == 0


async def test_an_open_breaker_is_passed_over() -> None:
    bench = Bench({"cheap": ScriptedVendor([error(Reason.UNAVAILABLE)]), "dear": ScriptedVendor(OK)}, faults=1)
    await bench.events("cheap", "dear")
    done = finished(await bench.events("cheap", "dear"))
    assert outcomes(done) == [("dear", "ok")]


async def test_all_breakers_open_fails_at_once_and_says_when_to_come_back() -> None:
    bench = Bench({"cheap": ScriptedVendor([error(Reason.UNAVAILABLE)])}, faults=1, max_attempts=1)
    await bench.failure("cheap")
    failure = await bench.failure("cheap")
    assert (failure.reason, failure.retry_after_s) == ("ALL_CANDIDATES_FAILED", 10.0)
    assert "cheap at vendor-of-cheap: breaker open" in failure.message


async def test_a_passed_deadline_calls_nobody() -> None:
    vendor = ScriptedVendor(OK)
    bench = Bench({"cheap": vendor})
    assert (await bench.failure("cheap", deadline_s=-1.0)).reason == "DEADLINE_EXCEEDED"
    assert vendor.calls == []


async def test_the_request_may_set_its_own_budget_of_attempts() -> None:
    vendor = ScriptedVendor([error(Reason.UNAVAILABLE)])
    bench = Bench({"cheap": vendor})
    with pytest.raises(NoAnswer):
        await bench.events("cheap", max_attempts=2)
    assert len(vendor.calls) == 2


async def test_closing_the_stream_cancels_the_vendor() -> None:
    vendor = ScriptedVendor(OK)
    bench = Bench({"cheap": vendor})
    async with aclosing(bench.dispatcher.answer(bench.order("cheap"))) as events:
        await anext(events)
        await anext(events)
    assert vendor.cancelled == 1
    cost = price(RATES["cheap"], estimated_usage(CHAT, "On its "))
    assert bench.watch.notes == ["1 cheap vendor-of-cheap", f"cancelled {cost} of {cost}", "end"]


async def test_what_a_cancelled_answer_cost_includes_the_attempts_before_it() -> None:
    failing = ScriptedVendor([VendorError(Reason.UNAVAILABLE, "reset", billed=True)])
    bench = Bench({"dear": failing, "cheap": ScriptedVendor(OK)})
    async with aclosing(bench.dispatcher.answer(bench.order("dear", "cheap"))) as events:
        assert await anext(events) == Started("cheap", "vendor-of-cheap")
    first = price(RATES["dear"], estimated_usage(CHAT, ""))
    second = price(RATES["cheap"], estimated_usage(CHAT, "On its "))
    assert f"failed {Reason.UNAVAILABLE} {first}" in bench.watch.notes
    assert f"cancelled {second} of {first + second}" in bench.watch.notes


async def test_an_answer_says_at_its_begin_where_its_cost_arises() -> None:
    bench = Bench({"cheap": ScriptedVendor(OK)}, engine="cheap")
    assert (await bench.events("cheap"))[0] == Started("cheap", "vendor-of-cheap", "engine")


async def test_a_vendor_without_a_free_slot_gives_way_to_the_next() -> None:
    cheap = ScriptedVendor(OK)
    bench = Bench({"cheap": cheap, "dear": ScriptedVendor(OK)}, slots=Slots(1, 8, 0.001))
    assert await bench.slots.acquire()
    assert outcomes(finished(await bench.events("cheap", "dear"))) == [("dear", "ok")]
    failure = await bench.failure("cheap")
    assert (failure.reason, failure.retry_after_s, cheap.calls) == ("RATE_LIMITED", 1.0, [])
    bench.slots.release()
    assert outcomes(finished(await bench.events("cheap"))) == [("cheap", "ok")]


async def test_a_vendor_over_its_limits_gives_way_to_the_next() -> None:
    quotas = {"cheap": (Quota("vendor-of-cheap", "", "requests", 1),)}
    cheap = ScriptedVendor(OK)
    bench = Bench({"cheap": cheap, "dear": ScriptedVendor(OK)}, quotas=quotas)
    assert outcomes(finished(await bench.events("cheap", "dear"))) == [("cheap", "ok")]
    assert outcomes(finished(await bench.events("cheap", "dear"))) == [("dear", "ok")]
    assert (bench.time.slept, len(cheap.calls)) == ([], 1)


async def test_a_vendor_over_its_limits_is_waited_for_when_no_other_is_left() -> None:
    quotas = {"cheap": (Quota("vendor-of-cheap", "", "requests", 1),)}
    bench = Bench({"cheap": ScriptedVendor(OK)}, quotas=quotas, random=lambda: 0.5)
    await bench.events("cheap")
    assert outcomes(finished(await bench.events("cheap", deadline_s=90.0))) == [("cheap", "ok")]
    assert bench.time.slept == [pytest.approx(61.0 + 0.1)]  # and half of the first pause


async def test_limits_that_free_too_late_are_named_with_the_time() -> None:
    quotas = {"cheap": (Quota("vendor-of-cheap", "", "tokens", 50),)}
    bench = Bench({"cheap": ScriptedVendor(OK)}, quotas=quotas, random=lambda: 0.0)
    await bench.events("cheap")
    failure = await bench.failure("cheap", deadline_s=30.0)
    assert (failure.reason, failure.retry_after_s, failure.attempts) == ("RATE_LIMITED", 61.0, 0)
    assert bench.time.slept == []


async def test_whoever_failed_unbilled_has_taken_no_tokens() -> None:
    quotas = {"cheap": (Quota("vendor-of-cheap", "", "tokens", 400),)}
    bench = Bench({"cheap": ScriptedVendor([error(Reason.UNAVAILABLE)], OK)}, quotas=quotas)
    assert len(finished(await bench.events("cheap")).attempts) == 2


async def test_a_vendor_that_asked_to_wait_is_asked_by_nobody_before() -> None:
    cheap = ScriptedVendor([error(Reason.RATE_LIMITED, 20.0)], OK)
    bench = Bench({"cheap": cheap, "dear": ScriptedVendor(OK)})
    await bench.events("cheap", "dear")
    assert outcomes(finished(await bench.events("cheap", "dear"))) == [("dear", "ok")]
    failure = await bench.failure("cheap", deadline_s=5.0)
    assert (failure.reason, failure.retry_after_s, failure.attempts) == ("RATE_LIMITED", 20.0, 0)
    assert len(cheap.calls) == 1
    assert outcomes(finished(await bench.events("cheap"))) == [("cheap", "ok")]
    assert bench.time.slept == [pytest.approx(20.0)]


async def test_nobody_is_kept_from_a_vendor_for_more_than_a_minute_by_its_word() -> None:
    bench = Bench({"cheap": ScriptedVendor([error(Reason.RATE_LIMITED, 90_000.0)])})
    await bench.failure("cheap")
    assert bench.breaker("cheap").held_for_s == 60.0


async def test_a_retry_after_that_is_past_leaves_the_usual_pause() -> None:
    bench = Bench({"cheap": ScriptedVendor([error(Reason.RATE_LIMITED, 0.0)], OK)})
    await bench.events("cheap")
    assert bench.time.slept == [pytest.approx(0.2)]


async def test_an_endless_answer_is_a_fault_of_the_vendor() -> None:
    long = ScriptedVendor([TextDelta("x" * (MAX_ANSWER_CHARS + 1)), OK[-1]])
    bench = Bench({"cheap": long, "dear": ScriptedVendor(OK)})
    done = finished(await bench.events("cheap", "dear"))
    assert outcomes(done) == [("cheap", "UPSTREAM_UNAVAILABLE"), ("dear", "ok")]
    assert done.wasted > 0


async def test_whoever_waited_for_a_slot_asks_the_breaker_again() -> None:
    cheap = ScriptedVendor(OK)
    bench = Bench({"cheap": cheap, "dear": ScriptedVendor(OK)}, slots=Slots(1, 8, 5.0), faults=1)
    assert await bench.slots.acquire()
    waiting = asyncio.create_task(bench.events("cheap", "dear"))
    await asyncio.sleep(0)
    entry = bench.breaker("cheap").enter()
    assert entry is not None
    bench.breaker("cheap").failed(entry)
    bench.slots.release()
    assert outcomes(finished(await waiting)) == [("dear", "ok")]
    assert cheap.calls == []


async def test_only_one_of_those_who_wait_probes_a_vendor_that_was_ill() -> None:
    bench = Bench({"cheap": Silent(), "dear": ScriptedVendor(OK)}, timeout_s=0.05, faults=1, max_attempts=2)
    await bench.events("cheap", "dear")
    bench.time.now += 11
    answers = await asyncio.gather(*(bench.events("cheap", "dear") for _ in range(4)))
    assert sorted(len(finished(events).attempts) for events in answers) == [1, 1, 1, 2]


async def test_a_whole_answer_may_take_longer_than_a_stream_may_be_silent() -> None:
    vendor = ScriptedVendor(OK)
    bench = Bench({"cheap": vendor}, timeout_s=30.0, unary_timeout_s=400.0)
    await bench.events("cheap", deadline_s=90.0, streaming=False)
    await bench.events("cheap", deadline_s=None)
    assert [(call.timeout_s, call.deadline_s) for call in vendor.calls] == [(400.0, 90.0), (30.0, None)]
    slow = Bench({"cheap": Silent(), "dear": ScriptedVendor(OK)}, timeout_s=30.0, unary_timeout_s=0.01)
    assert outcomes(finished(await slow.events("cheap", "dear", streaming=False)))[0][1] == "UPSTREAM_UNAVAILABLE"


async def test_missing_usage_is_estimated_and_says_so() -> None:
    script = (TextDelta("On its way."), Completion(FinishReason.STOP, None, "m"))
    done = finished(await Bench({"cheap": ScriptedVendor(script)}).events("cheap"))
    assert done.usage.estimated
    assert done.usage.input_tokens > 4
    assert done.usage.output_tokens > 2
    assert done.charge.cost > 0


async def test_the_engines_cost_is_the_measured_one() -> None:
    script = (TextDelta("Hi"), Completion(FinishReason.STOP, USAGE, "m", Compute(cost=900, prefill_cost=400)))
    done = finished(await Bench({"cheap": ScriptedVendor(script)}).events("cheap"))
    assert (done.charge.cost, done.charge.component) == (900, "engine")


async def test_a_model_without_price_is_unpriced() -> None:
    done = finished(await Bench({"mystery": ScriptedVendor(OK)}).events("mystery"))
    assert done.charge.unpriced


async def test_a_candidate_that_nobody_serves_is_passed_over() -> None:
    bench = Bench({"cheap": ScriptedVendor(OK)})
    assert outcomes(finished(await bench.events("nope", "cheap"))) == [("cheap", "ok")]
    assert bench.watch.notes[0] == "nobody serves nope"


async def test_candidates_that_nobody_serves_are_named() -> None:
    with pytest.raises(UnknownCandidate, match="no vendor serves the model nope or never"):
        await Bench({"cheap": ScriptedVendor(OK)}).events("nope", "never")


@given(
    st.lists(st.sampled_from([*Reason, None]), min_size=1, max_size=6),
    st.lists(st.sampled_from([*Reason, None]), min_size=1, max_size=6),
    st.integers(1, 8),
    st.floats(0.1, 20),
    st.floats(0, 1, exclude_max=True),
)
def test_any_plan_ends_within_budget_and_deadline(
    cheap: list[Reason | None], dear: list[Reason | None], max_attempts: int, deadline_s: float, draw: float
) -> None:
    async def run() -> None:
        vendors: dict[str, ScriptedVendor | Silent] = {
            name: ScriptedVendor(*[OK if reason is None else [error(reason, 1.5)] for reason in script])
            for name, script in (("cheap", cheap), ("dear", dear))
        }
        bench = Bench(vendors, max_attempts=max_attempts, random=lambda: draw)
        began = bench.time.now
        try:
            done = finished(await bench.events("cheap", "dear", deadline_s=deadline_s))
            assert done.attempts[-1].outcome == "ok"
            assert all(attempt.outcome != "ok" for attempt in done.attempts[:-1])
        except NoAnswer as failure:
            assert failure.message  # noqa: PT017 (either end is right; both must keep the limits)
        calls = sum(len(v.calls) for v in vendors.values() if isinstance(v, ScriptedVendor))
        assert 1 <= calls <= max_attempts
        assert bench.time.now < began + deadline_s

    asyncio.run(run())
