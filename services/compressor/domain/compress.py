"""What of a chat may be shortened, by which question, and whether it is worth it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from services.common.chat import Chat, Message, Role, TextPart
from services.common.tokens import estimate_chat_tokens, estimate_tokens
from services.compressor.domain.cleanup import without_copies
from services.compressor.domain.extract import assemble, score_units, select, size_of
from services.compressor.domain.question import needs_whole_text, split_question
from services.compressor.domain.terms import is_spanish, terms_in
from services.compressor.domain.units import Paragraph, paragraphs_of

DEFAULT_RATE = 0.5
LOWEST_RATE = 0.33
DEFAULT_MIN_BLOCK_TOKENS = 256

# Savings below this share of the prompt are not worth a change.
LEAST_SAVING = 0.03


@dataclass(frozen=True, slots=True)
class Order:
    """What to compress and how far.

    `rate`: share of a block's tokens to keep, above 0, up to 1. The first `protected_messages` stay as they are, and so do
    blocks of fewer than `min_block_tokens`. A chat with more than `max_characters` of such text is left alone.
    """

    chat: Chat
    rate: float = DEFAULT_RATE
    protected_messages: int = 0
    min_block_tokens: int = DEFAULT_MIN_BLOCK_TOKENS
    max_characters: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Block:
    """What was done with one text. `method` is "extractive", "cleaned" or "kept"."""

    message: int
    part: int
    original_tokens: int
    kept_tokens: int
    method: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The chat to send, which is the original one unless `applied`, with token counts of all messages before and after."""

    chat: Chat
    original_tokens: int
    kept_tokens: int
    applied: bool
    reason: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class _Text:
    """A text that may be shortened: `context` is, `before` and `after` are the instruction around it."""

    message: int
    part: int
    before: str
    context: str
    after: str
    tokens: int


def compress(order: Order) -> Outcome:
    """Shortens the long texts of a chat to what its question needs.

    Touched are texts of user and tool messages only, and of the last user message only what stands beside its question. Without
    a question, or with one about the whole text, only copies and blank lines go. Time is linear in the text, but for sorting.
    """
    chat = order.chat
    original_tokens = estimate_chat_tokens(chat)
    question, texts = _find(order)
    long = [text for text in texts if text.tokens >= order.min_block_tokens]
    short = [
        Block(text.message, text.part, text.tokens, text.tokens, "kept")
        for text in texts
        if text.tokens < order.min_block_tokens
    ]

    def unchanged(reason: str) -> Outcome:
        kept = [Block(text.message, text.part, text.tokens, text.tokens, "kept") for text in long]
        return Outcome(chat, original_tokens, original_tokens, False, reason, _sorted([*short, *kept]))

    if not long:
        return unchanged(f"no text of {order.min_block_tokens} tokens or more may be touched")
    if sum(len(text.context) for text in long) > order.max_characters:
        return unchanged(f"more than {order.max_characters} characters: left alone")

    seen: set[str] = set()
    parsed = [without_copies(paragraphs_of(text.context), seen) for text in long]
    why = _why_not_extract(question, chat)
    contexts = None if why else _extract(parsed, question, order.rate)
    if contexts is not None:
        method, reason = "extractive", f"kept what the question needs at rate {order.rate:g}"
    else:
        why = why or "the question shares no word with the text"
        method, reason = "cleaned", f"{why}: only copies and blank lines go"
        contexts = ["\n\n".join(paragraph.text for paragraph in paragraphs) for paragraphs in parsed]
    changed: dict[tuple[int, int], str] = {}
    blocks = list(short)
    for text, context in zip(long, contexts, strict=True):
        kept_tokens = estimate_tokens(context)
        better = 0 < kept_tokens < text.tokens
        if not better:
            kept_tokens = text.tokens
        blocks.append(Block(text.message, text.part, text.tokens, kept_tokens, method if better else "kept"))
        if better:
            changed[text.message, text.part] = _around(text, context)
    shorter = replace(chat, messages=tuple(_rewritten(chat, changed)))
    kept_tokens = estimate_chat_tokens(shorter)
    if kept_tokens > (1 - LEAST_SAVING) * original_tokens:
        return unchanged(f"less than {LEAST_SAVING:.0%} would be saved ({reason})")
    return Outcome(shorter, original_tokens, kept_tokens, True, reason, _sorted(blocks))


def _find(order: Order) -> tuple[str, list[_Text]]:
    """The question, and the texts that may be touched."""
    messages = order.chat.messages
    asking = order.chat.last_user_index
    question = ""
    texts: list[_Text] = []
    for index, message in enumerate(messages):
        touchable = index >= order.protected_messages and message.role in (Role.USER, Role.TOOL)
        if index == asking:
            question, around = _asked(message, index)
            texts.extend(around if touchable else [])
        elif touchable:
            texts.extend(
                _Text(index, number, "", part.text, "", estimate_tokens(part.text))
                for number, part in enumerate(message.parts)
                if isinstance(part, TextPart) and part.text.strip()
            )
    return question, texts


def _asked(message: Message, index: int) -> tuple[str, list[_Text]]:
    """The question of the last user message, and what stands beside it."""
    questions = []
    texts = []
    for number, part in enumerate(message.parts):
        if not isinstance(part, TextPart):
            continue
        split = split_question(part.text)
        questions.append(split.question)
        if split.context.strip():
            tokens = estimate_tokens(split.context)
            texts.append(_Text(index, number, split.before, split.context, split.after, tokens))
    return "\n".join(filter(None, questions)), texts


def _why_not_extract(question: str, chat: Chat) -> str:
    """Why nothing may be left out for the question; empty when it may."""
    if not question.strip():
        return "no question"
    system = "\n".join(message.text for message in chat.messages if message.role is Role.SYSTEM)
    return "the question is about the whole text" if needs_whole_text(question, system) else ""


def _extract(parsed: list[list[Paragraph]], question: str, rate: float) -> list[str] | None:
    """What the question needs of each text; None when it shares no word with any."""
    paragraphs = [paragraph for own in parsed for paragraph in own]
    sample = f"{question}\n{paragraphs[0].text if paragraphs else ''}"
    scores = score_units(paragraphs, question, terms_in(is_spanish(sample)))
    if not any(score > 0 for row in scores for score in row):
        return None
    ends = list(accumulate(map(len, parsed)))
    blocks = [range(end - len(own), end) for own, end in zip(parsed, ends, strict=True)]
    kept = select(paragraphs, scores, int(rate * size_of(paragraphs)), blocks)
    return [assemble(paragraphs, kept, block) for block in blocks]


def _around(text: _Text, context: str) -> str:
    """The instruction with the shorter context between, set off as it was."""
    lead = text.context[: len(text.context) - len(text.context.lstrip("\n"))] if text.before else ""
    trail = text.context[len(text.context.rstrip()) :] if text.after else ""
    return f"{text.before}{lead}{context}{trail}{text.after}"


def _rewritten(chat: Chat, changed: dict[tuple[int, int], str]) -> Iterator[Message]:
    touched = {message for message, _ in changed}
    for index, message in enumerate(chat.messages):
        if index not in touched:
            yield message
            continue
        parts = tuple(
            TextPart(changed[index, number]) if (index, number) in changed else part
            for number, part in enumerate(message.parts)
        )
        yield replace(message, parts=parts)


def _sorted(blocks: list[Block]) -> tuple[Block, ...]:
    return tuple(sorted(blocks, key=lambda block: (block.message, block.part)))
