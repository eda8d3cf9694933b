"""OpenAI's Batch API, through the official SDK: a file of requests goes up, files of answers and of errors come down."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import httpx2
import openai
from openai.types import Batch
from openai.types.chat import ChatCompletion

from services.common.chat import AnswerBuilder
from services.provider.adapters import wire
from services.provider.adapters.jsonl import objects_of
from services.provider.adapters.openai import OpenAI, request_of
from services.provider.domain.batch import (
    MARK,
    Answered,
    BatchState,
    Failed,
    Sought,
    Submission,
    Submitted,
    TooLateError,
    failure_of,
)
from services.provider.domain.vendor import Completion, Reason, VendorError

_ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
_TIMEOUT = openai.Timeout(60.0, connect=5.0)
_UPLOAD_TIMEOUT = openai.Timeout(300.0, connect=5.0)
_SKEW_S = 300  # between our clock and the vendor's
_KEPT_S = 30 * 86_400  # then the vendor removes what we sent
_STATES = {
    "completed": BatchState.COMPLETED,
    "expired": BatchState.EXPIRED,
    "cancelled": BatchState.CANCELLED,
    "failed": BatchState.FAILED,
}
_UNDONE = {
    "batch_expired": (Reason.DEADLINE, "the vendor's time for the batch passed"),
    "batch_cancelled": (Reason.UNAVAILABLE, "the vendor ended the batch before it came to this item"),
}


class OpenAIBatch(OpenAI):
    """A vendor with both ways: calls, and batches of them."""

    async def submit(self, submission: Submission) -> Submitted:
        lines: list[bytes] = []
        refused: list[Failed] = []
        for item in submission.items:
            try:
                body = request_of(item.chat, self._output_limit_field) | {"model": submission.model}
                line = {"custom_id": item.name, "method": "POST", "url": _ENDPOINT, "body": body}
                lines.append(json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            except VendorError as error:
                refused.append(failure_of(item.name, error))
            except (ValueError, RecursionError):
                refused.append(Failed(item.name, Reason.INVALID_INPUT, "cannot be written as JSON"))
        if not lines:
            return Submitted("", tuple(refused))
        content = b"".join(lines)
        try:
            # A file is no batch: one that nobody refers to costs nothing, and goes by itself.
            file = await self._client.files.create(
                file=(f"{submission.id}.jsonl", content, "application/jsonl"),
                purpose="batch",
                expires_after={"anchor": "created_at", "seconds": _KEPT_S},
                timeout=_UPLOAD_TIMEOUT,
            )
            uploaded = wire.text(file.id)
        except openai.APIConnectionError as error:
            # Nothing was submitted yet: no doubt about that.
            raise VendorError(Reason.RATE_LIMITED, f"{self._name} did not take the batch's file") from error
        except openai.OpenAIError as error:
            named = self._vendor_error(error)
            reason = Reason.RATE_LIMITED if named.reason is Reason.UNAVAILABLE else named.reason
            raise VendorError(reason, named.message, retry_after_s=named.retry_after_s) from error
        except wire.NONSENSE as error:
            raise VendorError(Reason.RATE_LIMITED, f"{self._name} did not take the batch's file") from error
        if submission.too_late():
            raise TooLateError
        try:
            batch = await self._client.batches.create(
                completion_window="24h",
                endpoint=_ENDPOINT,
                input_file_id=uploaded,
                metadata={MARK: submission.id},
                timeout=_TIMEOUT,
            )
            return Submitted(_named(batch), tuple(refused))
        except openai.OpenAIError as error:
            raise self._vendor_error(error) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error

    async def find(self, sought: Sought) -> str | None:
        try:
            # The newest come first.
            async for batch in self._client.batches.list(limit=100, timeout=_TIMEOUT):
                if batch.created_at < sought.since - _SKEW_S:
                    return None
                if (batch.metadata or {}).get(MARK) == sought.id:
                    return _named(batch)
        except openai.OpenAIError as error:
            raise self._vendor_error(error) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error
        return None

    async def poll(self, batch_id: str) -> tuple[BatchState, int]:
        batch = await self._batch(batch_id)
        if batch is None:
            return BatchState.GONE, 0
        counts = batch.request_counts
        done = (wire.count(counts, "completed") or 0) + (wire.count(counts, "failed") or 0)
        return _STATES.get(batch.status, BatchState.RUNNING), done

    async def results(self, batch_id: str) -> AsyncGenerator[Answered | Failed]:
        batch = await self._batch(batch_id)
        if batch is None:
            return
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                async with aclosing(self._lines(file_id)) as lines:
                    async for line in lines:
                        if isinstance(name := line.get("custom_id"), str):
                            yield self._result(name, line)
        at_fault = {error.line: error.code for error in (batch.errors and batch.errors.data) or () if error.line}
        if batch.status == "failed" and at_fault:
            number = 0
            async with aclosing(self._lines(batch.input_file_id)) as lines:
                async for line in lines:
                    number += 1
                    if number in at_fault and isinstance(name := line.get("custom_id"), str):
                        why = f"{self._name} refused it{wire.identifier(at_fault[number])}"
                        yield Failed(name, Reason.REJECTED, why)

    async def cancel(self, batch_id: str) -> None:
        try:
            await self._client.batches.cancel(batch_id, timeout=_TIMEOUT)
        except (openai.NotFoundError, openai.ConflictError, openai.BadRequestError):
            return  # it has ended
        except openai.OpenAIError as error:
            raise self._vendor_error(error) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error

    async def _batch(self, batch_id: str) -> Batch | None:
        try:
            batch = await self._client.batches.retrieve(batch_id, timeout=_TIMEOUT)
            return batch if _named(batch) else None
        except openai.NotFoundError:
            return None
        except openai.OpenAIError as error:
            raise self._vendor_error(error) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error

    async def _lines(self, file_id: str) -> AsyncGenerator[dict[str, Any]]:
        """The objects of a file. A file that breaks off is an error, not a shorter one."""
        try:
            async with self._client.files.with_streaming_response.content(file_id, timeout=_UPLOAD_TIMEOUT) as response:
                async for line in objects_of(response.iter_bytes()):
                    yield line
        except openai.OpenAIError as error:
            raise self._vendor_error(error) from error
        except httpx2.HTTPError as error:
            timed_out = isinstance(error, httpx2.TimeoutException)
            raise wire.unreachable(self._name, timed_out=timed_out, billed=False) from error
        except wire.NONSENSE as error:
            raise wire.nonsense(self._name) from error

    def _result(self, name: str, line: dict[str, Any]) -> Answered | Failed:
        """One line of an output or error file."""
        response, error = line.get("response"), line.get("error")
        try:
            if isinstance(response, dict):
                status, body = response.get("status_code"), response.get("body")
                if status == 200 and isinstance(body, dict):
                    return self._answered(name, body)
                if isinstance(status, int) and status >= 400:
                    said = body.get("error") if isinstance(body, dict) else None
                    said = said if isinstance(said, dict) else {}
                    code = said.get("code") if wire.identifier(said.get("code")) else said.get("type")
                    too_long = said.get("code") == "context_length_exceeded"
                    return failure_of(name, wire.refused(self._name, status, code, {}, too_long=too_long))
            if isinstance(error, dict):
                code = error.get("code")
                if isinstance(code, str) and code in _UNDONE:
                    return Failed(name, *_UNDONE[code])
                return Failed(name, Reason.UNAVAILABLE, f"{self._name} failed on it{wire.identifier(code)}")
        except VendorError as failed:
            return failure_of(name, failed)
        except wire.NONSENSE:
            pass
        return failure_of(name, wire.nonsense(self._name))

    def _answered(self, name: str, body: dict[str, Any]) -> Answered:
        builder = AnswerBuilder()
        completion: Completion | None = None
        for event in self._events_of(ChatCompletion.construct(**body)):
            if isinstance(event, Completion):
                completion = event
            else:
                builder.add(event)
        if completion is None:
            raise wire.nonsense(self._name)
        return Answered(name, builder.build(completion.finish_reason), completion.usage)


def _named(batch: Batch) -> str:
    """The id of what should be a batch. Raises ValueError."""
    if not isinstance(batch, Batch) or not wire.identifier(batch.id):
        raise ValueError("not a batch")
    return batch.id
