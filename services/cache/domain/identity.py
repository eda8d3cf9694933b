"""Identity: what may be answered by what.

The exact key covers everything that was asked; the scope covers the same less the text of the last user message. Both
are BLAKE2b-256 over a canonical encoding in which every field has its length in front, so that no two different requests
encode alike.
"""

import json
import struct
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b

from services.common.chat import Chat, ImagePart, Message, Sampling, TextPart, Tool

ENCODING = b"llmmesh.identity.1"
"""Names the encoding; it changes whenever the meaning of the bytes does."""

_pack_length = struct.Struct("<I").pack
_DOUBLE = struct.Struct("<d")
_NONE = b"\x00"
_SOME = b"\x01"
_REMEMBERED_JSON = 16_384  # characters; longer schemas are rare and not kept in memory


@dataclass(frozen=True, slots=True)
class Keys:
    """Digests of 32 bytes under one namespace version, for everybody and for one user (None without a user)."""

    exact: bytes
    scope: bytes
    user_exact: bytes | None
    user_scope: bytes | None

    def exact_for(self, per_user: bool) -> bytes | None:
        """The exact key of an answer; None when it is the user's own and there is no user."""
        return self.user_exact if per_user else self.exact

    def scope_for(self, per_user: bool) -> bytes | None:
        """The scope of an answer; None when it is the user's own and there is no user."""
        return self.user_scope if per_user else self.scope


class Identity:
    """A request's identity before the namespace version is known; hashing the text happens once."""

    __slots__ = ("_exact", "_scope", "_user")

    def __init__(self, tenant: str, namespace: str, user: str, requested_model: str, chat: Chat) -> None:
        scope = blake2b(_frame(ENCODING), digest_size=32)
        scope.update(_scope_bytes(tenant, namespace, requested_model, chat))
        exact = scope.copy()
        last = chat.last_user_index
        if last is not None:
            parts = [_text(part.text) for part in chat.messages[last].parts if isinstance(part, TextPart)]
            exact.update(_count(parts))
        self._scope = scope
        self._exact = exact
        self._user = user

    def keys(self, version: int) -> Keys:
        """The keys under a version of the namespace, 0 or more."""
        everybody = _frame(b"v%d" % version)
        exact, scope = self._exact.copy(), self._scope.copy()
        exact.update(b"E" + everybody)
        scope.update(b"S" + everybody)
        if not self._user:
            return Keys(exact.digest(), scope.digest(), None, None)
        user = _text(self._user)
        user_exact, user_scope = exact.copy(), scope.copy()
        user_exact.update(user)
        user_scope.update(user)
        return Keys(exact.digest(), scope.digest(), user_exact.digest(), user_scope.digest())


def _frame(data: bytes) -> bytes:
    return _pack_length(len(data)) + data


def _text(text: str) -> bytes:
    # Lone surrogates cannot arrive over the wire, but must not make a key fail.
    data = text.encode() if text.isascii() else unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")
    return _pack_length(len(data)) + data


def _count(items: list[bytes]) -> bytes:
    return _pack_length(len(items)) + b"".join(items)


def _optional(value: bytes | None) -> bytes:
    return _NONE if value is None else _SOME + value


def _number(value: float | None) -> bytes:
    return _optional(None if value is None else _DOUBLE.pack(value + 0.0))  # -0.0 is 0.0


def _integer(value: int | None) -> bytes:
    return _optional(None if value is None else _frame(b"%d" % value))


def _scope_bytes(tenant: str, namespace: str, requested_model: str, chat: Chat) -> bytes:
    last = chat.last_user_index
    choice, form = chat.tool_choice, chat.response_format
    return b"".join(
        (
            _text(tenant),
            _text(namespace),
            _text(requested_model),
            _count([_message(message, index == last) for index, message in enumerate(chat.messages)]),
            # The order in which tools are offered means nothing.
            _count([_tool(tool) for tool in sorted(chat.tools, key=_tool_name)]),
            _text(choice.mode),
            _text(choice.name),
            _text(form.kind),
            _text(form.name),
            _json(form.json_schema),
            _sampling(chat.sampling),
        )
    )


def _tool_name(tool: Tool) -> str:
    return tool.name


def _message(message: Message, hollow: bool) -> bytes:
    """A message; `hollow` leaves the text of its parts out and keeps their places."""
    parts = []
    for part in message.parts:
        if isinstance(part, ImagePart):
            parts.append(b"i" + _text(part.url) + _frame(part.data) + _text(part.media_type))
        elif hollow:
            parts.append(b"_")
        else:
            parts.append(b"t" + _text(part.text))
    calls = [_text(call.id) + _text(call.name) + _json(call.arguments_json) for call in message.tool_calls]
    return b"".join(
        (
            _text(message.role.value),
            _count(parts),
            _text(message.name),
            _count(calls),
            _text(message.tool_call_id),
            _text(message.reasoning),
        )
    )


def _tool(tool: Tool) -> bytes:
    strict = _SOME if tool.strict else _NONE
    return _text(tool.name) + _text(tool.description) + _json(tool.parameters_json_schema) + strict


def _sampling(sampling: Sampling) -> bytes:
    return b"".join(
        (
            _number(sampling.temperature),
            _number(sampling.top_p),
            _integer(sampling.max_output_tokens),
            _count([_text(stop) for stop in sampling.stop]),
            _integer(sampling.seed),
            _number(sampling.presence_penalty),
            _number(sampling.frequency_penalty),
            _text(sampling.reasoning_effort),
        )
    )


def _json(text: str) -> bytes:
    """JSON without what does not matter: key order, white space, Unicode form. Anything else is taken as text."""
    if not text:
        return _NONE
    return _remembered_json(text) if len(text) <= _REMEMBERED_JSON else _canonical_json(text)


class _Ambiguous(ValueError):
    """A key occurs twice: parsers disagree about what the text means."""


def _canonical_json(text: str) -> bytes:
    try:
        # Decimal keeps 1.0 and 1.00 apart: whether they mean the same is the reader's business.
        value = json.loads(text, parse_float=Decimal, object_pairs_hook=_object)
        return b"j" + _json_value(value)
    except (ValueError, RecursionError):
        return b"t" + _text(text)


_remembered_json = lru_cache(maxsize=512)(_canonical_json)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    normal = {unicodedata.normalize("NFC", key): value for key, value in pairs}
    if len(normal) != len(pairs):
        raise _Ambiguous
    return normal


def _json_value(value: object) -> bytes:
    match value:
        case None | True | False:
            return b"c" + _text(str(value))
        case str():
            return b"s" + _text(value)
        case int() | Decimal() | float():
            return b"n" + _text(f"{type(value).__name__}{value}")
        case list():
            return b"a" + _count([_json_value(item) for item in value])
        case dict():
            return b"o" + _count([_text(key) + _json_value(value[key]) for key in sorted(value)])
        case _:
            raise TypeError(type(value))
