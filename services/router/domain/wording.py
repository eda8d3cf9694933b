"""What the wording of an instruction says about its difficulty, in English and Spanish.

Every signal has a name and a weight, and the score is their sum, so that a decision can be explained and argued with.
Patterns are written in lower case without accents; text is folded the same way before it is matched. The weights were
set by hand and adjusted on labelled prompts, so they say which signal outweighs which, not a probability.
"""

import re
import unicodedata

from services.router.domain.tiers import Signal

# Instructions stand at the ends of a long message; what lies between is context and says little about the task.
_HEAD_CHARS = 1_000
_TAIL_CHARS = 500

# Signals of work that is deduced rather than written down.
DEDUCTIVE = frozenset({"proof", "logic", "maths", "word problem"})


def _words(alternatives: str) -> re.Pattern[str]:
    """Whole words that match one of the patterns, which are separated by commas; white space in them is one space."""
    patterns = [" ".join(pattern.split()) for pattern in alternatives.split(",")]
    return re.compile(r"(?<!\w)(?:" + "|".join(patterns) + r")(?!\w)")


_GREETING = re.compile(
    r"\W*(?:hi|hello|hey|thanks|thank you|bye|goodbye|good (?:morning|afternoon|evening|night)|ok|okay|yes|no|test"
    r"|hola|gracias|muchas gracias|adios|buenos dias|buenas (?:tardes|noches)|si|vale)\b[^?]{0,20}"
)
_RECALL = re.compile(
    r"\W*(?:(?:so|and|y|please|por favor|hi|hello|hola)\W+)?"
    r"(?:what(?:'s| is| are| was| were| does [\w -]{1,30} (?:mean|stand for))"
    r"|who|when|where|which|how (?:many|much|old|long|far)|is|are|does"
    r"|can i|do you|do i|define|definition of|translate|how do you say|capital of"
    r"|que (?:es|son|significa|era)|quien|cuando|donde|cual(?:es)?|cuant[oa]s?|define|definicion de"
    r"|traduce|como se dice|puedo|se puede|es|son|hay|tiene[ns]?)\b"
)
_TRANSLATE = _words(r"""
    translate, how do you say, traduce, traducir, como se dice
""")
_WORK = _words(r"""
    explain\w*, walk me through, overview, describe, compar(?:e|es|ing|ison), contrast, differ(?:s|ences?)?, versus,
    vs, summari[sz]e, summary, tl;?dr, review, brainstorm, ideas?, suggest, recommend, propose, outline, draft,
    write, rewrite, rephrase, refactor, simplify, convert, extract, classif(?:y|ication), categori[sz]e, identify,
    pull out, list, analy[sz]e, evaluate, debug, fix, troubleshoot, find, create, generate, build, implement,
    design, optimi[sz]e, plan an?, add, update, run, what (?:could |can |might )?causes?, how
    (?:does|did|would|should|come|to), how do (?!i\b)\w+, why, pros and cons, trade-?offs?, check, give me, format,
    parse, explica\w*, compara\w*, diferencias?, frente a, resum(?:e|ir|en), revisa, lluvia de ideas, sugiere\w*,
    recomienda\w*, propon, esboza, redacta, escrib(?:e|ir), reescribe, refactoriza, simplifica, convierte, extrae,
    clasifica, identifica, enumera, analiza\w*, evalua\w*, depura, corrige, arregla, crea, genera, construye,
    implementa\w*, disena\w*, optimiza\w*, planifica\w*, como (?:funcionan?|deberia), (?:cuales son las |que |las
    )causas?, por que, ventajas y (?:desventajas|inconvenientes), comprueba, dame, formatea
""")
_BUILD = _words(r"""
    design, architect, build, develop, implement, migrate, plan (?:a |the )?migration, optimi[sz]e, scale,
    (?:security |performance )?audit, disena\w*, construye, desarrolla, implementa\w*, migra\w*, planifica\w*,
    optimiza\w*, audita\w*, auditoria
""")
_SYSTEM = _words(r"""
    systems?, platforms?, architectures?, pipelines?, engines?, infrastructures?, frameworks?, microservices?,
    distributed, multi-?tenant, multi-?region, real-?time, end-to-end, fault[- ]toleran(?:t|ce), high availability,
    compilers?, databases?, networks?, strateg(?:y|ies), marketplace, workflows?, migration, deployment, saas,
    cluster, protocols?, sistemas?, plataformas?, arquitecturas?, motor, infraestructuras?, microservicios?,
    distribuid[oa]s?, tiempo real, multi-?inquilino, alta disponibilidad, compilador, bases? de datos, redes?,
    estrategias?, despliegue, migracion, protocolo
""")
_PROOF = _words(r"""
    prove(?: or disprove)?, proving, (?:demonstrate|establish) that, formal (?:proof|argument), disprove, proof of,
    derive, derivation of, show that, by induction, using induction, by contradiction, using contradiction,
    demuestr[ae]\w*, demostrar, demostracion de, prueb[ae] que, deduc(?:e|ir), deriva(?:r)?, por induccion, usando
    induccion, por contradiccion, por reduccion al absurdo
""")
_LOGIC = _words(r"""
    theorems?, lemma, corollary, counterexample, axioms?, if and only if, formally, contradiction, teoremas?, lema,
    corolario, contraejemplo, axiomas?, si y solo si, formalmente, contradiccion, nash, equilibri(?:um|a), game[-
    ]theor\w+, minimax, prisoner's dilemma, dominant strategy, auction, puzzle, riddle, paradox(?:es)?, knights? and
    knaves?, truth tables?, satisfiab\w+, np-(?:complete|hard), undecidab\w+, backward induction, optimal
    (?:strategy|stopping|policy|bidding), equilibrio, teoria de juegos, dilema del prisionero, estrategia dominante,
    subasta, acertijo, paradojas?, tablas? de verdad, np-(?:completo|dificil), estrategia optima
""")
_MATHS = _words(r"""
    calculate, compute, solve, equations?, integrals?, derivatives?, probabilit(?:y|ies), expected value,
    matri(?:x|ces), eigenvalues?, modulo, polynomials?, logarithms?, variance, closed[- ]form, converge\w*, upper
    bound, lower bound, calcula\w*, resuelve, ecuacion(?:es)?, integral(?:es)?, derivadas?, probabilidad(?:es)?,
    valor esperado, matriz, matrices, autovalor(?:es)?, polinomios?, logaritmos?, varianza, cota
    (?:superior|inferior)
""")
_FORMULA = re.compile(
    r"[∀∃∑∏∫√≤≥≠≡∈⊂→⇒∞]|\\(?:frac|sum|int|sqrt|mathbb)"
    r"|\b\w\^[\w({]|\w\([a-z]\)\s*=|\b[a-z]\s*=\s*\d|\bo\([^)]{1,12}\)"
)
_CODE = _words(r"""
    function, code, script, class, method, regex, sql, query, unit tests?, integration tests?, tests?, bug, stack
    ?trace, exception, api, endpoint, algorithm, python, javascript, typescript, java, rust, golang, c\+\+, bash,
    dockerfile, yaml, json, component, parser, funcion, codigo, clase, metodo, consulta, pruebas?, excepcion,
    algoritmo
""")
_FENCE = re.compile(
    r"```|^(?: {4}|\t)\S|\b(?:def|class|import|return|public|static|void|const|select)\b[^\n]*[;:({]", re.MULTILINE
)
_STEPS = _words(r"""
    step[- ]by[- ]step, steps, first, then, finally, show (?:your|the|all|every|each) (?:work|steps?|case), reason
    through, think through, paso a paso, pasos, primero, luego, despues, finalmente, por ultimo, razona
""")
_CONSTRAINT = _words(r"""
    must, should not, at least, at most, no more than, without, exactly, only, ensure, ensuring, given that, subject
    to, constraints?, requirements?, include, including, assum(?:e|ing), unless, except, while, handle,
    support(?:s|ing)?, address, backwards?[- ]compatib\w+, debe(?:n|ria)?, al menos, como (?:maximo|minimo), sin,
    exactamente, solo, asegur\w+, garantiz\w+, dado que, restriccion(?:es)?, requisitos?, incluy\w+, suponiendo,
    salvo, excepto, mientras, maneja, soport\w+, aborda
""")
_CONDITION = _words(r"""
    if, even though, (?:after|before|within|for|over) (?:the )?(?:\d+|an?|two|three|more), still, already, instead
    of, on \d+ \w+, (?:more|less|other|later|sooner) than, too late, yesterday, tomorrow, not yet, two \w+,
    entitled, (?:one|only) of, si, aunque, (?:antes|despues|dentro|hace|durante|llevo|mas|menos) (?:de
    )?(?:\d+|un[ao]?|dos|tres|que), todavia, aun, en vez de, mas de, demasiado tarde, ayer, manana, de l[ao]s?
    \w+(?: \w+)? a l[ao]s? \w+, (?:un )?solo, derecho, (?:todos|todas) l[ao]s
""")
_HOW_TO = re.compile(r"\bhow (?:do|can|could) (?:i|we)\b|\bcomo (?:puedo|podemos|hago|se|me|lo|la)?\b")
_AMOUNT = _words(r"""
    how much, how many, cheaper, worth, what (?:does|will) it cost, cuant[oa]s?, mas barat[oa], conviene, sale a
    cuenta
""")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_BRIEF = _words(r"""
    (?:in )?one[- ]sentence, in (?:a|one) (?:word|line), briefly, (?:very )?(?:simple|basic) (?:terms|explanation),
    (?:en )?una (?:sola )?(?:frase|palabra|linea), brevemente, yes or no, si o no, terminos (?:muy )?sencillos
""")
_NUMBER = re.compile(r"(?<![\w.])\d[\d.,]*")
_LIST_LINE = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+\S", re.MULTILINE)


def fold(text: str) -> str:
    """Lower case without accents, so that "Demuéstralo" matches "demuestralo"."""
    decomposed = unicodedata.normalize("NFKD", text.lower().replace("\u2019", "'"))
    return "".join(char for char in decomposed if not unicodedata.combining(char))


def _ends(text: str) -> str:
    if len(text) <= _HEAD_CHARS + _TAIL_CHARS:
        return text
    return f"{text[:_HEAD_CHARS]}\n{text[-_TAIL_CHARS:]}"


def wording_signals(text: str) -> list[Signal]:
    """Reads the two ends of `text`, the instruction as the user wrote it; time is bounded however long it is."""
    text = _ends(text)
    folded = fold(text)
    words = len(folded.split())
    work = len(set(_WORK.findall(folded)))
    recall = _RECALL.match(folded) is not None
    system = len(set(_SYSTEM.findall(folded)))
    build = _BUILD.search(folded) is not None
    parts = len(re.findall(r"[,;](?!\d)", folded)) + len(_LIST_LINE.findall(text))
    constraints = len(_CONSTRAINT.findall(folded))
    questions = len(re.findall(r"[\w)\"]\s*\?(?!\w)", folded))
    sentences = len(_SENTENCE_END.findall(folded))
    numbers = len(_NUMBER.findall(folded))
    steps = len(set(_STEPS.findall(folded)))
    proof = _PROOF.search(folded) is not None
    logic = _LOGIC.search(folded) is not None
    maths = _MATHS.search(folded) is not None or _FORMULA.search(folded) is not None
    code = _FENCE.search(text) is not None or _CODE.search(folded) is not None

    found: list[Signal] = []

    def add(name: str, weight: float, present: bool) -> None:
        if present:
            found.append(Signal(name, weight))

    add("greeting", -0.2, _GREETING.fullmatch(folded.strip()) is not None)
    add("lookup", -0.08, recall and not proof)
    add("translation", -0.12, _TRANSLATE.search(folded) is not None)
    add("task", 0.21 + 0.03 * min(work - 1, 2), work > 0)
    add("short answer wanted", -0.15, _BRIEF.search(folded) is not None)
    add("proof", 0.66, proof)
    add("logic", 0.25, logic and not recall)
    add("maths", 0.08, maths)
    add("code", 0.04, code)
    add("how-to", 0.06, _HOW_TO.search(folded) is not None)
    add("condition", 0.22, questions > 0 and _CONDITION.search(folded) is not None)
    add("circumstances", 0.14, work == 0 and questions > 0 and sentences > 1 and words > 10)
    add("building", 0.1, build)
    add("system", 0.1 + 0.04 * min(system - 1, 2), build and system > 0)
    add("several parts", 0.06 * min(parts, 4), parts > 1)
    add("constraints", 0.05 * min(constraints, 4), constraints > 0)
    add("several questions", 0.12 * min(questions - 1, 3), questions > 1)
    add("steps", 0.06 * min(steps, 3), steps > 0)
    add("word problem", 0.36, numbers > 2 and words > 15 and questions > 0 and _AMOUNT.search(folded) is not None)
    add("length", 0.04 if words <= 40 else 0.1 if words <= 120 else 0.18, words > 20)
    return found
