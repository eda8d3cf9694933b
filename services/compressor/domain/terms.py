"""Words as a search compares them: folded, without stop words, lightly stemmed, in English and Spanish."""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

from services.common.words import english_singular

_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*")
_COMBINING = re.compile(r"[\u0300-\u036f]")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ENGLISH = frozenset(
    _listed("""
    a an and any are as at be been being but by can could did do does doing for from had has have having he her hers
    him his how i if in into is it its itself me my of off on or our out over own s same she should so some such t
    than that the their theirs them then there these they this those through to too under until up very was we were
    what when where which while who whom whose why will with would you your yours about after again all also am
    because before below between both during each few more most no nor not now only other please tell give name
    according
""")
)
_SPANISH = frozenset(
    _listed("""
    a al algo algun alguna algunas alguno algunos ante antes aquel aquella aquello asi aun como con contra cual
    cuales cuando cuanta cuantas cuanto cuantos de del desde donde dos e el ella ellas ello ellos en entre era eran
    es esa esas ese eso esos esta estaba estan estas este esto estos fue fueron ha habia han hasta hay la las le les
    lo los mas me mi mis mucho muy ni no nos o os otra otro para pero por porque que quien quienes se segun ser si
    sin sobre son su sus tal tambien tan te tiene tienen todo todos tu tus un una unas uno unos y ya yo dime
    cuentame nombre
""")
)


def fold(text: str) -> str:
    """Lower case without accents."""
    if text.isascii():
        return text.lower()
    return _COMBINING.sub("", unicodedata.normalize("NFKD", text.lower()))


def is_spanish(text: str) -> bool:
    """Whether a text (its first few thousand characters) has more Spanish than English function words."""
    words = _WORD.findall(fold(text[:4000]))
    spanish = sum(word in _SPANISH and word not in _ENGLISH for word in words)
    english = sum(word in _ENGLISH and word not in _SPANISH for word in words)
    return spanish > english


# (suffix, letters that must be left), longest first.
_ENGLISH_SUFFIXES = (
    *((suffix, 3) for suffix in ("ization", "ational", "fulness", "ousness", "ation", "ness")),
    *((suffix, 4) for suffix in ("ment", "ion")),
    *((suffix, 3) for suffix in ("ing", "ed", "ly")),
    *((suffix, 4) for suffix in ("al", "er", "or")),
)
_SPANISH_SUFFIXES = _listed("""
    amientos imientos amiento imiento aciones uciones adoras adores ancias encias idades amente emente acion ucion adora antes
    ancia encia iendo ieron iente mente idad ador ante ando aban aron adas ados idas idos isimo cion sion ible able ivas ivos
    aba ada ado ida ido ian iva ivo ais es as os an en ar er ir io ia a o e s
""")


def _stem_english(word: str) -> str:
    word = english_singular(word)
    for suffix, least in _ENGLISH_SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= least:
            word = word[: -len(suffix)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    return word[:-1] if len(word) > 3 and word[-1] in "ey" else word


def _stem_spanish(word: str) -> str:
    for suffix in _SPANISH_SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4:
            return word[: -len(suffix)]
    return word


@lru_cache(maxsize=65_536)
def _english_term(word: str) -> str:
    return "" if word in _ENGLISH else _stem_english(word)


@lru_cache(maxsize=65_536)
def _spanish_term(word: str) -> str:
    return "" if word in _SPANISH else _stem_spanish(word)


def terms_in(spanish: bool) -> Callable[[str], list[str]]:
    """A function from text to its terms in order of appearance; stop words are left out."""
    stem = _spanish_term if spanish else _english_term

    def terms(text: str) -> list[str]:
        return [term for term in map(stem, _WORD.findall(fold(text))) if term]

    return terms
