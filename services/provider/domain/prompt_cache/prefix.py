"""A request as parts that vendors read one after the other: tools, then messages. Parts are known by hashes, never by text."""

import json
import re
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from services.common.chat import Chat, ImagePart, Message, Role, Tool
from services.common.tokens import IMAGE_TOKENS, MESSAGE_OVERHEAD, estimate_tokens
from services.provider.domain.prompt_cache import Change
from services.provider.domain.prompt_cache.canonical import Canonical

_TOOL_OVERHEAD = 8
_FINE = 32_768  # letters of a part whose words are told apart; further ones are by blocks
_BLOCK = 1024
_COUNTED = 65_536
_WORDS = re.compile(r"\w{1,16}|\s{1,16}|[^\w\s]")
_EXCERPT = 60
_ALIKE = 0.5
_MAX_PARTS = 2048


@dataclass(frozen=True, slots=True)
class Known:
    """What is remembered of a part: estimated tokens, and a hash (salted by process) of each word."""

    tokens: int
    words: "array[int]"


@dataclass(frozen=True, slots=True)
class Prefix:
    """A request's parts by their digests. `chain[i]` names everything up to and including part i, `tokens[i]` counts it.

    Parts before `tools` are tools, before `system` tools and leading system messages, before `earlier` also the earlier turns;
    those up to `newest` are what the request adds, and a later one is the note with what was moved. `previous` is where the
    request before this one of the same conversation ended, 0 without one.
    """

    digests: tuple[bytes, ...]
    chain: tuple[bytes, ...]
    tokens: tuple[int, ...]
    tools: int
    system: int
    previous: int
    earlier: int
    newest: int

    def upto(self, end: int) -> int:
        """Estimated tokens of the first `end` parts."""
        return self.tokens[end - 1] if end else 0

    def name(self, end: int) -> bytes:
        """The hash of the first `end` parts, at least one."""
        return self.chain[end - 1]


class PartBook:
    """What is known of the parts that were read lately."""

    def __init__(self, limit: int = _MAX_PARTS) -> None:
        self._limit = limit
        self._known: OrderedDict[bytes, Known] = OrderedDict()

    def read(self, chat: Chat, tenant: str, *, note: bool) -> Prefix:
        """The parts of a canonical chat. Prefixes of different tenants have different names."""
        digests = [self._learn(tool_text(tool), _TOOL_OVERHEAD) for tool in chat.tools]
        digests += [self._learn_message(message) for message in chat.messages]
        running = blake2b(tenant.encode(), digest_size=16)
        chain: list[bytes] = []
        tokens: list[int] = []
        total = 0
        for digest in digests:
            running.update(digest)
            chain.append(running.digest())
            total += self._known[digest].tokens
            tokens.append(total)
        while len(self._known) > max(self._limit, len(digests)):
            self._known.popitem(last=False)
        tools, messages = len(chat.tools), chat.messages[: len(chat.messages) - note]
        system = next((i for i, m in enumerate(messages) if m.role is not Role.SYSTEM), len(messages))
        earlier = next(
            (i + 1 for i in range(len(messages) - 1, system - 1, -1) if messages[i].role is Role.ASSISTANT), system
        )
        previous = earlier
        while previous > system and messages[previous - 1].role is Role.ASSISTANT:
            previous -= 1
        return Prefix(
            tuple(digests),
            tuple(chain),
            tuple(tokens),
            tools,
            tools + system,
            tools + previous if previous > system else 0,
            tools + earlier,
            tools + len(messages),
        )

    def words(self, digest: bytes) -> "array[int]":
        """The words' hashes of a part; empty for one that is forgotten."""
        known = self._known.get(digest)
        return known.words if known else array("q")

    def _learn_message(self, message: Message) -> bytes:
        images = sum(isinstance(part, ImagePart) for part in message.parts)
        return self._learn(message_text(message), MESSAGE_OVERHEAD + images * IMAGE_TOKENS, _frame(message))

    def _learn(self, text: str, overhead: int, frame: bytes = b"") -> bytes:
        digest = blake2b(text.encode(), digest_size=16, key=blake2b(frame).digest()).digest()
        if digest in self._known:
            self._known.move_to_end(digest)
        else:
            self._known[digest] = Known(overhead + _estimated_tokens(text), array("q", map(hash, _words(text))))
        return digest


def change_between(book: PartBook, old: Sequence[bytes], new: Prefix, sent: Canonical) -> Change | None:
    """Where the static part of `new` leaves `old`, both known by their parts; None where it does not, or where the two have so
    little in common that they are different prompts.
    """
    at = common(old, new.digests)
    if at >= new.earlier:
        return None
    text, part = _text_of(sent, at)
    known = book.words(old[at]) if at < len(old) else array("q")
    words = _words(text)
    hashes = list(map(hash, words))
    same = next(
        (i for i, (a, b) in enumerate(zip(known, hashes, strict=False)) if a != b), min(len(known), len(hashes))
    )
    later = set(new.digests[at + 1 : new.earlier])
    if not later.intersection(old[at:]) and not _alike(known, hashes):
        return None
    before = "".join(words[:same])
    return Change(part, len(before.encode()), text[len(before) : len(before) + _EXCERPT])


def common(old: Sequence[bytes], new: Sequence[bytes]) -> int:
    """How many parts are the same from the first on."""
    return next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


def tool_text(tool: Tool) -> str:
    """A tool as JSON in stable order."""
    fields = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    return json.dumps(fields, ensure_ascii=False) + tool.parameters_json_schema


def message_text(message: Message) -> str:
    """A message's text, and then its tool calls."""
    if not message.tool_calls:
        return message.text
    return "\n".join([message.text, *(f"{call.name}{call.arguments_json}" for call in message.tool_calls)])


def _frame(message: Message) -> bytes:
    """What belongs to the message beside its words."""
    frame = [message.role.value, message.name, message.tool_call_id, *(call.id for call in message.tool_calls)]
    for part in message.parts:
        if isinstance(part, ImagePart):
            frame += [part.url, part.media_type, blake2b(part.data, digest_size=16).hexdigest()]
    return json.dumps(frame).encode()


def _text_of(sent: Canonical, at: int) -> tuple[str, str]:
    """The text of part `at`, and the caller's name of it."""
    chat = sent.chat
    if at < len(chat.tools):
        return tool_text(chat.tools[at]), f"tools[{sent.tools[at]}]"
    index = at - len(chat.tools)
    return message_text(chat.messages[index]), f"messages[{sent.messages[index]}]"


def _estimated_tokens(text: str) -> int:
    """Of a very long text by its front: counting megabytes would hold up other requests."""
    if len(text) <= _COUNTED:
        return estimate_tokens(text)
    return estimate_tokens(text[:_COUNTED]) * len(text) // _COUNTED


def _words(text: str) -> list[str]:
    words = _WORDS.findall(text[:_FINE])
    return words + [text[at : at + _BLOCK] for at in range(_FINE, len(text), _BLOCK)]


def _alike(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether most runs of three words of the new text are in the old one."""
    runs = set(zip(new, new[1:], new[2:], strict=False))
    if not runs:
        return False
    return len(runs.intersection(zip(old, old[1:], old[2:], strict=False))) >= _ALIKE * len(runs)
