"""Kept questions and answers as training examples: those that are good enough, each once, in the chat format of fine-tuning."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from enum import StrEnum

from services.common.chat import Answer, Chat, ImagePart, Message, TextPart
from services.edge.adapters.traffic import KeptPair, Marks

Json = dict[str, object]


class Quality(StrEnum):
    """What must be known of an answer: that no caller called it wrong, or that one called it right besides."""

    UNREFUTED = "unrefuted"
    CONFIRMED = "confirmed"


async def examples(
    pairs: Callable[[], AsyncIterator[KeptPair]], marks: Marks, quality: Quality, seen: set[bytes]
) -> AsyncIterator[Json]:
    """Lines of the pairs that are good enough, in their order; of the same question in the same words the first only.

    `pairs` is read twice where an answer was called wrong: to the same question it is wrong at any other time, too. `seen`
    takes the questions up, so that several sets have none in common.
    """
    wrong: set[bytes] = set()
    if marks.wrong:
        refuted = (pair async for pair in pairs() if _among(pair, marks.wrong, marks.wrong_entries))
        wrong = {_digest(pair, with_answer=True) async for pair in refuted}
    async for pair in pairs():
        if quality is Quality.CONFIRMED and not _among(pair, marks.right, marks.right_entries):
            continue
        question = _digest(pair, with_answer=False)
        if question not in seen and _digest(pair, with_answer=True) not in wrong:
            seen.add(question)
            yield line(pair)


def line(pair: KeptPair) -> Json:
    """One example: messages, the answer last; tools where there are any; where it came from."""
    example: Json = {"messages": [*(_message(m) for m in pair.chat.messages), _answer(pair.answer)]}
    if pair.chat.tools:
        example["tools"] = _tools(pair.chat)
    example["metadata"] = {
        "model": pair.model,
        "tier": pair.tier,
        "namespace": pair.namespace,
        "request_id": pair.request_id,
        "asked_at": datetime.fromtimestamp(pair.at, UTC).isoformat(timespec="seconds"),
    }
    return example


def _among(pair: KeptPair, requests: frozenset[str], entries: frozenset[str]) -> bool:
    return pair.request_id in requests or (pair.entry_id != "" and pair.entry_id in entries)


def _digest(pair: KeptPair, *, with_answer: bool) -> bytes:
    said = [_message(message) for message in pair.chat.messages] + ([_answer(pair.answer)] if with_answer else [])
    return hashlib.sha256(json.dumps([said, _tools(pair.chat)], sort_keys=True).encode()).digest()


def _tools(chat: Chat) -> list[Json]:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": json.loads(tool.parameters_json_schema or "{}"),
            }
            | ({"strict": True} if tool.strict else {}),
        }
        for tool in chat.tools
    ]


def _answer(answer: Answer) -> Json:
    message = _message(answer.message)
    return message | ({"reasoning_content": answer.message.reasoning} if answer.message.reasoning else {})


def _message(message: Message) -> Json:
    entry: Json = {"role": message.role.value, "content": _content(message)}
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


def _content(message: Message) -> object:
    if not message.parts and message.tool_calls:
        return None
    if all(isinstance(part, TextPart) for part in message.parts):
        return message.text
    return [_picture(p) if isinstance(p, ImagePart) else {"type": "text", "text": p.text} for p in message.parts]


def _picture(part: ImagePart) -> Json:
    url = part.url or f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
