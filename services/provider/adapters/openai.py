"""Any vendor with an OpenAI-compatible API, through the official SDK."""

import base64
import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx2
import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall

from services.common.chat import (
    Chat,
    Delta,
    FinishReason,
    ImagePart,
    Message,
    ReasoningDelta,
    TextDelta,
    TextPart,
    ToolCallDelta,
)
from services.common.money import Usage
from services.provider.adapters import wire
from services.provider.domain.prompt_cache import CacheHints
from services.provider.domain.vendor import Call, Completion, Reason, VendorError

OutputLimitField = Literal["max_completion_tokens", "max_tokens"]
CacheFields = Literal["none", "key", "breakpoints"]

_PATH = "/chat/completions"
_MAX_TOOL_CALLS = 1000
_FINISH = {
    "stop": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
    "refusal": FinishReason.CONTENT_FILTER,
}
# The vendor had the whole request; what fails earlier is on no invoice.
_SENT = (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.DecodingError)


class OpenAI:
    """One vendor. The SDK never retries by itself: attempts are the plan's business."""

    def __init__(
        self,
        name: str,
        *,
        base_url: str,
        api_key: str,
        output_limit_field: OutputLimitField,
        cache_fields: CacheFields = "none",
    ) -> None:
        """`output_limit_field`: where the vendor expects the limit of generated tokens. `cache_fields`: what it can be told about
        its prompt cache.
        """
        self._name = name
        self._cache_fields = cache_fields
        self._output_limit_field = output_limit_field
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        # Bytes, which the SDK sends as they are: what cannot be written is our caller's fault and not the vendor's, and the
        # SDK's own transformation of typed arguments is a quarter of the CPU time of a call.
        content = encoded(call, self._output_limit_field, self._cache_fields)
        connect_s = wire.connect_timeout_s(call)
        timeout = openai.Timeout(call.timeout_s, connect=connect_s, pool=connect_s)
        try:
            if not call.streaming:
                whole = await self._client.post(
                    _PATH, content=content, cast_to=ChatCompletion, options={"timeout": timeout}
                )
                for event in self._events_of(whole):
                    yield event
                return
            stream = await self._client.post(
                _PATH,
                content=content,
                cast_to=ChatCompletion,
                options={"timeout": timeout},
                stream=True,
                stream_cls=openai.AsyncStream[ChatCompletionChunk],
            )
            async with stream:
                reading = _StreamReading(call.model)
                try:
                    async for chunk in stream:
                        for delta in reading.read(chunk):
                            yield delta
                except openai.APIConnectionError:
                    if reading.reason is None:
                        raise
                    # The vendor had said that the answer is whole; only the usage is lost, and is estimated.
            yield Completion(self._finish_reason(reading.reason, reading.refused), reading.usage, reading.model)
        except openai.OpenAIError as error:
            raise self._vendor_error(error) from error
        except wire.NONSENSE as error:
            # What is not the documented shape: JSON that does not parse, fields of another type.
            raise wire.nonsense(self._name) from error

    def _events_of(self, whole: ChatCompletion) -> list[Delta | Completion]:
        """All of the answer, or an error before the first piece of it: then another candidate may take over."""
        # Without strict validation the SDK hands on what came, whatever it is.
        choice = whole.choices[0]
        finish_reason = self._finish_reason(choice.finish_reason, refused=bool(choice.message.refusal))
        completion = Completion(finish_reason, usage_of(whole.usage), wire.text(whole.model))
        return [*_deltas_of_message(choice.message), completion]

    def _finish_reason(self, reason: object, refused: bool) -> FinishReason:
        """Why the answer ended. Raises VendorError for an answer that does not say that it is whole.

        An interruption at the vendor has many names ("error", "insufficient_system_resource"), so any unknown one is taken for
        one: half an answer must not be served, or stored, as a whole one.
        """
        if not reason:
            raise VendorError(Reason.CUT, f"{self._name} ended the answer without a finish reason", billed=True)
        known = _FINISH.get(reason) if isinstance(reason, str) else None
        if known is None:
            raise VendorError(Reason.CUT, f"{self._name} broke the answer off{wire.identifier(reason)}", billed=True)
        return FinishReason.CONTENT_FILTER if refused else known

    def _vendor_error(self, error: openai.OpenAIError) -> VendorError:
        if isinstance(error, openai.APIConnectionError):
            timed_out = isinstance(error, openai.APITimeoutError)
            return wire.unreachable(self._name, timed_out=timed_out, billed=isinstance(error.__cause__, _SENT))
        if not isinstance(error, openai.APIStatusError):
            return VendorError(Reason.UNAVAILABLE, f"{self._name} reported an error in its answer", billed=True)
        code = error.code if wire.identifier(error.code) else error.type
        return wire.refused(
            self._name,
            error.status_code,
            code,
            error.response.headers,
            too_long=error.code == "context_length_exceeded",
        )


class _StreamReading:
    """What a stream has said so far."""

    def __init__(self, model: str) -> None:
        self.reason: object = None
        self.refused = False
        self.usage: Usage | None = None
        self.model = model
        self._calls: dict[int, _OpenCall] = {}

    def read(self, chunk: ChatCompletionChunk) -> Iterator[Delta]:
        self.model = wire.text(chunk.model) or self.model
        self.usage = usage_of(chunk.usage) or self.usage
        for choice in (chunk.choices or ())[:1]:
            if choice.delta is not None:
                yield from self._deltas(choice.delta)
            if choice.finish_reason:
                self.reason = choice.finish_reason
                if not all(call.named for call in self._calls.values()):
                    raise ValueError("a tool call without a name")

    def _deltas(self, delta: ChoiceDelta) -> Iterator[Delta]:
        if reasoning := _reasoning(delta):
            yield ReasoningDelta(reasoning)
        if text := wire.text(delta.content):
            yield TextDelta(text)
        if refusal := wire.text(delta.refusal):
            self.refused = True
            yield TextDelta(refusal)
        for call in delta.tool_calls or ():
            yield self._tool_call(call)

    def _tool_call(self, call: ChoiceDeltaToolCall) -> ToolCallDelta:
        """Id and name with the first part only, as the contract says; some vendors repeat them, some give no id or index."""
        function, given = call.function, wire.text(call.id)
        index = self._index(call.index, given)
        name = wire.text(function.name) if function else ""
        arguments = wire.arguments(function.arguments) if function else ""
        known = self._calls.get(index)
        if known is None:
            self._calls[index] = _OpenCall(given, bool(name))
            return ToolCallDelta(index, given or wire.made_up_id(), name, arguments)
        name = "" if known.named else name
        known.named = known.named or bool(name)
        return ToolCallDelta(index, "", name, arguments)

    def _index(self, index: object, given: str) -> int:
        if index is not None:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < _MAX_TOOL_CALLS:
                raise ValueError("a tool call with an index that is none")
            return index
        last = max(self._calls, default=-1)
        for known, call in self._calls.items():
            if given and call.given_id == given:
                return known
        return last + 1 if given or last < 0 else last


@dataclass(slots=True)
class _OpenCall:
    given_id: str
    named: bool


def encoded(call: Call, output_limit_field: OutputLimitField, cache_fields: CacheFields = "none") -> bytes:
    """The body of the request. Raises VendorError (INVALID_INPUT) for a chat that JSON cannot hold."""
    try:
        body = request_of(call.chat, output_limit_field) | {"model": call.model}
        _hint(body, call.hints, cache_fields)
        if call.streaming:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise VendorError(Reason.INVALID_INPUT, "cannot be written as JSON") from error


def _hint(body: dict[str, Any], hints: CacheHints, cache_fields: CacheFields) -> None:
    """Adds what the vendor takes of the hints. A message without text or pictures can have no breakpoint."""
    if cache_fields == "none" or not hints.key:
        return
    body["prompt_cache_key"] = hints.key
    if cache_fields == "key" or not hints.explicit:
        return
    body["prompt_cache_options"] = {"mode": "explicit"}
    for point in hints.breakpoints:
        message: dict[str, Any] = {} if point.message is None else body["messages"][point.message]
        if isinstance(text := message.get("content"), str) and text:
            message["content"] = [{"type": "text", "text": text}]
        if parts := message.get("content"):
            parts[-1]["prompt_cache_breakpoint"] = {"mode": "explicit"}


def request_of(chat: Chat, output_limit_field: OutputLimitField) -> dict[str, Any]:
    """The chat as the body of a chat-completions request, but for the model and streaming."""
    sampling, form, choice = chat.sampling, chat.response_format, chat.tool_choice
    request: dict[str, Any] = {
        "messages": [_message(message) for message in chat.messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        output_limit_field: sampling.max_output_tokens,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "reasoning_effort": sampling.reasoning_effort or None,
    }
    if chat.tools:
        request["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    **({"description": tool.description} if tool.description else {}),
                    **({"parameters": json.loads(tool.parameters_json_schema)} if tool.parameters_json_schema else {}),
                    **({"strict": True} if tool.strict else {}),
                },
            }
            for tool in chat.tools
        ]
    if choice.mode == "named":
        request["tool_choice"] = {"type": "function", "function": {"name": choice.name}}
    elif choice.mode:
        request["tool_choice"] = choice.mode
    if form.kind == "json_object":
        request["response_format"] = {"type": "json_object"}
    elif form.kind == "json_schema":
        request["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": form.name or "answer", "schema": json.loads(form.json_schema), "strict": True},
        }
    return {name: value for name, value in request.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role.value}
    if any(isinstance(part, ImagePart) for part in message.parts):
        entry["content"] = [_part(part) for part in message.parts]
    elif message.parts or not message.tool_calls:
        entry["content"] = message.text
    if message.name:
        entry["name"] = message.name
    if message.tool_calls:
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        entry["tool_call_id"] = message.tool_call_id
    return entry


def _part(part: TextPart | ImagePart) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    url = part.url or f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _deltas_of_message(message: ChatCompletionMessage) -> Iterator[Delta]:
    if reasoning := _reasoning(message):
        yield ReasoningDelta(reasoning)
    # A refusal is the model's answer in words; the finish reason says the rest.
    if text := wire.text(message.content) or wire.text(message.refusal):
        yield TextDelta(text)
    for index, call in enumerate(message.tool_calls or ()):
        if call.type == "custom":
            continue
        name = wire.text(call.function.name)
        if not name:
            raise ValueError("a tool call without a name")
        yield ToolCallDelta(
            index, wire.text(call.id) or wire.made_up_id(), name, wire.arguments(call.function.arguments)
        )


def _reasoning(message: ChatCompletionMessage | ChoiceDelta) -> str:
    extra = message.model_extra or {}
    for name in ("reasoning_content", "reasoning"):
        if isinstance(text := extra.get(name), str):
            return wire.text(text)
    return ""


def usage_of(usage: CompletionUsage | None) -> Usage | None:
    """Normalised token counts; None unless both totals are there. Cached tokens are part of the prompt's everywhere."""
    prompt, output = wire.count(usage, "prompt_tokens"), wire.count(usage, "completion_tokens")
    if usage is None or prompt is None or output is None:
        return None
    cached = min(wire.count(usage.prompt_tokens_details, "cached_tokens") or 0, prompt)
    return Usage(
        input_tokens=prompt,
        output_tokens=output,
        cache_read_input_tokens=cached,
        cache_write_input_tokens=min(
            wire.count(usage.prompt_tokens_details, "cache_write_tokens") or 0, prompt - cached
        ),
        reasoning_output_tokens=wire.count(usage.completion_tokens_details, "reasoning_tokens") or 0,
    )
