"""What batch-like vendors share: which item ends how. Items are named by their last user text, which outlives resubmission."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Ending = Literal["completed", "expired", "cancelled", "failed"]


@dataclass
class BatchScript:
    """How a batch goes.

    It is `steps` times seen at work, then it `ends`. Of its items: `errors` fail with (HTTP status, code); `undone` were not come
    to; `missing` have no result at all; `twice` have two results; `no_usage` report none; `nonsense` have an answer that is none;
    `garbled` ones have a line that is no JSON. `refused` are lines at fault when it ends as failed. `lost`: the submission is
    answered with a broken connection, though the vendor has it.
    """

    steps: int = 1
    ends: Ending = "completed"
    errors: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    undone: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    twice: frozenset[str] = frozenset()
    no_usage: frozenset[str] = frozenset()
    nonsense: frozenset[str] = frozenset()
    garbled: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    lost: bool = False


@dataclass
class LikeBatch:
    """A batch at the vendor: requests by custom id, in order."""

    id: str
    script: BatchScript
    items: dict[str, dict[str, Any]]
    created_at: int
    marker: Mapping[str, str]
    polls: int = 0
    cancelled: bool = False
    file_id: str = ""

    @property
    def over(self) -> bool:
        """Whether it ended."""
        return self.cancelled or self.polls > self.script.steps

    @property
    def status(self) -> str:
        """Its state, in the words of OpenAI."""
        if self.cancelled:
            return "cancelled"
        if self.polls > self.script.steps:
            return self.script.ends
        return ("validating", "in_progress", "finalizing")[min(self.polls, 2)]


def user_text(body: Mapping[str, Any]) -> str:
    """The last message's text, of either vendor's form."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def garbled(script: BatchScript, text: str, line: str) -> str:
    """The line, or half of it."""
    return line[: len(line) // 2] if text in script.garbled else line
