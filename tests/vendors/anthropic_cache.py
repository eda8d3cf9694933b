"""The prompt cache and the bill of a vendor that behaves like Anthropic, by the rules of its documentation.

A prefix is all blocks up to a breakpoint: tools, then system, then messages. It is written where a breakpoint stands, and
found from a breakpoint no more than LOOKBACK positions back. What is read costs little and lives on; what lies between the
longest prefix found and the last breakpoint is written, with the lifetime of the breakpoint behind it; the rest is plain
input. Tokens are counted as a quarter of the characters of each block, rounded up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from services.common.money import Rates

LIFETIMES_S = {"5m": 300, "1h": 3600}
MAX_BREAKPOINTS = 4
LOOKBACK = 20


class Refused(Exception):
    """The request is answered with status 400."""


@dataclass(frozen=True)
class Count:
    """Input tokens of one request; the five parts overlap nowhere."""

    plain: int
    read: int = 0
    written_5m: int = 0
    written_1h: int = 0

    @property
    def written(self) -> int:
        return self.written_5m + self.written_1h

    @property
    def total(self) -> int:
        return self.plain + self.read + self.written


@dataclass(frozen=True)
class _Block:
    prefix: bytes  # digest of everything up to and including this block
    tokens: int  # of everything up to and including this block
    ttl: str


def tokens_of(text: str) -> int:
    """Tokens of one block's text."""
    return -(-len(text) // 4)


def bill(rates: Rates, count: Count, output_tokens: int) -> int:
    """What the vendor charges for a call, in nano-USD, rounded half up."""
    millionths = (
        count.plain * rates.input
        + count.read * rates.cache_read
        + count.written_5m * rates.cache_write
        + count.written_1h * rates.cache_write_long
        + output_tokens * rates.output
    )
    return (millionths + 500_000) // 1_000_000


class PromptCache:
    """What the vendor keeps. `now` is in seconds; a prefix shorter than `minimum` tokens is neither written nor found."""

    def __init__(self, minimum: int, now: Callable[[], float]) -> None:
        self._minimum = minimum
        self._now = now
        self._kept: dict[bytes, tuple[float, int]] = {}  # prefix: when it ends, and its lifetime

    def count(self, request: Mapping[str, Any]) -> Count:
        """Reads and writes what the request's breakpoints say. Raises Refused for breakpoints that are against the rules."""
        blocks = _blocks_of(request)
        total = blocks[-1].tokens
        marks = [index for index, block in enumerate(blocks) if block.ttl]
        _check([blocks[index].ttl for index in marks])
        marks = [index for index in marks if blocks[index].tokens >= self._minimum]
        if not marks:
            return Count(total)
        found = max((index for mark in marks if (index := self._found(blocks, mark)) is not None), default=None)
        read = 0 if found is None else blocks[found].tokens
        for index in ([] if found is None else [found]) + [
            mark for mark in marks if found is not None and mark < found
        ]:
            self._refresh(blocks[index].prefix)
        written, upto = {"5m": 0, "1h": 0}, read
        for mark in marks:
            if found is not None and mark <= found:
                continue
            block = blocks[mark]
            written[block.ttl] += block.tokens - upto
            upto = block.tokens
            self._kept[block.prefix] = (self._now() + LIFETIMES_S[block.ttl], LIFETIMES_S[block.ttl])
        return Count(total - upto, read, written["5m"], written["1h"])

    def _found(self, blocks: list[_Block], mark: int) -> int | None:
        """The end of the longest kept prefix that can be seen from a breakpoint."""
        for index in range(mark, max(mark - LOOKBACK, -1), -1):
            ends, _ = self._kept.get(blocks[index].prefix, (0.0, 0))
            if ends > self._now() and blocks[index].tokens >= self._minimum:
                return index
        return None

    def _refresh(self, prefix: bytes) -> None:
        ends, lifetime = self._kept.get(prefix, (0.0, 0))
        if ends > self._now():
            self._kept[prefix] = (self._now() + lifetime, lifetime)


def _check(ttls: list[str]) -> None:
    if len(ttls) > MAX_BREAKPOINTS:
        raise Refused(f"A maximum of {MAX_BREAKPOINTS} blocks with cache_control may be provided. Found {len(ttls)}.")
    if unknown := [ttl for ttl in ttls if ttl not in LIFETIMES_S]:
        raise Refused(f"cache_control.ttl: Input should be '5m' or '1h', not {unknown[0]}")
    if "5m" in ttls and "1h" in ttls[ttls.index("5m") :]:
        raise Refused("a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block")


def _blocks_of(request: Mapping[str, Any]) -> list[_Block]:
    """All blocks in the order of the prompt."""
    parts: list[tuple[str, Any]] = [("tools", tool) for tool in request.get("tools", ())]
    parts += [("system", block) for block in as_blocks(request.get("system", ()))]
    for number, message in enumerate(request["messages"]):
        parts += [(f"{number} {message['role']}", block) for block in as_blocks(message["content"])]
    controls = [block.get("cache_control") for _, block in parts]
    if automatic := request.get("cache_control"):
        last = max(index for index, (_, block) in enumerate(parts) if block.get("type") != "thinking")
        if controls[last] is not None and _ttl(controls[last]) != _ttl(automatic):
            raise Refused("the last block has a cache_control of another ttl than the request")
        controls[last] = automatic
    # What changes the rendered prompt from its begin on, and what changes it from the messages on.
    output = request.get("output_config", {})
    digest = sha256(json.dumps([request["model"], output.get("format")]).encode()).digest()
    salt = json.dumps([request.get("tool_choice"), request.get("thinking")])
    blocks: list[_Block] = []
    tokens, salted = 0, False
    for (place, block), control in zip(parts, controls, strict=True):
        if place not in ("tools", "system") and not salted:
            digest, salted = sha256(digest + salt.encode()).digest(), True
        bare = json.dumps({name: value for name, value in block.items() if name != "cache_control"}, ensure_ascii=False)
        digest = sha256(digest + f"{place} {bare}".encode()).digest()
        tokens += tokens_of(block["text"] if block.get("type") == "text" else bare)
        blocks.append(_Block(digest, tokens, _ttl(control) if control is not None else ""))
    return blocks


def as_blocks(content: Any) -> list[dict[str, Any]]:
    """Content as blocks: text alone is short for one block of it."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _ttl(control: Any) -> str:
    if not isinstance(control, Mapping) or control.get("type") != "ephemeral":
        raise Refused("cache_control.type: Input should be 'ephemeral'")
    return str(control.get("ttl", "5m"))
