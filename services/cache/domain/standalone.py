"""Whether a message makes sense without the conversation before it. English and Spanish.

A message that leans on what was said before would be answered by what another conversation was about, so that "no" is the answer
wherever there is doubt: pronouns without anything before them that they may stand for, ellipsis, continuations, answers to
questions, references to earlier text, and too little content.
"""

import re
import unicodedata

from services.cache.domain import guards, lexicon

_READ_LIMIT = 4_000
_ASKED = 2
_STATED = 3
"""How many words of content a question or an order needs, and how many a statement or a few key words."""


def stands_alone(text: str) -> bool:
    """True where the message can be understood by itself; False when unsure."""
    head = text[:_READ_LIMIT]
    raw = _GREETING.sub("", head.lower().strip())
    plain = _plain(raw)
    if raw.startswith(("sí ", "sí,", "sí.")) or _LEAD.match(plain) or _BACK.search(plain):
        return False
    reading = guards.read(text)
    for pronouns in _PRONOUNS[reading.language]:
        first = pronouns.search(plain)
        if first is not None and not _has_content(plain[: first.start()], _ASKED):
            return False
    asks = bool(reading.kinds) or "?" in head or _ORDER.match(plain) is not None
    if asks and reading.names and _has_content(plain, 1):
        return True
    if not asks and _FRAGMENT.match(plain):
        return False
    return _has_content(plain, _ASKED if asks else _STATED)


def _has_content(plain: str, enough: int) -> bool:
    """Whether a text has that many different words that name something."""
    reading = guards.read_once(plain)
    named = {base for base, word in reading.content.items() if word not in lexicon.VAGUE and len(word) > 1}
    return len(named | reading.names) >= enough


def _plain(text: str) -> str:
    """Lower case without accents, but for the article "el" and the pronoun "él"."""
    text = text.replace("él ", "ese ").replace("’", "'")
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


_GREETING = re.compile(
    r"^(?:[\s¡!,.]*(?:hi there|hi|hello|hey|good (?:morning|afternoon|evening)|please|excuse me|hola"
    r"|buenos d[ií]as|buenas tardes"
    r"|buenas noches|buenas|por favor|perdona|perdón|disculpa|disculpe|oye|oiga)\b[\s!,.:]*)+"
)
_LEAD = re.compile(
    r"^[\W_]*(?:(?:and|or|but|so|then|also|too|ok|okay|because|otherwise|instead|now|yes|yeah|yep|nope|sure"
    r"|great|thanks|thank you|fine"
    r"|perfect|cool|right|wrong|exactly|correct|hmm+|well|actually|same|next|continue|go on|anyway|never mind"
    r"|what about|how about"
    r"|what else|anything else|in (?:that|this) case|the same|not (?:really|yet)|it|that|those|these|none"
    r"|neither|both|another"
    r"|y|e|o|u|pero|entonces|tambien|tampoco|pues|asi|ahora|vale|claro|genial|perfecto|exacto|gracias|ademas"
    r"|sino|si no|luego|igual"
    r"|lo mismo|lo de|lo anterior|la misma|el mismo|en (?:ese|este|tal) caso|en vez|en lugar|muchas gracias"
    r"|sigue|continua|siguiente"
    r"|eso|esto|ese|esa|esos|esas|ella|ellos|ellas|ya|que tal si|aun asi|ninguno|ambos|otro|otra)\b|no ?[,.:;!])"
)
"""How continuations, answers and thanks begin."""
_GENERIC = (
    "one|ones|option|point|step|answer|question|example|part|paragraph|item|link|method|way|card|plan|thing|line|sentence|message|idea"
    "|opcion|punto|paso|respuesta|pregunta|ejemplo|parte|parrafo|elemento|enlace|metodo|forma|manera|cosa|linea|frase|mensaje|tarjeta"
)
_BACK = re.compile(
    r"\b(?:too|also|as well|either|in addition) ?[?.!]*$|\b(?:does|do|is|are|can|will|must) (?:\w+ ){1,3}also\b"
    r"|\btambien\b|\btampoco\b|\b(?:you|we) (?:just |already )?(?:said|mentioned|sent|told|wrote|gave|suggested|meant|were saying"
    r"|explained|described|recommended)\b"
    r"|\b(?:as|like) (?:before|above|you said)\b|\b(?:the|your) (?:previous|former|latter|above|earlier"
    r"|aforementioned)\b|\bthe same\b"
    rf"|\b(?:the|that|this|which|what|my) (?:first|second|third|last|other|next|blue|red) (?:{_GENERIC})\b"
    rf"|\b(?:which|the other|this|that|other"
    r"|another|first|second|third|last|next|cheaper|better) ones?\b|\bwhich of\b|\b(?:the )?others?\b(?= *[?.!]"
    r"|$)|\b(?:the|that) one\b"
    r"|\banother (?:way|example|one|option|question)\b|\b(?:anything|something|what|who|where|how) else\b"
    r"|\b(?:once|try|check|explain|repeat) (?:\w+ )?again\b"
    r"|\bagain ?[?.!]*$|\b(?:those|these|there ?[?.!]*$)|\b(?:step|point|option|number|part|paso|punto|opcion"
    r"|parte|numero) \d+\b"
    r"|\bthis\b(?! (?:week|month|year|summer|winter|spring|autumn|fall|weekend|morning|afternoon|evening|season"
    r"|quarter|sentence:|text:|code:))"
    r"|\b(?:do|did|does|done|is|was|by|about|of|for|with|in|at|like|than|after|before|to|from|explain|tried"
    r"|repeat|why|if|on) that\b(?! (?:is|are|i|we|the|my)\b)"
    r"|\bthat ?[?.!,]*$|\binstead ?[?.!]*$|\b(?:i|we) (?:meant|mean|already)\b|\bmy (?:previous|last"
    r"|earlier) (?:question|message)\b"
    r"|\b(?:dijiste|dijo usted|mencionaste|mandaste|enviaste|comentaste|explicaste|escribiste|recomendaste"
    r"|has dicho|habias dicho|me has|me refer"
    r"|decias|indicaste)|\bde antes\b|\b(?:lo|el|la|los|las|tu|su) (?:anterior|anteriores|mismo|misma|otro|otra"
    r"|otros|otras|siguiente)\b"
    rf"|\b(?:primer|segund|tercer|ultim|otr)[oa]?s? (?:{_GENERIC})\b|\b(?:el|la|los|las) (?:primer|segund"
    rf"|tercer)[oa]s? ?(?:[?.!,]|$)"
    r"|\b(?:otra vez|de nuevo)\b|\botr[oa] (?:ejemplo|forma|manera|opcion|pregunta|modo|vez)\b|\b(?:algo|que"
    r"|quien) mas ?[?.!]*$|\blo (?:de|que|mismo)\b"
    r"|\bdel mismo\b|\bes[oa]s?\b|\best[eao]s?\b(?! (?:semana|mes|ano|verano|invierno|primavera|otono|noche"
    r"|tarde|manana|texto:|frase:|fin de)|\w*\s*(?:incluid"
    r"|abiert|cerrad|disponible|permitid|prohibid))|\besto\b|\baquell?[oa]?s?\b|\bambos\b|\b(?:con|de|entre"
    r"|para|por|sin|a) (?:ello|ellos|ellas|ella|el\?)"
)
"""References to what was said or shown before."""
_PRONOUN_EN = re.compile(
    r"\b(?:it|its)\b(?! (?:is |was )?(?:safe|possible|ok|okay|allowed|legal|illegal|better|true|necessary"
    r"|normal|compulsory|mandatory|worth"
    r"|cheaper|dangerous|bad|good|healthy|rude|too late|take to|cost to|mean to|mean when|mean if|snow|rain|hurt to))"
    r"|\b(?:he|she|him|her|his|hers|they|them|their|theirs)\b"
)
_PRONOUN_ES = re.compile(
    r"\blo\b(?! (?:que|antes|mas|mejor|mismo|de)\b)"
    r"|(?:\b(?:como|cuando|donde|no|se|me|te|nos|ya|quien)|,|^) (?:la|los|las) \w+ ?(?:[?.!,]|$)"
    r"|\b\w+(?:ar|er|ir|ando|endo)(?:me|te|se|nos)?(?:lo|la|los|las)\b"
    r"|\b(?:haz|hag|traduc|reescrib|escrib|explic|repit|d[ia]|pon|cambi|corrig|acort|comprueb|mand|envi|busc"
    r"|calcul|conviert|resum|pas|quit)"
    r"(?:[aei]?(?:me|nos)?)(?:lo|la|los|las)\b"
    r"|\b(?:ella|ellos|ellas)\b"
)
_PRONOUNS = {"en": (_PRONOUN_EN,), "es": (_PRONOUN_ES,), "": (_PRONOUN_EN, _PRONOUN_ES)}
"""Pronouns that may stand for something in the message itself, if that was named before them."""
_FRAGMENT = re.compile(
    r"^(?:for|with|in|on|at|by|from|under|since|until|about|to|an?|two|para|con|en|de|desde|hasta|por|a|sobre|sin|una?|el|dos)\b"
)
"""How answers to questions begin, such as "under the name of Johnson"."""
_ORDER = re.compile(
    r"^(?:write|translate|give|explain|summari[sz]e|convert|solve|tell|list|show|describe|compare|create|draft"
    r"|calculate|define|find|suggest"
    r"|recommend|name|escribe|traduce|dame|explica|explicame|resume|convierte|resuelve|redacta|dime|haz"
    r"|describe|compara|calcula|define|busca"
    r"|recomienda|enumera|crea|i (?:want|need|would like|'d like) to|i'd like to|i need|quiero|necesito"
    r"|quisiera|me gustaria)\b"
)
