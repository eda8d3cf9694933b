"""The forms of log lines: which one a file has, and what a line of it says."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum

from services.cli.logs.record import LogRecord
from services.common.chat import (
    Chat,
    ImagePart,
    Message,
    ResponseFormat,
    Role,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)
from services.common.money import NANO, Usage
from services.common.tokens import estimate_chat_tokens, estimate_tokens

Row = Mapping[str, object]

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "human": Role.USER,
    "assistant": Role.ASSISTANT,
    "ai": Role.ASSISTANT,
    "model": Role.ASSISTANT,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
_MODEL = ("model", "providedModelName", "provided_model_name", "internalModel", "model_name", "model_id")
_AT = ("created", "timestamp", "created_at", "startTime", "start_time", "time", "ts", "date", "@timestamp")
_END = ("endTime", "end_time", "completionEndTime")
_TENANT = (
    "tenant",
    "team_id",
    "team",
    "organization",
    "organization_id",
    "org_id",
    "project_id",
    "projectId",
    "customer",
)
_USER = ("user", "end_user", "user_id", "userId", "safety_identifier")
_ENDPOINT = ("endpoint", "application", "app", "feature", "request_path", "path", "traceName", "name", "call_type")
_KIND = ("kind", "query_kind", "category", "intent")
_ANSWER = ("response", "answer", "completion", "output", "response_text", "generation")
_COST = (
    "cost",
    "cost_usd",
    "spend",
    "response_cost",
    "total_cost",
    "totalCost",
    "calculatedTotalCost",
    "calculated_total_cost",
)
_STATUS = ("status", "status_code", "http_status", "level", "outcome")
_ERROR = ("error", "exception", "error_message")
_LATENCY_S = ("latency_s", "latency", "duration_s", "duration")
_LATENCY_MS = ("latency_ms", "duration_ms", "request_duration_ms", "response_time_ms")
_IN = ("prompt_tokens", "input_tokens", "promptTokens", "inputTokens", "inputUsage", "input")
_OUT = ("completion_tokens", "output_tokens", "completionTokens", "outputTokens", "outputUsage", "output")
_ASIDE = frozenset({"cache_hit", "cached", "cache_key"})  # of gateways, not of the vendor
_CUT = {"cut", "cancelled", "canceled", "aborted", "interrupted", "incomplete", "client_disconnect", "499"}
_BAD = {"error", "failure", "failed", "fail", "exception", "timeout", "refused"}


class Form(StrEnum):
    """Whose export a log is."""

    OPENAI = "openai"
    LITELLM = "litellm"
    LANGFUSE = "langfuse"


class Unusable(ValueError):
    """The line cannot be used; says why, without its contents."""


def form_of_row(row: Row) -> Form | None:
    """Whose form a line has; None where it looks like no request log's at all."""
    if "startTime" in row and "call_type" in row:
        return Form.LITELLM
    if ("traceId" in row or "trace_id" in row) and ("startTime" in row or "start_time" in row):
        return Form.LANGFUSE
    return Form.OPENAI if any(name in row for name in ("request", "request_body", "body", *_MODEL)) else None


def read_row(row: Row, line: int) -> LogRecord | None:
    """The call that a line of any form describes; None for lines that are no model calls. Raises Unusable."""
    match form_of_row(row):
        case Form.LITELLM:
            return _litellm(row, line)
        case Form.LANGFUSE:
            return _langfuse(row, line) if str(row.get("type") or "GENERATION").upper() == "GENERATION" else None
        case Form.OPENAI:
            return _openai(row, line)
        case None:
            raise Unusable("names no model")


def _openai(row: Row, line: int) -> LogRecord:
    """A request and its response, as objects or spread over one flat object."""
    request = _object(_first(row, ("request", "request_body", "body", "req")))
    response = _decoded(_first(row, _ANSWER))
    metadata = _object(row.get("metadata")) or _object(request.get("metadata"))
    body = response if isinstance(response, dict) else {}
    if inner := _object(body.get("body")):  # OpenAI's batch output puts a status around the answer
        row, body = {**row, "status_code": row.get("status_code", body.get("status_code"))}, inner
    at = _time(_first(row, _AT))
    return _record(
        line,
        row,
        asked={**row, **request},
        model=_word(_first(request, _MODEL)) or _word(_first(row, _MODEL)) or _word(body.get("model")),
        response=body or response,
        body=body,
        at=_time(body.get("created")) if at is None else at,
        who=_who(row, request, metadata),
        counted=_object(body.get("usage")) or _object(row.get("usage")) or row,
    )


def _litellm(row: Row, line: int) -> LogRecord:
    """A row of LiteLLM's spend log: prompts only where store_prompts_in_spend_logs was on."""
    metadata, request = _object(row.get("metadata")), _object(row.get("proxy_server_request"))
    response = _decoded(row.get("response"))
    latency = _latency(row)
    return _record(
        line,
        row,
        asked={"messages": row.get("messages"), **request},
        model=_word(row.get("model")) or _word(row.get("model_group")),
        response=response,
        body=response if isinstance(response, dict) else {},
        at=_time(row.get("startTime")),
        who=_who(row, request, metadata),
        counted=_object(metadata.get("usage_object")) or row,
        latency=_between(row.get("startTime"), row.get("endTime")) if latency is None else latency,
    )


def _langfuse(row: Row, line: int) -> LogRecord:
    """A GENERATION of a Langfuse export."""
    metadata, asked = _object(row.get("metadata")), _decoded(row.get("input"))
    request: dict[str, object] = {**_object(row.get("modelParameters") or row.get("model_parameters"))}
    request |= asked if isinstance(asked, dict) and "messages" in asked else {"messages": asked}
    output = _decoded(row.get("output"))
    costs = _object(row.get("costDetails") or row.get("cost_details"))
    start = row.get("startTime", row.get("start_time"))
    return _record(
        line,
        {"cost": costs.get("total"), **row},
        asked=request,
        model=_word(_first(row, _MODEL)),
        response={"message": output} if isinstance(output, dict) and "role" in output else output,
        body={},
        at=_time(start),
        who=_who(row, request, metadata),
        counted=_object(row.get("usageDetails") or row.get("usage_details")) or _object(row.get("usage")) or row,
        # Langfuse gives seconds in some exports and milliseconds in others; its two times are not in doubt.
        latency=_between(start, _first(row, _END)),
    )


def _record(
    line: int,
    row: Row,
    *,
    asked: Row,
    model: str,
    response: object,
    body: Row,
    at: float | None,
    who: tuple[str, str, str, str],
    counted: Row,
    latency: float | None = None,
) -> LogRecord:
    """What all forms have in common. Raises Unusable."""
    if not model:
        raise Unusable("names no model")
    chat = _chat(asked)
    if chat is None:
        raise Unusable("holds no prompt")
    answer, stopped = _answer(response)
    usage = _langfuse_usage(counted)
    if usage is None:
        usage = Usage(estimate_chat_tokens(chat), estimate_tokens(answer), estimated=True)
    status, cut = _status(row, body)
    cost = _cost(row)
    tenant, user, endpoint, kind = who
    return LogRecord(
        line,
        at,
        model,
        chat,
        answer,
        usage,
        counts_cached=_counts_cached(counted),
        finish_reason="cancelled" if cut else stopped,
        # The gateway's own cache answered: no model was paid.
        cost=0 if cost is None and _true(_first(row, ("cache_hit", "cached"))) else cost,
        status=status,
        latency_s=_latency(row) if latency is None else latency,
        tenant=tenant,
        user=user,
        endpoint=endpoint,
        kind=kind,
        request_id=_word(_first(row, ("request_id", "id", "custom_id"))),
    )


def _counts_cached(found: Row) -> bool:
    """Whether the counts say anything of cached input."""
    details = _object(found.get("prompt_tokens_details")) or _object(found.get("input_tokens_details")) or found
    return any("cache" in name and name not in _ASIDE and _number(value) is not None for name, value in details.items())


def _langfuse_usage(found: Row) -> Usage | None:
    """Langfuse keeps cached input apart from `input`; each key beginning with input or output is tokens of its own."""
    names = [name for name in found if isinstance(found[name], int | float)]
    if "input" not in found or not any(name.startswith(("input_", "cache_")) for name in names):
        return _usage(found)
    reads = sum(_count(found[n]) for n in names if "cache" in n and ("read" in n or n == "input_cached_tokens"))
    writes = sum(_count(found[n]) for n in names if "cache_creation" in n or "cache_write" in n)
    rest = sum(_count(found[n]) for n in names if n.startswith("input") and "cache" not in n)
    out = sum(_count(found[n]) for n in names if n.startswith("output"))
    return Usage(rest + reads + writes, out, reads, writes)


def _who(row: Row, request: Row, metadata: Row) -> tuple[str, str, str, str]:
    """Tenant, user, endpoint and kind."""
    tags = {**metadata, **_object(metadata.get("requester_metadata"))}
    tenant = _word(_first(row, _TENANT)) or _word(_first(tags, (*_TENANT, "user_api_key_team_id")))
    user = _word(_first(row, _USER)) or _word(_first(request, _USER)) or _word(_first(tags, _USER))
    endpoint = _word(_first(tags, ("endpoint", "application", "feature"))) or _word(_first(row, _ENDPOINT))
    return tenant, user, endpoint, _word(_first(row, _KIND)) or _word(_first(tags, _KIND))


def _chat(asked: Row) -> Chat | None:
    """What was asked; None where the log does not keep it."""
    messages = list(_messages(_decoded(asked.get("messages"))))
    if not messages:
        for name in ("input", "prompt"):
            messages = list(_messages(_decoded(asked.get(name))))
            if messages:
                break
    if not messages:
        return None
    system = asked.get("system") or asked.get("instructions")
    if system:
        messages.insert(0, Message(Role.SYSTEM, _parts(_decoded(system))))
    return Chat(
        tuple(messages),
        tuple(_tools(_decoded(asked.get("tools")) or _decoded(asked.get("functions")))),
        _tool_choice(_decoded(asked.get("tool_choice"))),
        _format(_object(asked.get("response_format"))),
        _sampling(asked),
    )


def _messages(found: object) -> Iterator[Message]:
    if isinstance(found, str):
        if found.strip() and found not in ("{}", "[]"):
            yield Message(Role.USER, (TextPart(_clean(found)),))
        return
    if isinstance(found, dict):
        found = found.get("messages", [found] if "content" in found else [])
    if not isinstance(found, list):
        return
    for item in found:
        if isinstance(item, str):
            yield Message(Role.USER, (TextPart(_clean(item)),))
        elif isinstance(item, dict):
            yield _message(item)


def _message(item: Row) -> Message:
    role = _ROLES.get(str(item.get("role", "user")).lower(), Role.USER)
    calls = item.get("tool_calls")
    return Message(
        role,
        _parts(item.get("content")),
        _word(item.get("name")),
        tuple(_calls(calls)) if isinstance(calls, list) else (),
        _word(item.get("tool_call_id")),
    )


def _parts(content: object) -> tuple[TextPart | ImagePart, ...]:
    if isinstance(content, str):
        return (TextPart(_clean(content)),) if content else ()
    if not isinstance(content, list):
        return ()
    parts: list[TextPart | ImagePart] = []
    for part in content:
        if isinstance(part, str):
            parts.append(TextPart(_clean(part)))
        elif isinstance(part, dict):
            parts.extend(_part(part))
    return tuple(parts)


def _part(part: Row) -> Iterator[TextPart | ImagePart]:
    if isinstance(text := part.get("text"), str):
        yield TextPart(_clean(text))
    elif "image" in str(part.get("type")):
        image = part.get("image_url", part.get("source"))
        url = (
            image if isinstance(image, str) else _object(image).get("url") or json.dumps(_object(image), sort_keys=True)
        )
        yield ImagePart(url=_clean(str(url)))
    elif (inner := part.get("content")) is not None:  # Anthropic's tool_result
        yield from _parts(inner)


def _calls(calls: Sequence[object]) -> Iterator[ToolCall]:
    for call in calls:
        function = _object(_object(call).get("function"))
        if name := _word(function.get("name")):
            arguments = function.get("arguments", "")
            shown = arguments if isinstance(arguments, str) else json.dumps(arguments)
            yield ToolCall(_word(_object(call).get("id")), name, _clean(shown))


def _tools(found: object) -> Iterator[Tool]:
    for item in found if isinstance(found, list) else []:
        tool = _object(item)
        function = _object(tool.get("function")) or tool
        if name := _word(function.get("name")):
            schema = function.get("parameters", function.get("input_schema"))
            described = _clean(str(function.get("description") or ""))
            yield Tool(name, described, json.dumps(schema) if schema else "", bool(function.get("strict")))


def _tool_choice(found: object) -> ToolChoice:
    if isinstance(found, str):
        return ToolChoice(found if found in ("auto", "none", "required") else "")
    name = _word(_object(_object(found).get("function")).get("name"))
    return ToolChoice("named", name) if name else ToolChoice()


def _format(found: Row) -> ResponseFormat:
    kind = found.get("type")
    if kind == "json_object":
        return ResponseFormat("json_object")
    if kind == "json_schema":
        named = _object(found.get("json_schema"))
        return ResponseFormat("json_schema", _word(named.get("name")), json.dumps(named.get("schema")))
    return ResponseFormat()


def _sampling(asked: Row) -> Sampling:
    limit = _number(_first(asked, ("max_completion_tokens", "max_tokens", "max_output_tokens")))
    stop = asked.get("stop")
    seed = _number(asked.get("seed"))
    return Sampling(
        _number(asked.get("temperature")),
        _number(asked.get("top_p")),
        None if limit is None else int(limit),
        (stop,) if isinstance(stop, str) and stop else tuple(map(str, stop)) if isinstance(stop, list) else (),
        None if seed is None else int(seed),
        _number(asked.get("presence_penalty")),
        _number(asked.get("frequency_penalty")),
        _word(asked.get("reasoning_effort")),
    )


def _answer(found: object) -> tuple[str, str]:
    """The answer's text and why it ended."""
    if isinstance(found, str):
        return _clean(found), ""
    if not isinstance(found, dict):
        return "", ""
    choices = found.get("choices")
    choice = _object(choices[0]) if isinstance(choices, list) and choices else found
    stopped = _word(choice.get("finish_reason")) or _word(found.get("stop_reason"))
    message = _object(choice.get("message")) or choice
    text = message.get("content", message.get("text", message.get("output")))
    if isinstance(text, list) and text and "content" in _object(text[0]):  # OpenAI's Responses API: a list of messages
        parts = [part for item in text for part in _parts(_object(item).get("content"))]
        return "\n".join(part.text for part in parts if isinstance(part, TextPart)), stopped
    return "\n".join(part.text for part in _parts(text) if isinstance(part, TextPart)), stopped


def _usage(found: Row) -> Usage | None:
    """Tokens of one call. OpenAI counts cached input within the prompt's tokens, Anthropic beside them."""
    given, made = _first(found, _IN), _first(found, _OUT)
    if _number(given) is None and _number(made) is None:
        return None
    details = _object(found.get("prompt_tokens_details")) or _object(found.get("input_tokens_details"))
    beside = "prompt_tokens" not in found and not details
    reads = _count(details.get("cached_tokens", _first(found, ("cache_read_input_tokens", "cached_tokens"))))
    writes = _count(
        found.get("cache_creation_input_tokens", _first(details, ("cache_creation_tokens", "cache_write_tokens")))
    )
    within = _count(given)
    if beside and "cached_tokens" not in found:
        within += reads + writes
    reads = min(reads, within)
    out = _object(found.get("completion_tokens_details")) or _object(found.get("output_tokens_details"))
    made_tokens = _count(made)
    return Usage(
        within,
        made_tokens,
        reads,
        min(writes, within - reads),
        reasoning_output_tokens=min(_count(out.get("reasoning_tokens")), made_tokens),
    )


def _cost(row: Row) -> int | None:
    """What the log says was paid, in nano-USD."""
    for name in _COST:
        value = row.get(name)
        if value is None or value == "" or isinstance(value, bool | dict | list):
            continue
        try:
            dollars = Decimal(str(value).strip().lstrip("$"))
        except InvalidOperation:
            continue
        if dollars.is_finite() and 0 <= dollars < 10**6:
            return int((dollars * NANO).to_integral_value())
    return None


def _status(row: Row, body: Row) -> tuple[int, bool]:
    """The HTTP status, and whether the caller went away before the end."""
    stated = str(_first(row, _STATUS) or "").strip().lower()
    if stated in _CUT:
        return 200, True
    if stated.isdigit() and 400 <= int(stated) <= 599:
        return int(stated), False
    error = _first(row, _ERROR) or body.get("error")
    failed = stated in _BAD or error not in (None, "", "null", "None", False, "false", {})
    return (500 if failed else 200), False


def _latency(row: Row) -> float | None:
    seconds, millis = _number(_first(row, _LATENCY_S)), _number(_first(row, _LATENCY_MS))
    if seconds is None and millis is not None:
        seconds = millis / 1000
    return seconds if seconds is not None and seconds >= 0 else None


def _between(start: object, end: object) -> float | None:
    began, ended = _time(start), _time(end)
    return None if began is None or ended is None or ended < began else ended - began


def _time(value: object) -> float | None:
    """Unix seconds of a number (seconds, milli-, micro- or nanoseconds) or an ISO text (UTC where it names no zone)."""
    if isinstance(value, str) and not _numeric(value):
        try:
            found = datetime.fromisoformat(value.strip())
            return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            return None
    number = _number(value)
    if number is None or number <= 0:
        return None
    while number > 1e11:
        number /= 1000
    return number


def _first(row: Row, names: Sequence[str]) -> object:
    """The first of the fields that is there and not empty."""
    for name in names:
        value = row.get(name)
        if value is not None and value != "":
            return value
    return None


def _decoded(value: object) -> object:
    """JSON within JSON or a CSV cell, as what it says."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _object(value: object) -> dict[str, object]:
    found = _decoded(value)
    return found if isinstance(found, dict) else {}


def _word(value: object) -> str:
    return _clean(value) if isinstance(value, str) else str(value) if isinstance(value, int) else ""


def _clean(text: str) -> str:
    """Without lone surrogates: JSON may hold them, models cannot."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _numeric(text: str) -> bool:
    return _number(text) is not None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _count(value: object) -> int:
    number = _number(value)
    return 0 if number is None else int(min(max(number, 0), 10**9))


def _true(value: object) -> bool:
    return value is True or str(value).strip().lower() in ("true", "1", "hit")
