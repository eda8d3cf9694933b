"""The walk of a request: exact lookup, then in company with whoever asks the same now, or alone, to an answer."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from services.common.chat import deltas_of
from services.common.errors import MeshError
from services.edge.domain.company import Company
from services.edge.domain.ports import Leases, Question
from services.edge.domain.steps import Steps
from services.edge.domain.trip import Began, Completed, Ended, Event


class Walk:
    """Answers questions. One instance per process."""

    def __init__(self, steps: Steps, leases: Leases, on_degraded: Callable[[str, MeshError], None]) -> None:
        self._steps = steps
        self._company = Company(steps, leases, on_degraded)

    async def complete(self, question: Question) -> Completed:
        """The whole answer. Raises MeshError; whatever was spent until then is on record."""
        steps = self._steps
        trip = steps.start(question)
        try:
            with self._company.ask() as asked_at:
                found = await steps.find_exact(trip)
                seat = None if found else self._company.board(trip, asked_at, streaming=False)
            if seat is not None:
                done = await self._company.complete(seat)
                if done is not None:
                    return done
                found = await steps.find_exact(trip)
            found = found or await steps.find_semantic(trip)
            if found is not None and found.answer is not None:
                usage, receipt = steps.settle_hit(trip, found)
                return Completed(found.answer, usage, receipt)
            return await steps.generate(trip)
        except BaseException as error:
            if not trip.led:
                await steps.settle_failure(trip, error)
            raise

    async def stream(self, question: Question) -> AsyncGenerator[Event, None]:
        """The answer as it comes. Ends with Ended, or raises: a cut answer never looks finished."""
        steps = self._steps
        trip = steps.start(question)
        try:
            with self._company.ask() as asked_at:
                found = await steps.find_exact(trip)
                seat = None if found else self._company.board(trip, asked_at, streaming=True)
            if seat is not None:
                async with aclosing(self._company.stream(seat)) as shared:
                    event: Event | None = None
                    async for event in shared:
                        yield event
                if event is not None:
                    return
                found = await steps.find_exact(trip)
            found = found or await steps.find_semantic(trip)
            if found is not None and found.answer is not None:
                usage, receipt = steps.settle_hit(trip, found)
                yield Began(receipt)
                for piece in deltas_of(found.answer):
                    yield piece
                yield Ended(found.answer.finish_reason, usage, receipt)
                return
            # Closed with us, before the settling below: it knows what was streamed until then.
            async with aclosing(steps.generate_stream(trip)) as events:
                async for event in events:
                    yield event
        except BaseException as error:
            if not trip.led:
                await steps.settle_failure(trip, error)
            raise

    async def feedback(self, tenant: str, namespace: str, request_id: str, right: bool) -> bool:
        """Takes a caller's word on an answer; False when the cache did not give it. Raises MeshError."""
        return await self._steps.feedback(tenant, namespace, request_id, right)

    async def close(self) -> None:
        """Ends what runs in the background."""
        await self._company.close()
        await self._steps.close()
