"""Google's Gemini API, through the official SDK.

What the API lacks or cannot be told:

- Thought signatures: a conversation keeps none, so earlier thoughts are lost to the model. Models from Gemini 3 on refuse an
  earlier tool call without one; they get the value that Google documents for calls that come from elsewhere.
- Earlier reasoning, names of people and `strict` of a tool have no place in a request and are left out.
- All system messages become the one system instruction, wherever they stood.
- Prompt caching is implicit: nothing marks its prefix, so the hints are ignored.
"""

import json
import mimetypes
import re
import warnings
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import httpx2
from google import genai
from google.genai import errors, types

from services.common.chat import (
    Chat,
    Delta,
    FinishReason,
    ImagePart,
    Message,
    ReasoningDelta,
    ResponseFormat,
    Role,
    TextDelta,
    TextPart,
    Tool,
    ToolCallDelta,
    ToolChoice,
)
from services.common.money import Usage
from services.provider.adapters import wire
from services.provider.domain.vendor import Call, Completion, Reason, VendorError

_API_VERSION = "v1beta"
_CONNECTIONS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
_NO_THOUGHT_SIGNATURE = b"skip_thought_signature_validator"
_GENERATION = re.compile(r"gemini-(\d+)(?:\.(\d+))?")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?)s")
_FINISH = {
    "STOP": FinishReason.STOP,
    "MAX_TOKENS": FinishReason.LENGTH,
    "CONTINUATION": FinishReason.LENGTH,
    "SAFETY": FinishReason.CONTENT_FILTER,
    "RECITATION": FinishReason.CONTENT_FILTER,
    "LANGUAGE": FinishReason.CONTENT_FILTER,
    "BLOCKLIST": FinishReason.CONTENT_FILTER,
    "PROHIBITED_CONTENT": FinishReason.CONTENT_FILTER,
    "SPII": FinishReason.CONTENT_FILTER,
    "IMAGE_SAFETY": FinishReason.CONTENT_FILTER,
    "IMAGE_PROHIBITED_CONTENT": FinishReason.CONTENT_FILTER,
    "IMAGE_RECITATION": FinishReason.CONTENT_FILTER,
    "ESCALATION": FinishReason.CONTENT_FILTER,
    "MODEL_ARMOR": FinishReason.CONTENT_FILTER,
}
_CHOICES = {
    "auto": types.FunctionCallingConfigMode.AUTO,
    "none": types.FunctionCallingConfigMode.NONE,
    "required": types.FunctionCallingConfigMode.ANY,
    "named": types.FunctionCallingConfigMode.ANY,
}
_LEVELS = {"low": types.ThinkingLevel.LOW, "medium": types.ThinkingLevel.MEDIUM, "high": types.ThinkingLevel.HIGH}
# Tokens, as Google's own OpenAI-compatible endpoint translates the same words.
_BUDGETS = {"low": 1024, "medium": 8192, "high": 24_576}
# The vendor had the whole request; what fails earlier is on no invoice.
_SENT = (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError, httpx2.DecodingError)


@dataclass(slots=True)
class _Exchange:
    """One request on the wire: how long its steps may take, and the response once its head is there."""

    timeout: httpx2.Timeout
    response: httpx2.Response | None = None

    async def close(self) -> None:
        """Hangs up where the response is not read to its end. The SDK leaves that to the garbage collector."""
        if self.response is not None:
            await self.response.aclose()


_exchange: ContextVar[_Exchange] = ContextVar("_exchange")


class Gemini:
    """One vendor. The SDK repeats, continues and calls nothing by itself: attempts are the plan's business."""

    def __init__(self, name: str, *, base_url: str, api_key: str) -> None:
        """`base_url` is without the version; the environment's Google settings are not looked at."""
        # An SDK older than the API warns of each new word of it; here they are read as any unknown word.
        warnings.filterwarnings("ignore", r".* is not a valid \w+$", UserWarning, r"google\.genai\._common$")
        self._name = name
        self._http = httpx2.AsyncClient(
            limits=_CONNECTIONS, event_hooks={"request": [_before_sending], "response": [_at_its_head]}
        )
        self._client = genai.Client(
            vertexai=False,
            api_key=api_key,
            http_options=types.HttpOptions(base_url=base_url, api_version=_API_VERSION, httpx_async_client=self._http),
        )

    async def close(self) -> None:
        """Closes the connections."""
        self._client.close()
        await self._http.aclose()

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        contents, config = request_of(call.model, call.chat)
        connect_s = wire.connect_timeout_s(call)
        exchange = _Exchange(httpx2.Timeout(call.timeout_s, connect=connect_s, pool=connect_s))
        reading = _Reading(self._name, call.model)
        models = self._client.aio.models
        # The client's hooks read it before the first piece is yielded, and so in the very step that sets it.
        _exchange.set(exchange)
        try:
            if not call.streaming:
                whole = await models.generate_content(model=call.model, contents=contents, config=config)
                # All of the answer, or an error before the first piece of it: then another candidate may take over.
                deltas = list(reading.read(whole))
                if not reading.ended and not whole.candidates:
                    raise ValueError("no candidates")
                completion = reading.completion()
                for delta in deltas:
                    yield delta
                yield completion
                return
            stream = await models.generate_content_stream(model=call.model, contents=contents, config=config)
            async with aclosing(cast(AsyncGenerator[types.GenerateContentResponse], stream)) as chunks:
                try:
                    async for chunk in chunks:
                        for delta in reading.read(chunk):
                            yield delta
                except httpx2.HTTPError:
                    if not reading.ended:
                        raise
                    # The vendor had said that the answer is whole.
            yield reading.completion()
        except errors.APIError as error:
            raise self._refused(error, exchange, begun=reading.begun) from error
        except httpx2.HTTPError as error:
            timed_out = isinstance(error, httpx2.TimeoutException)
            raise wire.unreachable(self._name, timed_out=timed_out, billed=isinstance(error, _SENT)) from error
        except wire.NONSENSE as error:
            # What is not the documented shape: JSON that does not parse, fields of another type.
            raise wire.nonsense(self._name) from error
        finally:
            await exchange.close()

    def _refused(self, error: errors.APIError, exchange: _Exchange, *, begun: bool) -> VendorError:
        if begun:
            return VendorError(Reason.UNAVAILABLE, f"{self._name} reported an error in its answer", billed=True)
        details = _details(error)
        # A wrong key is a bad request here; only the details tell it from others.
        if any(str(detail.get("reason")).startswith("API_KEY_") for detail in details):
            return VendorError(Reason.CREDENTIAL, f"{self._name} refused our key ({error.code})")
        headers = dict(exchange.response.headers) if exchange.response is not None else {}
        if delay_s := _retry_delay(details):
            headers.setdefault("retry-after", delay_s)
        return wire.refused(self._name, error.code, error.status, headers, too_long=_is_too_long(error))


async def _before_sending(request: httpx2.Request) -> None:
    # The SDK knows one limit for all steps, and would tell the vendor that the whole answer, however long, must fit into it.
    request.extensions["timeout"] = _exchange.get().timeout.as_dict()


async def _at_its_head(response: httpx2.Response) -> None:
    _exchange.get().response = response


class _Reading:
    """What an answer, or a stream, has said so far."""

    def __init__(self, vendor: str, model: str) -> None:
        self._vendor = vendor
        self._model = model
        self._reason = ""
        self._usage: Usage | None = None
        self._tool_calls = 0
        self.begun = False

    @property
    def ended(self) -> bool:
        """Whether the vendor has said why the answer ended."""
        return bool(self._reason)

    def read(self, chunk: types.GenerateContentResponse) -> Iterator[Delta]:
        self.begun = True
        self._model = wire.text(chunk.model_version) or self._model
        for candidate in (chunk.candidates or ())[:1]:
            for part in (candidate.content.parts if candidate.content else None) or ():
                yield from self._deltas(part)
            if candidate.finish_reason:
                self._reason = candidate.finish_reason.value
        if not chunk.candidates and chunk.prompt_feedback and chunk.prompt_feedback.block_reason:
            self._reason = "PROHIBITED_CONTENT"
        # Counts of a stream grow from chunk to chunk; the ones at its end are those of the invoice.
        if self.ended:
            self._usage = usage_of(chunk.usage_metadata) or self._usage

    def completion(self) -> Completion:
        """Raises VendorError for an answer that does not say that it is whole.

        Many of the vendor's reasons are interruptions ("MALFORMED_FUNCTION_CALL", "OTHER"), so any unknown one is taken for one:
        half an answer must not be served, or stored, as a whole one.
        """
        if not self._reason:
            raise VendorError(Reason.CUT, f"{self._vendor} ended the answer without a finish reason", billed=True)
        reason = _FINISH.get(self._reason)
        if reason is None:
            raise VendorError(
                Reason.CUT, f"{self._vendor} broke the answer off{wire.identifier(self._reason)}", billed=True
            )
        if reason is FinishReason.STOP and self._tool_calls:
            reason = FinishReason.TOOL_CALLS
        return Completion(reason, self._usage, self._model)

    def _deltas(self, part: types.Part) -> Iterator[Delta]:
        if text := wire.text(part.text):
            yield ReasoningDelta(text) if part.thought else TextDelta(text)
        if call := part.function_call:
            if not call.name:
                raise ValueError("a tool call without a name")
            index, self._tool_calls = self._tool_calls, self._tool_calls + 1
            id_ = wire.text(call.id) or wire.made_up_id()
            yield ToolCallDelta(index, id_, wire.text(call.name), wire.arguments(call.args or {}))


def request_of(model: str, chat: Chat) -> tuple[list[types.Content], types.GenerateContentConfig]:
    """The chat as contents and configuration. Raises VendorError (INVALID_INPUT) for what the API cannot hold."""
    sampling = chat.sampling
    try:
        contents = _contents(model, chat.messages)
        mime_type, schema = _response_format(chat.response_format)
        config = types.GenerateContentConfig(
            system_instruction=_system_instruction(chat.messages),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_output_tokens=sampling.max_output_tokens,
            stop_sequences=list(sampling.stop) or None,
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            response_mime_type=mime_type,
            response_json_schema=schema,
            thinking_config=thinking_of(model, sampling.reasoning_effort),
            tools=[_tools(chat.tools)] if chat.tools else None,
            tool_config=_tool_config(chat.tool_choice) if chat.tools else None,
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
            automatic_continuation=False,
        )
    except (ValueError, RecursionError) as error:
        raise VendorError(Reason.INVALID_INPUT, "cannot be written as JSON") from error
    if not contents:
        raise _unfit("chat.messages", "has no message but the system's, and one is due")
    return contents, config


def thinking_of(model: str, effort: str) -> types.ThinkingConfig | None:
    """How much the model is to think: a budget in tokens for Gemini 2.5, a level since then; None says nothing of it.

    Thoughts are asked for together with an effort: without one the model answers as it does by default. Models before 2.5
    think nothing, and refuse to be asked.
    """
    if not effort or (generation := _generation(model)) < (2, 5):
        return None
    if generation == (2, 5):
        return types.ThinkingConfig(include_thoughts=True, thinking_budget=_BUDGETS[effort])
    return types.ThinkingConfig(include_thoughts=True, thinking_level=_LEVELS[effort])


def usage_of(reported: types.GenerateContentResponseUsageMetadata | None) -> Usage | None:
    """Normalised token counts; None unless both totals are there or follow from the sum. Cached tokens are part of the prompt's.

    Counts of 0 are left out on the wire: an answer of thoughts alone has no count of its own.
    """
    prompt = wire.count(reported, "prompt_token_count")
    answer = wire.count(reported, "candidates_token_count")
    thoughts = wire.count(reported, "thoughts_token_count") or 0
    tools = wire.count(reported, "tool_use_prompt_token_count") or 0
    total = wire.count(reported, "total_token_count")
    if prompt is None:
        return None
    if answer is None:
        if total is None or total < prompt + tools + thoughts:
            return None
        answer = total - prompt - tools - thoughts
    return Usage(
        input_tokens=prompt + tools,
        output_tokens=answer + thoughts,
        cache_read_input_tokens=min(wire.count(reported, "cached_content_token_count") or 0, prompt),
        reasoning_output_tokens=thoughts,
    )


def _generation(model: str) -> tuple[int, int]:
    """The generation in the model's id; names without one, such as gemini-flash-latest, mean the newest."""
    found = _GENERATION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else (99, 0)


def _system_instruction(messages: tuple[Message, ...]) -> types.Content | None:
    parts = [part for message in messages if message.role is Role.SYSTEM for part in _parts(message)]
    return types.Content(parts=parts) if parts else None


def _contents(model: str, messages: tuple[Message, ...]) -> list[types.Content]:
    signature = _NO_THOUGHT_SIGNATURE if _generation(model) >= (3, 0) else None
    names: dict[str, str] = {}
    turns: list[tuple[Role, list[types.Part]]] = []
    for index, message in enumerate(messages):
        if message.role is Role.SYSTEM:
            continue
        if message.role is Role.TOOL:
            # The answers to calls made together belong together.
            if not turns or turns[-1][0] is not Role.TOOL:
                turns.append((Role.TOOL, []))
            turns[-1][1].append(_tool_result(message, names, f"chat.messages[{index}]"))
            continue
        parts = _parts(message)
        for number, call in enumerate(message.tool_calls):
            names[call.id] = call.name
            function_call = types.FunctionCall(id=call.id, name=call.name, args=_loaded(call.arguments_json or "{}"))
            parts.append(types.Part(function_call=function_call, thought_signature=None if number else signature))
        if parts:
            turns.append((message.role, parts))
    return [types.Content(role="model" if role is Role.ASSISTANT else "user", parts=parts) for role, parts in turns]


def _parts(message: Message) -> list[types.Part]:
    # Empty text is refused.
    return [_part(part) for part in message.parts if isinstance(part, ImagePart) or part.text]


def _part(part: TextPart | ImagePart) -> types.Part:
    if isinstance(part, TextPart):
        return types.Part(text=part.text)
    if not part.url:
        return types.Part(inline_data=types.Blob(data=part.data, mime_type=part.media_type))
    if not part.url.startswith("https://"):
        raise _unfit("chat.messages", "has a picture whose URL is not https, and only such are fetched")
    path = part.url.partition("?")[0].partition("#")[0]
    return types.Part(file_data=types.FileData(file_uri=part.url, mime_type=mimetypes.guess_type(path)[0]))


def _tool_result(message: Message, names: dict[str, str], field: str) -> types.Part:
    """The result as text, as it is; the API wants the function's name beside the call's id."""
    name = names.get(message.tool_call_id) or message.name
    if not name:
        raise _unfit(field, "answers a tool call that no earlier message makes")
    images = [part for part in message.parts if isinstance(part, ImagePart)]
    if any(image.url for image in images):
        raise _unfit(field, "has a picture by URL, and the result of a tool takes only its bytes")
    pictures = [
        types.FunctionResponsePart(inline_data=types.FunctionResponseBlob(data=image.data, mime_type=image.media_type))
        for image in images
    ]
    response = types.FunctionResponse(
        id=message.tool_call_id or None, name=name, response={"output": message.text}, parts=pictures or None
    )
    return types.Part(function_response=response)


def _tools(tools: tuple[Tool, ...]) -> types.Tool:
    return types.Tool(
        function_declarations=[
            types.FunctionDeclaration(
                name=tool.name,
                description=tool.description or None,
                parameters_json_schema=_loaded(tool.parameters_json_schema) if tool.parameters_json_schema else None,
            )
            for tool in tools
        ]
    )


def _tool_config(choice: ToolChoice) -> types.ToolConfig | None:
    if not choice.mode:
        return None
    allowed = [choice.name] if choice.mode == "named" else None
    return types.ToolConfig(
        function_calling_config=types.FunctionCallingConfig(mode=_CHOICES[choice.mode], allowed_function_names=allowed)
    )


def _response_format(form: ResponseFormat) -> tuple[str | None, object]:
    if form.kind == "text":
        return None, None
    return "application/json", _loaded(form.json_schema) if form.kind == "json_schema" else None


def _loaded(text: str) -> Any:
    """The value of JSON text. Raises ValueError for what the SDK would write as something that is none."""
    value = json.loads(text)
    json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    return value


def _unfit(field: str, what: str) -> VendorError:
    return VendorError(Reason.INVALID_INPUT, what, field=field)


def _details(error: errors.APIError) -> list[dict[str, object]]:
    """The typed details of an error (google.rpc), as far as they are ones."""
    body: object = error.details
    inner = body.get("error") if isinstance(body, dict) else None
    details = inner.get("details") if isinstance(inner, dict) else None
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []


def _retry_delay(details: list[dict[str, object]]) -> str:
    """Seconds that the vendor asks us to wait, in digits; empty where it does not say."""
    for detail in details:
        found = _DURATION.fullmatch(str(detail.get("retryDelay")))
        if found and str(detail.get("@type")).endswith("google.rpc.RetryInfo"):
            return found[1]
    return ""


def _is_too_long(error: errors.APIError) -> bool:
    # No code tells it from other bad requests, only this sentence does; it is not passed on.
    message = error.message
    return error.code == 400 and isinstance(message, str) and "token count" in message and "exceeds" in message
