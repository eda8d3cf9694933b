"""What kind of query a request is, where its caller does not say: a guess from its form and a few English and Spanish words.

It stands on the way of a hit, so it looks at the ends of the last user message alone, and costs microseconds.
"""

import re
from enum import StrEnum

from services.common.chat import Chat

_END = 150  # characters at either end of a message, where people say what they want
_SHORT = 6  # words
_WORD = re.compile(r"[^\W\d_]+")


class Kind(StrEnum):
    """The kinds that are guessed. A caller's own word may be any other."""

    TOOL_USE = "tool_use"
    EXTRACTION = "extraction"
    CODE = "code"
    TRANSLATION = "translation"
    SUMMARY = "summary"
    QUESTION = "question"
    INSTRUCTION = "instruction"
    CONVERSATION = "conversation"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# No shop's customer writes these; "code" alone is as often a voucher's.
_CODE_MARKS = ("```", "#include", "def ", "();", "=> {", "</", "SELECT ", "import ", "Traceback (")
_CODE = _words(
    "python javascript typescript java golang rust kotlin sql regex bash html css refactor refactoriza debug depura "
    "traceback stacktrace compile compila"
)
_TRANSLATION = _words("translate traduce traduzca traducir tradúceme traduceme tradúcelo traducción translation")
_SUMMARY = _words(
    "summarize summarise summarizing summary tldr resúmeme resumeme resúmelo resumir resumen sintetiza sintetizar"
)
_RESUME_WHAT = _words("el la los las este esta esto estos estas lo en brevemente")
_EXTRACTION = _words("extract extrae extraiga extraer classify clasifica clasificar categorize categoriza parse")
_ASK = _words(
    "what what's whats how why when where who whom whose which is are am was were do does did can could would should will may "
    "has have qué cómo cuándo dónde quién quiénes cuál cuáles cuánto cuánta cuántos cuántas puedo puede pueden podría debo hay "
    "que como cuando donde quien cual cuanto"
)
_POLITE = _words("can could would will")
_SPANISH_POLITE = _words("puedes podrías podrias puede podría")
_TALK = _words(
    "hi hello hey thanks thank great ok okay perfect bye goodbye cheers yes no sure nice hola gracias buenas buenos vale "
    "perfecto genial adiós adios saludos sí si claro"
)
_TASKS = _words(
    "write draft create make give list explain rewrite correct fix generate compose describe tell show find help please "
    "escribe redacta crea haz dame lista explica reescribe corrige genera compón describe dime muestra busca ayuda "
    "escribir redactar crear hacer darme explicar explicarme corregir generar decirme mostrar ayudarme ayudar"
)


def kind_of(chat: Chat) -> str:
    """The kind of a request, one of Kind."""
    if chat.tools and chat.tool_choice.mode != "none":
        return Kind.TOOL_USE.value
    if chat.response_format.kind != "text":
        return Kind.EXTRACTION.value
    return _kind_of_text(chat.last_user_text).value


def _kind_of_text(text: str) -> Kind:
    ends = text if len(text) <= 2 * _END else f"{text[:_END]} {text[-_END:]}"
    if any(mark in ends for mark in _CODE_MARKS):
        return Kind.CODE
    lower = ends.lower()
    words = _WORD.findall(lower)
    if not words:
        return Kind.CONVERSATION
    known = set(words)
    if not known.isdisjoint(_CODE):
        return Kind.CODE
    if (
        not known.isdisjoint(_TRANSLATION)
        or words[:4] == ["how", "do", "you", "say"]
        or words[:3] == ["cómo", "se", "dice"]
    ):
        return Kind.TRANSLATION
    # In English a resume is a thing: only what follows tells it from the Spanish verb.
    resume = words[0] == "resume" and len(words) > 1 and words[1] in _RESUME_WHAT
    if resume or not known.isdisjoint(_SUMMARY):
        return Kind.SUMMARY
    if not known.isdisjoint(_EXTRACTION):
        return Kind.EXTRACTION
    if _is_polite_task(words):
        return Kind.INSTRUCTION
    if "¿" in lower or text.rstrip().endswith("?") or words[0] in _ASK:
        return Kind.QUESTION
    if words[0] in _TALK and len(words) <= _SHORT and known.isdisjoint(_TASKS):
        return Kind.CONVERSATION
    return Kind.INSTRUCTION


def _is_polite_task(words: list[str]) -> bool:
    """Whether it has the form of a question, and wants something done: "Could you write …?"."""
    if words[0] in _POLITE and words[1:2] == ["you"]:
        return not _TASKS.isdisjoint(words[2:4])
    return words[0] in _SPANISH_POLITE and not _TASKS.isdisjoint(words[1:3])
