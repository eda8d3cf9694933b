"""The part of a request that a vendor may keep and read again at a lower price: what a vendor is told, and what came of it.

A request is a static prefix (tools, system text, earlier turns) and a dynamic suffix (the newest messages). `prompts` is the
way in; `canonical` and `volatile` keep the prefix's bytes stable, `planner` decides by price what is kept for how long, `reuse`
knows how soon prefixes return, `warmth` where they are kept, `tally` counts.
"""

from dataclasses import dataclass
from enum import StrEnum

SHORT_TTL_S = 300
LONG_TTL_S = 3600
MAX_BREAKPOINTS = 4


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A kept prefix ends here: after all tools (`message` is None), or after the message of this index in the chat.

    `ttl_s` is how long the vendor is to keep it: SHORT_TTL_S or LONG_TTL_S. Longer ones come first.
    """

    message: int | None
    ttl_s: int = SHORT_TTL_S


@dataclass(frozen=True, slots=True)
class CacheHints:
    """How a vendor is to keep the prefix of one request: at most MAX_BREAKPOINTS breakpoints, in the request's order.

    `key` names the prefix, 64 letters at most: vendors that cache by themselves send requests with one key to one place.
    `explicit`: nothing beyond the breakpoints is worth what writing it costs. Vendors take of it what they know; none of it
    changes the answer.
    """

    breakpoints: tuple[Breakpoint, ...] = ()
    key: str = ""
    explicit: bool = False


NO_HINTS = CacheHints()


class CacheOutcome(StrEnum):
    """What became of the prefix, by the vendor's own count."""

    HIT = "hit"
    FIRST = "first"
    TOO_SHORT = "too_short"
    CHANGED = "changed"
    EXPIRED = "expired"
    SWITCHED = "switched"
    UNREPORTED = "unreported"
    OFF = "off"


class Control(StrEnum):
    """Who says what is kept: nobody, the vendor by itself, or breakpoints in the request."""

    NONE = "none"
    AUTOMATIC = "automatic"
    BREAKPOINTS = "breakpoints"


@dataclass(frozen=True, slots=True)
class VendorCache:
    """How a vendor keeps prefixes of one model.

    A prefix below `minimum_tokens` is not kept. `short_ttl_s` and `long_ttl_s` are the real lifetimes in seconds behind
    SHORT_TTL_S and LONG_TTL_S; None: there is no longer one. `tools`: a breakpoint may stand after the tools. `reported`: the
    vendor's usage says what was read, so that nothing read means nothing kept.
    """

    control: Control = Control.NONE
    minimum_tokens: int = 1024
    short_ttl_s: int = SHORT_TTL_S
    long_ttl_s: int | None = None
    tools: bool = True
    reported: bool = True


NO_CACHE = VendorCache()


class VolatileKind(StrEnum):
    """What kind of text differs from one request to the next."""

    TIMESTAMP = "timestamp"
    UUID = "uuid"
    ID = "id"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Volatile:
    """A volatile field in the system text. `part` names the caller's message, such as "messages[0]"; `offset` counts the bytes
    before it in the message's text. `moved`: its sentence was sent behind the prefix.
    """

    kind: VolatileKind
    part: str
    offset: int
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """Where a prefix differs from the last one: the caller's part ("tools[3]", "messages[0]"), the byte in its text (of a tool:
    in its canonical JSON) where the word that differs begins, and the new text there.
    """

    part: str
    offset: int
    excerpt: str


@dataclass(frozen=True, slots=True)
class PromptCacheReport:
    """What came of one request's prefix. Tokens of the static prefix are estimated, those read and written are the vendor's.

    `change` is set with CHANGED only.
    """

    outcome: CacheOutcome = CacheOutcome.OFF
    static_tokens: int = 0
    read_tokens: int = 0
    written_tokens: int = 0
    change: Change | None = None
    volatile: tuple[Volatile, ...] = ()
