"""The prompt cache and the bill of a vendor that behaves like OpenAI, by the rules of its documentation.

Before GPT-5.6 the vendor keeps by itself what prompts begin with, in steps of STEP tokens from `minimum` on, and writes cost
what any input costs. Each of its machines keeps its own: requests with one `prompt_cache_key` go to one machine, up to
CALLS_PER_KEY a minute, and those without a key to any. From GPT-5.6 on a request may say by breakpoints in its messages what is
kept, exactly to there; what is written has a price of its own. Tokens are counted as a quarter of the prompt's characters.
"""

from __future__ import annotations

import json
import random
import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from services.common.money import Rates

LETTERS_A_TOKEN = 4
STEP = 128
CALLS_PER_KEY = 15
MAX_BREAKPOINTS = 4

_EXPLICIT = re.compile(r"gpt-(5\.([6-9]|\d\d)|[6-9])")
_FIELDS = ("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")


class Refused(Exception):
    """The request is answered with status 400."""


@dataclass(frozen=True)
class Count:
    """Input tokens of one request; the three parts overlap nowhere."""

    plain: int
    read: int = 0
    written: int = 0


def tokens_of(text: str) -> int:
    """Tokens of a text."""
    return -(-len(text) // LETTERS_A_TOKEN)


def refuse_hints(request: Mapping[str, Any]) -> None:
    """What a vendor does that is compatible, and no more. Raises Refused."""
    for name in _FIELDS:
        if name in request:
            raise Refused(f"Unrecognized request argument supplied: {name}")
    if "prompt_cache_breakpoint" in json.dumps(request["messages"]):
        raise Refused("Unrecognized request argument supplied: prompt_cache_breakpoint")


class PromptCache:
    """What the vendor keeps, and what it charges. `now` is in seconds; lifetimes count from the last use."""

    def __init__(
        self,
        now: Callable[[], float],
        rates: Rates,
        *,
        minimum: int = 1024,
        lifetime_s: float = 300.0,
        explicit_lifetime_s: float = 1800.0,
        machines: int = 4,
        seed: int = 1,
    ) -> None:
        self.invoice = 0
        self._now = now
        self._rates = rates
        self._minimum = minimum
        self._lifetimes = (lifetime_s, explicit_lifetime_s)
        self._machines: list[dict[bytes, float]] = [{} for _ in range(machines)]
        self._random = random.Random(seed)
        self._calls: dict[str, deque[float]] = {}

    def usage(self, request: Mapping[str, Any], output_tokens: int) -> dict[str, Any]:
        """Reads and writes, charges, and reports as the vendor does. Raises Refused for hints that are against the rules."""
        count = self._count(request)
        millionths = (
            count.plain * self._rates.input
            + count.read * self._rates.cache_read
            + count.written * self._rates.cache_write
            + output_tokens * self._rates.output
        )
        self.invoice += (millionths + 500_000) // 1_000_000
        prompt = count.plain + count.read + count.written
        details = {"cached_tokens": count.read}
        if _EXPLICIT.match(request["model"]):
            details["cache_write_tokens"] = count.written
        return {
            "prompt_tokens": prompt,
            "completion_tokens": output_tokens,
            "total_tokens": prompt + output_tokens,
            "prompt_tokens_details": details,
        }

    def _count(self, request: Mapping[str, Any]) -> Count:
        kept = self._machine(request.get("prompt_cache_key"))
        parts, marks = _parts(request)
        if not _EXPLICIT.match(request["model"]):
            if marks or "prompt_cache_options" in request:
                raise Refused("prompt_cache_options is not supported with this model")
            text = "".join(parts)
            ends = range(self._minimum * LETTERS_A_TOKEN, len(text) + 1, STEP * LETTERS_A_TOKEN)
            read = self._read(kept, _digests(request["model"], text, ends), self._lifetimes[0])
            return Count(tokens_of(text) - read, read)
        if request.get("prompt_cache_options", {}).get("mode") != "explicit":
            marks = [*marks[1 - MAX_BREAKPOINTS :], len(parts) - 1]
        if len(marks) > MAX_BREAKPOINTS:
            raise Refused(f"at most {MAX_BREAKPOINTS} prompt_cache_breakpoint")
        return self._explicit(request, kept, parts, marks)

    def _explicit(
        self, request: Mapping[str, Any], kept: dict[bytes, float], parts: Sequence[str], marks: Sequence[int]
    ) -> Count:
        text = "".join(parts)
        ends = [sum(map(len, parts[: index + 1])) for index in range(len(parts))]
        ends = [end for end in ends if end >= self._minimum * LETTERS_A_TOKEN]
        marked = [end for index in marks if (end := sum(map(len, parts[: index + 1]))) in ends]
        digests = _digests(request["model"], text, ends)
        read = 0
        if marked:
            read = self._read(
                kept, {end: digest for end, digest in digests.items() if end <= marked[-1]}, self._lifetimes[1], marked
            )
        upto = max([read, *(tokens_of(text[:end]) for end in marked)])
        return Count(tokens_of(text) - upto, read, upto - read)

    def _read(
        self,
        kept: dict[bytes, float],
        digests: Mapping[int, bytes],
        lifetime_s: float,
        write: Sequence[int] | None = None,
    ) -> int:
        """Tokens of the longest beginning that is kept; writes all beginnings, or those that end where `write` says."""
        now, found = self._now(), 0
        for end, digest in digests.items():
            if kept.get(digest, float("-inf")) > now:
                found = end
        for end, digest in digests.items():
            if write is None or end in write or end == found:
                kept[digest] = now + lifetime_s
        return tokens_of("x" * found)

    def _machine(self, key: str | None) -> dict[bytes, float]:
        """Where a request goes."""
        if key is None:
            return self._random.choice(self._machines)
        if not 0 < len(key) <= 64:
            raise Refused("prompt_cache_key is longer than 64 characters")
        calls = self._calls.setdefault(key, deque())
        while calls and calls[0] <= self._now() - 60:
            calls.popleft()
        calls.append(self._now())
        first = int.from_bytes(sha256(key.encode()).digest()[:2], "big")
        return self._machines[(first + (len(calls) - 1) // CALLS_PER_KEY) % len(self._machines)]


def _parts(request: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The prompt's parts in order, and which of them end at a breakpoint."""
    parts = [json.dumps(tool) for tool in request.get("tools", ())]
    marks: list[int] = []
    for message in request["messages"]:
        content = message.get("content")
        blocks: list[dict[str, Any]] = (
            content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
        )
        rest = {name: value for name, value in message.items() if name != "content"}
        parts.append(json.dumps(rest))
        for block in blocks:
            parts.append(block["text"] if block["type"] == "text" else json.dumps(block))
            if (mark := block.get("prompt_cache_breakpoint")) is not None:
                if mark.get("mode") != "explicit":
                    raise Refused("prompt_cache_breakpoint.mode must be explicit")
                marks.append(len(parts) - 1)
    return parts, marks


def _digests(model: str, text: str, ends: Sequence[int]) -> dict[int, bytes]:
    digest, begin = sha256(model.encode()), 0
    found: dict[int, bytes] = {}
    for end in ends:
        digest.update(text[begin:end].encode())
        found[end] = digest.digest()
        begin = end
    return found
