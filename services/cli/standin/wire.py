"""The OpenAI chat-completions wire: a request into a chat, an answer into JSON."""

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from services.common.chat import (
    Answer,
    Chat,
    Delta,
    FinishReason,
    Message,
    ReasoningDelta,
    ResponseFormat,
    Role,
    Sampling,
    TextDelta,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from services.common.money import Usage


class BadRequest(Exception):
    """The request is not one that the wire allows; `param` names the field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def chat_from(body: Mapping[str, Any], max_output_tokens: int) -> Chat:
    """The chat of a request, its output limit capped. Raises BadRequest."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list with at least one message.", "messages")
    wanted = body.get("max_completion_tokens") or body.get("max_tokens") or max_output_tokens
    stop = body.get("stop") or ()
    try:
        return Chat(
            tuple(_message(m, f"messages[{i}]") for i, m in enumerate(messages)),
            tuple(_tool(t["function"]) for t in body.get("tools") or ()),
            _tool_choice(body.get("tool_choice")),
            _response_format(body.get("response_format")),
            Sampling(
                temperature=body.get("temperature"),
                top_p=body.get("top_p"),
                max_output_tokens=min(int(wanted), max_output_tokens),
                stop=(stop,) if isinstance(stop, str) else tuple(stop),
                seed=body.get("seed"),
                presence_penalty=body.get("presence_penalty"),
                frequency_penalty=body.get("frequency_penalty"),
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadRequest(f"The request is malformed: {error!r}.", "messages") from error


def _message(entry: Mapping[str, Any], field: str) -> Message:
    content = entry.get("content") or ""
    if isinstance(content, list):
        if any(part.get("type") != "text" for part in content):
            raise BadRequest("This model takes text only.", f"{field}.content")
        content = "\n".join(part["text"] for part in content)
    role = "system" if entry["role"] == "developer" else entry["role"]
    calls = tuple(
        ToolCall(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in entry.get("tool_calls") or ()
    )
    parts = (TextPart(content),) if content else ()
    return Message(Role(role), parts, tool_calls=calls, tool_call_id=entry.get("tool_call_id") or "")


def _tool(function: Mapping[str, Any]) -> Tool:
    return Tool(function["name"], function.get("description") or "", json.dumps(function.get("parameters") or {}))


def _tool_choice(choice: str | Mapping[str, Any] | None) -> ToolChoice:
    if isinstance(choice, Mapping):
        return ToolChoice("named", choice["function"]["name"])
    return ToolChoice(choice or "")


def _response_format(form: Mapping[str, Any] | None) -> ResponseFormat:
    if not form or form["type"] == "text":
        return ResponseFormat()
    if form["type"] == "json_object":
        return ResponseFormat("json_object")
    schema = form["json_schema"]
    return ResponseFormat("json_schema", schema["name"], json.dumps(schema["schema"]))


class Writer:
    """Writes one answer: a whole completion, or its chunks. The model's name is the one that was asked for."""

    def __init__(self, model: str) -> None:
        self._base: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def completion(self, answer: Answer, usage: Usage) -> dict[str, Any]:
        """The whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": answer.message.text or None, "refusal": None}
        if answer.message.tool_calls:
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments_json}}
                for c in answer.message.tool_calls
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason.value}
        return {**self._base, "object": "chat.completion", "choices": [choice], "usage": _usage(usage)}

    def first(self) -> str:
        """The chunk that opens the stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta(self, delta: Delta) -> str:
        """A chunk with one piece."""
        match delta:
            case TextDelta(text):
                return self._chunk({"content": text})
            case ReasoningDelta(text):
                return self._chunk({"reasoning_content": text})
            case ToolCallDelta(index, id_, name, arguments):
                function = {"arguments": arguments, **({"name": name} if name else {})}
                call = {"index": index, "type": "function", "function": function, **({"id": id_} if id_ else {})}
                return self._chunk({"tool_calls": [call]})

    def last(self, finish_reason: FinishReason) -> str:
        """The chunk that says why the answer ended."""
        return self._chunk({}, finish_reason.value)

    def usage(self, usage: Usage) -> str:
        """The chunk after the last, with the token counts."""
        return json.dumps({**self._base, "object": "chat.completion.chunk", "choices": [], "usage": _usage(usage)})

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return json.dumps({**self._base, "object": "chat.completion.chunk", "choices": [choice], "usage": None})


def _usage(usage: Usage) -> dict[str, Any]:
    # As OpenAI's prompt cache: from 1,024 tokens on, in steps of 128.
    cached = usage.cache_read_input_tokens // 128 * 128 if usage.input_tokens >= 1024 else 0
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_output_tokens},
    }
