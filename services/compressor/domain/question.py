"""Where the question is in a message that also carries the text it is about."""

import re
from dataclasses import dataclass

from services.common.tokens import estimate_tokens
from services.compressor.domain.terms import fold

# An instruction longer than this is taken for context.
LONGEST_QUESTION_TOKENS = 120


def _words(alternatives: str) -> str:
    """A pattern for whole words that match one of the patterns, which are separated by commas."""
    return r"\b(?:" + "|".join(" ".join(pattern.split()) for pattern in alternatives.split(",")) + r")\b"


# Work on the whole text: leaving anything out changes the answer.
_WHOLE_TEXT_TASK = re.compile(
    _words(r"""
    summari[sz]e, summari[sz]ing, summary, tl;?dr, translate, translation, rewrite, rephrase, paraphrase, proof-?read,
    reformat, convert, count, extract (?:all|every), list (?:all|every), all (?:the
    )?(?:names|dates|numbers|mentions), every, each, correct the, fix the, outline, overview, sentiment, resum[ei]\w*,
    sintetiza\w*, traduc[ei]\w*, traduccion, reescrib[ei]\w*, parafrasea\w*, reformula\w*, corrige, corregir,
    convierte, cuenta (?:las|los), extrae (?:todos|todas), enumera (?:todos|todas), lista (?:todos|todas), todos los,
    todas las, cada un[oa], esquema
""")
)
_WHOLE_TEXT_QUESTION = re.compile(
    _words(r"""
    how many (?:words|times|lines|paragraphs|sentences), (?:main|key) (?:points|ideas|takeaways|topics), what
    (?:is|are) (?:this|the (?:text|document|article|passage|story)) about, cuantas (?:veces|palabras|lineas|frases),
    cuantos parrafos, ideas principales, puntos clave, de que (?:trata|va|habla)
""")
)
_ASKS_FOR_A_FACT = re.compile(
    r"\W*(?:what|who|whom|whose|when|where|which|why|how|que|quien(?:es)?|cuando|donde|cual(?:es)?|cuant[oa]s?|por que|como"
    r"|(?:en|a|de|con|por|para|desde|hasta) (?:que|quien|cual(?:es)?|cuant[oa]s?|donde)"
    r"|(?:in|on|at|for|to|by|from|into|of) (?:what|which|whom))\b"
)

# The same, where it is the application that asks for it.
_WHOLE_TEXT_ROLE = re.compile(
    _words(r"""
    translat\w*, proof-?read\w*, rewrit\w*, summari[sz]\w*, traduc\w*, corrector, reescrib\w*, resum(?:e|ir|es)
""")
)

_BEGINS_ASKING = re.compile(
    r"[\W_]*(?:(?:question|query|task|pregunta|consulta|tarea|q|p)\s*:|"
    + _words(r"""
    please, now, and, y, so, using, based on, from, according to, con, segun, a partir, por favor, what, who, whom,
    whose, when, where, which, why, how, tell, explain, find, give, list, describe, compare, identify, answer, state,
    name, show, do, does, did, is, are, was, were, can, could, should, has, have, i (?:need|want), que, quien(?:es)?,
    cuando, donde, cual(?:es)?, cuant[oa]s?, por que, como, dime, explica, busca, encuentra, da(?:me)?, enumera,
    compara, identifica, responde, indica, nombra, muestra, contesta, es, son, puede, hay, necesito, quiero
""")
    + ")"
)
_FINISHED = tuple('.;…"”»)')


_SENTENCE_END = re.compile(r"[.!?]\s+")


@dataclass(frozen=True, slots=True)
class Split:
    """A user text as instruction before, context, instruction after; their concatenation is the text. Any may be empty."""

    before: str
    context: str
    after: str

    @property
    def question(self) -> str:
        """The instruction, for the search: the one after the context, else the one before; both where the first asks, too."""
        before, after = self.before.strip(), self.after.strip()
        return f"{before}\n{after}".strip() if before.endswith("?") or not after else after


def split_question(text: str) -> Split:
    """Takes the instructions off a text that carries context: a first paragraph or line and a last paragraph, line or sentence
    that ask for something. A short text is all instruction.
    """
    if _is_short(text):
        return Split(text, "", "")
    start = _first_instruction_end(text)
    end = _last_instruction_start(text, start)
    return Split(text[:start], text[start:end], text[end:])


def _is_short(text: str) -> bool:
    return len(text) <= 8 * LONGEST_QUESTION_TOKENS and 0 < estimate_tokens(text) <= LONGEST_QUESTION_TOKENS


def _begins_asking(text: str) -> bool:
    return _is_short(text) and _BEGINS_ASKING.match(fold(text)) is not None


def _asks(text: str) -> bool:
    """Whether an instruction stands here, rather than a piece of the context."""
    return _begins_asking(text) or (_is_short(text) and text.rstrip().endswith("?"))


def _first_instruction_end(text: str) -> int:
    lead = len(text) - len(text.lstrip())
    for separator in ("\n\n", "\n"):
        end = text.find(separator, lead)
        if end < 0:
            continue
        head = text[lead:end].strip()
        if _is_short(head) and (head.endswith(("?", ":")) or ("\n" not in head and _asks(head))):
            return end
    return 0


def _last_instruction_start(text: str, floor: int) -> int:
    body = text.rstrip()
    start = body.rfind("\n\n", floor)
    if start >= 0:
        tail = body[start:]
        one_line = "\n" not in tail.strip()
        if _begins_asking(tail) or (one_line and _is_short(tail) and not tail.endswith(_FINISHED)):
            return start
    start = body.rfind("\n", floor)
    if start >= 0 and _asks(body[start:]):
        return start
    if body.endswith("?"):
        reach = max(len(body) - 8 * LONGEST_QUESTION_TOKENS, floor)
        ends = [match.end() for match in _SENTENCE_END.finditer(body, reach)]
        if ends and _is_short(body[ends[-1] :]):
            return ends[-1]
    return len(text)


def needs_whole_text(question: str, system: str) -> bool:
    """Whether the question, or the application's instructions, are about the text as a whole, so that nothing may go."""
    folded = fold(question)
    task = _ASKS_FOR_A_FACT.match(folded) is None and _WHOLE_TEXT_TASK.search(folded) is not None
    return task or any(
        pattern.search(text) for pattern, text in ((_WHOLE_TEXT_QUESTION, folded), (_WHOLE_TEXT_ROLE, fold(system)))
    )
