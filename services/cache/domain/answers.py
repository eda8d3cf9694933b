"""Whether two answers to (nearly) the same question say the same: the label of a pair that nobody had to write.

Only what is clear is decided. Two answers differ where an amount, an identifier, the yes or no, or a negated statement
contradicts; they are the same where nothing does and most of what the shorter one says stands in the longer one. The rest is
doubt, which labels nothing.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from enum import StrEnum

from services.cache.domain import guards

_FLOOR = 0.4
_LIKE = 0.8
"""Cosines: below the floor nothing is the same, and from `_LIKE` on other words alone are no difference.

They play no greater part: answers to look-alike questions reach .99, free rewordings go down to .5, each model has its scale.
"""
_READ_LIMIT = 8_000
"""Characters; longer answers are left in doubt, since not all of them is read in detail."""
_MOST = 0.7
_HALF = 0.45
_SOME = 0.25
"""How much of the shorter answer must stand in the longer one where they agree in no amount, in all of one or two, in more."""
_NEARLY_ALL = 0.8
_LITTLE = 0.3
_PARALLEL = 0.7
_FEW_WORDS = 3
_STEM = 5


class Comparison(StrEnum):
    """What a comparison found; DOUBT where it is not clear."""

    SAME = "same"
    DIFFERENT = "different"
    DOUBT = "doubt"


@dataclass(frozen=True, slots=True)
class _Sentence:
    """The stems of its content words, and whether it denies something: at all, and in its main clause."""

    content: frozenset[str]
    denied: bool
    outright: bool


@dataclass(frozen=True, slots=True)
class _Answer:
    """What an answer says.

    `stance` is "yes" or "no" where it begins so, else ""; `limits`: it restricts or leaves out something without a plain "not";
    `labels` are what it quotes or calls, such as buttons and functions, each as its words.
    """

    reading: guards.Reading
    stance: str
    limits: bool
    sentences: tuple[_Sentence, ...]
    labels: frozenset[frozenset[str]]

    @property
    def content(self) -> frozenset[str]:
        """The stems of all content words."""
        return frozenset().union(*(sentence.content for sentence in self.sentences))

    @property
    def denies(self) -> bool:
        """Whether a sentence denies something."""
        return self.stance == "no" or any(sentence.denied for sentence in self.sentences)

    @property
    def amounts(self) -> frozenset[tuple[str, float]]:
        """Amounts: the unit and the value in it."""
        return frozenset((quantity.unit, quantity.value) for quantity in self.reading.quantities)


_MONTH = 30.4 * 86_400
_DAY = 86_400.0
_SECONDS = {"seconds": 1.0, "months": _MONTH, "working days": _DAY}
_ROUGHLY = 0.04
_COUNT = 10.0
"""Plain numbers below this count ways, steps and options as often as what was asked for."""
_RATE = re.compile(
    r"\b(?:an?|each|every|per|una?|al|cada) (?=(?:minutes?|hours?|days?|weeks?|months?|years?"
    r"|minutos?|horas?|d[ií]as?|semanas?|mes|año)\b)",
    re.IGNORECASE,
)
"""What turns a span into a rate: "a month" and "per hour" name no amount, and would read as one month and one hour."""
_MARKUP = re.compile(r"[*_`#>|«»\"]+(?=\S)|(?<=\S)[*_`#|«»\"]+")
_LIST_MARK = re.compile(r"(?:^|(?<=\s))(?:[-*•+]|\d{1,2}[.)])\s+(?=\S)", re.MULTILINE)
_SENTENCE = re.compile(r"(?<=[.!?…;])\s+|\n+")
_COURTESY = re.compile(
    r"^¡?(?:hi|hello|hey|hola|buenas|buenos dias|dear|thanks|thank you|gracias|sure|certainly|absolutely"
    r"|great question)\b[^.]{0,30}$"
    r"|\b(?:let me know|anything else|feel free|happy to help|hope (?:this|that) helps|enjoy|happy shopping"
    r"|safe travels|see you"
    r"|sorry to hear|siento lo|lamento|algo mas|en que mas|quedo a|no dudes|espero que|un saludo|feliz"
    r"|buen viaje|te esperamos"
    r"|estamos para|encantad[oa] de)\b"
)
_YES = re.compile(
    r"^[¡ ]*(?:(?:yes|yep|yeah|si)(?= ?[,.:;!\n]|$)|of course|absolutely|certainly|we do!"
    r"|you can!|claro|por supuesto|desde luego)"
)
_NO = re.compile(
    r"^[¡ ]*(?:(?:no|nope|not at all)(?= ?[,.:;!\n]|$)|unfortunately|sorry|i'?m (?:sorry|afraid)"
    r"|lamentablemente|desgraciadamente"
    r"|por desgracia|lo siento|me temo|de momento no|no (?:es posible|se puede|podemos|puedes)\b"
    r"|.{0,30}\b(?:avoid|evitar|evita)\b)"
)
_NEGATION = re.compile(
    r"\b(?:no|not|never|cannot|neither|nor|nunca|jamas|tampoco|ni|ningun|ninguna|ninguno|impossible|imposible"
    r"|excluded|excluid[oa]s?"
    r"|isnt|arent|dont|doesnt|cant|wont)\b|n't\b"
)
_NOT_NEGATED = re.compile(
    r"\b(?:no|not) (?:more|less|fewer|later|earlier|longer|only|just|matter|problem|problema|extra|cost|charge"
    r"|fee|interest|solo"
    r"|mas de|menos de|hay problema|dudes|olvides)\b|\bat no \w+|\bno (?:\w+ ){1,3}mas de\b"
    r"|\bnot (?:\w+ ){1,3}more than\b|\bno cuesta\w* nada"
)
_ASIDE = re.compile(r"\([^)]*\)|\b(?:but|pero|sino|although|though|aunque)\b.*")
_LIMITS = re.compile(
    r"\b(?:avoid|best not|evita|evitar|only|except|excluding|without|unless|solo|solamente"
    r"|unicamente|excepto|salvo|sin|fuera de|nothing|nada)\b"
)
_LABEL = re.compile(
    r"\"([^\"\n]{2,40})\"|“([^”\n]{2,40})”|«([^»\n]{2,40})»|\*\*([^*\n]{2,40})\*\*"
    r"|\b([a-z_]+)\(|(?<!\S)--?([a-z][a-z-]+)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")


def digest(text: str) -> str:
    """16 hexadecimal digits that two answers share when they are the same words; "" for no words at all."""
    words = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return hashlib.blake2b(words.encode(), digest_size=8).hexdigest() if words else ""


def compare(stored: str, fresh: str, similarity: float | None) -> Comparison:
    """Compares a stored answer with a fresh one. `similarity` is the cosine of their embeddings, None when it is not known."""
    if stored.split() == fresh.split():
        return Comparison.SAME
    if max(len(stored), len(fresh)) > _READ_LIMIT:
        return Comparison.DOUBT
    mine, theirs = _read(stored), _read(fresh)
    if mine.reading.language != theirs.reading.language or not mine.content or not theirs.content:
        return Comparison.DOUBT
    shared, agreed = _overlap(mine.content, theirs.content), len(mine.amounts & theirs.amounts)
    ours, others = mine.amounts - theirs.amounts, theirs.amounts - mine.amounts
    if _conflict(ours, others) or _codes_conflict(mine.reading, theirs.reading) or _labels_conflict(mine, theirs):
        return Comparison.DIFFERENT
    if _contradict(mine, theirs):
        return Comparison.DIFFERENT if not agreed or ours or others else Comparison.DOUBT
    if not agreed and shared < _LITTLE and (similarity is None or similarity < _LIKE):
        return Comparison.DIFFERENT
    apart = any(_telling(amount, count=0.0) for amount in ours | others)
    if (ours and others) or (apart and (not agreed or shared < _NEARLY_ALL)) or _doubtful(mine, theirs):
        return Comparison.DOUBT
    required = _SOME if agreed > 2 else _HALF if agreed else _MOST
    likely = similarity is None or similarity >= _FLOOR
    return Comparison.SAME if likely and shared >= required else Comparison.DOUBT


def _read(text: str) -> _Answer:
    labels = frozenset(_stems(" ".join(filter(None, match))) for match in _LABEL.findall(text))
    text = _RATE.sub("", _LIST_MARK.sub("", _MARKUP.sub("", text)))
    kept = [
        sentence for sentence in _SENTENCE.split(text) if sentence.strip() and not _COURTESY.search(_plain(sentence))
    ]
    reading = guards.read_once("\n".join(kept))
    plain = [_plain(sentence).strip() for sentence in kept]
    stance = "" if not plain else "no" if _NO.match(plain[0]) else "yes" if _YES.match(plain[0]) else ""
    sentences = tuple(_sentence(sentence, reading) for sentence in plain)
    return _Answer(reading, stance, any(map(_LIMITS.search, plain)), sentences, labels - {frozenset()})


def _sentence(plain: str, whole: guards.Reading) -> _Sentence:
    words = set(_WORD.findall(plain))
    content = frozenset(base[:_STEM] for base, word in whole.content.items() if word in words)
    claimed = _NOT_NEGATED.sub(" ", plain)
    return _Sentence(content, bool(_NEGATION.search(claimed)), bool(_NEGATION.search(_ASIDE.sub(" ", claimed))))


def _stems(text: str) -> frozenset[str]:
    return frozenset(word[:_STEM] for word in _WORD.findall(_plain(text)) if len(word) > 2)


def _plain(text: str) -> str:
    """Lower case without accents."""
    return "".join(
        c for c in unicodedata.normalize("NFKD", text.lower().replace("’", "'")) if not unicodedata.combining(c)
    )


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """The share of the smaller set that is in the larger one, 0 to 1."""
    return len(one & other) / max(1, min(len(one), len(other)))


def _conflict(ours: frozenset[tuple[str, float]], others: frozenset[tuple[str, float]]) -> bool:
    """Whether amounts that only one and only the other names are of one kind and far from each other."""
    for unit, value in filter(_telling, ours):
        for another, number in filter(_telling, others):
            if unit in _SECONDS and another in _SECONDS:
                one, two = value * _SECONDS[unit], number * _SECONDS[another]
                if abs(one - two) > _ROUGHLY * max(one, two):
                    return True
            elif unit == another:
                return True
    return False


def _telling(amount: tuple[str, float], count: float = _COUNT) -> bool:
    """Whether an amount is more than a plain number below `count`."""
    unit, value = amount
    return bool(unit) or value >= count


def _codes_conflict(mine: guards.Reading, theirs: guards.Reading) -> bool:
    """Whether each has an identifier with a digit that the other lacks."""
    return bool(_codes(mine) - theirs.words and _codes(theirs) - mine.words)


def _codes(reading: guards.Reading) -> frozenset[str]:
    return frozenset(name for name in reading.names if any(char.isdigit() for char in name))


def _labels_conflict(mine: _Answer, theirs: _Answer) -> bool:
    """Whether each quotes or calls something of which the other has no word."""
    return _has_own_label(mine, theirs) and _has_own_label(theirs, mine)


def _has_own_label(one: _Answer, other: _Answer) -> bool:
    words = {word[:_STEM] for word in other.reading.words}
    return any(not label & words for label in one.labels)


def _contradict(mine: _Answer, theirs: _Answer) -> bool:
    """Whether one says yes and the other no, or one denies what the other says in nearly the same words."""
    if {mine.stance, theirs.stance} == {"yes", "no"}:
        return True
    for one, other in ((mine, theirs), (theirs, mine)):
        if not one.denies or other.denies or other.limits:
            continue
        if other.stance == "yes" and one.sentences[0].outright:
            return True
        for sentence in one.sentences:
            for against in other.sentences:
                longer = max(len(sentence.content), len(against.content))
                if (
                    sentence.outright
                    and longer >= _FEW_WORDS
                    and len(sentence.content & against.content) >= _PARALLEL * longer
                ):
                    return True
    return False


def _doubtful(mine: _Answer, theirs: _Answer) -> bool:
    """Whether something speaks against SAME that is not clear enough for DIFFERENT."""
    for one, other in ((mine, theirs), (theirs, mine)):
        if one.denies and not other.denies and not other.limits:
            return True
        if one.limits and not other.denies and not other.limits:
            return True
    return False
