"""Text into units that survive whole or go whole: sentences and lines, and blocks of code or JSON that always stay.

No cut falls inside a number, URL, identifier, quotation, inline code or JSON value. All of it takes time linear in the text.
"""

import json
import re
from dataclasses import dataclass

from services.common.tokens import estimate_tokens

# The C scanner of json gives up at about this depth; then the search for JSON goes on behind it.
_DEEPEST_JSON = 1_000


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of text that is kept or dropped as a whole.

    `tokens` counts its own text. `gap` is what stands between it and the unit before it in its paragraph.
    """

    text: str
    tokens: int
    gap: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Consecutive units; `verbatim` marks code or JSON, one unit that always stays. `titled`: the first unit heads the others."""

    units: tuple[Unit, ...]
    verbatim: bool = False
    titled: bool = False

    @property
    def text(self) -> str:
        """The units as they stood."""
        return "".join(unit.gap + unit.text for unit in self.units)


_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*$", re.MULTILINE)
_BLANK = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")
_JSON_START = re.compile(r"^[ \t]*([\[{])", re.MULTILINE)
_REST_OF_LINE = re.compile(r"[ \t]*(?:\n|$)")
_DECODER = json.JSONDecoder()


def paragraphs_of(text: str) -> list[Paragraph]:
    """All paragraphs in order. Blank lines between them are not kept; everything else is."""
    found: list[Paragraph] = []
    for start, end, verbatim in _blocks(text):
        if verbatim:
            block = text[start:end].strip("\n")
            found.append(Paragraph((Unit(block, estimate_tokens(block), ""),), verbatim=True))
            continue
        position = start
        while position < end:
            gap = _BLANK.search(text, position, end)
            stop = gap.start() if gap else end
            paragraph = _paragraph(text[position:stop].strip("\n"))
            if paragraph.units:
                found.append(paragraph)
            position = gap.end() if gap else end
    return found


def _blocks(text: str) -> list[tuple[int, int, bool]]:
    """Ranges of the text, those of fenced code and of JSON marked as verbatim."""
    verbatim = _fences(text)
    gaps = _gaps(verbatim, len(text))
    for start, end in gaps:
        verbatim.extend(_json_values(text, start, end))
    verbatim.sort()
    marked = [(start, end, True) for start, end in verbatim]
    marked.extend((start, end, False) for start, end in _gaps(verbatim, len(text)))
    return sorted(marked)


def _gaps(ranges: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    gaps = []
    position = 0
    for start, end in ranges:
        if start > position:
            gaps.append((position, start))
        position = end
    if position < length:
        gaps.append((position, length))
    return gaps


def _fences(text: str) -> list[tuple[int, int]]:
    """Fenced code. A fence that is never closed runs to the end."""
    ranges = []
    opened: tuple[int, str] | None = None
    for match in _FENCE.finditer(text):
        if opened is None:
            opened = match.start(), match[1]
        elif match[1].startswith(opened[1]) and match[0].strip() == match[1]:
            ranges.append((opened[0], match.end()))
            opened = None
    if opened is not None:
        ranges.append((opened[0], len(text)))
    return ranges


def _json_values(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Objects and arrays that begin a line and end one."""
    ranges = []
    position = start
    while match := _JSON_START.search(text, position, end):
        begin = match.start(1)
        try:
            _, stop = _DECODER.raw_decode(text, begin)
        except json.JSONDecodeError as error:
            position = max(error.pos, match.end())
            continue
        except RecursionError:
            position = begin + _DEEPEST_JSON
            continue
        position = stop
        if stop <= end and _REST_OF_LINE.match(text, stop):
            ranges.append((match.start(), stop))
    return ranges


# Lines of a programming language, outside of a fence.
_CODE_LINE = re.compile(
    r"(?:def|class|if|elif|else|for|while|try|except|with|match|case|switch|function|fn|func|public|private|protected|static|async|export)\b.*[:{(,]"
    r"|(?:import|from|package|using|#include|return|const|let|var|val)\b[^.]*|@\w+.*|.*[;{}]|[\])]+[,;:]?|.*\)\s*:|(?://|/\*|\*/|#!).*"
)
_LONGEST_CODE_LINE = 300
_TABLE_LINE = re.compile(r"[ \t]*\|")
_BULLET = re.compile(r"[ \t]*(?:[-*•+]|\d{1,3}[.)]|[a-z]\))[ \t]+\S|[ \t]*[|#>]")
_TERMINAL = tuple(".!?:;…。")
_LONGEST_WRAPPED_LINE = 110
_LONGEST_TITLE = 120

# A sentence ends at a mark, its closing quotes and brackets, and white space before something that can begin a sentence.
_END = re.compile(r"""(?<![.!?…])[.!?…]+["'”’»)\]]*(\s+)(?=["'“‘«(\[¿¡—–-]*[^\W_a-zà-öø-ÿ]|[-—–•]\s)""")
_ABBREVIATED = re.compile(
    r"(?:(?<![^\s.(\[])(?:(?-i:[A-Z])|mr|mrs|ms|dr|prof|st|jr|sr|sra|srta|dra|ud|uds|vs|etc|e\.g|i\.e|p\.ej|ej|no|nos|núm|num|vol|pp?|pág|págs|fig|figs|art|arts|cap|ch"
    r"|ed|eds|ca|approx|aprox|inc|ltd|co|corp|gen|gov|sen|rep|capt|lt|col|sgt|rev|hon|av|avda|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
    r"|u\.s|u\.k|a\.c|d\.c|ee\.uu))\.$",
    re.IGNORECASE,
)
# What no cut may fall into, besides what holds no white space anyway. Lengths are bounded, so that a stray mark costs little.
_WHOLE = re.compile(r'"[^"\n]{1,400}"|“[^“”]{1,400}”|«[^«»]{1,400}»|`[^`\n]{1,400}`|\{[^{}\n]{1,400}\}')


def _paragraph(text: str) -> Paragraph:
    lines = text.split("\n")
    if _is_code(lines):
        return Paragraph((Unit(text, estimate_tokens(text), ""),), verbatim=True)
    if len(lines) > 2 and all(map(_TABLE_LINE.match, lines)):
        rows = ["\n".join(lines[:2]), *lines[2:]]
        return Paragraph(
            tuple(Unit(row, estimate_tokens(row), "\n" if i else "") for i, row in enumerate(rows)), titled=True
        )
    wrapped = _is_wrapped(lines)
    pieces: list[tuple[str, str]] = []  # (gap, text)
    current: list[str] = []
    for line in lines:
        if current and (not wrapped or _BULLET.match(line)):
            _cut("\n".join(current), pieces)
            current = []
        current.append(line)
    _cut("\n".join(current), pieces)
    units = tuple(Unit(piece, estimate_tokens(piece), gap) for gap, piece in pieces)
    titled = len(units) > 1 and not wrapped and _is_title(lines[0]) and units[0].text == lines[0].rstrip()
    return Paragraph(units, titled=titled)


def _is_code(lines: list[str]) -> bool:
    code = sum(len(line) <= _LONGEST_CODE_LINE and _CODE_LINE.fullmatch(line.strip()) is not None for line in lines)
    return code > 1 and 2 * code >= len(lines)


def _is_wrapped(lines: list[str]) -> bool:
    """Whether line breaks only wrap prose: short lines, many of which go on in lower case."""
    if len(lines) < 2 or max(map(len, lines)) > _LONGEST_WRAPPED_LINE:
        return False
    continued = sum(line[:1].islower() for line in lines[1:])
    return 3 * continued >= len(lines) - 1


def _is_title(line: str) -> bool:
    stripped = line.strip()
    return 0 < len(stripped) <= _LONGEST_TITLE and not stripped.endswith(_TERMINAL) and not _BULLET.match(line)


def _cut(text: str, pieces: list[tuple[str, str]]) -> None:
    """Appends the sentences of `text`, each with the white space before it."""
    whole = _WHOLE.finditer(text)
    inside = next(whole, None)
    start = 0
    gap = "\n" if pieces else ""
    for match in _END.finditer(text):
        while inside is not None and inside.end() <= match.start(1):
            inside = next(whole, None)
        if inside is not None and inside.start() < match.start(1):
            continue
        head = text[max(start, match.start(1) - 12) : match.start(1)]
        if text[match.start()] == "." and _ABBREVIATED.search(head):
            continue
        if text[start : match.start(1)].strip():
            pieces.append((gap, text[start : match.start(1)]))
            gap = match[1]
            start = match.end(1)
    if text[start:].strip():
        pieces.append((gap, text[start:].rstrip()))
