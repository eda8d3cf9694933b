"""What a vendor is told about the part of a request that it may keep, and what came of it."""

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
    Vendors take of it what they know; none of it changes the answer.
    """

    breakpoints: tuple[Breakpoint, ...] = ()
    key: str = ""


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
