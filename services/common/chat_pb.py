"""Protobuf to plain types and back, with every limit on a chat. The only place where chats enter or leave the wire."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmmesh.common.v1 import caller_pb2, chat_pb2, usage_pb2
from services.common.chat import (
    Answer,
    Chat,
    Delta,
    FinishReason,
    ImagePart,
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
from services.common.errors import InvalidInput, StreamCut, Violation
from services.common.money import Bill, Rates, Usage

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration

MAX_MESSAGES = 1_000
MAX_TOOLS = 128
MAX_PARTS = 4_096  # of all messages
MAX_TOOL_CALLS = 1_024  # of all messages
MAX_TEXT_BYTES = 4 * 1024 * 1024
MAX_IMAGE_BYTES = 8 * 1024 * 1024
MAX_OUTPUT_TOKENS = 131_072
MAX_SCHEMAS = 512 * 1024  # characters; reading them holds up other requests
MAX_JSON_DEPTH = 100
_MAX_VIOLATIONS = 16
_JSON_RULE = f"must be a JSON object, at most {MAX_JSON_DEPTH} levels deep"
_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_BRACKETS = re.compile(r"[{}\[\]]")

_ROLES = {
    chat_pb2.ROLE_SYSTEM: Role.SYSTEM,
    chat_pb2.ROLE_USER: Role.USER,
    chat_pb2.ROLE_ASSISTANT: Role.ASSISTANT,
    chat_pb2.ROLE_TOOL: Role.TOOL,
}
_ROLES_PB = {role: number for number, role in _ROLES.items()}
_FINISH = {
    chat_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    chat_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    chat_pb2.FINISH_REASON_TOOL_CALLS: FinishReason.TOOL_CALLS,
    chat_pb2.FINISH_REASON_CONTENT_FILTER: FinishReason.CONTENT_FILTER,
}
_FINISH_PB = {reason: number for number, reason in _FINISH.items()}
_MODES = {
    chat_pb2.ToolChoice.MODE_UNSPECIFIED: "",
    chat_pb2.ToolChoice.MODE_AUTO: "auto",
    chat_pb2.ToolChoice.MODE_NONE: "none",
    chat_pb2.ToolChoice.MODE_REQUIRED: "required",
    chat_pb2.ToolChoice.MODE_NAMED: "named",
}
_MODES_PB = {name: number for number, name in _MODES.items()}
_KINDS = {
    chat_pb2.ResponseFormat.KIND_UNSPECIFIED: "text",
    chat_pb2.ResponseFormat.KIND_TEXT: "text",
    chat_pb2.ResponseFormat.KIND_JSON_OBJECT: "json_object",
    chat_pb2.ResponseFormat.KIND_JSON_SCHEMA: "json_schema",
}
_KINDS_PB = {
    "text": chat_pb2.ResponseFormat.KIND_TEXT,
    "json_object": chat_pb2.ResponseFormat.KIND_JSON_OBJECT,
    "json_schema": chat_pb2.ResponseFormat.KIND_JSON_SCHEMA,
}
_NO_CHOICE = ToolChoice()
_PLAIN_TEXT = ResponseFormat()
_DEFAULT_SAMPLING = Sampling()
_EFFORTS = ("", "low", "medium", "high")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class Checker:
    """Collects what is wrong with a request, so that the caller learns it all at once."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def need(self, ok: bool, field: str, description: str) -> bool:
        """Notes a violation unless `ok`; returns `ok`."""
        if not ok and len(self.violations) < _MAX_VIOLATIONS:
            self.violations.append(Violation(field, description))
        return ok

    def done(self) -> None:
        """Raises InvalidInput if anything was wrong."""
        if self.violations:
            raise InvalidInput(violations=self.violations)


def chat_from_pb(pb: chat_pb2.Chat, field: str = "chat") -> Chat:
    """The chat, checked against every limit of the contract. Raises InvalidInput with field violations."""
    check = Checker()
    count = len(pb.messages)
    if not check.need(count > 0, f"{field}.messages", "at least one message is required"):
        check.done()
    if not check.need(count <= MAX_MESSAGES, f"{field}.messages", f"at most {MAX_MESSAGES} messages, got {count}"):
        check.done()
    check.need(len(pb.tools) <= MAX_TOOLS, f"{field}.tools", f"at most {MAX_TOOLS} tools, got {len(pb.tools)}")
    # Counted before they are read: a million tiny parts would hold up everybody else.
    parts, calls = sum(len(m.parts) for m in pb.messages), sum(len(m.tool_calls) for m in pb.messages)
    few = check.need(parts <= MAX_PARTS, f"{field}.messages", f"at most {MAX_PARTS} parts in all, got {parts}")
    few &= check.need(
        calls <= MAX_TOOL_CALLS, f"{field}.messages", f"at most {MAX_TOOL_CALLS} tool calls in all, got {calls}"
    )
    if not few:
        check.done()
    messages = tuple(_message(m, f"{field}.messages[{i}]", check) for i, m in enumerate(pb.messages))
    last = messages[-1]
    check.need(
        last.role in (Role.USER, Role.TOOL),
        f"{field}.messages[{count - 1}].role",
        "the last message must come from the user or a tool",
    )
    tools = tuple(_tool(t, f"{field}.tools[{i}]", check) for i, t in enumerate(pb.tools[:MAX_TOOLS]))
    schemas = sum(len(t.parameters_json_schema) for t in pb.tools) + len(pb.response_format.json_schema)
    check.need(schemas <= MAX_SCHEMAS, f"{field}.tools", f"at most {MAX_SCHEMAS} characters of schemas, got {schemas}")
    names = [tool.name for tool in tools]
    check.need(len(set(names)) == len(names), f"{field}.tools", "tool names must be unique")
    chat = Chat(
        messages,
        tools,
        _tool_choice(pb.tool_choice, names, f"{field}.tool_choice", check)
        if pb.HasField("tool_choice")
        else _NO_CHOICE,
        _response_format(pb.response_format, f"{field}.response_format", check)
        if pb.HasField("response_format")
        else _PLAIN_TEXT,
        _sampling(pb.sampling, f"{field}.sampling", check) if pb.HasField("sampling") else _DEFAULT_SAMPLING,
    )
    check.done()
    return chat


def _message(pb: chat_pb2.Message, field: str, check: Checker, *, from_model: bool = False) -> Message:
    """A message. What a model wrote may be empty, and the arguments of its tool calls may be anything."""
    role = _ROLES.get(pb.role)
    check.need(role is not None, f"{field}.role", "must be set to a known role")
    parts: list[TextPart | ImagePart] = []
    for i, part in enumerate(pb.parts):
        kind = part.WhichOneof("part")
        if kind == "text":
            check.need(
                len(part.text) <= MAX_TEXT_BYTES, f"{field}.parts[{i}].text", f"at most {MAX_TEXT_BYTES} characters"
            )
            parts.append(TextPart(part.text))
        elif kind == "image":
            parts.append(_image(part.image, f"{field}.parts[{i}].image", check))
        else:
            check.need(False, f"{field}.parts[{i}]", "must hold text or an image")
    calls = tuple(ToolCall(c.id, c.name, c.arguments_json) for c in pb.tool_calls)
    for i, call in enumerate(calls):
        check.need(bool(call.id and call.name), f"{field}.tool_calls[{i}]", "id and name are required")
        check.need(
            from_model or _is_json_object(call.arguments_json), f"{field}.tool_calls[{i}].arguments_json", _JSON_RULE
        )
    if role is Role.TOOL:
        check.need(bool(pb.tool_call_id), f"{field}.tool_call_id", "is required on a tool's message")
    if role is Role.USER or role is Role.SYSTEM:
        check.need(
            any(isinstance(p, ImagePart) or p.text.strip() for p in parts), f"{field}.parts", "the message is empty"
        )
    elif role is Role.ASSISTANT:
        check.need(
            from_model or bool(parts or calls), f"{field}.parts", "the message has neither content nor tool calls"
        )
    return Message(role or Role.USER, tuple(parts), pb.name, calls, pb.tool_call_id, pb.reasoning)


def _image(pb: chat_pb2.Image, field: str, check: Checker) -> ImagePart:
    if pb.WhichOneof("source") == "url":
        check.need(pb.url.startswith(("https://", "http://")), f"{field}.url", "must be an http(s) URL")
        return ImagePart(url=pb.url)
    check.need(0 < len(pb.data) <= MAX_IMAGE_BYTES, f"{field}.data", f"must hold 1 to {MAX_IMAGE_BYTES} bytes")
    check.need(pb.media_type.startswith("image/"), f"{field}.media_type", "must be an image type such as image/png")
    return ImagePart(data=pb.data, media_type=pb.media_type)


def _tool(pb: chat_pb2.Tool, field: str, check: Checker) -> Tool:
    check.need(bool(_TOOL_NAME.fullmatch(pb.name)), f"{field}.name", "must be 1 to 64 of A-Z a-z 0-9 _ . -")
    schema = pb.parameters_json_schema
    check.need(not schema or _is_json_object(schema), f"{field}.parameters_json_schema", _JSON_RULE)
    return Tool(pb.name, pb.description, schema, pb.strict)


def _tool_choice(pb: chat_pb2.ToolChoice, names: list[str], field: str, check: Checker) -> ToolChoice:
    mode = _MODES.get(pb.mode)
    check.need(mode is not None, f"{field}.mode", "is not a known mode")
    if mode == "named":
        check.need(pb.name in names, f"{field}.name", "must name one of the request's tools")
    return ToolChoice(mode or "", pb.name if mode == "named" else "")


def _response_format(pb: chat_pb2.ResponseFormat, field: str, check: Checker) -> ResponseFormat:
    kind = _KINDS.get(pb.kind)
    check.need(kind is not None, f"{field}.kind", "is not a known kind")
    if kind != "json_schema":
        return ResponseFormat(kind or "text")
    check.need(_is_json_object(pb.json_schema), f"{field}.json_schema", _JSON_RULE)
    return ResponseFormat(kind, pb.name, pb.json_schema)


def _sampling(pb: chat_pb2.Sampling, field: str, check: Checker) -> Sampling:
    def within(name: str, value: float, low: float, high: float) -> None:
        check.need(
            math.isfinite(value) and low <= value <= high, f"{field}.{name}", f"must be between {low:g} and {high:g}"
        )

    if pb.HasField("temperature"):
        within("temperature", pb.temperature, 0, 2)
    if pb.HasField("top_p"):
        check.need(0 < pb.top_p <= 1, f"{field}.top_p", "must be above 0 and at most 1")
    if pb.HasField("max_output_tokens"):
        within("max_output_tokens", pb.max_output_tokens, 1, MAX_OUTPUT_TOKENS)
    if pb.HasField("presence_penalty"):
        within("presence_penalty", pb.presence_penalty, -2, 2)
    if pb.HasField("frequency_penalty"):
        within("frequency_penalty", pb.frequency_penalty, -2, 2)
    check.need(
        len(pb.stop) <= 8 and all(0 < len(s) <= 256 for s in pb.stop),
        f"{field}.stop",
        "at most 8 sequences of 1 to 256 characters",
    )
    check.need(pb.reasoning_effort in _EFFORTS, f"{field}.reasoning_effort", "must be low, medium or high")
    return Sampling(
        temperature=pb.temperature if pb.HasField("temperature") else None,
        top_p=pb.top_p if pb.HasField("top_p") else None,
        max_output_tokens=pb.max_output_tokens if pb.HasField("max_output_tokens") else None,
        stop=tuple(pb.stop),
        seed=pb.seed if pb.HasField("seed") else None,
        presence_penalty=pb.presence_penalty if pb.HasField("presence_penalty") else None,
        frequency_penalty=pb.frequency_penalty if pb.HasField("frequency_penalty") else None,
        reasoning_effort=pb.reasoning_effort,
    )


def _is_json_object(text: str) -> bool:
    """Whether it is an object that every reader down the way can take: strict JSON, not too deep, whole Unicode."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
        if not isinstance(value, dict):
            return False
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair, escaped, is no character
    except (ValueError, RecursionError):
        return False
    if text.count("{") + text.count("[") <= MAX_JSON_DEPTH:
        return True
    depth = 0
    for level in _BRACKETS.finditer(_STRINGS.sub("", text)):
        depth += 1 if level[0] in "{[" else -1
        if depth > MAX_JSON_DEPTH:
            return False
    return True


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number} is too large")  # read as infinity, which no strict writer puts into JSON again
    return value


def chat_to_pb(chat: Chat) -> chat_pb2.Chat:
    """The chat on the wire."""
    sampling = chat.sampling
    return chat_pb2.Chat(
        messages=[message_to_pb(m) for m in chat.messages],
        tools=[
            chat_pb2.Tool(
                name=t.name, description=t.description, parameters_json_schema=t.parameters_json_schema, strict=t.strict
            )
            for t in chat.tools
        ],
        tool_choice=chat_pb2.ToolChoice(mode=_MODES_PB[chat.tool_choice.mode], name=chat.tool_choice.name),
        response_format=chat_pb2.ResponseFormat(
            kind=_KINDS_PB[chat.response_format.kind],
            name=chat.response_format.name,
            json_schema=chat.response_format.json_schema,
        ),
        sampling=chat_pb2.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_output_tokens=sampling.max_output_tokens,
            stop=sampling.stop,
            seed=sampling.seed,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            reasoning_effort=sampling.reasoning_effort,
        ),
    )


def message_to_pb(message: Message) -> chat_pb2.Message:
    """One message on the wire."""
    return chat_pb2.Message(
        role=_ROLES_PB[message.role],
        parts=[
            chat_pb2.ContentPart(text=p.text)
            if isinstance(p, TextPart)
            else chat_pb2.ContentPart(
                image=chat_pb2.Image(url=p.url) if p.url else chat_pb2.Image(data=p.data, media_type=p.media_type)
            )
            for p in message.parts
        ],
        name=message.name,
        tool_calls=[
            chat_pb2.ToolCall(id=c.id, name=c.name, arguments_json=c.arguments_json) for c in message.tool_calls
        ],
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning,
    )


def finish_reason_from_pb(number: chat_pb2.FinishReason.ValueType) -> FinishReason:
    """The reason. Raises StreamCut where none is given or none that we know: such an answer cannot pass for a whole one."""
    reason = _FINISH.get(number)
    if reason is None:
        raise StreamCut("the answer ended without a finish reason that is known")
    return reason


def finish_reason_to_pb(reason: FinishReason) -> chat_pb2.FinishReason.ValueType:
    """The reason on the wire."""
    return _FINISH_PB[reason]


def answer_from_pb(pb: chat_pb2.Answer, field: str = "answer") -> Answer:
    """The answer of a model, which may be empty. Raises InvalidInput without a finish reason or the assistant's role."""
    check = Checker()
    check.need(pb.finish_reason in _FINISH, f"{field}.finish_reason", "must be set")
    message = _message(pb.message, f"{field}.message", check, from_model=True)
    check.need(message.role is Role.ASSISTANT, f"{field}.message.role", "must be the assistant")
    check.done()
    return Answer(message, _FINISH[pb.finish_reason])


def answer_to_pb(answer: Answer) -> chat_pb2.Answer:
    """The answer on the wire."""
    return chat_pb2.Answer(message=message_to_pb(answer.message), finish_reason=_FINISH_PB[answer.finish_reason])


def delta_from_pb(pb: chat_pb2.Delta) -> Delta:
    """One piece of a stream."""
    kind = pb.WhichOneof("piece")
    if kind == "tool_call":
        call = pb.tool_call
        return ToolCallDelta(call.index, call.id, call.name, call.arguments_json)
    return ReasoningDelta(pb.reasoning) if kind == "reasoning" else TextDelta(pb.text)


def delta_to_pb(delta: Delta) -> chat_pb2.Delta:
    """One piece of a stream on the wire."""
    match delta:
        case TextDelta(text):
            return chat_pb2.Delta(text=text)
        case ReasoningDelta(text):
            return chat_pb2.Delta(reasoning=text)
        case ToolCallDelta(index, id_, name, arguments):
            return chat_pb2.Delta(
                tool_call=chat_pb2.ToolCallDelta(index=index, id=id_, name=name, arguments_json=arguments)
            )


def usage_from_pb(pb: usage_pb2.Usage, field: str = "usage") -> Usage:
    """Token counts. Raises InvalidInput for a negative count or parts above their whole."""
    check = Checker()
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_write_input_tokens"):
        check.need(getattr(pb, name) >= 0, f"{field}.{name}", "must not be negative")
    check.need(
        pb.cache_read_input_tokens + pb.cache_write_input_tokens <= pb.input_tokens,
        f"{field}.input_tokens",
        "must include the cached tokens",
    )
    check.done()
    return Usage(
        pb.input_tokens,
        pb.output_tokens,
        pb.cache_read_input_tokens,
        pb.cache_write_input_tokens,
        tuple((w.ttl.seconds, w.tokens) for w in pb.cache_writes),
        pb.reasoning_output_tokens,
        pb.estimated,
    )


def usage_to_pb(usage: Usage) -> usage_pb2.Usage:
    """Token counts on the wire."""
    pb = usage_pb2.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_input_tokens=usage.cache_read_input_tokens,
        cache_write_input_tokens=usage.cache_write_input_tokens,
        reasoning_output_tokens=usage.reasoning_output_tokens,
        estimated=usage.estimated,
    )
    for ttl, tokens in usage.cache_writes:
        write = pb.cache_writes.add(tokens=tokens)
        _set_seconds(write.ttl, ttl)
    return pb


def _set_seconds(duration: "Duration", seconds: int) -> None:
    duration.seconds = seconds


def rates_from_pb(pb: usage_pb2.Rates) -> Rates:
    """Prices per million tokens."""
    return Rates(
        pb.input_nanousd_per_mtok,
        pb.output_nanousd_per_mtok,
        pb.cache_read_nanousd_per_mtok,
        pb.cache_write_nanousd_per_mtok,
        pb.cache_write_long_nanousd_per_mtok,
    )


def rates_to_pb(rates: Rates) -> usage_pb2.Rates:
    """Prices on the wire."""
    return usage_pb2.Rates(
        input_nanousd_per_mtok=rates.input,
        output_nanousd_per_mtok=rates.output,
        cache_read_nanousd_per_mtok=rates.cache_read,
        cache_write_nanousd_per_mtok=rates.cache_write,
        cache_write_long_nanousd_per_mtok=rates.cache_write_long,
    )


_COMPONENTS_PB = {
    "provider": usage_pb2.COST_COMPONENT_PROVIDER,
    "engine": usage_pb2.COST_COMPONENT_ENGINE,
    "embedder": usage_pb2.COST_COMPONENT_EMBEDDER,
    "verifier": usage_pb2.COST_COMPONENT_VERIFIER,
    "router": usage_pb2.COST_COMPONENT_ROUTER,
    "compressor": usage_pb2.COST_COMPONENT_COMPRESSOR,
}
_COMPONENTS = {number: name for name, number in _COMPONENTS_PB.items()}


def component_from_pb(number: usage_pb2.CostComponent.ValueType) -> str:
    """Name of a cost component; "provider" for one that a newer peer may send."""
    return _COMPONENTS.get(number, "provider")


def component_to_pb(name: str) -> usage_pb2.CostComponent.ValueType:
    """A cost component on the wire."""
    return _COMPONENTS_PB[name]


def bill_to_pb(bill: Bill) -> usage_pb2.Bill:
    """A bill on the wire."""
    saved = bill.savings
    return usage_pb2.Bill(
        actual_nanousd=bill.actual,
        baseline_nanousd=bill.baseline,
        savings=usage_pb2.Savings(
            cache_nanousd=saved.cache,
            routing_nanousd=saved.routing,
            compression_nanousd=saved.compression,
            prompt_cache_nanousd=saved.prompt_cache,
            batch_nanousd=saved.batch,
        ),
        overhead_nanousd=bill.overhead,
        items=[
            usage_pb2.CostItem(
                component=_COMPONENTS_PB[i.component], model=i.model, cost_nanousd=i.cost, overhead=i.overhead
            )
            for i in bill.items
        ],
        unpriced=bill.unpriced,
    )


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a service is called."""

    tenant: str
    namespace: str = "default"
    endpoint: str = ""
    user: str = ""
    request_id: str = ""


_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{0,64}")
_ENDPOINT = re.compile(r"[A-Za-z0-9._/-]{0,64}")


def check_names(check: Checker, namespace: str, endpoint: str, user: str, prefix: str = "") -> None:
    """Notes what is wrong with the names that come from the request itself."""
    check.need(bool(_NAMESPACE.fullmatch(namespace)), f"{prefix}namespace", "at most 64 of A-Z a-z 0-9 . _ -")
    check.need(bool(_ENDPOINT.fullmatch(endpoint)), f"{prefix}endpoint", "at most 64 of A-Z a-z 0-9 . _ - /")
    check.need(len(user) <= 128, f"{prefix}user", "at most 128 characters")


def caller_from_pb(pb: caller_pb2.Caller, field: str = "caller") -> Caller:
    """The caller. Raises InvalidInput when the tenant is missing or a name is malformed."""
    check = Checker()
    check.need(bool(_TENANT.fullmatch(pb.tenant)), f"{field}.tenant", "1 to 64 of A-Z a-z 0-9 . _ -")
    check_names(check, pb.namespace, pb.endpoint, pb.user, f"{field}.")
    check.need(len(pb.request_id) <= 128, f"{field}.request_id", "at most 128 characters")
    check.done()
    return Caller(pb.tenant, pb.namespace or "default", pb.endpoint, pb.user, pb.request_id)


def caller_to_pb(caller: Caller) -> caller_pb2.Caller:
    """The caller on the wire."""
    return caller_pb2.Caller(
        tenant=caller.tenant,
        namespace=caller.namespace,
        endpoint=caller.endpoint,
        user=caller.user,
        request_id=caller.request_id,
    )


def require(ok: bool, field: str, description: str) -> None:
    """Raises InvalidInput for one field unless `ok`."""
    if not ok:
        raise InvalidInput(violations=(Violation(field, description),))


def require_texts(texts: Iterable[str], field: str, max_bytes: int) -> None:
    """Raises InvalidInput for any text that is empty or longer than `max_bytes` of UTF-8."""
    check = Checker()
    for i, text in enumerate(texts):
        check.need(bool(text.strip()), f"{field}[{i}]", "the text is empty")
        check.need(len(text.encode("utf-8", "replace")) <= max_bytes, f"{field}[{i}]", f"at most {max_bytes} bytes")
    check.done()
