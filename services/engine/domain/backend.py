"""What the engine asks of an inference library."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Protocol

from services.common.chat import Chat, Delta, FinishReason


class ModelAbsent(Exception):
    """The model's files are not there (yet); the message says how to get them."""


@dataclass(frozen=True, slots=True)
class PromptSize:
    """The prompt has `tokens` tokens, of which `cached` need not be computed. Said as soon as it is known, and again when
    more is known; the last word counts.
    """

    tokens: int
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """The next piece of the answer."""

    delta: Delta


@dataclass(frozen=True, slots=True)
class Completed:
    """The answer is whole.

    `input_tokens` counts the whole prompt, `cached_tokens` the part of it whose computation was skipped.
    """

    finish_reason: FinishReason
    input_tokens: int
    cached_tokens: int
    output_tokens: int


class Backend(Protocol):
    """A model that can compute several answers at once."""

    @property
    def name(self) -> str:
        """The library: "llamacpp" or "vllm"."""
        ...

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the loaded LoRA adapters."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """Longest prompt plus answer, in tokens; 0 until the model is loaded."""
        ...

    @property
    def fault(self) -> str | None:
        """Why the library can answer no more, once it has been started; None while it can."""
        ...

    @property
    def kv_cache_use(self) -> float | None:
        """Part of the memory for keys and values that is in use, 0 to 1; None where the library does not tell."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """The library's own metrics by its own names; empty where it has none."""
        ...

    async def start(self) -> None:
        """Loads the model and its adapters."""
        ...

    def generate(self, chat: Chat, adapter: str | None) -> AsyncGenerator[PromptSize | Piece | Completed]:
        """Streams one answer; `Completed` comes last, unless a fault of the library cut the stream.

        The sizes of the prompt come before its first piece.

        Closing the generator cancels the computation; when `aclose()` has returned, the slot is free. A chat that the
        model cannot take (too long, pictures) raises InvalidInput before the first piece.
        """
        ...
