"""Goes on with open batches: one replica at a time for each, from wherever the last one left it.

What is about to happen outside is written down before, what came of it after: whoever takes over never sends an item of which
nobody knows whether it was sent, before the vendor has said that it was not.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from services.common.chat import Chat
from services.common.clock import Clock
from services.common.errors import (
    BudgetExceeded,
    FailedPrecondition,
    InvalidInput,
    MeshError,
    RateLimited,
    TooLarge,
    UnknownModel,
    UpstreamCredential,
    UpstreamRejected,
)
from services.edge.domain.batch import (
    CANCELLED,
    KEPT_S,
    MAX_RUN,
    MAX_TRIES,
    WINDOW_S,
    Batch,
    BatchItem,
    BatchModel,
    BatchProvider,
    BatchStatus,
    BatchStore,
    Held,
    HoldLost,
    ItemAnswer,
    ItemFailure,
    Mode,
    Outcome,
    Plan,
    Ref,
    Submission,
    VendorState,
    Work,
    choose,
    groups,
)
from services.edge.domain.batch_items import ItemSteps
from services.edge.domain.budgets import Budgets, Window
from services.edge.domain.ledger import Ledger

LOOKUPS = 8  # items that are looked up at once
CHUNK = 32  # items between two writes
RECORDS = 200  # usage records in one write
REMOVE_EVERY_S = 3600.0
CANCEL_AGAIN_S = 0.5

# After these a vendor has nothing of what was to be sent.
_NOT_SENT = (
    RateLimited,
    FailedPrecondition,
    InvalidInput,
    TooLarge,
    UnknownModel,
    UpstreamRejected,
    UpstreamCredential,
)
# Of them, these may pass.
_MAY_PASS = (RateLimited, FailedPrecondition)
_EXPIRED = ("DEADLINE_EXCEEDED", "the batch's 24 hours passed before it was answered")
_CANCELLED = (CANCELLED, "the batch was cancelled before it was answered")


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast things go, in seconds.

    `idle_s` passes between looks for work; a batch stays for `hold_s` with a replica that is not heard of. A submission is sent
    within `send_s` or not at all; `settle_s` later a vendor can tell whether it arrived. Polls are `first_poll_s` to
    `longest_poll_s` apart, failures up to `longest_pause_s`. Items are looked up for `look_up_s` and run for `run_s`, then
    it is another batch's turn. For `patient_s` a batch waits for services that a request would do without; `overtime_s` after
    its window vendors that have not ended are not waited for any more.
    """

    idle_s: float = 1.0
    hold_s: float = 30.0
    send_s: float = 120.0
    settle_s: float = 120.0
    first_poll_s: float = 2.0
    longest_poll_s: float = 60.0
    longest_pause_s: float = 300.0
    run_s: float = 60.0
    look_up_s: float = 20.0
    patient_s: float = 900.0
    overtime_s: float = 6 * 3600.0


class BatchWorker:
    """Looks after the batches that are due. One instance per process."""

    def __init__(
        self,
        store: BatchStore,
        provider: BatchProvider,
        items: ItemSteps,
        ledger: Ledger,
        budgets: Budgets,
        clock: Clock,
        on_degraded: Callable[[str, MeshError], None],
        on_defect: Callable[[str, Exception], None],
        pace: Pace | None = None,
        at_once: int = 8,
    ) -> None:
        """`on_defect` hears of errors that have no name, with the id of the batch; `at_once` batches are worked on."""
        self._store = store
        self._provider = provider
        self._items = items
        self._ledger = ledger
        self._budgets = budgets
        self._clock = clock
        self._on_degraded = on_degraded
        self._on_defect = on_defect
        self._pace = pace or Pace()
        self._at_once = at_once
        self._tasks: dict[Ref, asyncio.Task[None]] = {}
        self._failures: dict[Ref, int] = {}
        self._woken = asyncio.Event()
        self._remove_at = 0.0

    def wake(self) -> None:
        """There is a new batch."""
        self._woken.set()

    async def run(self) -> None:
        """Works until it is cancelled; then what it holds is free for others at once."""
        try:
            # Asked for, since a store's client may swallow a cancellation that comes in the moment of its answer.
            while not _is_cancelled():
                try:
                    await self._look_around()
                except MeshError as error:
                    self._on_degraded("batches", error)
                self._woken.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._pace.idle_s):
                        await self._woken.wait()
        finally:
            # Each ends its turn first, and then gives the batch back.
            await _ended(*self._tasks.values(), again_s=6 * CANCEL_AGAIN_S)

    async def _look_around(self) -> None:
        now = self._clock.now()
        free = self._at_once - len(self._tasks)
        for ref in await self._store.due(now, free) if free > 0 else ():
            if ref not in self._tasks:
                # Neither a caller's deadline nor its trace: it goes on for hours.
                task = asyncio.get_running_loop().create_task(self._guarded(ref), context=Context())
                self._tasks[ref] = task
                task.add_done_callback(partial(self._left, ref))
        if now >= self._remove_at:
            self._remove_at = now + REMOVE_EVERY_S
            await self._store.remove_old(now - KEPT_S)

    def _left(self, ref: Ref, _: "asyncio.Task[None]") -> None:
        del self._tasks[ref]
        self._woken.set()

    async def _guarded(self, ref: Ref) -> None:
        try:
            await self.look_after(ref)
        except MeshError as error:
            self._on_degraded("batches", error)

    async def look_after(self, ref: Ref) -> None:
        """Goes on with a batch as far as it can now, unless somebody else has it. Raises MeshError when the store is away."""
        holder = uuid.uuid4().hex
        held = await self._store.hold(ref, holder, self._pace.hold_s, self._clock.now())
        if held is None:
            return
        turn = asyncio.ensure_future(self._turn(held))
        due: float | None = self._clock.now()
        cancelling = False
        try:
            await self._keep(held, turn)
            due, cancelling = turn.result()
            self._failures.pop(ref, None)
        except HoldLost:
            return
        except MeshError as error:
            self._on_degraded("batches", error)
            due = self._after_failure(ref)
        except asyncio.CancelledError:
            await _ended(turn)
            with suppress(MeshError, HoldLost, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._store.release(held, self._clock.now(), cancelling=True)
            raise
        except Exception as error:
            self._on_defect(ref.id, error)
            due = self._after_failure(ref)
        finally:
            turn.cancel()
        with suppress(HoldLost):
            await self._store.release(held, due, cancelling=cancelling)

    async def _keep(self, held: Held, turn: "asyncio.Future[tuple[float | None, bool]]") -> None:
        """Until the turn is over. It ends with HoldLost when the batch cannot be kept."""
        loop = asyncio.get_running_loop()
        kept_at = loop.time()
        while True:
            done, _ = await asyncio.wait((turn,), timeout=self._pace.hold_s / 4)
            if done:
                return
            try:
                kept = await self._store.hold(held.ref, held.holder, self._pace.hold_s, self._clock.now())
                lost = kept is None or kept.fence != held.fence
                kept_at = loop.time()
            except MeshError:
                lost = loop.time() - kept_at > self._pace.hold_s / 2
            if lost:
                await _ended(turn)
                raise HoldLost

    def _after_failure(self, ref: Ref) -> float:
        failures = self._failures[ref] = self._failures.get(ref, 0) + 1
        return self._clock.now() + self._pause(failures)

    def _pause(self, failures: int) -> float:
        return min(self._pace.first_poll_s * 2.0 ** min(failures, 16), self._pace.longest_pause_s)

    async def _turn(self, held: Held) -> tuple[float | None, bool]:
        """When the batch is due again, None when it has ended; and whether a cancel was known."""
        work = await self._store.work(held)
        batch = work.batch
        cancelling = batch.status is BatchStatus.CANCELLING
        if batch.status.ended:
            await self._write_records(held.ref)
            return None, True
        stopping = _CANCELLED if cancelling else _EXPIRED if self._clock.now() >= batch.expires_at else None
        if stopping is None:
            looked = await self._look_up(held, work)
            work = await self._store.work(held)
            if looked is not None:
                await self._write_records(held.ref)
                return looked, cancelling
            await self._make_submissions(held, work)
        else:
            await self._stop(held, work, stopping)
        work = await self._store.work(held)
        due = [await self._advance(held, work, submission, stopping is not None) for submission in work.open]
        await self._write_records(held.ref)
        work = await self._store.work(held)
        if len(work.done) == batch.total:
            await self._end(held, work, stopping)
            return None, True
        if work.unsent or work.unseen:
            due.append(self._clock.now())
        return min(due, default=self._clock.now()), cancelling

    async def _write_records(self, ref: Ref) -> None:
        """Hands the records of ended items to the ledger, which keeps each once."""
        records = await self._store.unrecorded(ref)
        for start in range(0, len(records), RECORDS):
            some = records[start : start + RECORDS]
            await self._ledger.write(some)
            await self._store.recorded(ref, some)

    # What the cache answers, and how the others go on.

    async def _look_up(self, held: Held, work: Work) -> float | None:
        """Looks up what nobody has looked up yet. When to go on with that, None when all are seen."""
        batch, unseen = work.batch, work.unseen
        until = self._clock.now() + self._pace.look_up_s
        patient = self._clock.now() < batch.created_at + self._pace.patient_s
        for start in range(0, len(unseen), CHUNK):
            if self._clock.now() >= until:
                return self._clock.now()
            some = await self._store.items(held.ref, unseen[start : start + CHUNK])
            free = asyncio.Semaphore(LOOKUPS)
            found = await asyncio.gather(*(self._look_at(batch, i, item, patient, free) for i, item in some.items()))
            outcomes = [result for result in found if isinstance(result, Outcome)]
            plans = {i: result for i, result in zip(some, found, strict=True) if isinstance(result, Plan)}
            if outcomes:
                await self._store.commit(held, outcomes)
            if plans:
                await self._store.save_plans(held, plans)
            for error in found:
                if isinstance(error, MeshError):
                    raise error
        return None

    async def _look_at(
        self, batch: Batch, index: int, item: BatchItem, patient: bool, free: asyncio.Semaphore
    ) -> Outcome | Plan | MeshError:
        async with free:
            try:
                return await self._items.look_up(batch, index, item, patient=patient)
            except MeshError as error:
                if error.retryable:
                    return error  # the others of the chunk are kept
                return await self._items.failed(batch, index, item, None, (error.reason, error.message), ())

    async def _make_submissions(self, held: Held, work: Work) -> None:
        """Puts missed items together. What vendors did not answer often enough ends with its last error."""
        unsent = work.unsent
        if not unsent:
            return
        tries, errors = work.tries(), work.last_errors()
        given_up = {index: errors[index] for index in unsent if tries[index] >= MAX_TRIES}
        await self._fail(held, work, given_up)
        rest = [index for index in unsent if index not in given_up]
        if not rest:
            return
        models = await self._provider.models()
        plans = await self._store.plans(held.ref, rest)
        for candidates, members in groups(rest, plans):
            await self._make_submission(held, work, models, candidates, {index: plans[index] for index in members})

    async def _make_submission(
        self,
        held: Held,
        work: Work,
        models: Sequence[BatchModel],
        candidates: tuple[str, ...],
        plans: dict[int, Plan],
        *,
        past_soft: bool = False,
    ) -> None:
        """Puts items of the same candidates together; of cheaper ones where soft budgets are used up."""
        batch = work.batch
        model = choose(candidates, models)
        if model is None:
            names = " or ".join(candidates)
            await self._fail(held, work, dict.fromkeys(plans, ("UNKNOWN_MODEL", f"no vendor serves {names}")))
            return
        windows = self._items.windows(batch)
        submission = Submission(
            uuid.uuid4().hex[:24],
            model.mode,
            model.model,
            model.vendor,
            candidates,
            tuple(plans),
            self._clock.now(),
            windows=tuple(window.name for window in windows),
        )
        if windows:
            bound = sum(plan.bound + sum(item.cost for item in plan.overhead) for plan in plans.values())
            lasts = WINDOW_S + self._pace.overtime_s
            name = _reservation(batch, submission)
            try:
                overdrawn = await self._budgets.reserve(
                    batch.tenant, windows, bound, name, past_soft=past_soft, for_s=lasts
                )
            except BudgetExceeded as error:
                await self._fail(held, work, dict.fromkeys(plans, (error.reason, error.message)))
                return
            if overdrawn:
                await self._make_cheaper(held, work, models, plans, overdrawn)
                return
        await self._store.save_submission(held, submission)

    async def _make_cheaper(
        self,
        held: Held,
        work: Work,
        models: Sequence[BatchModel],
        plans: dict[int, Plan],
        overdrawn: Sequence[Window],
    ) -> None:
        """Submissions to the cheaper tier that soft budgets ask for."""
        items = await self._store.items(held.ref, list(plans))
        cheaper = {index: self._items.degrade(items[index], plan, overdrawn) for index, plan in plans.items()}
        await self._store.save_plans(held, cheaper)
        self._on_degraded("budget", BudgetExceeded(next(iter(cheaper.values())).budget_notice))
        for candidates, members in groups(list(cheaper), cheaper):
            some = {index: cheaper[index] for index in members}
            await self._make_submission(held, work, models, candidates, some, past_soft=True)

    async def _stop(self, held: Held, work: Work, error: tuple[str, str]) -> None:
        """Ends what no vendor has."""
        for submission in work.open:
            if submission.mode is Mode.RUN or not (submission.sent or submission.vendor_batch_id):
                await self._close(held, work.batch, submission, "it was stopped")
        work = await self._store.work(held)
        await self._fail(held, work, dict.fromkeys((*work.unsent, *work.unseen), error))

    # Submissions.

    async def _advance(self, held: Held, work: Work, submission: Submission, stopping: bool) -> float:
        """Goes on with one submission. When to do so again."""
        if submission.next_at > self._clock.now() and not (stopping and not submission.cancelling):
            return submission.next_at
        try:
            if submission.mode is Mode.RUN:
                return await self._run(held, work, submission)
            if not submission.vendor_batch_id:
                return await self._send(held, work, submission, stopping)
            return await self._poll(held, work, submission, stopping)
        except MeshError as error:
            self._on_degraded("batches", error)
            return await self._later(held, submission.id, error)

    async def _later(self, held: Held, submission_id: str, error: MeshError) -> float:
        """Notes a failure that may pass. When to try again."""
        work = await self._store.work(held)
        submission = next(s for s in work.submissions if s.id == submission_id)
        failures = submission.failures + 1
        due = self._clock.now() + max(self._pause(failures), error.retry_after_s or 0.0)
        await self._store.save_submission(held, replace(submission, failures=failures, next_at=due))
        return due

    async def _send(self, held: Held, work: Work, submission: Submission, stopping: bool) -> float:
        """Hands a submission in, unless the vendor has it already."""
        now, batch = self._clock.now(), work.batch
        if submission.sent:
            # Somebody was about to send it. It may be under way still; then the vendor knows.
            if now < submission.not_after + self._pace.settle_s:
                return submission.not_after + self._pace.settle_s
            if self._too_late(batch):
                await self._close(held, batch, submission, "whether it had arrived could not be told")
                return now
            found = await self._provider.find(submission)
            if found:
                await self._store.save_submission(held, replace(submission, vendor_batch_id=found, failures=0))
                return now
        if stopping:
            await self._close(held, batch, submission, "it was stopped")
            return now
        begun_at = submission.begun_at if submission.sent else now
        submission = replace(submission, sent=True, begun_at=begun_at, not_after=now + self._pace.send_s)
        chats = await self._chats(held, [index for index in submission.items if index not in work.done])
        await self._store.save_submission(held, submission)
        try:
            batch_id, refused = await self._provider.submit(batch, submission, chats)
        except _NOT_SENT as error:
            unsent = replace(submission, sent=False)
            await self._store.save_submission(held, unsent)
            if isinstance(error, _MAY_PASS):
                raise
            await self._fail(held, work, dict.fromkeys(chats, (error.reason, error.message)), unsent)
            await self._close(held, batch, unsent, error.message)
            return now
        if batch_id:
            submission = replace(
                submission, vendor_batch_id=batch_id, failures=0, next_at=now + self._pace.first_poll_s
            )
            await self._store.save_submission(held, submission)
        await self._fail(held, work, {f.index: (f.reason, f.message) for f in refused}, submission)
        if not batch_id:
            await self._close(held, batch, submission, "no item could be sent")
            return now
        return submission.next_at

    async def _poll(self, held: Held, work: Work, submission: Submission, stopping: bool) -> float:
        """Asks how far the vendor is; when it has ended, brings the results in."""
        batch = work.batch
        if stopping and not submission.cancelling:
            await self._provider.cancel(submission)
            submission = replace(submission, cancelling=True, polls=0)
            await self._store.save_submission(held, submission)
        state, _ = await self._provider.poll(submission)
        now = self._clock.now()
        if state is VendorState.RUNNING:
            if self._too_late(batch):
                await self._close(held, batch, submission, "the vendor did not end it in time")
                return now
            pause = min(self._pace.first_poll_s * 1.5 ** min(submission.polls, 32), self._pace.longest_poll_s)
            due = now + pause
            await self._store.save_submission(
                held, replace(submission, polls=submission.polls + 1, failures=0, next_at=due)
            )
            return due
        await self._collect(held, work, submission, state)
        return now

    async def _collect(self, held: Held, work: Work, submission: Submission, state: VendorState) -> None:
        """Brings in what the vendor has. The first result of an item counts, a refusal only where no answer comes."""
        missing = [index for index in submission.items if index not in work.done]
        failures: dict[int, ItemFailure] = {}
        answered: set[int] = set()
        if state is not VendorState.GONE and missing:
            plans = await self._store.plans(held.ref, missing)
            tokens = {index: plan.sent_tokens for index, plan in plans.items()}
            chunk: list[ItemAnswer] = []
            async with aclosing(self._provider.results(submission, tokens)) as results:
                async for result in results:
                    if result.index not in plans or result.index in answered:
                        continue
                    if isinstance(result, ItemFailure):
                        failures.setdefault(result.index, result)
                        continue
                    answered.add(result.index)
                    chunk.append(result)
                    if len(chunk) == CHUNK:
                        await self._settle(held, work, chunk, plans)
                        chunk = []
            await self._settle(held, work, chunk, plans)
        failures = {index: failure for index, failure in failures.items() if index not in answered}
        final = {i: f for i, f in failures.items() if not f.retryable}
        submission = replace(submission, failures_of=failures)
        errors = {index: (failure.reason, failure.message) for index, failure in final.items()}
        await self._fail(held, work, errors, submission)
        await self._close(held, work.batch, submission, f"its batch ended as {state.value}")

    async def _run(self, held: Held, work: Work, submission: Submission) -> float:
        """Runs items for a while. What may pass is tried again later, as long as the window is open."""
        batch = work.batch
        until = self._clock.now() + self._pace.run_s
        left = [index for index in submission.items if index not in work.done]
        while left and self._clock.now() < until:
            some = left[:MAX_RUN]
            plans = await self._store.plans(held.ref, some)
            chats = await self._chats(held, some)
            failed: list[ItemFailure] = []
            over: set[int] = set()
            async with aclosing(self._provider.run(batch, submission.candidates, chats)) as results:
                async for result in results:
                    if result.index not in plans or result.index in over:
                        continue
                    if isinstance(result, ItemAnswer):
                        # One by one: who takes over would pay for it again.
                        await self._settle(held, replace_submission(work, submission), [result], plans)
                        over.add(result.index)
                    else:
                        failed.append(result)
            if failed:
                submission = replace(submission, failures_of=_add(submission.failures_of, failed))
                await self._store.save_submission(held, submission)
            final = {f.index: (f.reason, f.message) for f in failed if not f.retryable}
            await self._fail(held, work, final, submission)
            over |= set(final)
            left = [index for index in left if index not in over]
            if len(final) < len(failed) or not over:
                failures = 0 if over else submission.failures
                due = self._clock.now() + self._pause(failures + 1)
                await self._store.save_submission(held, replace(submission, failures=failures + 1, next_at=due))
                return due
        if not left:
            await self._close(held, batch, submission, "all of it was run")
        elif submission.failures:
            await self._store.save_submission(held, replace(submission, failures=0))
        return self._clock.now()

    # Ends.

    async def _settle(self, held: Held, work: Work, results: Sequence[ItemAnswer], plans: dict[int, Plan]) -> None:
        if not results:
            return
        items = await self._store.items(held.ref, [result.index for result in results])
        wasted, windows = work.wasted(), work.windows()
        outcomes = [
            await self._items.answered(
                work.batch,
                items[result.index],
                plans[result.index],
                result,
                wasted.get(result.index, ()),
                windows.get(result.index, ()),
            )
            for result in results
        ]
        await self._store.commit(held, outcomes)

    async def _fail(
        self, held: Held, work: Work, errors: dict[int, tuple[str, str]], submission: Submission | None = None
    ) -> None:
        """Ends items without an answer. `submission` is the newer state of one of the work's."""
        work = replace_submission(work, submission) if submission else work
        wasted, windows = work.wasted(), work.windows()
        indices = list(errors)
        for start in range(0, len(indices), CHUNK):
            some = indices[start : start + CHUNK]
            items = await self._store.items(held.ref, some)
            plans = await self._store.plans(held.ref, some)
            outcomes = [
                await self._items.failed(
                    work.batch,
                    index,
                    items[index],
                    plans.get(index),
                    errors[index],
                    wasted.get(index, ()),
                    windows.get(index, ()),
                )
                for index in some
            ]
            await self._store.commit(held, outcomes)

    async def _close(self, held: Held, batch: Batch, submission: Submission, why: str) -> None:
        """A submission brings nothing more."""
        await self._store.save_submission(held, replace(submission, ended=True, why=why))
        with suppress(MeshError):  # else it expires by itself
            await self._budgets.release(batch.tenant, submission.windows, _reservation(batch, submission))

    async def _end(self, held: Held, work: Work, stopping: tuple[str, str] | None) -> None:
        whole = work.batch.tally.answered == work.batch.total
        status = BatchStatus.COMPLETED
        if stopping is _CANCELLED:
            status = BatchStatus.CANCELLED
        elif stopping is _EXPIRED and not whole:
            status = BatchStatus.EXPIRED
        await self._store.end(held, status, self._clock.now())

    async def _chats(self, held: Held, indices: Sequence[int]) -> dict[int, Chat]:
        """What is sent for each item."""
        plans = await self._store.plans(held.ref, indices)
        items = await self._store.items(held.ref, indices)
        return {index: plans[index].chat or items[index].chat for index in indices}

    def _too_late(self, batch: Batch) -> bool:
        return self._clock.now() >= batch.expires_at + self._pace.overtime_s


async def _ended(*tasks: "asyncio.Future[Any]", again_s: float = CANCEL_AGAIN_S) -> None:
    """Cancels tasks until they have ended: once is not enough for what swallows a cancellation."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=again_s)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def replace_submission(work: Work, newer: Submission) -> Work:
    """The work with a newer state of one submission."""
    return replace(work, submissions=tuple(newer if s.id == newer.id else s for s in work.submissions))


def _add(known: Mapping[int, ItemFailure], more: Iterable[ItemFailure]) -> dict[int, ItemFailure]:
    """Failures by item, with what they cost in all."""
    found = dict(known)
    for failure in more:
        before = found[failure.index].wasted if failure.index in found else 0
        found[failure.index] = replace(failure, wasted=failure.wasted + before)
    return found


def _reservation(batch: Batch, submission: Submission) -> str:
    return f"{batch.id}-{submission.id}"
