"""Batch files: OpenAI's form in, OpenAI's form out, so that what writes and reads them today goes on doing so."""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from google.protobuf.json_format import MessageToDict
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import batch_pb2
from services.common.chat_pb import chat_from_pb
from services.common.errors import InvalidInput
from services.common.yaml_file import ConfigError

_DATA_URL = re.compile(r"data:(image/[a-z0-9.+-]+);base64,(.*)", re.DOTALL)
_ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
_MODES = {
    "auto": chat_pb2.ToolChoice.MODE_AUTO,
    "none": chat_pb2.ToolChoice.MODE_NONE,
    "required": chat_pb2.ToolChoice.MODE_REQUIRED,
}
_KINDS = {
    "text": chat_pb2.ResponseFormat.KIND_TEXT,
    "json_object": chat_pb2.ResponseFormat.KIND_JSON_OBJECT,
    "json_schema": chat_pb2.ResponseFormat.KIND_JSON_SCHEMA,
}
_REASONS = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}


class _Strict(BaseModel):
    """What is not known is refused: it would change the answer, and be left out in silence."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Url(_Strict):
    url: str
    detail: Literal["auto"] = "auto"


class _Part(_Strict):
    type: Literal["text", "image_url"]
    text: str = ""
    image_url: _Url | None = None


class _Called(_Strict):
    name: str
    arguments: str


class _Call(_Strict):
    id: str
    type: Literal["function"] = "function"
    function: _Called


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str = ""
    tool_calls: list[_Call] = Field(default_factory=list)
    tool_call_id: str = ""
    refusal: None = None


class _Function(_Strict):
    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(_Strict):
    type: Literal["function"]
    function: _Function


class _Named(_Strict):
    name: str


class _NamedChoice(_Strict):
    type: Literal["function"]
    function: _Named


class _Schema(_Strict):
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None
    description: str = ""


class _Format(_Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _Body(_Strict):
    messages: list[_Message]
    model: str = "auto"
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: str | None = None
    tools: list[_Tool] = Field(default_factory=list)
    tool_choice: Literal["auto", "none", "required"] | _NamedChoice | None = None
    response_format: _Format | None = None
    n: Literal[1] = 1
    stream: Literal[False] = False
    # What says whose request it is, or where it runs, changes no answer.
    user: str = ""
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None


class _Line(_Strict):
    custom_id: str
    method: Literal["POST"] = "POST"
    url: Literal["/v1/chat/completions"] = "/v1/chat/completions"
    body: _Body


def read(path: Path, model: str | None = None) -> list[batch_pb2.BatchItem]:
    """The items of a file; `model` stands in for what its lines say. Raises ConfigError with the first lines that are wrong."""
    items: list[batch_pb2.BatchItem] = []
    problems: list[str] = []
    first: dict[str, int] = {}
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                item = _item(raw, model)
            except ValueError as error:
                problems.append(f"{path}:{number}: {error}")
            else:
                before = first.setdefault(item.custom_id, number)
                if before != number:
                    problems.append(f"{path}:{number}: custom_id: {item.custom_id!r} stands in line {before} too")
                items.append(item)
            if len(problems) == 10:
                break
    if problems:
        raise ConfigError("\n".join(problems))
    if not items:
        raise ConfigError(f"{path}: no lines")
    return items


def _item(raw: bytes, model: str | None) -> batch_pb2.BatchItem:
    """One line. Raises ValueError saying what is wrong with it."""
    try:
        line = _Line.model_validate_json(raw)
    except ValidationError as error:
        wrong = error.errors()[0]
        if wrong["type"] == "json_invalid":
            raise ValueError("not JSON") from None
        where = ".".join(str(part) for part in wrong["loc"] if part != "function-after")
        raise ValueError(f"{where}: {wrong['msg']}" if where else wrong["msg"]) from None
    chat = _chat(line.body)
    try:
        chat_from_pb(chat, "body")
    except InvalidInput as error:
        violation = error.violations[0]
        raise ValueError(f"{violation.field}: {violation.description}") from None
    return batch_pb2.BatchItem(custom_id=line.custom_id, chat=chat, model=model or line.body.model)


def _chat(body: _Body) -> chat_pb2.Chat:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    chat = chat_pb2.Chat(
        messages=[_message(message) for message in body.messages],
        tools=[
            chat_pb2.Tool(
                name=tool.function.name,
                description=tool.function.description,
                parameters_json_schema="" if tool.function.parameters is None else json.dumps(tool.function.parameters),
                strict=bool(tool.function.strict),
            )
            for tool in body.tools
        ],
        sampling=chat_pb2.Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            max_output_tokens=body.max_completion_tokens or body.max_tokens,
            stop=stop,
            seed=body.seed,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            reasoning_effort=body.reasoning_effort or "",
        ),
    )
    if isinstance(body.tool_choice, _NamedChoice):
        chat.tool_choice.mode = chat_pb2.ToolChoice.MODE_NAMED
        chat.tool_choice.name = body.tool_choice.function.name
    elif body.tool_choice is not None:
        chat.tool_choice.mode = _MODES[body.tool_choice]
    if (form := body.response_format) is not None:
        chat.response_format.kind = _KINDS[form.type]
        if form.json_schema is not None:
            chat.response_format.name = form.json_schema.name
            chat.response_format.json_schema = json.dumps(form.json_schema.schema_)
    return chat


def _message(message: _Message) -> chat_pb2.Message:
    content = message.content
    parts = [_Part(type="text", text=content)] if isinstance(content, str) and content else content or []
    return chat_pb2.Message(
        role=_ROLES[message.role],
        parts=[_part(part) for part in parts if isinstance(part, _Part)],
        name=message.name,
        tool_calls=[
            chat_pb2.ToolCall(id=call.id, name=call.function.name, arguments_json=call.function.arguments)
            for call in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
    )


def _part(part: _Part) -> chat_pb2.ContentPart:
    if part.image_url is None:
        return chat_pb2.ContentPart(text=part.text)
    url = part.image_url.url
    if (data := _DATA_URL.fullmatch(url)) is None:
        return chat_pb2.ContentPart(image=chat_pb2.Image(url=url))
    try:
        content = base64.b64decode(data[2], validate=True)
    except binascii.Error:
        raise ValueError("an image's data is not base64") from None
    return chat_pb2.ContentPart(image=chat_pb2.Image(data=content, media_type=data[1]))


def result_line(result: batch_pb2.StreamBatchResultsResponse) -> str:
    """One line of an output file, without its end; what it cost stands under "llmmesh"."""
    line: dict[str, Any] = {
        "id": result.receipt.request_id,
        "custom_id": result.custom_id,
        "response": None,
        "error": None,
    }
    if result.WhichOneof("result") == "answer":
        line["response"] = {"status_code": 200, "request_id": result.receipt.request_id, "body": _completion(result)}
    else:
        line["error"] = {"code": result.error.reason.lower(), "message": result.error.message}
    line["llmmesh"] = MessageToDict(result.receipt, preserving_proto_field_name=True)
    return json.dumps(line, ensure_ascii=False)


def _completion(result: batch_pb2.StreamBatchResultsResponse) -> dict[str, Any]:
    answer, usage = result.answer, result.usage
    text = "".join(part.text for part in answer.message.parts)
    message: dict[str, Any] = {"role": "assistant", "content": text or None, "refusal": None}
    if answer.message.tool_calls:
        message["tool_calls"] = list(_calls(answer.message))
    return {
        "id": result.receipt.request_id,
        "object": "chat.completion",
        "model": result.receipt.model,
        "choices": [
            {"index": 0, "message": message, "finish_reason": _REASONS.get(answer.finish_reason), "logprobs": None}
        ],
        "usage": {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.input_tokens + usage.output_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cache_read_input_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning_output_tokens},
        },
    }


def _calls(message: chat_pb2.Message) -> Iterator[dict[str, Any]]:
    for call in message.tool_calls:
        yield {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments_json},
        }
