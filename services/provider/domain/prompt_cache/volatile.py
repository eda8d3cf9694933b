"""Text that differs from one request to the next though nobody meant it to: times, ids, counters. English and Spanish."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from services.provider.domain.prompt_cache import VolatileKind

MAX_SCANNED = 32_768
"""Letters of a text that are looked at: what changes beyond them leaves a long prefix as it is."""

_MAX_SENTENCE = 160
_MAX_LINES = 16_384

_MONTH = (
    r"(?:jan(?:uary)?|ene(?:ro)?|feb(?:ruary|rero)?|mar(?:ch|zo)?|apr(?:il)?|abr(?:il)?|mayo?|june?|jun(?:io)?|july?|jul(?:io)?"
    r"|aug(?:ust)?|ago(?:sto)?|sep(?:t|tember|tiembre)?|oct(?:ober|ubre)?|nov(?:ember|iembre)?|dec(?:ember)?|dic(?:iembre)?)\.?"
)
_DATE = (
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
    rf"|\d{{1,2}}(?:st|nd|rd|th)? (?:de )?{_MONTH}(?:,? (?:del? )?\d{{4}})?"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?)"
)
_TIME = (
    r"(?:\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?(?: ?[ap]\.? ?m\b\.?)?"
    r"(?: ?(?:Z\b|UTC\b|GMT\b|C?ES?T\b|P[SD]T\b|[+-]\d{2}:?\d{2}))?)"
)
_TIME_LABEL = (
    r"(?:(?:current|local|server|request|present) (?:date ?(?:and|&|/)? ?)?time|time now|now|timestamp|time ?stamp"
    r"|hora (?:actual|local|del servidor|de la (?:solicitud|petici[oó]n))|fecha y hora(?: actual(?:es)?)?|marca de tiempo|ahora)"
)
_THING = r"(?:request|req|trace|span|session|correlation|conversation|transaction|message|run|job|invocation)"
_COSA = (
    r"(?:solicitud|petici[oó]n|sesi[oó]n|traza|correlaci[oó]n|conversaci[oó]n|transacci[oó]n|mensaje|llamada|consulta|turno"
    r"|visita|intento)"
)
_IS = r" {0,2}(?:is|es|son)? {0,2}[:=#]? {0,2}"
_TIMESTAMP = (
    rf"\b{_DATE}(?:T|,? (?:at |a las? |- )?|,){_TIME}"
    rf"|\b{_TIME}(?:,? (?:on |del? )?){_DATE}"
    rf"|\b{_TIME_LABEL}{_IS}(?:las? )?(?:{_TIME}|1\d{{9}}(?:\d{{3}})?\b)"
)
_UUID = r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b"
_ID = (
    rf"\b(?:(?:x-)?{_THING}[ _-]?(?:id|identifier)|(?:id|identificador|c[oó]digo) de (?:la |el )?{_COSA}|nonce)\b"
    rf"[\"']?{_IS}[\"']?(?=[^\s\"']{{0,127}}\d)[a-z0-9][a-z0-9._:-]{{3,127}}"
)
_COUNTER = (
    rf"\b(?:(?:{_THING}|turn|query|visit|attempt|ticket) ?(?:number|no\b\.?|num\b\.?|#|count(?:er)?)"
    rf"|{_COSA} ?(?:n[uú]mero|n\.? ?[ºo°]\.?|n[uú]m\b\.?|#)|n[uú]mero de (?:la )?{_COSA}|counter|contador"
    rf"|sequence(?: number)?|secuencia){_IS}\d+"
)
_PATTERNS = {
    VolatileKind.TIMESTAMP: _TIMESTAMP,
    VolatileKind.UUID: _UUID,
    VolatileKind.ID: _ID,
    VolatileKind.COUNTER: _COUNTER,
}
_ANY = re.compile("|".join(f"(?P<{kind.value}>{pattern})" for kind, pattern in _PATTERNS.items()), re.IGNORECASE)
# What every one of them has and is quick to find; the patterns above look only around these.
_HINT = re.compile(
    r"\d:\d\d|\b1\d{9}|[\da-fA-F]{8}-[\da-fA-F]{4}-|[iI][dD]\b|#"
    r"|(?i:identif|nonce|digo de|n[uú]m|\bn\.? ?(?:[º°]|o\b)|count|contador|se[cq]uen)"
)
_BEFORE, _AFTER = 80, 240
_SENTENCE_END = re.compile(r"[.!?][\"')]?[ \t]+(?=[\"'(¿¡]?[A-ZÁÉÍÓÚÑÜ0-9])")
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
# Out of data, a table or code no line can be taken without breaking the rest.
_NOT_PROSE = re.compile(r"[ \t]*[\"'{}\[\]|]")


Match = tuple[VolatileKind, int, int]
"""What, and from where to where in its line."""


@dataclass(frozen=True, slots=True)
class Found:
    """A volatile field in a text: where it begins, and from where to where its sentence can be taken out; None: it cannot."""

    kind: VolatileKind
    start: int
    sentence: tuple[int, int] | None


class Finder:
    """Finds volatile fields, each line but once: it remembers lines by their hashes."""

    def __init__(self, limit: int = _MAX_LINES) -> None:
        self._limit = limit
        self._known: dict[int, tuple[Match, ...]] = {}

    def find(self, text: str) -> tuple[Found, ...]:
        """The volatile fields of a text, in order. Places are letters, not bytes. Linear in the text's length."""
        found: list[Found] = []
        start = 0
        for line in text[:MAX_SCANNED].split("\n"):
            matches = self._known.get(hash(line))
            if matches is None:
                matches = self._learn(line)
            if matches:
                fenced = len(_FENCE.findall(text, 0, start)) % 2 == 1
                prose = not fenced and not _NOT_PROSE.match(line)
                for kind, begin, _ in matches:
                    sentence = _sentence(line, begin, matches) if prose else None
                    moved = None if sentence is None else (start + sentence[0], start + sentence[1])
                    found.append(Found(kind, start + begin, moved))
            start += len(line) + 1
        return tuple(found)

    def _learn(self, line: str) -> tuple[Match, ...]:
        if len(self._known) >= self._limit:
            self._known.clear()
        matches = self._known[hash(line)] = tuple(
            (VolatileKind(match.lastgroup or ""), *match.span())
            for start, end in _windows(line)
            for match in _ANY.finditer(line, start, end)
        )
        return matches


def take_out(text: str, found: tuple[Found, ...]) -> tuple[str, tuple[str, ...]]:
    """The text without the sentences that can be taken out, and these, in order. A line that is left blank goes too."""
    spans = sorted({one.sentence for one in found if one.sentence is not None})
    pieces: list[str] = []
    taken: list[str] = []
    at = 0  # all before is in the pieces
    for line_start, group in groupby(spans, lambda span: text.rfind("\n", 0, span[0]) + 1):
        pieces.append(text[at:line_start])
        at, rest = line_start, ""
        for start, stop in group:
            rest += text[at:start]
            taken.append(text[start:stop].strip())
            at = stop
        line_end = text.find("\n", at)
        line_end = len(text) if line_end < 0 else line_end
        rest += text[at:line_end]
        at = line_end
        if rest.strip():
            pieces.append(rest)
        else:
            at += 1  # the line goes with its end
    left = "".join([*pieces, text[at:]])
    if at > len(text):
        left = left.removesuffix("\n")
    return (left if left.strip() else ""), tuple(taken)


def _windows(line: str) -> Iterator[tuple[int, int]]:
    """Which parts of a line to look at. They do not overlap."""
    start, end = 0, -1
    for hint in _HINT.finditer(line):
        if hint.start() - _BEFORE > end:
            if end >= 0:
                yield start, end
            start = max(hint.start() - _BEFORE, 0)
        end = min(hint.end() + _AFTER, len(line))
    if end >= 0:
        yield start, end


def _sentence(line: str, at: int, matches: Sequence[Match]) -> tuple[int, int] | None:
    """The sentence around `at`; None for one that is more than a label and a value."""
    start, end = 0, len(line)
    for stop in _SENTENCE_END.finditer(line):
        if any(first <= stop.start() < last - 1 for _, first, last in matches):
            continue  # "10:33 a.m. UTC": no end of a sentence
        if stop.end() <= at:
            start = stop.end()
        else:
            end = stop.end()
            break
    return (start, end) if len(line[start:end].strip()) <= _MAX_SENTENCE else None
