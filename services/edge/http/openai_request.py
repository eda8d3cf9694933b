"""A request as OpenAI's clients write it, into the edge's own. What would change the answer and is not known here is refused."""

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import inference_pb2
from services.common.errors import InvalidInput, Violation

Json = Any
"""What json.loads makes of a body; every value is checked where it is read."""

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
_READ = frozenset(
    {
        "messages", "model", "stream", "stream_options", "tools", "tool_choice", "response_format", "temperature", "top_p",
        "max_tokens", "max_completion_tokens", "stop", "seed", "presence_penalty", "frequency_penalty",
        "reasoning_effort", "user",
    }
)  # fmt: skip
_HARMLESS = frozenset(
    {"metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"}
)
"""Fields that leave the answer as it is."""
_ONLY: Mapping[str, tuple[Json, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "logit_bias": ({},),
    "parallel_tool_calls": (True,),
    "modalities": (["text"],),
    "verbosity": ("medium",),
}
"""Fields that are taken with the values that change nothing."""
_DATA_URL = re.compile(r"data:([\w.+/-]+);base64,(.*)", re.DOTALL)
_PARAMS = (
    ("chat.sampling.max_output_tokens", "max_completion_tokens"),
    ("chat.sampling.", ""),
    ("chat.", ""),
    ("metadata.", ""),
)


class _Reader:
    """Notes what is wrong with a body, by the name that its writer knows."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def wrong(self, name: str, description: str) -> None:
        self.violations.append(Violation(name, description))

    def text(self, value: Json, name: str) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        self.wrong(name, "must be a string")
        return ""

    def items(self, value: Json, name: str) -> list[Json]:
        if value is None:
            return []
        if isinstance(value, list):
            return value
        self.wrong(name, "must be an array")
        return []

    def members(self, value: Json, name: str) -> dict[str, Json]:
        if isinstance(value, dict):
            return value
        self.wrong(name, "must be an object")
        return {}

    def done(self) -> None:
        if self.violations:
            raise InvalidInput(violations=self.violations[:16])


def is_stream(body: Json) -> bool:
    """Whether the answer is wanted as a stream. Raises InvalidInput for a body that is no object."""
    if not isinstance(body, dict):
        raise InvalidInput(violations=(Violation("body", "must be a JSON object"),))
    stream = body.get("stream")
    if stream not in (None, True, False):
        raise InvalidInput(violations=(Violation("stream", "must be true or false"),))
    return bool(stream)


def wants_usage(body: Json) -> bool:
    """Whether a stream is to end with a chunk of usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def request_from_json(body: Json, headers: Mapping[str, str]) -> inference_pb2.CompleteRequest:
    """The request. Raises InvalidInput naming every field by OpenAI's name for it, or the header."""
    read = _Reader()
    request = inference_pb2.CompleteRequest(model=read.text(body.get("model"), "model"))
    _refuse_unknown(read, body)
    for index, message in enumerate(read.items(body.get("messages"), "messages")):
        _message(read, request.chat.messages.add(), read.members(message, f"messages[{index}]"), f"messages[{index}]")
    for index, tool in enumerate(read.items(body.get("tools"), "tools")):
        _tool(read, request.chat.tools.add(), read.members(tool, f"tools[{index}]"), f"tools[{index}]")
    _tool_choice(read, request.chat.tool_choice, body.get("tool_choice"))
    _response_format(read, request.chat.response_format, body.get("response_format"))
    _sampling(read, request.chat.sampling, body)
    request.namespace = headers.get("x-llmmesh-namespace", "")
    request.endpoint = headers.get("x-llmmesh-endpoint", "")
    request.user = headers.get("x-llmmesh-user") or read.text(body.get("user"), "user")
    request.kind = headers.get("x-llmmesh-kind", "")
    _cache_control(read, request, headers)
    read.done()
    return request


def param_of(field: str) -> str:
    """OpenAI's name of a field of our own request."""
    for ours, theirs in _PARAMS:
        if field.startswith(ours):
            return theirs + field.removeprefix(ours)
    return field


def _refuse_unknown(read: _Reader, body: dict[str, Json]) -> None:
    for name, value in body.items():
        if name in _READ or name in _HARMLESS or value is None:
            continue
        allowed = _ONLY.get(name)
        if allowed is None:
            read.wrong(name, "is not supported")
        elif value not in allowed:
            read.wrong(name, f"only {json.dumps(allowed[0])} is supported")


def _message(read: _Reader, pb: chat_pb2.Message, message: dict[str, Json], name: str) -> None:
    role = message.get("role")
    if isinstance(role, str) and role in _ROLES:
        pb.role = _ROLES[role]
    else:
        read.wrong(f"{name}.role", f"must be one of {', '.join(_ROLES)}")
    content = message.get("content")
    if isinstance(content, str):
        if content or role != "assistant":
            pb.parts.add().text = content
    else:
        for index, part in enumerate(read.items(content, f"{name}.content")):
            where = f"{name}.content[{index}]"
            _part(read, pb.parts.add(), read.members(part, where), where)
    pb.name = read.text(message.get("name"), f"{name}.name")
    pb.reasoning = read.text(message.get("reasoning_content"), f"{name}.reasoning_content")
    pb.tool_call_id = read.text(message.get("tool_call_id"), f"{name}.tool_call_id")
    for index, call in enumerate(read.items(message.get("tool_calls"), f"{name}.tool_calls")):
        where = f"{name}.tool_calls[{index}]"
        members = read.members(call, where)
        function = read.members(members.get("function"), f"{where}.function")
        pb.tool_calls.add(
            id=read.text(members.get("id"), f"{where}.id"),
            name=read.text(function.get("name"), f"{where}.function.name"),
            arguments_json=read.text(function.get("arguments"), f"{where}.function.arguments") or "{}",
        )


def _part(read: _Reader, pb: chat_pb2.ContentPart, part: dict[str, Json], name: str) -> None:
    kind = part.get("type")
    if kind in ("text", "refusal"):
        pb.text = read.text(part.get(kind), f"{name}.{kind}")
    elif kind == "image_url":
        image = part.get("image_url")
        url = read.text(image.get("url") if isinstance(image, dict) else image, f"{name}.image_url.url")
        inline = _DATA_URL.fullmatch(url)
        if inline is None:
            pb.image.url = url
            return
        pb.image.media_type = inline[1]
        try:
            pb.image.data = base64.b64decode(inline[2], validate=True)
        except binascii.Error:
            read.wrong(f"{name}.image_url.url", "its base64 is malformed")
    else:
        read.wrong(f"{name}.type", "must be text or image_url")


def _tool(read: _Reader, pb: chat_pb2.Tool, tool: dict[str, Json], name: str) -> None:
    if tool.get("type", "function") != "function":
        read.wrong(f"{name}.type", "only function is supported")
        return
    function = read.members(tool.get("function"), f"{name}.function")
    pb.name = read.text(function.get("name"), f"{name}.function.name")
    pb.description = read.text(function.get("description"), f"{name}.function.description")
    pb.strict = bool(function.get("strict"))
    parameters = function.get("parameters")
    if parameters is not None:
        pb.parameters_json_schema = _schema(read, parameters, f"{name}.function.parameters")


def _schema(read: _Reader, value: Json, name: str) -> str:
    return json.dumps(read.members(value, name), ensure_ascii=False, separators=(",", ":"))


def _tool_choice(read: _Reader, pb: chat_pb2.ToolChoice, choice: Json) -> None:
    if choice is None:
        return
    if isinstance(choice, str) and choice in _MODES:
        pb.mode = _MODES[choice]
    elif isinstance(choice, dict) and choice.get("type") == "function":
        pb.mode = chat_pb2.ToolChoice.MODE_NAMED
        function = read.members(choice.get("function"), "tool_choice.function")
        pb.name = read.text(function.get("name"), "tool_choice.function.name")
    else:
        read.wrong("tool_choice", "must be auto, none, required or a function")


def _response_format(read: _Reader, pb: chat_pb2.ResponseFormat, form: Json) -> None:
    if form is None:
        return
    kind = read.members(form, "response_format").get("type")
    if kind == "text":
        pb.kind = chat_pb2.ResponseFormat.KIND_TEXT
    elif kind == "json_object":
        pb.kind = chat_pb2.ResponseFormat.KIND_JSON_OBJECT
    elif kind == "json_schema":
        schema = read.members(form.get("json_schema"), "response_format.json_schema")
        pb.kind = chat_pb2.ResponseFormat.KIND_JSON_SCHEMA
        pb.name = read.text(schema.get("name"), "response_format.json_schema.name")
        pb.json_schema = _schema(read, schema.get("schema"), "response_format.json_schema.schema")
    else:
        read.wrong("response_format.type", "must be text, json_object or json_schema")


def _sampling(read: _Reader, pb: chat_pb2.Sampling, body: dict[str, Json]) -> None:
    for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty"):
        value = body.get(name)
        if value is not None:
            if isinstance(value, int | float) and not isinstance(value, bool):
                setattr(pb, name, value)
            else:
                read.wrong(name, "must be a number")
    limit_name = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    limit = _integer(read, body.get(limit_name), limit_name, 2**31)
    if limit is not None:
        pb.max_output_tokens = limit
    seed = _integer(read, body.get("seed"), "seed", 2**63)
    if seed is not None:
        pb.seed = seed
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else read.items(stop, "stop")
    pb.stop.extend(read.text(one, f"stop[{index}]") for index, one in enumerate(stops))
    pb.reasoning_effort = read.text(body.get("reasoning_effort"), "reasoning_effort")


def _integer(read: _Reader, value: Json, name: str, bound: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and -bound <= value < bound:
        return value
    read.wrong(name, "must be an integer")
    return None


def _cache_control(read: _Reader, request: inference_pb2.CompleteRequest, headers: Mapping[str, str]) -> None:
    wanted = [word.strip() for word in headers.get("x-llmmesh-cache", "").split(",") if word.strip()]
    for word in wanted:
        if word == "bypass":
            request.cache.bypass = True
        elif word == "no-store":
            request.cache.no_store = True
        else:
            read.wrong("x-llmmesh-cache", "must be bypass, no-store or both")
    least = number_of(read.wrong, headers, "x-llmmesh-min-similarity")
    if least is not None:
        request.cache.min_similarity = least
    age = number_of(read.wrong, headers, "x-llmmesh-max-age")
    if age is not None:
        if abs(age) < 1e10:
            request.cache.max_age.FromNanoseconds(int(age * 1e9))
        else:
            read.wrong("x-llmmesh-max-age", "is out of range")
    request.cache.tags.extend(tag.strip() for tag in headers.get("x-llmmesh-tags", "").split(",") if tag.strip())


def number_of(wrong: Callable[[str, str], None], headers: Mapping[str, str], name: str) -> float | None:
    """A header that is a number; None where it is absent or, with a word to `wrong`, is none."""
    text = headers.get(name)
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if value - value != 0:  # NaN and the infinities
        wrong(name, "must be a number")
        return None
    return value
