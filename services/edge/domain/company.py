"""Identical requests at the same time cost one generation: within this process by flights, between replicas by leases.

Whoever asks first here leads a flight. It takes the lease of the request and generates, or follows the tokens of the replica
that has the lease; all who sit in its flight get what it gets. The flight is a task of its own, so that it goes on for the
others when its leader's caller leaves.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress

from services.common.chat import AnswerBuilder, Delta, deltas_of
from services.common.deadline import set_remaining
from services.common.errors import BudgetExceeded, FailedPrecondition, MeshError
from services.edge.domain.flights import Delivered, Flight, Flights, Landing, Seat, StartedOver
from services.edge.domain.ports import AnswerEnd, Lease, Leases
from services.edge.domain.steps import Steps, plain
from services.edge.domain.trip import Began, Completed, Ended, Event, Trip

BATCH_S = 0.1  # how long pieces for other replicas are gathered
KEEP_S = 1.5  # how often the lease is kept; well within its lifetime
HANDED_IN_S = 0.5  # how long an answer that is not stored waits until its lease is given up
LEADERS = 3  # how many leaders elsewhere may be lost before this replica goes its own way
YOUNG_S = 15.0  # an answer that is shared is never older


class Company:
    """Who asks the same at the same time."""

    def __init__(self, steps: Steps, leases: Leases, on_degraded: Callable[[str, MeshError], None]) -> None:
        self._steps = steps
        self._leases = leases
        self._on_degraded = on_degraded
        self._flights = Flights()
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop itself holds them weakly

    def ask(self) -> AbstractContextManager[int]:
        """Around an exact lookup and the boarding after it; gives the time at which the lookup began."""
        return self._flights.ask()

    def board(self, trip: Trip, asked_at: int, *, streaming: bool) -> Seat | None:
        """A seat for a request whose exact lookup missed; None when its answer is for itself alone."""
        if not _shareable(trip):
            return None
        seat = self._flights.board(trip, asked_at, streaming=streaming)
        if seat.leads:
            self._fly(seat)
        else:
            trip.outcome = "coalesced"
        return seat

    async def complete(self, seat: Seat) -> Completed | None:
        """The whole answer; None when a stored one can be found by now. Raises MeshError."""
        with self._aboard(seat):
            landing = await seat.landing()
        return self._told(seat, landing)

    async def stream(self, seat: Seat) -> AsyncGenerator[Event, None]:
        """The answer as it comes; nothing when a stored one can be found by now. Raises MeshError."""
        began, delivered = False, Delivered()
        trip, flight = seat.trip, seat.flight
        with self._aboard(seat):
            async with aclosing(seat.pieces()) as pieces:
                async for piece in pieces:
                    if isinstance(piece, StartedOver):
                        delivered.start_over()
                        continue
                    if not began:
                        began = True
                        known = piece.receipt if isinstance(piece, Began) else flight.landing
                        yield Began(trip.receipt(known.model, known.tier) if known else trip.receipt("", ""))
                    if not isinstance(piece, Began):
                        rest = delivered.take(piece)
                        if rest is not None:
                            yield rest
            delivered.finish()
            landing = await seat.landing()
        done = self._told(seat, landing)
        if done is None:
            return
        if not began:
            yield Began(done.receipt)
            for delta in deltas_of(done.answer):
                yield delta
        yield Ended(done.answer.finish_reason, done.usage, done.receipt)

    async def close(self) -> None:
        """Gives what is being handed to other replicas a moment, and ends it."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=HANDED_IN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _told(self, seat: Seat, landing: Landing | None) -> Completed | None:
        if seat.own is not None:
            return seat.own
        if landing is None:
            seat.trip.outcome = "miss"
            return None
        return self._steps.settle_shared(seat.trip, landing)

    @contextmanager
    def _aboard(self, seat: Seat) -> Iterator[None]:
        reason: BaseException = asyncio.CancelledError()
        try:
            yield
        except BaseException as error:
            reason = error
            raise
        finally:
            self._leave(seat, reason)

    def _leave(self, seat: Seat, reason: BaseException) -> None:
        """A caller is gone. The flight goes on while somebody waits for it, here or elsewhere."""
        flight = seat.flight
        flight.leave(seat)
        if flight.over or flight.aboard:
            return
        if flight.lease is None:
            self._flights.abandon(flight, reason)
        else:
            self._spawn(self._wind_down(flight, seat.trip, reason))

    async def _wind_down(self, flight: Flight, trip: Trip, reason: BaseException) -> None:
        """Nobody here waits for a flight that has the lease: it ends once nobody elsewhere follows either."""
        set_remaining(None)  # who left may have left because time was up
        while not (flight.over or flight.aboard):
            if flight.lease is None or not await self._followed(flight, trip):
                break
            await asyncio.sleep(KEEP_S)
        if not (flight.over or flight.aboard):
            self._flights.abandon(flight, reason)

    async def _followed(self, flight: Flight, trip: Trip) -> bool:
        try:
            lease = await self._leases.acquire(trip.question, flight.key, flight.holder, keep_only=True)
        except MeshError:
            return False
        return lease.acquired and lease.followed

    def _fly(self, leader: Seat) -> None:
        leader.leads = leader.trip.led = True
        leader.trip.outcome = "miss"
        flight = leader.flight
        flight.task = self._spawn(self._flying(flight, leader), leader)

    async def _flying(self, flight: Flight, leader: Seat) -> None:
        """Until the flight is over. Its leader's trip is settled here, whether or not its caller still waits."""
        try:
            await self._lead(flight, leader)
        except BaseException as error:
            named = flight.abandoned or error
            heard = flight.has(leader)
            await self._steps.settle_failure(leader.trip, named)
            # What is wrong with this very question would be wrong with the next one's, too.
            heir = flight.pass_on(leader, named) if isinstance(named, MeshError) and named.retryable else None
            if isinstance(named, BudgetExceeded) and not flight.started_over:
                # Each of the others has budgets of its own, by endpoint and user.
                leader.error = named
                self._flights.turn_back(flight)
            elif heir is None:
                leader.error = named
                self._flights.fail(flight, named)
            else:
                _inherit(heir.trip, leader.trip)
                self._fly(heir)
            if flight.abandoned is None and not heard and not isinstance(error, MeshError):
                raise  # nobody else would log it

    async def _lead(self, flight: Flight, leader: Seat) -> None:
        trip = leader.trip
        if not flight.started_over:
            found = await self._steps.find_semantic(trip)
            if found is not None and found.answer is not None:
                usage, receipt = self._steps.settle_hit(trip, found)
                leader.own = Completed(found.answer, usage, receipt)
                self._flights.turn_back(flight)
                return
        flight.holder = trip.record_id
        for _ in range(LEADERS):
            set_remaining(flight.patience)
            lease = await self._acquire(flight, trip)
            if lease is None or lease.acquired:
                break
            landing = await self._follow(flight, trip)
            if landing is not None:
                self._flights.land(flight, leader, self._steps.settle_shared(trip, landing), landing)
                return
        trip.outcome = "miss"
        flight.start_over()
        await self._generate(flight, leader, lease if lease is not None and lease.acquired else None)

    async def _generate(self, flight: Flight, leader: Seat, lease: Lease | None) -> None:
        """The answer, for all who sit here and, with the lease, for those who follow elsewhere."""
        trip = leader.trip
        turn = _Turn(flight)
        flight.lease = lease
        publishing = self._spawn(self._publish(trip, flight.key, lease, turn)) if lease is not None else None
        try:
            if flight.streaming:
                done = await self._generate_live(flight, trip)
            else:
                done = await self._steps.generate(trip)
                for piece in (Began(done.receipt), *deltas_of(done.answer)):
                    flight.add(piece)
            receipt = done.receipt
            landing = Landing(
                done.answer,
                plain(trip, done.usage),
                receipt.model,
                receipt.tier,
                receipt.entry_id,
                receipt.budget_notice,
            )
            turn.end(landing)
        finally:
            flight.lease = None
            turn.end(None)
        if publishing is not None and not landing.entry_id:
            # Who asks for it from now on must not be led to an answer that is not to be kept.
            await asyncio.wait({publishing}, timeout=HANDED_IN_S)
        self._flights.land(flight, leader, done, landing)

    async def _generate_live(self, flight: Flight, trip: Trip) -> Completed:
        builder = AnswerBuilder()
        async with aclosing(self._steps.generate_stream(trip)) as events:
            async for event in events:
                match event:
                    case Ended(reason, usage, receipt):
                        return Completed(builder.build(reason), usage, receipt)
                    case Began():
                        flight.add(event)
                    case _:
                        builder.add(event)
                        flight.add(event)
        raise AssertionError("an answer ends with Ended or an error")

    async def _acquire(self, flight: Flight, trip: Trip) -> Lease | None:
        """The lease, or somebody else's; None when leases cannot be asked for."""
        try:
            return await self._leases.acquire(trip.question, flight.key, flight.holder)
        except MeshError as error:
            self._on_degraded("leases", error)
            return None

    async def _follow(self, flight: Flight, trip: Trip) -> Landing | None:
        """The answer that another replica makes; None when its leader is gone."""
        trip.outcome = "coalesced"
        flight.start_over()
        builder = AnswerBuilder()
        try:
            async with aclosing(self._leases.follow(trip.question, flight.key)) as events:
                async for event in events:
                    if isinstance(event, AnswerEnd):
                        answer = builder.build(event.finish_reason)
                        return Landing(answer, event.usage, event.model, event.tier, event.entry_id)
                    builder.add(event)
                    flight.add(event)
        except MeshError as error:
            self._on_degraded("leases", error)
        return None

    async def _publish(self, trip: Trip, key: bytes, lease: Lease, turn: "_Turn") -> None:
        try:
            async with aclosing(turn.batches()) as batches:
                await self._leases.publish(trip.question, key, lease.token, batches)
        except FailedPrecondition:
            return  # somebody else took over: this answer is for those who sit here
        except MeshError as error:
            self._on_degraded("leases", error)

    def _spawn(self, work: Coroutine[object, object, None], seat: Seat | None = None) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=None if seat is None else seat.context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


class _Turn:
    """One leader's answer on its way to other replicas."""

    def __init__(self, flight: Flight) -> None:
        self._flight = flight
        self._pieces = flight.pieces
        self._over = asyncio.Event()
        self._landing: Landing | None = None

    def end(self, landing: Landing | None) -> None:
        """Nothing more comes; without a landing there is no answer. Only the first call counts."""
        if not self._over.is_set():
            self._landing = landing
            self._over.set()
            self._flight.wake()

    async def batches(self) -> AsyncGenerator[tuple[Delta, ...] | AnswerEnd]:
        """The pieces, those of a moment together; an empty batch now and then keeps the lease."""
        position = 0
        while True:
            over = self._over.is_set()
            fresh = tuple(piece for piece in self._pieces[position:] if not isinstance(piece, Began))
            position = len(self._pieces)
            if fresh or not over:
                yield fresh
            if over:
                if self._landing is not None:
                    yield _end_of(self._landing)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_S):
                    while position == len(self._pieces) and not self._over.is_set():
                        await self._flight.moved.wait()
            if position < len(self._pieces):
                with suppress(TimeoutError):
                    async with asyncio.timeout(BATCH_S):
                        await self._over.wait()


def _end_of(landing: Landing) -> AnswerEnd:
    return AnswerEnd(landing.answer.finish_reason, landing.usage, landing.model, landing.tier, landing.entry_id)


def _inherit(heir: Trip, leader: Trip) -> None:
    """What was found out about the question holds for the next one who asks it; what it cost is on the first one's record."""
    heir.vector, heir.lesson = leader.vector, leader.lesson
    heir.cache_reason, heir.similarity = leader.cache_reason, leader.similarity
    heir.namespace_version = leader.namespace_version


def _shareable(trip: Trip) -> bool:
    """Whether the answer may serve others who ask the same now: what the cache may not keep, they may not have either."""
    question, rules = trip.question, trip.rules
    age = question.control.max_age_s
    return (
        bool(trip.key)
        and trip.outcome == "miss"
        and not question.control.no_store
        and (rules.store_tool_calls or not question.chat.tools)
        and (not rules.per_user or bool(question.user))
        and (age is None or age >= YOUNG_S)
    )
