"""From a vendor's name of a model to the price book's."""

import re
from collections.abc import Iterator

from services.common.prices import PriceBook

_DATED = re.compile(r"[-@](?:20\d{2}-?\d{2}-?\d{2}|latest|preview|00\d)$|-v\d(?::\d)?$|:\d$")
_CLAUDE = re.compile(r"claude-(\d+(?:-\d)?)-([a-z]+)$")
_VERSION = re.compile(r"(?<=-)(\d)-(\d)$")
_OLD_CLAUDE = re.compile(r"(claude-[a-z]+)-3(?:\.[57])?$")
_OLD_GEMINI = re.compile(r"gemini-1\.5-flash.*$")


def book_name(model: str, book: PriceBook) -> str:
    """The price book's name of a model such as "openai/gpt-4o-2024-08-06"; the name as it is where the book has none."""
    return next((name for name in _names(model) if name in book.models), model)


def vendor_kind(model: str) -> str:
    """The kind of vendor that a model is from, as rules of prompt caches name it; "" where the name does not say."""
    name = model.lower().rpartition("/")[2]
    kinds = {
        "openai": ("gpt", "o1", "o3", "o4", "chatgpt", "deepseek"),
        "anthropic": ("claude",),
        "gemini": ("gemini",),
    }
    if "anthropic." in name or "amazon.nova" in name:
        return "bedrock"
    if name.endswith(("-groq", "-together")):
        return ""
    return next((kind for kind, starts in kinds.items() if name.startswith(starts)), "")


def _names(model: str) -> Iterator[str]:
    """Ever plainer spellings, the given one first."""
    yield model
    name = model.lower().rpartition("/")[2]
    name = re.sub(r"^(?:[a-z]{2,6}\.)?(?:anthropic|amazon|openai|google)\.", "", name)
    yield name
    while (shorter := _DATED.sub("", name)) != name:
        name = shorter
        yield name
    if (turned := _CLAUDE.match(name)) is not None:
        name = f"claude-{turned[2]}-{turned[1]}"
    name = _VERSION.sub(r"\1.\2", name)
    yield name
    yield _OLD_CLAUDE.sub(r"\1", name)
    yield _OLD_GEMINI.sub("gemini-flash", name)
