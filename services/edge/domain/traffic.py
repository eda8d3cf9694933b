"""Questions and answers that a tenant has us keep, to train a model of its own on. Nobody's are, unless the policy names them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from services.common.chat import Answer, Chat, FinishReason, ImagePart
from services.common.errors import MeshError
from services.edge.domain.background import Background
from services.edge.domain.ports import Question

MAX_PAIR_BYTES = 256 * 1024  # a longer conversation is no example to learn from, and many of them are a lot of memory
AT_ONCE, WAITING = 2, 256
_WHOLE = (FinishReason.STOP, FinishReason.TOOL_CALLS)


@dataclass(frozen=True, slots=True)
class Recording:
    """Whose traffic of a namespace is kept: at most `max_pairs` of each tenant, the newest, and none longer than `keep_s`."""

    tenants: frozenset[str] = frozenset()
    max_pairs: int = 10_000
    keep_s: float = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and the answer that a model gave. `entry_id`, where not empty, is the answer's in the cache."""

    question: Question
    answer: Answer
    model: str
    tier: str
    entry_id: str


class TrafficStore(Protocol):
    """Where pairs are kept, and what was said of them. Raises MeshError."""

    async def keep(self, pair: Pair, limits: Recording) -> None:
        """Keeps a pair; what is beyond the limits goes."""
        ...

    async def served(self, question: Question, entry_id: str, limits: Recording) -> None:
        """Notes that this request got the very answer of a stored entry."""
        ...

    async def judged(self, tenant: str, namespace: str, request_id: str, right: bool, limits: Recording) -> None:
        """Notes a caller's word on the answer to a request."""
        ...


class Traffic:
    """Hands traffic to its store, never waited for: too much of it at once is dropped."""

    def __init__(self, store: TrafficStore, on_failure: Callable[[str, MeshError], None]) -> None:
        self._store = store
        self._background = Background(AT_ONCE, WAITING, lambda error: on_failure("recording", error))

    def made(self, pair: Pair, limits: Recording) -> None:
        """A model answered. Kept only where it is whole, and where the caller did not forbid to store it."""
        question, answer = pair.question, pair.answer
        if question.tenant not in limits.tenants or question.control.no_store:
            return
        size = _size(question.chat) + len(answer.message.text) + len(answer.message.reasoning)
        if answer.finish_reason in _WHOLE and size <= MAX_PAIR_BYTES:
            self._background.offer(lambda: self._store.keep(pair, limits))

    def served(self, question: Question, entry_id: str, limits: Recording) -> None:
        """A request got the very answer that it was given before: a word on this answer is a word on that one."""
        if question.tenant in limits.tenants and entry_id:
            self._background.offer(lambda: self._store.served(question, entry_id, limits))

    def judged(self, tenant: str, namespace: str, request_id: str, right: bool, limits: Recording) -> None:
        """A caller's word on an answer."""
        if tenant in limits.tenants:
            self._background.offer(lambda: self._store.judged(tenant, namespace, request_id, right, limits))

    async def close(self) -> None:
        """Ends what runs in the background."""
        await self._background.close()


def _size(chat: Chat) -> int:
    texts = sum(len(message.text) for message in chat.messages)
    pictures = sum(len(p.data) for message in chat.messages for p in message.parts if isinstance(p, ImagePart))
    return texts + pictures + sum(len(tool.parameters_json_schema) for tool in chat.tools)
