"""Answers in the making, each shared by all in this process who ask the same at the same time.

A flight has one leader, whose request makes the answer, and any number of followers. It keeps its pieces, so that whoever
comes late gets all of them, in order. When a leader fails, another one may start over: a follower goes on without noticing as
long as the new text begins with what it was given.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass

from services.common.chat import Answer, Delta, ReasoningDelta, TextDelta, ToolCallDelta
from services.common.deadline import remaining
from services.common.errors import DeadlineExceeded, MeshError, StreamCut
from services.common.money import Usage
from services.edge.domain.ports import Lease
from services.edge.domain.trip import Began, Completed, Trip


@dataclass(frozen=True, slots=True)
class Landing:
    """A shared answer. `usage` is what it takes without our tricks; `entry_id` is empty when it was not stored.

    `budget_notice` as in Receipt: whose soft budget it was does not matter to what was answered.
    """

    answer: Answer
    usage: Usage
    model: str
    tier: str
    entry_id: str
    budget_notice: str = ""


class StartedOver:
    """Among the pieces: what follows is the whole answer once more, by another leader."""


Piece = Began | Delta


class Seat:
    """One request that waits for a flight's answer."""

    def __init__(self, trip: Trip, flight: "Flight", *, streaming: bool, leads: bool) -> None:
        self.trip = trip
        self.flight = flight
        self.streaming = streaming
        self.leads = leads
        self.context: Context = copy_context()  # its deadline and trace, should it come to lead
        left = remaining(keep=0)
        self.until = math.inf if left is None else asyncio.get_running_loop().time() + left
        self.own: Completed | None = None  # of a leader: its answer, with the bill
        self.error: BaseException | None = None
        self._ended = asyncio.Event()
        self._pieces = flight.pieces

    def end(self) -> None:
        """Wakes who waits for the end."""
        self._ended.set()

    async def landing(self) -> Landing | None:
        """The whole answer once it is there; None when the flight turned back. Raises what ended the flight for this seat."""
        await _wait(self._ended)
        return self._result()

    async def pieces(self) -> AsyncGenerator[Piece | StartedOver]:
        """All pieces as they come. Raises what ended the flight for this seat, or DeadlineExceeded."""
        flight = self.flight
        pieces, position = self._pieces, 0
        while True:
            if self.error is None and pieces is not flight.pieces:
                pieces, position = flight.pieces, 0
                yield StartedOver()
            elif position < len(pieces):
                position += 1
                yield pieces[position - 1]
            elif self._ended.is_set():
                self._result()
                return
            else:
                await _wait(flight.moved)

    def _result(self) -> Landing | None:
        if self.error is not None:
            raise self.error
        if self.flight.error is not None:
            raise _again(self.flight.error)
        return self.flight.landing


class Flight:
    """One answer in the making. Everything here happens at once: nothing waits."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.pieces: list[Piece] = []
        self.moved = asyncio.Event()
        self.landing: Landing | None = None
        self.error: BaseException | None = None
        self.over = False
        self.turned_back = False
        self.started_over = False
        self.lease: Lease | None = None  # while this process generates under it
        self.holder = ""
        self.abandoned: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.landed_at = 0
        self._seats: dict[Seat, None] = {}

    @property
    def aboard(self) -> int:
        """How many wait."""
        return len(self._seats)

    @property
    def streaming(self) -> bool:
        """Whether somebody wants the pieces as they come."""
        return any(seat.streaming for seat in self._seats)

    @property
    def patience(self) -> float | None:
        """Seconds until the last one who waits gives up; None for never."""
        last = max((seat.until for seat in self._seats), default=math.inf)
        return None if last == math.inf else last - asyncio.get_running_loop().time()

    def take_seat(self, trip: Trip, *, streaming: bool, leads: bool) -> Seat:
        """One more who waits; on a flight that is over, it has waited already."""
        seat = Seat(trip, self, streaming=streaming, leads=leads)
        if self.over:
            seat.end()
        else:
            self._seats[seat] = None
        return seat

    def has(self, seat: Seat) -> bool:
        """Whether it still waits."""
        return seat in self._seats

    def leave(self, seat: Seat) -> None:
        """It waits no longer."""
        self._seats.pop(seat, None)

    def add(self, piece: Piece) -> None:
        """The next piece, for everybody."""
        self.pieces.append(piece)
        self.wake()

    def start_over(self) -> None:
        """What comes now is the whole answer once more."""
        if self.pieces:
            self.pieces = []
            self.wake()

    def pass_on(self, leader: Seat, error: BaseException) -> Seat | None:
        """The leader failed: ends it for this one alone and names its heir, if there is one and none came to lead before."""
        leader.error = error
        heir = next((seat for seat in self._seats if not seat.leads), None)
        if heir is None or self.started_over:
            return None
        self.leave(leader)
        leader.end()
        self.started_over = True
        heir.leads = True
        self.start_over()
        self.wake()
        return heir

    def end(self) -> None:
        """Nothing more comes: `landing`, `error` or `turned_back` is set."""
        self.over = True
        for seat in self._seats:
            seat.end()
        self._seats.clear()
        self.wake()

    def wake(self) -> None:
        """For all who wait for a piece."""
        self.moved.set()
        self.moved = asyncio.Event()


class Flights:
    """The flights of this process by exact key.

    A request whose lookup missed may arrive here just after its answer has landed. It asked before that, so it is served by
    the flight: those that landed are kept as long as a lookup is under way that began before. Time is a count of events.
    """

    def __init__(self) -> None:
        self._aloft: dict[bytes, Flight] = {}
        self._landed: dict[bytes, Flight] = {}
        self._order: deque[Flight] = deque()
        self._asking: dict[int, None] = {}
        self._time = 0

    @contextmanager
    def ask(self) -> Iterator[int]:
        """Around a lookup and the boarding after it: gives the time at which it began."""
        self._sweep()
        self._time += 1
        began = self._time
        self._asking[began] = None
        try:
            yield began
        finally:
            del self._asking[began]

    def board(self, trip: Trip, asked_at: int, *, streaming: bool) -> Seat:
        """A seat on the flight of the trip's key; on a new one, which it leads, where there is none."""
        landed = self._landed.get(trip.key)
        if landed is not None and landed.landed_at > asked_at:
            return landed.take_seat(trip, streaming=streaming, leads=False)
        flight = self._aloft.get(trip.key)
        if flight is not None:
            return flight.take_seat(trip, streaming=streaming, leads=False)
        flight = self._aloft[trip.key] = Flight(trip.key)
        return flight.take_seat(trip, streaming=streaming, leads=True)

    def land(self, flight: Flight, leader: Seat, own: Completed, landing: Landing) -> None:
        """The answer is complete."""
        leader.own, flight.landing = own, landing
        self._close(flight)
        self._time += 1
        flight.landed_at = self._time
        self._landed[flight.key] = flight
        self._order.append(flight)
        self._sweep()

    def turn_back(self, flight: Flight) -> None:
        """Nothing is generated: the leader found a stored answer, which the others can find too, or it had no money for one."""
        flight.turned_back = True
        self._close(flight)

    def fail(self, flight: Flight, error: BaseException) -> None:
        """There is no answer."""
        flight.error = error
        self._close(flight)

    def abandon(self, flight: Flight, reason: BaseException) -> None:
        """Nobody waits any more."""
        flight.abandoned = reason
        self._forget(flight)
        if flight.task is not None:
            flight.task.cancel()

    def _close(self, flight: Flight) -> None:
        self._forget(flight)
        flight.end()

    def _forget(self, flight: Flight) -> None:
        if self._aloft.get(flight.key) is flight:
            del self._aloft[flight.key]

    def _sweep(self) -> None:
        oldest = next(iter(self._asking), self._time + 1)
        while self._order and self._order[0].landed_at < oldest:
            flight = self._order.popleft()
            if self._landed.get(flight.key) is flight:
                del self._landed[flight.key]


class Delivered:
    """What a stream's caller was given, and what it still has to get when the answer is started over."""

    def __init__(self) -> None:
        self._pieces: list[Delta] = []
        self._due: dict[tuple[str | int, ...], str] = {}

    def start_over(self) -> None:
        """The answer comes once more: it has to begin with what was given."""
        self._due = {}
        for piece in self._pieces:
            for channel, text in _texts(piece):
                self._due[channel] = self._due.get(channel, "") + text

    def take(self, piece: Delta) -> Delta | None:
        """What of a piece is new, None for nothing. Raises StreamCut where it departs from what was given."""
        rest: Delta | None = piece
        if self._due:
            texts = {channel[-1]: self._beyond(channel, text) for channel, text in _texts(piece)}
            rest = _made_of(piece, texts) if any(texts.values()) else None
        if rest is not None:
            self._pieces.append(rest)
        return rest

    def finish(self) -> None:
        """The answer is complete. Raises StreamCut where it is shorter than what was given."""
        if any(self._due.values()):
            raise _departed()

    def _beyond(self, channel: tuple[str | int, ...], text: str) -> str:
        due = self._due.get(channel, "")
        known = min(len(due), len(text))
        if due[:known] != text[:known]:
            raise _departed()
        self._due[channel] = due[known:]
        return text[known:]


def _texts(piece: Delta) -> tuple[tuple[tuple[str | int, ...], str], ...]:
    """The texts that a piece adds to, each by a name."""
    match piece:
        case TextDelta(text):
            return ((("text",), text),)
        case ReasoningDelta(text):
            return ((("reasoning",), text),)
        case ToolCallDelta(index, id_, name, arguments):
            return (((index, "id"), id_), ((index, "name"), name), ((index, "arguments"), arguments))


def _made_of(piece: Delta, texts: dict[str | int, str]) -> Delta:
    match piece:
        case TextDelta():
            return TextDelta(texts["text"])
        case ReasoningDelta():
            return ReasoningDelta(texts["reasoning"])
        case ToolCallDelta(index):
            return ToolCallDelta(index, texts["id"], texts["name"], texts["arguments"])


def _departed() -> StreamCut:
    return StreamCut("the answer broke off, and was made again in other words")


def _again(error: BaseException) -> MeshError:
    """A leader's error for a follower: another object, since it is raised elsewhere, and without what the leader paid."""
    kind = type(error) if isinstance(error, MeshError) else MeshError
    copy = kind.__new__(kind)
    if not isinstance(error, MeshError):
        MeshError.__init__(copy, "an internal error occurred; its trace id finds it in the log")
        return copy
    metadata = {name: value for name, value in error.metadata.items() if name != "wasted_nanousd"}
    MeshError.__init__(
        copy, error.message, violations=error.violations, retry_after_s=error.retry_after_s, metadata=metadata
    )
    return copy


async def _wait(event: asyncio.Event) -> None:
    """Until the event, or this request's deadline: then raises DeadlineExceeded."""
    try:
        # Less than what is kept where the answer is made: whoever knows better what went wrong, and at what cost, says so first.
        async with asyncio.timeout(remaining(keep=0.03)):
            await event.wait()
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the answer was complete") from None
