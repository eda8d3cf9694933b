"""Vetoes: why one answer would not serve two questions, however alike they sound. English and Spanish.

A question is read once into what can change its answer: language, kind of question, quantities, negation, names, direction,
content words. Two readings that disagree in any of these must not share an answer. Nothing here measures likeness: a pair
without a veto still has to be similar enough.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from services.cache.domain import lexicon
from services.common.words import english_singular

_READ_LIMIT = 8_000
"""Characters that are read in detail; a longer text must match word for word beyond that (see `Reading.rest`)."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number with its unit: ("seconds", 86400.0) for "24 hours", "one day", "un día"."""

    unit: str
    value: float

    def __str__(self) -> str:
        """For the explanation of a veto."""
        return f"{self.value:g} {self.unit}".strip()


@dataclass(frozen=True, slots=True)
class Reading:
    """What can change the answer to a question.

    `content` maps the class of each content word to the word as written; `order` is their order; `kinds` the kinds of question
    asked; `names` are identifiers (codes, addresses, capitals);
    `toward` and `away` the content words that follow "to" and "from".
    """

    language: str
    kinds: frozenset[str]
    quantities: tuple[Quantity, ...]
    bound: frozenset[tuple[str, str]]
    negated: bool
    names: frozenset[str]
    words: frozenset[str]
    content: dict[str, str]
    order: tuple[str, ...]
    toward: str
    away: str
    tense: str
    rest: str


@dataclass(frozen=True, slots=True)
class Veto:
    """Why not, as a word for machines and a detail for people."""

    reason: str
    detail: str


def veto(asked: Reading, stored: Reading, *, cross_language: bool = False) -> Veto | None:
    """The first thing that speaks against one answer for both; None where nothing does. Symmetric in its arguments."""
    if asked.language and stored.language and asked.language != stored.language:
        if not cross_language:
            return Veto("language", f"{asked.language} / {stored.language}")
        return _quantities(asked, stored) or names(asked, stored)
    return (
        _quantities(asked, stored)
        or _negation(asked, stored)
        or names(asked, stored)
        or antonyms(asked, stored)
        or _kinds(asked, stored)
        or _content(asked, stored)
        or direction(asked, stored)
    )


def _quantities(asked: Reading, stored: Reading) -> Veto | None:
    if asked.quantities != stored.quantities:
        return Veto("numbers", f"{_list(asked.quantities)} / {_list(stored.quantities)}")
    if asked.bound != stored.bound:
        # The same numbers beside different things: two coupons on one order, one coupon on two orders.
        mine = sorted(asked.bound - stored.bound)
        theirs = sorted(stored.bound - asked.bound)
        if any(noun in stored.content for _, noun in mine) and any(noun in asked.content for _, noun in theirs):
            return Veto("numbers", f"{_pairs(mine)} / {_pairs(theirs)}")
    return None


def _negation(asked: Reading, stored: Reading) -> Veto | None:
    if asked.negated != stored.negated:
        return Veto("negation", "only one of them is negated")
    return None


def names(asked: Reading, stored: Reading) -> Veto | None:
    """Names or identifiers that only one of them has."""
    unmatched = (asked.names - stored.words) | (stored.names - asked.words)
    if unmatched:
        return Veto("entities", ", ".join(sorted(unmatched)))
    return None


def antonyms(asked: Reading, stored: Reading) -> Veto | None:
    """A word of one that is the opposite of a word of the other."""
    mine = asked.content.keys() - stored.content.keys()
    theirs = stored.content.keys() - asked.content.keys()
    opposites = _opposites(asked.language or stored.language or "en")
    for word in sorted(mine):
        against = opposites.get(word, frozenset()) & theirs
        if against:
            return Veto("antonyms", f"{asked.content[word]} / {stored.content[min(against)]}")
    return None


def _kinds(asked: Reading, stored: Reading) -> Veto | None:
    # A bare "reset password" asks how, so nothing against {"how"} is no difference while the words stand in the same order.
    bare = asked.kinds | stored.kinds == {"how"} and asked.order == stored.order
    if asked.kinds != stored.kinds and not bare:
        return Veto("question_type", f"{_kinds_text(asked.kinds)} / {_kinds_text(stored.kinds)}")
    if {asked.tense, stored.tense} == {"past", "future"}:
        return Veto("tense", "one asks about the past, the other about the future")
    return None


def _content(asked: Reading, stored: Reading) -> Veto | None:
    mine = sorted(asked.content.keys() - stored.content.keys())
    theirs = sorted(stored.content.keys() - asked.content.keys())
    for word in list(mine):
        twin = next((other for other in theirs if _is_typo(word, other)), None)
        if twin is not None:
            mine.remove(word)
            theirs.remove(twin)
    if mine or theirs:
        ours = ", ".join(asked.content[word] for word in mine)
        other = ", ".join(stored.content[word] for word in theirs)
        return Veto("substitution" if mine and theirs else "addition", f"{ours} / {other}")
    if not asked.content and not asked.quantities and asked.words != stored.words:
        return Veto("no_content", "nothing in them can be compared")
    if asked.rest != stored.rest:
        return Veto("long_text", f"they differ after {_READ_LIMIT} characters")
    return None


def direction(asked: Reading, stored: Reading) -> Veto | None:
    """The same words with their roles swapped."""
    for mine, theirs in ((asked.toward, stored.toward), (asked.away, stored.away)):
        if mine and theirs and mine != theirs and mine in stored.content and theirs in asked.content:
            return Veto("direction", f"{asked.content[mine]} / {stored.content[theirs]}")
    if asked.order != stored.order and asked.content.keys() == stored.content.keys():
        if _is_free_order(asked) or _is_free_order(stored):
            return None
        return Veto("word_order", "the same words in another order")
    return None


def _is_free_order(reading: Reading) -> bool:
    """Whether two content words may change places: in keywords ("password reset"), and in Spanish ("es tan alta mi factura")."""
    return len(reading.order) <= 2 and (reading.language == "es" or len(reading.words) <= 3)


def _list(quantities: tuple[Quantity, ...]) -> str:
    return ", ".join(map(str, quantities)) or "none"


def _pairs(bound: list[tuple[str, str]]) -> str:
    return ", ".join(" ".join(pair) for pair in bound)


def _kinds_text(kinds: frozenset[str]) -> str:
    return ", ".join(sorted(kinds)) or "statement"


_MARKS = re.compile(r"[\u0300-\u036f]")
_APOSTROPHES = re.compile(r"[\u2018\u2019\u02bc`\u00b4]")
_LETTERS = re.compile(r"[a-z]+")
_DIGIT = re.compile(r"\d")
_BARE_CONTRACTION = re.compile(
    r"\b(?:(ca|wo|do|does|did|is|are|was|were|has|have|had|would|could|should)nt|(what|where|who|how|that|i)(?:s|m))\b"
)
_CONTRACTIONS = (
    (re.compile(r"\bcan't\b"), "can not"),
    (re.compile(r"\bwon't\b"), "will not"),
    (re.compile(r"n't\b"), " not"),
    (re.compile(r"\b(what|where|who|how|when|why|that|there|it|he|she)'s\b"), r"\1 is"),
    (re.compile(r"'ll\b"), " will"),
    (re.compile(r"'d\b"), " would"),
    (re.compile(r"'re\b"), " are"),
    (re.compile(r"'ve\b"), " have"),
    (re.compile(r"'m\b"), " am"),
    (re.compile(r"'s?\b"), " "),
)
_TOKEN = re.compile(
    r"(?P<name>https?://\S+|[\w.+-]+@[\w-]+\.[\w.-]+|(?=\w*\d)(?=\w*[^\W\d_])[\w-]*\w|\w+(?:_\w+)+)"
    r"|(?P<word>[^\W\d_]+)"
    r"|(?P<time>\d{1,2}:\d{2})"
    r"|(?P<number>(?<!\d)\d{1,3}(?: \d{3})+(?![\d.,]*\d)|\d[\d.,]*\d|\d|(?<![\w.])\.\d+)"
    r"|(?P<symbol>[$€£%])"
    r"|(?P<stop>[?!;,:.¿¡()\n])"
)
_CLOCK = re.compile(r"(\d{1,2})(?::(\d{2}))? ?([ap])\.? ?m\b\.?")
_ORDINAL = re.compile(r"\b(\d+)(?:st|nd|rd|th|º|ª|er|o|a)\b")
_UNIT_SUFFIX = re.compile(r"\b(\d+(?:[.,]\d+)?)(h|hrs?|hours?|min|mins|days?|km|kg|kwh|kw|gb|mb|usd|eur|gbp|p|k)\b")
_LATEX = re.compile(r"\$([^$]*[=^\\][^$]*)\$")
_UNIT_LETTER = re.compile(r"\b(\d+(?:[.,]\d+)?) ?([hpkm])\b")
_CAPITALS = re.compile(r"\b[A-Z][A-Z0-9]{1,}\b")
_CAPITALISED = re.compile(r"(?<![.?!¿¡:\n])(?<=[^\W\d_,;]) ([A-ZÁÉÍÓÚÑ][^\W\d_]+)")


def _plain(text: str) -> str:
    """Lower case without accents."""
    text = text.lower().replace("½", ".5")
    return text if text.isascii() else _MARKS.sub("", unicodedata.normalize("NFKD", text))


def read_once(text: str) -> Reading:
    """Reads a text that will hardly come again, such as an answer."""
    text = _APOSTROPHES.sub("'", text)
    head, rest = text[:_READ_LIMIT], text[_READ_LIMIT:]
    plain = _plain(head)
    language = _language(plain, head)
    tongue = language or "en"
    if tongue == "en":
        plain = _BARE_CONTRACTION.sub(_with_apostrophe, plain.replace("cannot", "can not"))
        if "'" in plain:
            for pattern, replacement in _CONTRACTIONS:
                plain = pattern.sub(replacement, plain)
    for triggers, phrase, replacement in _phrases(tongue):
        if any(trigger in plain for trigger in triggers):
            plain = phrase.sub(replacement, plain)
    if _DIGIT.search(plain):
        if "=" in plain or "^" in plain:  # in a formula, letters and signs are no units
            plain = _UNIT_LETTER.sub(r"\1_\2", _LATEX.sub(r" \1 ", plain))
        plain = _CLOCK.sub(_clock, plain)
        plain = _UNIT_SUFFIX.sub(r"\1 \2", plain)
        plain = _ORDINAL.sub(r"\1", plain)
    return _Reader(head, plain, language, tongue, " ".join(rest.split())).reading()


@lru_cache(maxsize=4_096)
def read(text: str) -> Reading:
    """Reads a question, and remembers it."""
    return read_once(text)


def _with_apostrophe(match: re.Match[str]) -> str:
    if match[1]:
        return f"{match[1]}n't"
    return "i'm" if match[2] == "i" else f"{match[2]}'s"


def _clock(match: re.Match[str]) -> str:
    hour = int(match[1]) % 12 + (12 if match[3] == "p" else 0)
    return f"{hour}:{match[2] or '00'}"


_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|«[^»]*»|(?<!\w)'[^']+'(?!\w)")
_COMPARED = re.compile(r"\w+ vs\.? \w+")
_LETTERS_OF = tuple((weight, re.compile(pattern)) for weight, pattern in lexicon.LANGUAGE_LETTERS)
_MARK = 4
_MOST_OF_LETTERS = 3
_CLEAR = 2


def _language(plain: str, raw: str) -> str:
    """Returns "en", "es", or "" where the text gives too little away.

    What it only mentions, in quotes or on both sides of "vs", may be foreign and counts for nothing.
    """
    if '"' in plain or "'" in plain or not raw.isascii():
        said = _QUOTED.sub(" ", plain)
        if _LETTERS.search(said):
            plain, raw = said, _QUOTED.sub(" ", raw)
    if " vs" in plain:
        plain = _COMPARED.sub(" ", plain)
    weights = [_weight(word) for word in _LETTERS.findall(plain)]
    spanish = sum(weight for weight in weights if weight > 0)
    english = spanish - sum(weights)
    if not raw.isascii():
        spanish += 4 * any(mark in raw for mark in "¿¡ñÑ") + 3 * any(mark in raw for mark in "áéíóúÁÉÍÓÚ")
    if abs(english - spanish) < _CLEAR or 2 * min(english, spanish) >= max(english, spanish):
        return ""
    if english > spanish > 1 and -_MARK not in weights:
        return ""  # Spanish is full of English names and loans, so that their letters alone prove little
    return "en" if english > spanish else "es"


@lru_cache(maxsize=16_384)
def _weight(word: str) -> int:
    """How far a word speaks for Spanish, below 0 for English; lower case without accents."""
    if word in lexicon.LANGUAGE_NEUTRAL:
        return 0
    if word in lexicon.LANGUAGE_MARKS["en"]:
        return -_MARK
    if word in lexicon.LANGUAGE_MARKS["es"]:
        return _MARK
    if len(word) < 3:
        return 0
    weight = sum(weight for weight, letters in _LETTERS_OF if letters.search(word))
    return max(-_MOST_OF_LETTERS, min(weight, _MOST_OF_LETTERS))


class _Reader:
    """Walks over the pieces of one text."""

    def __init__(self, raw: str, plain: str, language: str, tongue: str, rest: str) -> None:
        self._raw = raw
        self._language = language
        self._tongue = tongue
        self._rest = rest
        self._pieces = [(match.lastgroup or "", match.group()) for match in _TOKEN.finditer(plain)]

    def reading(self) -> Reading:
        quantities, bound, used = self._numbers()
        light = lexicon.LIGHT[self._tongue]
        content: dict[str, str] = {}
        order: list[str] = []
        words: set[str] = set()
        names: set[str] = set()
        toward = away = ""
        to_word, from_words = ("to", ("from",)) if self._tongue == "en" else ("a", ("de", "desde"))
        pending = ""
        for index, (kind, piece) in enumerate(self._pieces):
            if index in used or kind in ("symbol", "time", "number"):
                continue
            if kind == "stop":
                pending = ""
                continue
            words.add(piece)
            if kind == "name":
                names.add(piece)
                continue
            if piece in (to_word, "al") or piece in from_words or piece == "del":
                pending = "to" if piece in (to_word, "al") else "from"
            if piece in light or piece in lexicon.NEGATIONS:
                continue
            base = word_class(piece, self._tongue)
            if base not in content:
                content[base] = piece
                order.append(base)
            if pending == "to":
                toward = base
            elif pending == "from":
                away = base
            pending = ""
        plain_words = [piece for kind, piece in self._pieces if kind == "word"]
        return Reading(
            language=self._language,
            kinds=_question_kinds(self._clauses(), self._tongue),
            quantities=tuple(sorted(quantities, key=lambda q: (q.unit, q.value))),
            bound=frozenset((f"{value:g}", noun) for value, noun in bound),
            negated=any(word in lexicon.NEGATIONS for word in plain_words),
            names=frozenset(names | self._capitals()),
            words=frozenset(words),
            content=content,
            order=tuple(order),
            toward=toward,
            away=away,
            tense=_tense(plain_words, self._tongue),
            rest=self._rest,
        )

    def _numbers(self) -> tuple[list[Quantity], list[tuple[float, str]], set[int]]:
        """Quantities, plain numbers with the content word that follows each, and the positions they take up."""
        quantities: list[Quantity] = []
        bound: list[tuple[float, str]] = []
        used: set[int] = set()
        pieces = self._pieces
        number_words = lexicon.ENGLISH_COUNTS if self._language == "en" else lexicon.COUNTS
        index = 0
        while index < len(pieces):
            kind, piece = pieces[index]
            if kind == "word":
                if piece in ("and", "y") and index:
                    half = self._half_at(index)
                    unit, unit_length = self._unit_at(index - 1) if half else (None, 0)
                    if unit is not None and unit_length == 1:  # two hours and a half, hora y media
                        whole = quantities.pop().value if index - 1 in used else unit[1]
                        quantities.append(Quantity(unit[0], round(whole + unit[1] / 2, 6)))
                        used.update(range(index - 1, index + half))
                        index += half
                        continue
                if piece not in number_words:
                    index += 1
                    continue
            elif kind != "number":
                index += 1
                continue
            value, length = self._number_at(index)
            if value is None:
                index += 1
                continue
            after = index + length
            unit, unit_length = self._unit_at(after)
            if unit is None and index > 0 and pieces[index - 1][1] in "$€£" and pieces[index - 1][0] == "symbol":
                unit, unit_length = lexicon.UNITS[pieces[index - 1][1]], 0
            is_article = length == 1 and (
                pieces[index][1] in lexicon.ONE_WORDS or pieces[index][1] in lexicon.HALF_WORDS
            )
            if unit is None and is_article:
                index += 1
                continue
            if unit is None:
                quantities.append(Quantity("", value))
                noun = self._noun_at(after)
                if noun:
                    bound.append((value, noun))
            else:
                quantities.append(Quantity(unit[0], round(value * unit[1], 6)))
            used.update(range(index, after + unit_length))
            index = after + unit_length
        for index, (kind, piece) in enumerate(pieces):
            if kind == "time":
                hours, _, minutes = piece.partition(":")
                quantities.append(Quantity("clock", int(hours) * 60 + int(minutes)))
                used.add(index)
        return quantities, bound, used

    def _piece(self, index: int) -> str:
        return self._pieces[index][1] if index < len(self._pieces) else ""

    def _half_at(self, index: int) -> int:
        """How many pieces "and a half", "y media" take at a position; 0 where they do not stand there."""
        joined, second = self._piece(index), self._piece(index + 1)
        if joined == "and" and second == "a" and self._piece(index + 2) == "half":
            return 3
        if joined == "y" and second in ("media", "medio") and self._piece(index + 2) not in lexicon.UNITS:
            return 2
        return 0

    def _number_at(self, index: int) -> tuple[float | None, int]:
        """The number at the position of figures or of a number word, and how many pieces it takes."""
        kind, piece = self._pieces[index]
        if kind == "number":
            value, length = _parse_number(piece), 1
            multiplier = lexicon.MULTIPLIERS.get(self._piece(index + 1))
            if multiplier is not None:  # 3 million
                value, length = value * multiplier, 2
        elif piece in lexicon.HALF_WORDS:
            length = 2 if self._piece(index + 1) in lexicon.ONE_WORDS else 1
            multiplier = lexicon.MULTIPLIERS.get(self._piece(index + length))  # half a million
            return (0.5, length) if multiplier is None else (0.5 * multiplier, length + 1)
        elif piece in lexicon.ONE_WORDS and self._piece(index + 1) == "couple":
            return 2.0, 3 if self._piece(index + 2) == "of" else 2
        elif piece in lexicon.ONE_WORDS and self._piece(index + 1) not in lexicon.MULTIPLIERS:
            value, length = 1.0, 1
        elif piece == "ciento" and self._pieces[index - 1][1] == "por":
            return None, 0
        else:
            value, length = self._words_at(index)
        half = self._half_at(index + length)
        return (value + 0.5, length + half) if half else (value, length)

    def _words_at(self, index: int) -> tuple[float, int]:
        """The value of number words: two hundred and fifty, treinta y cinco mil."""
        total = current = 0
        start = index
        if self._piece(index) in lexicon.ONE_WORDS:  # a hundred
            current, index = 1, index + 1
        while True:
            piece = self._piece(index)
            multiplier = lexicon.MULTIPLIERS.get(piece)
            if multiplier == 100 and 0 < current < 100:
                current *= 100
            elif multiplier is not None and (current or index == start):
                current = max(current, 1) * multiplier
                if multiplier >= 1_000:
                    total, current = total + current, 0
            else:
                step = self._small_at(index)
                if not _fits(current, step) or (index > start and total == current == 0):
                    break
                current += step
            index += 1
            following = self._small_at(index + 1)
            if (self._piece(index) == "y" and current % 100 > 20 and following < 10 and _fits(current, following)) or (
                self._piece(index) == "and"
                and (current or total)
                and current % 100 == 0
                and _fits(current, following)
                and following < 100
                and self._piece(index + 2) not in lexicon.MULTIPLIERS
            ):
                index += 1
        return float(total + current), index - start

    def _small_at(self, index: int) -> int:
        piece = self._piece(index)
        return 1 if piece in lexicon.ONE_WORDS and piece != "a" else lexicon.NUMBER_WORDS.get(piece, 0)

    def _unit_at(self, index: int) -> tuple[tuple[str, float] | None, int]:
        """The unit at a position and how many pieces it takes: "hours", "working days", "dias laborables"."""
        if index >= len(self._pieces):
            return None, 0
        piece = self._pieces[index][1]
        following = self._pieces[index + 1][1] if index + 1 < len(self._pieces) else ""
        if lexicon.WORKING_DAY.match(piece) and following in ("day", "days"):
            return ("working days", 1.0), 2
        unit = lexicon.UNITS.get(piece)
        if piece == "por" and following == "ciento":
            return lexicon.UNITS["%"], 2
        if piece == "per" and following == "cent":
            return lexicon.UNITS["%"], 2
        if unit is None or piece == "ciento":
            return None, 0
        if piece in ("dia", "dias") and lexicon.WORKING_DAY.match(following):
            return ("working days", 1.0), 2
        return unit, 1

    def _noun_at(self, index: int) -> str:
        for kind, piece in self._pieces[index : index + 3]:
            if kind == "word" and piece not in lexicon.LIGHT[self._tongue]:
                return word_class(piece, self._tongue)
        return ""

    def _capitals(self) -> set[str]:
        """Words written as names: capitals inside a sentence, or a whole word in capitals unless everything shouts."""
        if self._raw.isupper():
            return set()
        found = {_plain(match) for match in _CAPITALS.findall(self._raw)}
        for match in _CAPITALISED.finditer(self._raw):
            found.add(_plain(match[1]))
        light = lexicon.LIGHT[self._tongue]
        return {word for word in found if word not in light and any(word == piece for _, piece in self._pieces)}

    def _clauses(self) -> list[list[str]]:
        clauses: list[list[str]] = [[]]
        for kind, piece in self._pieces:
            if kind == "stop":
                clauses.append([])
            else:
                clauses[-1].append(piece)
        return [clause for clause in clauses if clause]


def _fits(current: int, step: int) -> bool:
    """Whether a number word may follow: one below ten after tens, one below a hundred after hundreds."""
    if not step or not current:
        return bool(step)
    rest = current % 100
    return step < 100 if rest == 0 else rest >= 20 and rest % 10 == 0 and step < 10


def _parse_number(piece: str) -> float:
    """The value of 1,300 · 1.300 · 1 300 · 24.5 · 24,5 · 1.234,56 · .05: three digits after a lone mark are thousands."""
    if " " in piece:
        return float(piece.replace(" ", ""))
    marks = [char for char in piece if char in ".,"]
    if len(set(marks)) == 2:
        decimal = marks[-1]
        whole, _, part = piece.rpartition(decimal)
        return float(re.sub(r"[.,]", "", whole) + "." + part)
    if marks and piece[0] not in "0." and (len(marks) > 1 or len(piece.rpartition(marks[0])[2]) == 3):
        return float(re.sub(r"[.,]", "", piece))
    return float(piece.replace(",", "."))


_EN_LEAD = re.compile(
    r"^(?:(?:and|so|but|ok|okay|hi|hello|hey|please|sorry|then|also|well|there) )*"
    r"(?:(?:can|could|would|will) you (?:please )?(?:tell|explain|show|help|let) (?:to )?(?:me |us )?(?:know |with |understand )?"
    r"|i (?:would like|want|need|wish) to (?:know|understand|find out|ask) |i am wondering |i was wondering "
    r"|do you know |tell me |explain (?:to )?(?:me )?|show me |please )?"
)
_ES_LEAD = re.compile(
    r"^(?:(?:y|e|pero|hola|buenas|oye|oiga|perdon|entonces|pues|ok|tardes|dias|noches|buenos|gracias|favor|por favor) )*"
    r"(?:me (?:puede|puedes|podria|podrias|pueden) (?:decir|explicar|indicar|ayudar) (?:a |con )?"
    r"|(?:puede|puedes|podria|podrias|pueden) (?:decirme|explicarme|indicarme|ayudarme) (?:a |con )?"
    r"|(?:quisiera|quiero|necesito|me gustaria|queria) saber |(?:sabe|sabes|saben) |dime |digame |explicame )?"
)
_EN_KINDS = (
    (re.compile(r"^(?:for |in )?how (?:long|soon|fast|quickly)\b"), "duration"),
    (
        re.compile(r"^(?:for )?how much\b|^what (?:does|do|will|would|is|are) .*\b(?:cost|price|fee|charge|rate)s?\b"),
        "amount",
    ),
    (re.compile(r"^how (?:many|often|far|old|big|large|high|late|early)\b"), "measure"),
    (re.compile(r"^(?:how come|why|what is .* for$|for what reason)\b"), "why"),
    (
        re.compile(
            r"^(?:how|what (?:do|should|must|can) (?:i|we) (?:need to |have to )?do to|in what way|what is the (?:\w+ )?way to"
            r"|what are the steps|steps to|ways? to)\b"
        ),
        "how",
    ),
    (re.compile(r"^(?:since |until |till |by |from )?(?:when|what (?:time|date|day))\b"), "when"),
    (re.compile(r"^(?:to |from |in )?where\b"), "where"),
    (re.compile(r"^(?:to |for |with )?(?:who|whom|whose)\b"), "who"),
    (re.compile(r"^(?:to |for |with |in |on |at |by )?(?:what|which)\b|^about\b"), "what"),
    (
        re.compile(
            r"^(?:(?:can|could|may|might) (?:i|we|one|it|my|the|they|he|she|someone|people)|am i (?:allowed|able|still able)"
            r"|are we allowed|is it (?:still )?(?:possible|allowed|ok|okay|too late)|do i get to|is there (?:a|any) way)\b"
        ),
        "can",
    ),
    (
        re.compile(
            r"^(?:(?:do|must|should|would|will) (?:i|we) (?:have|need) to|must i|should i|do i need|am i (?:required|obliged))\b"
        ),
        "must",
    ),
    (re.compile(r"^(?:can|could|will|would) you\b"), "request"),
    (re.compile(r"^(?:is|are|am|do|does|did|was|were|has|have|had|will|would|shall|should)\b"), "yes_no"),
)
_ES_KINDS = (
    (
        re.compile(
            r"^(?:en |por |durante )?cuanto (?:tiempo|tarda|tardan|dura|tardara|demora|demoran|se tarda|se demora)\b"
        ),
        "duration",
    ),
    (re.compile(r"^(?:a |por |en )?cuanto\b|^(?:que|cual(?: es)?) .*\b(?:precio|coste|costo|tarifa)\b"), "amount"),
    (re.compile(r"^(?:a |de |cada )?(?:cuantos|cuantas|cuanta)\b"), "measure"),
    (re.compile(r"^(?:por que|por ?que|a que se debe|cual es (?:el motivo|la razon))\b"), "why"),
    (
        re.compile(
            r"^(?:como|de que (?:manera|forma|modo)|que (?:debo|hago|puedo hacer|tengo que hacer) para|pasos para)\b"
        ),
        "how",
    ),
    (re.compile(r"^(?:desde |hasta |para |a partir de )?cuando\b|^(?:a )?que (?:hora|dia|fecha)\b"), "when"),
    (re.compile(r"^(?:de |a |en |por |desde |hacia )?donde\b|^en que (?:parte|lugar|sitio)\b"), "where"),
    (re.compile(r"^(?:a |de |con |para )?(?:quien|quienes)\b"), "who"),
    (re.compile(r"^(?:a |de |con |para |en |por )?(?:que|cual|cuales)\b"), "what"),
    (
        re.compile(
            r"^(?:no )?(?:(?:lo|la|los|las|se|me) )*(?:puedo|puede|pueden|podemos|podria|podrian|es posible|se puede|es tarde)\b"
        ),
        "can",
    ),
    (
        re.compile(r"^(?:no )?(?:(?:lo|la|se|me) )*(?:debo|debemos|deberia|necesito|es necesario|es obligatorio)\b"),
        "must",
    ),
)


def _question_kinds(clauses: list[list[str]], tongue: str) -> frozenset[str]:
    """The kinds of question that a text asks, clause by clause; none for a statement."""
    lead, kinds = (_EN_LEAD, _EN_KINDS) if tongue == "en" else (_ES_LEAD, _ES_KINDS)
    found = set()
    for clause in clauses:
        text = lead.sub("", " ".join(clause) + " ", count=1)
        for pattern, kind in kinds:
            if pattern.match(text):
                found.add(kind)
                break
    return frozenset(found - {"request"})


def _tense(words: list[str], tongue: str) -> str:
    if tongue == "en":
        past = any(word in ("did", "was", "were", "had", "has") for word in words)
        future = any(word in ("will", "gonna", "should", "shall") for word in words)
    else:
        past = any(word in ("fue", "ha", "han", "he", "hicieron", "hizo", "era", "habia") for word in words)
        future = any(one in ("va", "van", "voy", "vais") and two == "a" for one, two in pairwise(words))
    return "past" if past and not future else "future" if future and not past else ""


@lru_cache(maxsize=8_192)
def word_class(word: str, tongue: str) -> str:
    """What a word counts as: its base form, or the name of its synonym class."""
    base = stem(word, tongue)
    return _synonyms(tongue).get(base, base)


def stem(word: str, tongue: str) -> str:
    """A word without its endings, lower case, no accents. Deliberately careful: unlike words must stay apart."""
    known = lexicon.irregular(word, tongue)
    if known is not None:
        word = known
        if lexicon.irregular(word, tongue) == word:
            return word  # its ending is part of it
    return _stem_english(word) if tongue == "en" else _stem_spanish(word)


def _stem_english(word: str) -> str:
    word = english_singular(word)
    for ending in ("ing", "ed"):
        root = word[: -len(ending)]
        if word.endswith(ending) and len(root) >= 3 and any(vowel in root for vowel in "aeiouy"):
            doubled = len(root) > 3 and root[-1] == root[-2] and root[-1] not in "lsz"
            word = root[:-1] if doubled else root
            if word.endswith("ll") and len(word) > 5:
                word = word[:-1]  # cancelled
            break
    if word.endswith("e") and len(word) > 3:
        word = word[:-1]
    return word[:-1] + "y" if word.endswith("i") and len(word) > 3 else word


_CLITIC = re.compile(r"^(\w{2,}(?:ar|er|ir|ando|iendo))(?:me|te|se|nos)?(?:lo|la|los|las|le|les|me|te|se|nos)$")
_ES_ENDINGS = (
    *(
        "aciones",
        "acion",
        "amientos",
        "amiento",
        "imientos",
        "imiento",
        "ando",
        "iendo",
        "aron",
        "ieron",
        "aban",
        "aria",
        "eria",
    ),
    *(
        "iria",
        "ados",
        "adas",
        "idos",
        "idas",
        "amos",
        "emos",
        "imos",
        "aran",
        "eran",
        "iran",
        "ado",
        "ada",
        "ido",
        "ida",
        "aba",
    ),
    *("ara", "era", "ira", "are", "ere", "ire", "aste", "iste", "ar", "er", "ir", "as", "es", "os", "an", "en", "is"),
    *("o", "a", "e", "i"),
)


def _stem_spanish(word: str) -> str:
    clitic = _CLITIC.match(word)
    if clitic:
        word = clitic[1]
    for ending in _ES_ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


@lru_cache(maxsize=4)
def _synonyms(tongue: str) -> dict[str, str]:
    names: dict[str, str] = {}
    for group in lexicon.synonym_classes(tongue):
        bases = [stem(word, tongue) for word in group]
        name = next((names[base] for base in bases if base in names), f"={bases[0]}")
        names.update(dict.fromkeys(bases, name))
    return names


@lru_cache(maxsize=4)
def _opposites(tongue: str) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for one, other in lexicon.antonym_pairs(tongue):
        a, b = word_class(one, tongue), word_class(other, tongue)
        found.setdefault(a, set()).add(b)
        found.setdefault(b, set()).add(a)
    return {word: frozenset(against) for word, against in found.items()}


@lru_cache(maxsize=4)
def _phrases(tongue: str) -> tuple[tuple[tuple[str, ...], re.Pattern[str], str], ...]:
    return tuple(
        (tuple(triggers.split()), re.compile(pattern), replacement)
        for triggers, pattern, replacement in lexicon.PHRASES[tongue]
    )


def _is_typo(one: str, other: str) -> bool:
    """Whether two words differ by one slip of the finger: both long, same beginning, one letter or two swapped."""
    if min(len(one), len(other)) < 6 or one[0] != other[0] or abs(len(one) - len(other)) > 1 or one == other:
        return False
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    if len(a) == len(b):
        return a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
    return a[1:] == b or b[1:] == a
