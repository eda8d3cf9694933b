"""A chat as every domain sees it: plain, frozen, without protobuf. Limits are checked where bytes become these types."""

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """Who wrote a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class FinishReason(StrEnum):
    """Why a model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@dataclass(frozen=True, slots=True)
class TextPart:
    """Text of a message."""

    text: str


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture: a URL, or bytes with their media type."""

    url: str = ""
    data: bytes = b""
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A request of the model to run a tool; `arguments_json` is a JSON object."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    parts: tuple[TextPart | ImagePart, ...] = ()
    name: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    reasoning: str = ""

    @property
    def text(self) -> str:
        """The text parts, joined by line breaks."""
        return "\n".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask for; the schema is JSON text or empty."""

    name: str
    description: str = ""
    parameters_json_schema: str = ""
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Empty (the vendor's default), "auto", "none", "required", or "named" with the tool's name."""

    mode: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """Form of the answer: "text", "json_object", or "json_schema" with its name and schema."""

    kind: str = "text"
    name: str = ""
    json_schema: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Parameters that change the answer; None means the model's default."""

    temperature: float | None = None
    top_p: float | None = None
    max_output_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning_effort: str = ""


@dataclass(frozen=True, slots=True)
class Chat:
    """Everything that defines the question put to a model. At least one message."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    response_format: ResponseFormat = field(default_factory=ResponseFormat)
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def last_user_index(self) -> int | None:
        """Where the last user message is; None without one."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role is Role.USER:
                return index
        return None

    @property
    def last_user_text(self) -> str:
        """Text of the last user message; empty without one."""
        index = self.last_user_index
        return "" if index is None else self.messages[index].text


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    message: Message
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of tool call `index`; id and name come with its first part only."""

    index: int
    id: str = ""
    name: str = ""
    arguments_json: str = ""


Delta = TextDelta | ReasoningDelta | ToolCallDelta


class AnswerBuilder:
    """Puts the pieces of a streamed answer together."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[str]] = {}

    def add(self, delta: Delta) -> None:
        """Appends one piece."""
        match delta:
            case TextDelta(text):
                self._text.append(text)
            case ReasoningDelta(text):
                self._reasoning.append(text)
            case ToolCallDelta(index, id_, name, arguments):
                call = self._calls.setdefault(index, ["", "", ""])
                call[0] += id_
                call[1] += name
                call[2] += arguments

    @property
    def text(self) -> str:
        """The answer's text so far."""
        return "".join(self._text)

    def build(self, finish_reason: FinishReason) -> Answer:
        """The whole answer."""
        text = self.text
        return Answer(
            Message(
                Role.ASSISTANT,
                (TextPart(text),) if text else (),
                tool_calls=tuple(ToolCall(*self._calls[i]) for i in sorted(self._calls)),
                reasoning="".join(self._reasoning),
            ),
            finish_reason,
        )


def deltas_of(answer: Answer) -> list[Delta]:
    """The pieces that replay a stored answer as a stream: reasoning, text, tool calls."""
    message = answer.message
    pieces: list[Delta] = []
    if message.reasoning:
        pieces.append(ReasoningDelta(message.reasoning))
    if message.text:
        pieces.append(TextDelta(message.text))
    pieces.extend(ToolCallDelta(i, c.id, c.name, c.arguments_json) for i, c in enumerate(message.tool_calls))
    return pieces
