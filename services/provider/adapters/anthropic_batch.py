"""Anthropic's Message Batches API, through the official SDK.

A batch there has no metadata. What tells whose it is, are the names of its items, which are shown with the results alone: so
whether a submission arrived cannot be told while a batch that may be it is at work.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import datetime
from typing import Any

import anthropic
import httpx2
from anthropic.types import Message as Answer
from anthropic.types.messages import MessageBatch

from services.common.chat import AnswerBuilder
from services.provider.adapters import wire
from services.provider.adapters.anthropic import _STATUS, _TOO_LONG, Anthropic
from services.provider.adapters.anthropic_request import request_of
from services.provider.adapters.jsonl import objects_of
from services.provider.domain.batch import (
    Answered,
    BatchState,
    CannotTellError,
    Failed,
    Sought,
    Submission,
    Submitted,
    TooLateError,
    belongs,
    failure_of,
)
from services.provider.domain.prompt_cache import NO_HINTS
from services.provider.domain.vendor import Completion, Reason, VendorError

_TIMEOUT = anthropic.Timeout(60.0, connect=5.0)
_FILE_TIMEOUT = anthropic.Timeout(300.0, connect=5.0)
_SKEW_S = 300  # between our clock and the vendor's
_UNDONE = {
    "expired": (Reason.DEADLINE, "the vendor's time for the batch passed"),
    "canceled": (Reason.UNAVAILABLE, "the vendor ended the batch before it came to this item"),
}


class AnthropicBatch(Anthropic):
    """A vendor with both ways: calls, and batches of them."""

    async def submit(self, submission: Submission) -> Submitted:
        requests: list[Any] = []
        refused: list[Failed] = []
        for item in submission.items:
            try:
                params = request_of(submission.model, item.chat, NO_HINTS)
                requests.append({"custom_id": item.name, "params": params})
            except VendorError as error:
                refused.append(failure_of(item.name, error))
            except (ValueError, RecursionError):
                refused.append(Failed(item.name, Reason.INVALID_INPUT, "cannot be written as JSON"))
        if not requests:
            return Submitted("", tuple(refused))
        if submission.too_late():
            raise TooLateError
        try:
            batch = await self._client.messages.batches.create(requests=requests, timeout=_TIMEOUT)
            return Submitted(_named(batch), tuple(refused))
        except anthropic.AnthropicError as error:
            raise self._error(error) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error

    async def find(self, sought: Sought) -> str | None:
        at_work = False
        try:
            # The newest come first.
            async for batch in self._client.messages.batches.list(limit=100, timeout=_TIMEOUT):
                created = _seconds(batch.created_at)
                if created < sought.since - _SKEW_S:
                    break
                if created > sought.until + _SKEW_S or _size(batch) > sought.items:
                    continue
                if batch.processing_status != "ended":
                    at_work = True
                elif belongs(await self._first_name(batch), sought.id):
                    return _named(batch)
        except anthropic.AnthropicError as error:
            raise self._error(error) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error
        if at_work:
            raise CannotTellError
        return None

    async def poll(self, batch_id: str) -> tuple[BatchState, int]:
        batch = await self._batch(batch_id)
        if batch is None or batch.archived_at:
            return BatchState.GONE, 0
        counts = batch.request_counts
        done = _size(batch) - (wire.count(counts, "processing") or 0)
        if batch.processing_status != "ended":
            return BatchState.RUNNING, done
        if wire.count(counts, "canceled"):
            return BatchState.CANCELLED, done
        return (BatchState.EXPIRED if wire.count(counts, "expired") else BatchState.COMPLETED), done

    async def results(self, batch_id: str) -> AsyncGenerator[Answered | Failed]:
        async with aclosing(self._lines(batch_id)) as lines:
            async for line in lines:
                if isinstance(name := line.get("custom_id"), str):
                    yield self._result(name, line.get("result"))

    async def cancel(self, batch_id: str) -> None:
        try:
            await self._client.messages.batches.cancel(batch_id, timeout=_TIMEOUT)
        except (anthropic.NotFoundError, anthropic.ConflictError, anthropic.BadRequestError):
            return  # it has ended
        except anthropic.AnthropicError as error:
            raise self._error(error) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error

    async def _batch(self, batch_id: str) -> MessageBatch | None:
        try:
            batch = await self._client.messages.batches.retrieve(batch_id, timeout=_TIMEOUT)
            return batch if _named(batch) else None
        except anthropic.NotFoundError:
            return None
        except anthropic.AnthropicError as error:
            raise self._error(error) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error

    async def _lines(self, batch_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The results' objects. Results that break off are an error, not fewer ones."""
        try:
            decoder = await self._client.messages.batches.results(batch_id, timeout=_FILE_TIMEOUT)
            try:
                async for line in objects_of(decoder.http_response.aiter_bytes()):
                    yield line
            finally:
                await decoder.close()
        except anthropic.AnthropicError as error:
            raise self._error(error) from error
        except httpx2.HTTPError as error:
            timed_out = isinstance(error, httpx2.TimeoutException)
            raise wire.unreachable(self._name, timed_out=timed_out, billed=False) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error

    async def _first_name(self, batch: MessageBatch) -> object:
        """What one of the items is called; None where the vendor does not show results any more."""
        if not batch.results_url:
            return None
        async with aclosing(self._lines(batch.id)) as lines:
            async for line in lines:
                return line.get("custom_id")
        return None

    def _result(self, name: str, result: object) -> Answered | Failed:
        try:
            match result:
                case {"type": "succeeded", "message": dict(message)}:
                    return self._answered(name, message)
                case {"type": "errored", "error": {"error": {"type": kind, **rest}}}:
                    status = _STATUS.get(kind, 500) if isinstance(kind, str) else 500
                    too_long = status == 413 or bool(_TOO_LONG.search(str(rest.get("message"))))
                    return failure_of(name, wire.refused(self._name, status, kind, {}, too_long=too_long))
                case {"type": str(kind)} if kind in _UNDONE:
                    return Failed(name, *_UNDONE[kind])
        except VendorError as failed:
            return failure_of(name, failed)
        except wire.NONSENSE:
            pass
        return failure_of(name, wire.nonsense(self._name))

    def _answered(self, name: str, message: dict[str, Any]) -> Answered:
        builder = AnswerBuilder()
        completion: Completion | None = None
        for event in self._events_of(Answer.construct(**message)):
            if isinstance(event, Completion):
                completion = event
            else:
                builder.add(event)
        if completion is None:
            raise wire.nonsense(self._name)
        return Answered(name, builder.build(completion.finish_reason), completion.usage)

    def _error(self, error: anthropic.AnthropicError) -> VendorError:
        if isinstance(error, anthropic.APIStatusError):
            return self._refused(error, billed=False)
        if isinstance(error, anthropic.APIConnectionError):
            timed_out = isinstance(error, anthropic.APITimeoutError)
            return wire.unreachable(self._name, timed_out=timed_out, billed=False)
        return wire.nonsense(self._name)


def _named(batch: MessageBatch) -> str:
    """The id of what should be a batch. Raises ValueError."""
    if not isinstance(batch, MessageBatch) or not wire.identifier(batch.id):
        raise ValueError("not a batch")
    return batch.id


def _size(batch: MessageBatch) -> int:
    """How many items it has."""
    names = ("processing", "succeeded", "errored", "canceled", "expired")
    return sum(wire.count(batch.request_counts, name) or 0 for name in names)


def _seconds(value: object) -> float:
    """Seconds since the Unix epoch. Raises TypeError or ValueError."""
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime):
        raise TypeError("not a time")
    return value.timestamp()
