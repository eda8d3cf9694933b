"""A chat as the body of a Messages request.

What the API has no place for is left out: seed, presence_penalty, frequency_penalty, the names of users, and reasoning of
earlier turns, which it takes only with a signature that no chat carries.
"""

import base64
import json
import re
from dataclasses import dataclass
from typing import Any

import anthropic

from services.common.chat import Chat, ImagePart, Message, Role, TextPart, Tool, ToolCall
from services.provider.domain.prompt_cache import LONG_TTL_S, MAX_BREAKPOINTS, CacheHints
from services.provider.domain.vendor import Call, Reason, VendorError

DEFAULT_MAX_TOKENS = 8192
"""Limit of generated tokens where the chat sets none: the API demands one. What thinking may use comes on top."""

_BUDGETS = {"low": 2048, "medium": 8192, "high": 24_576}
"""Tokens for thinking by effort."""

_LEAST_BUDGET = 1024
_ANY_JSON = "Answer with one JSON object and nothing else: no prose, no code fence."
_VERSION = re.compile(r"claude-[a-z]+-(\d{1,2})(?:-(\d{1,2}))?(?!\d)")
_OLD_NAME = re.compile(r"claude-(\d{1,2}|instant)(?!\d)")
_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9_-]")

Block = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Generation:
    """What a model takes. `sampling`: temperature and top_p. `budget`: thinking by budget, not adaptive with an effort."""

    sampling: bool
    budget: bool


def generation_of(model: str) -> Generation:
    """By the id's version: budgets before 4.6, temperature and top_p before 4.7. An id without one counts as current."""
    if _OLD_NAME.search(model):
        return Generation(sampling=True, budget=True)
    if not (found := _VERSION.search(model)):
        return Generation(sampling=False, budget=False)
    version = (int(found[1]), int(found[2] or 0))
    return Generation(sampling=version < (4, 7), budget=version < (4, 6))


def encoded(call: Call) -> bytes:
    """The body of the request. Raises VendorError (INVALID_INPUT) for a chat that the API cannot be told."""
    try:
        body = request_of(call.model, call.chat, call.hints)
        if call.streaming:
            body["stream"] = True
        return json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise VendorError(Reason.INVALID_INPUT, "cannot be written as JSON") from error


def request_of(model: str, chat: Chat, hints: CacheHints) -> dict[str, Any]:
    """The body of a Messages request, but for streaming.

    Thinking is asked for by `reasoning_effort`, but not where the API refuses it: with a forced tool, under a limit that
    leaves it fewer than 1,024 tokens, and after tool results, whose turn would need the signed thinking before it.
    Temperature above 1 is refused, for every model alike. Models that take neither temperature nor top_p (4.7 and later)
    are not sent them, nor is a model that thinks; others get one of them, temperature where both are set. "json_object" has
    no counterpart and is asked for in words.

    Raises VendorError (INVALID_INPUT) naming the field.
    """
    sampling, takes = chat.sampling, generation_of(model)
    temperature = sampling.temperature
    if temperature is not None and not 0 <= temperature <= 1:
        raise _invalid("chat.sampling.temperature", "must be between 0 and 1")
    if any(not stop.strip() for stop in sampling.stop):
        raise _invalid("chat.sampling.stop", "must not be of blanks only")
    body: dict[str, Any] = {"model": model} | _blocks_of(chat, hints)
    room = _room_for_thinking(chat)
    body["max_tokens"] = sampling.max_output_tokens or DEFAULT_MAX_TOKENS + room
    if room and takes.budget:
        body["thinking"] = {"type": "enabled", "budget_tokens": room}
    elif room:
        body["thinking"] = {"type": "adaptive", "display": "summarized"}
    if takes.sampling and not room:
        if temperature is not None:
            body["temperature"] = temperature
        elif sampling.top_p is not None:
            body["top_p"] = sampling.top_p
    if sampling.stop:
        body["stop_sequences"] = list(sampling.stop)
    if chat.tools and chat.tool_choice.mode:
        body["tool_choice"] = _tool_choice(chat)
    output: dict[str, Any] = {}
    if sampling.reasoning_effort and not takes.budget:
        output["effort"] = sampling.reasoning_effort
    if chat.response_format.kind == "json_schema":
        output["format"] = {"type": "json_schema", "schema": _schema(chat.response_format.json_schema)}
    return body | ({"output_config": output} if output else {})


def _room_for_thinking(chat: Chat) -> int:
    """Tokens that thinking may use, 0 for none."""
    room = _BUDGETS.get(chat.sampling.reasoning_effort, 0)
    last = next((message for message in reversed(chat.messages) if message.role is Role.ASSISTANT), None)
    if chat.tool_choice.mode in ("required", "named") or (last and last.tool_calls):
        return 0
    if limit := chat.sampling.max_output_tokens:
        # It bounds thinking and the answer together; the least answer that makes sense gets a quarter of it.
        room = min(room, limit * 3 // 4)
    return room if room >= _LEAST_BUDGET else 0


def _tool_choice(chat: Chat) -> dict[str, str]:
    choice = chat.tool_choice
    if choice.mode == "named":
        return {"type": "tool", "name": choice.name}
    return {"type": {"required": "any"}.get(choice.mode, choice.mode)}


def _blocks_of(chat: Chat, hints: CacheHints) -> dict[str, Any]:
    """Tools, system and messages, with the hints' breakpoints."""
    tools = [_tool(tool) for tool in chat.tools]
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    last_block: dict[int | None, Block] = {}
    if tools:
        last_block[None] = tools[-1]
    for index, message in enumerate(chat.messages):
        blocks = _content(index, message)
        if not blocks:
            continue
        last_block[index] = blocks[-1]
        role = "assistant" if message.role is Role.ASSISTANT else "user"
        if message.role is Role.SYSTEM:
            system += blocks
        elif turns and turns[-1]["role"] == role:
            # All results of one turn's tools belong into the one turn after it.
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if chat.response_format.kind == "json_object":
        system.append({"type": "text", "text": _ANY_JSON})
    for breakpoint_ in hints.breakpoints[:MAX_BREAKPOINTS]:
        if (block := last_block.get(breakpoint_.message)) is not None:
            block["cache_control"] = {"type": "ephemeral", "ttl": "1h" if breakpoint_.ttl_s >= LONG_TTL_S else "5m"}
    _order_lifetimes([*tools, *system, *(block for turn in turns for block in turn["content"])])
    body: dict[str, Any] = {"tools": tools} if tools else {}
    return body | ({"system": system} if system else {}) | {"messages": turns}


def _order_lifetimes(blocks: list[Block]) -> None:
    """Shortens what is to be kept for long behind what is kept shortly, which the API refuses.

    The hints are in the chat's order, and only a system message in the middle of it, which moves to the front, breaks it.
    """
    short = False
    for block in blocks:
        if control := block.get("cache_control"):
            short = short or control["ttl"] == "5m"
            if short:
                control["ttl"] = "5m"


def _tool(tool: Tool) -> Block:
    schema = json.loads(tool.parameters_json_schema) if tool.parameters_json_schema else {"type": "object"}
    return {
        "name": tool.name,
        **({"description": tool.description} if tool.description else {}),
        "input_schema": {"type": "object"} | schema,
        **({"strict": True} if tool.strict else {}),
    }


def _content(index: int, message: Message) -> list[Block]:
    """The message's blocks. Blank text is left out: the API refuses it."""
    if message.role is Role.SYSTEM and any(isinstance(part, ImagePart) for part in message.parts):
        raise _invalid(f"chat.messages[{index}].parts", "a system message takes no images")
    parts = [_part(part) for part in message.parts if isinstance(part, ImagePart) or part.text.strip()]
    if message.role is Role.TOOL:
        result: Block = {"type": "tool_result", "tool_use_id": _id(message.tool_call_id)}
        return [result | ({"content": parts} if parts else {})]
    return [*parts, *(_tool_use(call) for call in message.tool_calls)]


def _part(part: TextPart | ImagePart) -> Block:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if part.url:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    data = base64.b64encode(part.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": data}}


def _tool_use(call: ToolCall) -> Block:
    return {"type": "tool_use", "id": _id(call.id), "name": call.name, "input": json.loads(call.arguments_json)}


def _id(given: str) -> str:
    """An id of a tool call; those of other vendors may hold characters that are refused here."""
    return _NOT_IN_IDS.sub(lambda found: f"_{ord(found[0]):x}_", given)


def _schema(text: str) -> dict[str, Any]:
    """The schema as the API takes it; what the SDK cannot convert is sent as it is, for the vendor to judge."""
    schema: dict[str, Any] = json.loads(text)
    try:
        return anthropic.transform_schema(schema)
    except (ValueError, TypeError, AttributeError, AssertionError):
        return schema


def _invalid(field: str, message: str) -> VendorError:
    return VendorError(Reason.INVALID_INPUT, message, field=field)
