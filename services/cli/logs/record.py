"""What a log says of one request, whatever its form."""

from dataclasses import dataclass, field

from services.common.chat import Chat
from services.common.money import Usage


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One request of a log. Texts that the log does not have are "".

    `line` counts lines (of a JSON array: elements; of a CSV file: rows, the header being the first) from 1. `at` is when it
    began, in Unix seconds; None where the log has no times. `usage.estimated`: the log has no token counts, they were made from
    the texts. `counts_cached`: the log says how much of the input came from the vendor's prompt cache, be it 0; without it
    nobody knows. `cost` is what the log says that it cost, in nano-USD; None where it says nothing. `latency_s` likewise.
    `status` is the HTTP status, 200 where the log names no failure. `finish_reason` is the vendor's own word.
    """

    line: int
    at: float | None
    model: str
    chat: Chat
    answer: str
    usage: Usage
    counts_cached: bool = False
    finish_reason: str = ""
    cost: int | None = None
    status: int = 200
    latency_s: float | None = None
    tenant: str = ""
    user: str = ""
    endpoint: str = ""
    kind: str = ""
    request_id: str = field(default="", compare=False)

    @property
    def failed(self) -> bool:
        """Whether no answer came."""
        return self.status >= 400

    @property
    def cut(self) -> bool:
        """Whether the answer ended before its end: a length limit, or a caller who went away."""
        return self.finish_reason in ("length", "max_tokens", "MAX_TOKENS", "cut", "cancelled", "incomplete")

    @property
    def calls_tools(self) -> bool:
        """Whether the answer asks for a tool to be run."""
        return self.finish_reason in ("tool_calls", "tool_use", "function_call")


@dataclass(frozen=True, slots=True)
class Malformed:
    """A line that could not be read, and why in a few words that quote nothing of it."""

    line: int
    reason: str
