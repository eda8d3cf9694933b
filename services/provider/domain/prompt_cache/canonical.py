"""One spelling for requests that ask the same: tools in order, schemas with sorted keys, volatile sentences at the end."""

import json
from dataclasses import dataclass, replace
from typing import TypeAlias

from services.common.chat import Chat, ImagePart, Message, Role, TextPart, Tool
from services.provider.domain.prompt_cache import Volatile
from services.provider.domain.prompt_cache.volatile import Finder, take_out

NOTE = "As of this request:"
"""First line of the message with what was moved behind the prefix."""

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"


@dataclass(frozen=True, slots=True)
class Canonical:
    """The chat as it is sent. `tools` and `messages` are, place by place, the caller's indices; `note`: the last message is ours
    and has none.
    """

    chat: Chat
    tools: tuple[int, ...]
    messages: tuple[int, ...]
    volatile: tuple[Volatile, ...] = ()
    note: bool = False


def canonical(chat: Chat, finder: Finder, *, move_volatile: bool) -> Canonical:
    """The same request in stable bytes. With `move_volatile` sentences of the system text that hold a time, an id or a counter
    become a last user message, unless the chat ends with words put into the assistant's mouth.
    """
    order = sorted(range(len(chat.tools)), key=lambda index: _sort_key(chat.tools[index]))
    tools = tuple(_canonical_tool(chat.tools[index]) for index in order)
    form = chat.response_format
    if form.json_schema:
        form = replace(form, json_schema=canonical_schema(form.json_schema, keep_properties=True))
    moving = move_volatile and chat.messages[-1].role in (Role.USER, Role.TOOL)
    messages: list[Message] = []
    indices: list[int] = []
    volatile: list[Volatile] = []
    moved: list[str] = []
    for index, message in enumerate(chat.messages):
        if message.role is Role.SYSTEM:
            settled, found, taken = _settled(message, f"messages[{index}]", finder, moving)
            volatile += found
            moved += taken
            if taken and not settled.parts:
                continue
            message = settled
        messages.append(message)
        indices.append(index)
    if moved:
        messages.append(Message(Role.USER, (TextPart("\n".join([NOTE, *moved])),)))
    return Canonical(
        replace(chat, messages=tuple(messages), tools=tools, response_format=form),
        tuple(order),
        tuple(indices),
        tuple(volatile),
        bool(moved),
    )


def canonical_schema(text: str, *, keep_properties: bool) -> str:
    """A JSON schema with sorted keys and no blanks; what is no JSON object stays as it is.

    `keep_properties`: models that are held to a schema write its properties in their order, which is part of what was asked.
    """
    try:
        value: Json = json.loads(text)
        if not isinstance(value, dict):
            return text
        written = json.dumps(
            _sorted(value, keep_properties), ensure_ascii=False, separators=(",", ":"), allow_nan=False
        )
        written.encode()
    except (ValueError, RecursionError):
        return text
    return written


def _canonical_tool(tool: Tool) -> Tool:
    schema = tool.parameters_json_schema
    return (
        replace(tool, parameters_json_schema=canonical_schema(schema, keep_properties=tool.strict)) if schema else tool
    )


def _sort_key(tool: Tool) -> tuple[str, str, str, bool]:
    return (tool.name, tool.description, tool.parameters_json_schema, tool.strict)


def _sorted(value: Json, keep_properties: bool, *, names: bool = False) -> Json:
    """`names`: the keys are names of properties, and not words of the schema language."""
    if isinstance(value, dict):
        keys = value if names and keep_properties else sorted(value)
        return {key: _sorted(value[key], keep_properties, names=not names and key == "properties") for key in keys}
    if isinstance(value, list):
        return [_sorted(item, keep_properties) for item in value]
    return value


def _settled(message: Message, part: str, finder: Finder, moving: bool) -> tuple[Message, list[Volatile], list[str]]:
    """The message without what can be moved, all volatile fields in it, and the sentences that are moved."""
    parts: list[TextPart | ImagePart] = []
    volatile: list[Volatile] = []
    moved: list[str] = []
    base = 0
    for piece in message.parts:
        if not isinstance(piece, TextPart):
            parts.append(piece)
            continue
        found = finder.find(piece.text)
        for one in found:
            offset = base + len(piece.text[: one.start].encode())
            volatile.append(Volatile(one.kind, part, offset, moving and one.sentence is not None))
        base += len(piece.text.encode()) + 1
        if moving and found:
            rest, taken = take_out(piece.text, found)
            moved += taken
            piece = TextPart(rest) if taken else piece
            if taken and not rest:
                continue
        parts.append(piece)
    return (replace(message, parts=tuple(parts)) if moved else message), volatile, moved
