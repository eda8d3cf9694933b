"""Any vendor with an OpenAI-compatible API, through the official SDK."""

import base64
import json
import math
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import openai
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion_chunk import ChoiceDelta

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
from services.provider.domain.vendor import Call, Completion, Reason, VendorError

OutputLimitField = Literal["max_completion_tokens", "max_tokens"]

_CONNECT_TIMEOUT_S = 5.0
_FINISH = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
_NUMBER = re.compile(r"\s*\d+(\.\d+)?\s*")
_IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class OpenAI:
    """One vendor. The SDK never retries by itself: attempts are the plan's business."""

    def __init__(self, name: str, *, base_url: str, api_key: str, output_limit_field: OutputLimitField) -> None:
        """`output_limit_field`: where the vendor expects the limit of generated tokens."""
        self._name = name
        self._output_limit_field = output_limit_field
        self._client = openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        # As extra_body, which is sent as it is: the request has the wire's form already, and the SDK's own
        # transformation of typed arguments is a quarter of the CPU time of a call.
        body = request_of(call.chat, self._output_limit_field)
        timeout = openai.Timeout(call.timeout_s, connect=min(_CONNECT_TIMEOUT_S, call.timeout_s))
        try:
            if not call.streaming:
                whole = await self._client.chat.completions.create(
                    model=call.model, messages=[], extra_body=body, timeout=timeout
                )
                for event in self._events_of(whole):
                    yield event
                return
            stream = await self._client.chat.completions.create(
                model=call.model,
                messages=[],
                extra_body=body,
                stream=True,
                stream_options={"include_usage": True},
                timeout=timeout,
            )
            async with stream:
                reading = _StreamReading(call.model)
                try:
                    async for chunk in stream:
                        for delta in reading.read(chunk):
                            yield delta
                except openai.APIConnectionError:
                    if reading.finish_reason is None:
                        raise
                    # The vendor had said that the answer is whole; only the usage is lost, and is estimated.
            if reading.finish_reason is None:
                raise VendorError(Reason.CUT, f"{self._name} ended the stream without a finish reason", billed=True)
            yield Completion(reading.finish_reason, reading.usage, reading.model)
        except openai.OpenAIError as error:
            raise self._vendor_error(error) from error
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            # What is not the documented shape: JSON that does not parse, fields of another type.
            raise self._nonsense() from error

    def _events_of(self, whole: ChatCompletion) -> Iterator[Delta | Completion]:
        # Without strict validation the SDK hands on what came, whatever it is.
        if not isinstance(whole, ChatCompletion) or not whole.choices:
            raise self._nonsense()
        choice = whole.choices[0]
        yield from _deltas_of_message(choice.message)
        yield Completion(_finish_reason(choice.finish_reason), usage_of(whole.usage), whole.model or "")

    def _nonsense(self) -> VendorError:
        return VendorError(Reason.UNAVAILABLE, f"{self._name} answered with something that is no answer", billed=True)

    def _vendor_error(self, error: openai.OpenAIError) -> VendorError:
        if isinstance(error, openai.APITimeoutError):
            return VendorError(Reason.UNAVAILABLE, f"{self._name} did not answer in time", billed=True)
        if isinstance(error, openai.APIConnectionError):
            return VendorError(Reason.UNAVAILABLE, f"{self._name} cannot be reached or broke the connection")
        if not isinstance(error, openai.APIStatusError):
            return VendorError(Reason.UNAVAILABLE, f"{self._name} reported an error in its answer", billed=True)
        status = error.status_code
        if status < 400:
            return self._nonsense()
        message = f"{self._name} answered {status}{_detail(error)}"
        retry_after_s = retry_after(error.response.headers, datetime.now(UTC))
        if status == 429:
            return VendorError(Reason.RATE_LIMITED, message, retry_after_s=retry_after_s)
        if status in (401, 403):
            return VendorError(Reason.CREDENTIAL, f"{self._name} refused our key ({status})")
        if status >= 500 or status == 408:
            return VendorError(Reason.UNAVAILABLE, message, retry_after_s=retry_after_s)
        return VendorError(Reason.REJECTED, message)


class _StreamReading:
    """What a stream has said so far."""

    def __init__(self, model: str) -> None:
        self.finish_reason: FinishReason | None = None
        self.usage: Usage | None = None
        self.model = model

    def read(self, chunk: ChatCompletionChunk) -> Iterator[Delta]:
        self.model = chunk.model or self.model
        self.usage = usage_of(chunk.usage) or self.usage
        for choice in chunk.choices[:1]:
            if choice.delta is not None:
                yield from _deltas_of_chunk(choice.delta)
            if choice.finish_reason is not None:
                self.finish_reason = _finish_reason(choice.finish_reason)


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
    if text := message.content or message.refusal:
        yield TextDelta(text)
    for index, call in enumerate(message.tool_calls or ()):
        if call.type == "function":
            yield ToolCallDelta(index, call.id, call.function.name, call.function.arguments)


def _deltas_of_chunk(delta: ChoiceDelta) -> Iterator[Delta]:
    if reasoning := _reasoning(delta):
        yield ReasoningDelta(reasoning)
    if text := delta.content or delta.refusal:
        yield TextDelta(text)
    for call in delta.tool_calls or ():
        function = call.function
        yield ToolCallDelta(
            call.index,
            call.id or "",
            (function.name if function else "") or "",
            (function.arguments if function else "") or "",
        )


def _reasoning(message: ChatCompletionMessage | ChoiceDelta) -> str:
    extra = message.model_extra or {}
    for name in ("reasoning_content", "reasoning"):
        if isinstance(text := extra.get(name), str):
            return text
    return ""


def _finish_reason(reason: str | None) -> FinishReason:
    """STOP for a reason that is newer than this table: the vendor did say that the answer is whole."""
    return _FINISH.get(reason or "stop", FinishReason.STOP)


def usage_of(usage: CompletionUsage | None) -> Usage | None:
    """Normalised token counts. Cached tokens are part of the prompt's at every OpenAI-compatible vendor."""
    if usage is None:
        return None
    prompt, cached, written, reasoning = usage.prompt_tokens or 0, 0, 0, 0
    if details := usage.prompt_tokens_details:
        cached = min(details.cached_tokens or 0, prompt)
        written = min(details.cache_write_tokens or 0, prompt - cached)
    if output := usage.completion_tokens_details:
        reasoning = output.reasoning_tokens or 0
    return Usage(
        input_tokens=prompt,
        output_tokens=usage.completion_tokens or 0,
        cache_read_input_tokens=cached,
        cache_write_input_tokens=written,
        reasoning_output_tokens=reasoning,
    )


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the vendor asks us to wait; None where it does not say, or says nonsense."""
    seconds = None
    try:
        if milliseconds := headers.get("retry-after-ms"):
            seconds = float(milliseconds) / 1000
        elif value := headers.get("retry-after"):
            seconds = float(value) if _NUMBER.fullmatch(value) else (parsedate_to_datetime(value) - now).total_seconds()
    except (ValueError, TypeError):
        return None
    return None if seconds is None or not math.isfinite(seconds) else max(seconds, 0.0)


def _detail(error: openai.APIStatusError) -> str:
    """The vendor's error code where it is one. Its message may quote the prompt or the key and is never passed on."""
    for value in (error.code, error.type):
        if isinstance(value, str) and _IDENTIFIER.fullmatch(value):
            return f" ({value})"
    return ""
