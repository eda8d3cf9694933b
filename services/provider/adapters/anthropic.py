"""Anthropic's Messages API, through the official SDK."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import suppress

import anthropic
import httpx2
from anthropic.types import (
    ContentBlock,
    MessageDeltaUsage,
    RawContentBlockDeltaEvent,
    RawContentBlockStartEvent,
    RawMessageStreamEvent,
)
from anthropic.types import Message as Answer
from anthropic.types import Usage as ReportedUsage

from services.common.chat import Delta, FinishReason, ReasoningDelta, TextDelta, ToolCallDelta
from services.common.money import Usage
from services.provider.adapters import wire
from services.provider.adapters.anthropic_request import encoded
from services.provider.domain.prompt_cache import LONG_TTL_S, SHORT_TTL_S
from services.provider.domain.vendor import Call, Completion, Reason, VendorError

_PATH = "/v1/messages"
_MAX_BLOCKS = 1000
_DRAIN_S = 1.0
_FINISH = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "tool_use": FinishReason.TOOL_CALLS,
    "refusal": FinishReason.CONTENT_FILTER,
}
# What an error that comes inside a stream, after status 200, would have been as a response of its own.
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
# The only sign of it is the message, which is read here and never passed on.
_TOO_LONG = re.compile(r"prompt is too long|exceeds? (the )?context (limit|window)", re.IGNORECASE)
# The vendor had the whole request; what fails earlier is on no invoice.
_SENT = (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.DecodingError)


class Anthropic:
    """One vendor. The SDK never retries by itself: attempts are the plan's business.

    The key travels as the SDK sends it, as a bearer token. What a chat asks for and the API lacks is left out; see
    `anthropic_request`.
    """

    def __init__(self, name: str, *, base_url: str, api_key: str) -> None:
        """`base_url` is the address without the version."""
        self._name = name
        # Attempts have their spans already, and the vendor does not need to know our traces.
        self._client = anthropic.AsyncAnthropic(
            base_url=base_url, api_key=api_key, max_retries=0, open_telemetry={"traces": False, "propagation": False}
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        # Bytes, which the SDK sends as they are: what cannot be written is our caller's fault and not the vendor's.
        content = encoded(call)
        connect_s = wire.connect_timeout_s(call)
        timeout = anthropic.Timeout(call.timeout_s, connect=connect_s, pool=connect_s)
        reading: _StreamReading | None = None
        try:
            if not call.streaming:
                whole = await self._client.post(_PATH, content=content, cast_to=Answer, options={"timeout": timeout})
                for piece in self._events_of(whole):
                    yield piece
                return
            stream = await self._client.post(
                _PATH,
                content=content,
                cast_to=Answer,
                options={"timeout": timeout},
                stream=True,
                stream_cls=anthropic.AsyncStream[RawMessageStreamEvent],
            )
            reading = _StreamReading(call.model)
            async with stream:
                events = aiter(stream)
                async for event in events:
                    for delta in reading.read(event):
                        yield delta
                    if reading.stopped:
                        await _drain(events)
                        break
            if not reading.stopped:
                raise VendorError(Reason.CUT, f"{self._name} ended the answer before its end", billed=True)
            yield Completion(self._finish_reason(reading.reason), reading.usage, reading.model)
        except anthropic.APIStatusError as error:
            raise self._refused(error, billed=reading is not None and reading.begun) from error
        except anthropic.APIConnectionError as error:
            timed_out = isinstance(error, anthropic.APITimeoutError)
            raise wire.unreachable(
                self._name, timed_out=timed_out, billed=isinstance(error.__cause__, _SENT)
            ) from error
        except httpx2.HTTPError as error:
            # The SDK hands on as it is what breaks while the body is read.
            timed_out = isinstance(error, httpx2.TimeoutException)
            raise wire.unreachable(self._name, timed_out=timed_out, billed=True) from error
        except (anthropic.AnthropicError, *wire.NONSENSE) as error:
            # What is not the documented shape: JSON that does not parse, fields of another type.
            raise wire.nonsense(self._name) from error

    def _events_of(self, whole: Answer) -> list[Delta | Completion]:
        """All of the answer, or an error before the first piece of it: then another candidate may take over."""
        # Without strict validation the SDK hands on what came, whatever it is.
        deltas = list(_deltas_of(whole.content))
        return [
            *deltas,
            Completion(self._finish_reason(whole.stop_reason), usage_of(whole.usage), wire.text(whole.model)),
        ]

    def _finish_reason(self, reason: object) -> FinishReason:
        """Why the answer ended. Raises VendorError for an answer that does not say that it is whole.

        A turn that was paused (pause_turn) is not whole either; only tools that run at the vendor bring one about.
        """
        if not reason:
            raise VendorError(Reason.CUT, f"{self._name} ended the answer without a stop reason", billed=True)
        known = _FINISH.get(reason) if isinstance(reason, str) else None
        if known is None:
            raise VendorError(Reason.CUT, f"{self._name} broke the answer off{wire.identifier(reason)}", billed=True)
        return known

    def _refused(self, error: anthropic.APIStatusError, *, billed: bool) -> VendorError:
        """`billed`: the answer had begun."""
        status, kind = error.status_code, error.type
        if status < 400:
            status = _STATUS.get(kind, 500) if isinstance(kind, str) else 500
        if status == 402:
            return VendorError(Reason.CREDENTIAL, f"{self._name} refused our account ({status})", billed=billed)
        said = error.api_message if isinstance(error.api_message, str) else ""
        too_long = status == 413 or bool(_TOO_LONG.search(said))
        told = wire.refused(self._name, status, kind, error.response.headers, too_long=too_long)
        told.billed = billed
        return told


async def _drain(events: AsyncIterator[RawMessageStreamEvent]) -> None:
    """Reads the end of the body behind the end of the answer: then the connection serves the next call."""
    with suppress(TimeoutError, httpx2.HTTPError, anthropic.AnthropicError, *wire.NONSENSE):
        async with asyncio.timeout(_DRAIN_S):
            async for _ in events:
                pass


class _StreamReading:
    """What a stream has said so far."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.begun = False
        self.stopped = False
        self.reason: object = None
        self.usage: Usage | None = None
        self._at_begin: ReportedUsage | None = None
        # The calls by the index of their block: the call's own index, and the arguments that its first event held.
        self._calls: dict[int, tuple[int, str]] = {}

    def read(self, event: RawMessageStreamEvent) -> Iterator[Delta]:
        """The pieces of one event. Kinds that are not known are passed over, as the API's versioning asks."""
        match event.type:
            case "message_start":
                self.begun = True
                self.model = wire.text(event.message.model) or self.model
                self._at_begin = event.message.usage
            case "content_block_start":
                yield from self._block(event)
            case "content_block_delta":
                yield from self._delta(event)
            case "content_block_stop":
                if event.index in self._calls:
                    yield from self._end_of_call(event.index)
            case "message_delta":
                self.reason = event.delta.stop_reason or self.reason
                self.usage = usage_of(self._at_begin, event.usage)
            case "message_stop":
                self.stopped = True

    def _block(self, event: RawContentBlockStartEvent) -> Iterator[Delta]:
        block = event.content_block
        if block.type != "tool_use":
            yield from _deltas_of([block])
            return
        if not 0 <= event.index < _MAX_BLOCKS or event.index in self._calls:
            raise ValueError("a block with an index that is none")
        index = len(self._calls)
        self._calls[event.index] = (index, wire.arguments(block.input) or "{}")
        yield ToolCallDelta(index, wire.text(block.id) or wire.made_up_id(), _name(block.name))

    def _delta(self, event: RawContentBlockDeltaEvent) -> Iterator[Delta]:
        delta = event.delta
        if delta.type == "text_delta" and (text := wire.text(delta.text)):
            yield TextDelta(text)
        elif delta.type == "thinking_delta" and (text := wire.text(delta.thinking)):
            yield ReasoningDelta(text)
        elif delta.type == "input_json_delta" and event.index in self._calls:  # else of a tool at the vendor
            index, _ = self._calls[event.index]
            if text := wire.text(delta.partial_json):
                self._calls[event.index] = (index, "")
                yield ToolCallDelta(index, arguments_json=text)

    def _end_of_call(self, block: int) -> Iterator[Delta]:
        """Arguments that came whole, or not at all, which is how none are told."""
        index, arguments = self._calls[block]
        if arguments:
            self._calls[block] = (index, "")
            yield ToolCallDelta(index, arguments_json=arguments)


def _deltas_of(content: Sequence[ContentBlock]) -> Iterator[Delta]:
    """The pieces of whole blocks. Redacted thinking and what tools at the vendor did have none."""
    if not isinstance(content, list):
        raise TypeError("content that is no list")
    calls = 0
    for block in content:
        if block.type == "text" and (text := wire.text(block.text)):
            yield TextDelta(text)
        elif block.type == "thinking" and (text := wire.text(block.thinking)):
            yield ReasoningDelta(text)
        elif block.type == "tool_use":
            arguments = wire.arguments(block.input) or "{}"
            yield ToolCallDelta(calls, wire.text(block.id) or wire.made_up_id(), _name(block.name), arguments)
            calls += 1


def _name(value: object) -> str:
    name = wire.text(value)
    if not name:
        raise ValueError("a tool call without a name")
    return name


def usage_of(first: ReportedUsage | None, last: MessageDeltaUsage | None = None) -> Usage | None:
    """Normalised token counts; None unless both totals are there and all that is told are counts.

    A stream reports twice: `first` at its begin, `last` at its end, whose counts are the newer ones, and the only ones of
    the output. The API counts what it reads from and writes to its cache beside the input; here it is part of it.
    """
    reports = (first,) if last is None else (last, first)

    def newest(name: str, untold: int | None) -> int | None:
        report = next((report for report in reports if getattr(report, name, None) is not None), None)
        return untold if report is None else wire.count(report, name)

    plain, output = newest("input_tokens", None), wire.count(reports[0], "output_tokens")
    read, written = newest("cache_read_input_tokens", 0), newest("cache_creation_input_tokens", 0)
    if plain is None or output is None or read is None or written is None:
        return None
    details = getattr(reports[0], "output_tokens_details", None)
    return Usage(
        input_tokens=plain + read + written,
        output_tokens=output,
        cache_read_input_tokens=read,
        cache_write_input_tokens=written,
        cache_writes=_writes(getattr(first, "cache_creation", None), written),
        reasoning_output_tokens=wire.count(details, "thinking_tokens") or 0,
    )


def _writes(split: object, written: int) -> tuple[tuple[int, int], ...]:
    """What was written, by lifetime; nothing where the vendor does not tell, or where the parts are not the whole."""
    short, long = wire.count(split, "ephemeral_5m_input_tokens"), wire.count(split, "ephemeral_1h_input_tokens")
    if short is None or long is None or short + long != written:
        return ()
    return tuple((ttl, tokens) for ttl, tokens in ((SHORT_TTL_S, short), (LONG_TTL_S, long)) if tokens)
