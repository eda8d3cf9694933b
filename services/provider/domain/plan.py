"""The attempt plan: which candidate is tried next, when, and what to say when none answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.provider.domain.breaker import Breaker
from services.provider.domain.limits import Quota
from services.provider.domain.prompt_cache import NO_CACHE, VendorCache
from services.provider.domain.prompt_cache.prompts import Prompt
from services.provider.domain.slots import Slots
from services.provider.domain.vendor import Reason, Vendor, VendorError

LOST = "HEDGED_LOST"
"""Outcome of an attempt that was cancelled because another one was faster."""

_BUSY_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A model at a vendor. `model` is its name in the price book, `vendor_model` the vendor's id for it.

    `timeout_s` is how long a stream may be silent, `unary_timeout_s` how long a whole answer may take, in seconds. `slots`
    bounds the vendor's concurrent calls and is shared by its candidates; `quotas` are all that bound its calls and tokens per
    minute. `component` is where its cost arises: "provider" or "engine". `cache` is how the vendor keeps prefixes of prompts.
    """

    model: str
    vendor: str
    vendor_model: str
    calls: Vendor
    breaker: Breaker
    timeout_s: float
    unary_timeout_s: float
    slots: Slots
    component: str = "provider"
    quotas: tuple[Quota, ...] = ()
    cache: VendorCache = NO_CACHE


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of a vendor: "ok", "CANCELLED", LOST or the reason of its failure, what it cost, how long it took."""

    model: str
    vendor: str
    outcome: str
    cost_nanousd: int
    duration_ms: int


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How often and after which pause. Pauses are drawn between 0 and base * 2^(failures - 1), at most `max_pause_s`."""

    max_attempts: int
    base_pause_s: float
    max_pause_s: float


@dataclass(frozen=True, slots=True)
class Step:
    """Whom to call next, after how many seconds."""

    candidate: Candidate
    wait_s: float


class NoAnswer(Exception):
    """No candidate gave a whole answer.

    `reason` is a Reason's value or "ALL_CANDIDATES_FAILED"; `wasted` is what the `attempts` cost, in nano-USD.
    """

    def __init__(
        self, reason: str, message: str, *, retry_after_s: float | None, field: str, wasted: int, attempts: int
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.field = field
        self.wasted = wasted
        self.attempts = attempts


@dataclass(slots=True)
class _State:
    candidate: Candidate
    not_before: float = 0.0
    failures: int = 0


@dataclass(slots=True)
class Plan:
    """Goes through the candidates in order, without a pause between different ones; then comes back to those that may
    have recovered, each not before its backoff, its vendor's Retry-After or its limits allow. It ends with the attempt
    budget, with the deadline, or when nobody is left.

    `deadline` and `monotonic` are in seconds on one clock; `random` draws from [0, 1). `prompt` is what they are sent.
    """

    prompt: Prompt
    candidates: Sequence[Candidate]
    rules: RetryRules
    deadline: float | None
    monotonic: Callable[[], float]
    random: Callable[[], float]
    attempts: list[Attempt] = field(default_factory=list)
    _open: list[_State] = field(init=False)
    _errors: dict[Candidate, VendorError] = field(default_factory=dict)  # the last one of each
    _full: dict[Candidate, str] = field(default_factory=dict)  # why a candidate was not called when it was its turn
    _skipped: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._open = [_State(candidate) for candidate in self.candidates]

    @property
    def wasted(self) -> int:
        """What the attempts that did not answer cost, in nano-USD."""
        return sum(attempt.cost_nanousd for attempt in self.attempts if attempt.outcome != "ok")

    @property
    def left_s(self) -> float | None:
        """Seconds until the deadline, negative after it; None without one."""
        return None if self.deadline is None else self.deadline - self.monotonic()

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and self.monotonic() >= self.deadline

    def next(self) -> Step | None:
        """The next attempt; None when there is none."""
        if len(self.attempts) >= self.rules.max_attempts:
            return None
        now = self.monotonic()
        for state in list(self._open):
            if open_for := state.candidate.breaker.open_for_s:
                self._skipped[_name(state.candidate)] = open_for
                self._open.remove(state)
            elif held_for := state.candidate.breaker.held_for_s:
                self._postpone(state, held_for, "it asked to wait")
        if not self._open:
            return None
        state = min(self._open, key=lambda s: s.not_before)  # the first among equals: the candidates' order
        wait = max(state.not_before - now, 0.0)
        if self.deadline is not None and now + wait >= self.deadline:
            return None
        return Step(state.candidate, wait)

    def beside(self, running: Candidate) -> list[Candidate]:
        """Whom to call beside an attempt that is slow, the preferred first; nobody when the budget allows no two more."""
        if len(self.attempts) + 1 >= self.rules.max_attempts or self.late:
            return []
        now = self.monotonic()
        return [
            state.candidate
            for state in self._open
            if state.candidate is not running
            and state.not_before <= now
            and not state.candidate.breaker.open_for_s
            and not state.candidate.breaker.held_for_s
        ]

    def failed(self, candidate: Candidate, error: VendorError, cost_nanousd: int, duration_ms: int) -> None:
        """Notes a failed attempt."""
        self.attempts.append(Attempt(candidate.model, candidate.vendor, error.reason, cost_nanousd, duration_ms))
        self._errors[candidate] = error
        self._full.pop(candidate, None)
        if error.reason is Reason.CREDENTIAL:
            # The vendor refuses our key: another of its models will not help.
            self._open = [state for state in self._open if state.candidate.vendor != candidate.vendor]
            return
        if not error.reason.may_pass:
            # It refuses the request; another model, with a longer context perhaps, may take it.
            self._close(candidate)
            return
        for state in self._open:
            if state.candidate is candidate:
                state.failures += 1
                limit = min(self.rules.base_pause_s * 2 ** (state.failures - 1), self.rules.max_pause_s)
                pause = max(self.random() * limit, error.retry_after_s or 0.0)
                state.not_before = self.monotonic() + pause

    def busy(self, candidate: Candidate) -> None:
        """Notes a candidate whose vendor had no slot in time. It is not asked again."""
        self._full[candidate] = "no free slot"
        message = f"no call to {candidate.vendor} became free in time"
        self._errors[candidate] = VendorError(Reason.RATE_LIMITED, message, retry_after_s=_BUSY_RETRY_AFTER_S)
        self._close(candidate)

    def limited(self, candidate: Candidate, seconds: float) -> None:
        """Notes a candidate whose vendor's limits have room in so many seconds. It is asked again then, if nobody is before."""
        for state in self._open:
            if state.candidate is candidate:
                # Not all who wait come back in the same moment.
                self._postpone(state, seconds + self.random() * self.rules.base_pause_s, "its limits are used up")

    def lost(self, candidate: Candidate, cost_nanousd: int, duration_ms: int) -> None:
        """Notes an attempt that another one outran."""
        self.attempts.append(Attempt(candidate.model, candidate.vendor, LOST, cost_nanousd, duration_ms))

    def cancelled(self, candidate: Candidate, cost_nanousd: int, duration_ms: int) -> None:
        """Notes an attempt whose caller left."""
        self.attempts.append(Attempt(candidate.model, candidate.vendor, "CANCELLED", cost_nanousd, duration_ms))

    def answered(self, candidate: Candidate, cost_nanousd: int, duration_ms: int) -> None:
        """Notes the attempt that answered."""
        self.attempts.append(Attempt(candidate.model, candidate.vendor, "ok", cost_nanousd, duration_ms))

    def cut(self, candidate: Candidate, error: VendorError) -> NoAnswer:
        """What to tell the caller of an answer that had begun."""
        message = f"the answer of {candidate.model} broke off: {error.message}"
        return NoAnswer(
            Reason.CUT, message, retry_after_s=None, field="", wasted=self.wasted, attempts=len(self.attempts)
        )

    def no_answer(self) -> NoAnswer:
        """What to tell the caller. A reason common to all candidates is named as such; else all attempts are listed."""
        errors = list(self._errors.values())
        reasons = {error.reason for error in errors}
        retry_after = [error.retry_after_s for error in errors if error.retry_after_s is not None]
        retry_after += self._skipped.values()

        def told(reason: str, message: str, field_: str = "chat") -> NoAnswer:
            wait_s = min(retry_after, default=None)
            return NoAnswer(
                reason,
                message,
                retry_after_s=wait_s,
                field=field_,
                wasted=self.wasted,
                attempts=len(self.attempts),
            )

        if not self.attempts and (self.late or not (self._full or self._skipped)):
            return told(Reason.DEADLINE.value, "the deadline passed before a vendor could be called")
        if not self._skipped and (only := _common(reasons)) is not None:
            first = next(error for error in errors if error.reason is only)
            return told(only.value, first.message, first.field)
        tried = [f"{a.model} at {a.vendor}: {a.outcome}" for a in self.attempts]
        tried += [f"{_name(candidate)}: {why}" for candidate, why in self._full.items()]
        tried += [f"{name}: breaker open" for name in self._skipped]
        return told("ALL_CANDIDATES_FAILED", "no candidate answered: " + "; ".join(tried))

    def _postpone(self, state: _State, seconds: float, why: str) -> None:
        candidate = state.candidate
        state.not_before = max(state.not_before, self.monotonic() + seconds)
        if candidate not in self._errors:  # what a call of it came to says more
            self._full[candidate] = why
            message = f"{candidate.vendor}: {why}"
            self._errors[candidate] = VendorError(Reason.RATE_LIMITED, message, retry_after_s=seconds)

    def _close(self, candidate: Candidate) -> None:
        self._open = [state for state in self._open if state.candidate is not candidate]


def _common(reasons: set[Reason]) -> Reason | None:
    """The one reason that says it all. What no candidate takes is the request's fault, if one of them says so."""
    if reasons == {Reason.INVALID_INPUT, Reason.REJECTED}:
        return Reason.INVALID_INPUT
    only = next(iter(reasons)) if len(reasons) == 1 else None
    return None if only in (Reason.UNAVAILABLE, Reason.CUT) else only


def _name(candidate: Candidate) -> str:
    return f"{candidate.model} at {candidate.vendor}"
