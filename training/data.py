"""What the model learns from: families of look-alike questions written for it, and the trainable part of public sets.

Everything becomes a `Group`: questions with the key of their answer. Two questions of a group with the same key are one
question in other words; with different keys they are look-alikes that need different answers.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FAMILIES = Path(__file__).parent / "families"
DEVELOPMENT_TOPICS = frozenset({"hotels", "payroll", "saas", "biology", "visas", "restaurants", "insurance"})
"""Families of these topics train no weight: they choose the step to stop at and fit the calibration."""

SLOTTED = frozenset(
    """
    translate transfer timer definition spelling alarm reminder reminder_update calculator exchange_rate
    flight_status book_flight book_hotel distance directions weather restaurant_reservation restaurant_reviews
    restaurant_suggestion recipe nutrition_info ingredients_list ingredient_substitution food_last calories
    cook_time measurement_conversion play_music next_song update_playlist calendar calendar_update
    meeting_schedule schedule_meeting todo_list todo_list_update shopping_list shopping_list_update order pay_bill
    spending_history transactions balance time timezone date text make_call smart_home travel_suggestion
    travel_alert plug_type traffic international_visa vaccines carry_on current_location car_rental uber gas
    interest_rate roll_dice flip_coin fun_fact tell_joke change_volume change_language change_accent change_speed
    what_song gas_type mpg schedule_maintenance pto_request sync_device share_location how_busy
    accept_reservations cancel_reservation confirm_reservation meal_suggestion order_status change_user_name
    change_ai_name user_name yes no maybe repeat thank_you goodbye greeting
    """.split()  # noqa: SIM905 (a list of words reads better)
)
"""Intents of CLINC150 whose requests differ in what they name: sharing the intent is not sharing the answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """A wording, its language ("en", "es") and the key of what answers it."""

    text: str
    language: str
    key: str


@dataclass(frozen=True, slots=True)
class Group:
    """Questions that are easily taken for one another. `same` is the target for pairs with one key, 0 to 1."""

    source: str
    topic: str
    questions: tuple[Question, ...]
    same: float = 1.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts and how surely one answer serves both, 0 to 1."""

    source: str
    a: str
    b: str
    same: float
    language: str


def families(folder: Path = FAMILIES) -> list[Group]:
    """The hand-written families, one group each. Raises ValueError naming file and line of what cannot be read."""
    groups = []
    for path in sorted(folder.glob("*.txt")):
        title, intent, questions = "", "", list[Question]()
        for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), "# end"], 1):
            line = line.strip()
            if line.startswith("# "):
                if questions:
                    groups.append(Group("families", path.stem.removesuffix("_2"), tuple(questions)))
                title, intent, questions = f"{path.stem}/{line[2:]}", "", []
            elif line.startswith("= "):
                intent = f"{title}/{line[2:]}"
            elif line:
                if not intent:
                    raise ValueError(f"{path}:{number}: a question before any intent")
                spanish = line.startswith(">")
                text = line[1:].strip() if spanish else line
                questions.append(Question(text, "es" if spanish else "en", intent))
    return groups


def intents(data: Path) -> list[Group]:
    """Banking77, CLINC150 (intents without slots) and XQuAD's parallel questions by paragraph, as groups."""
    groups = []
    by_intent: dict[str, list[str]] = {}
    for row in _rows(data / "cache" / "banking77_en_train.jsonl"):
        by_intent.setdefault(str(row["intent"]), []).append(str(row["text"]))
    groups += [
        Group("banking77", intent, tuple(Question(text, "en", f"banking77/{intent}") for text in texts), same=0.9)
        for intent, texts in sorted(by_intent.items())
    ]
    by_intent = {}
    for row in _rows(data / "cache" / "clinc150_en_train_val.jsonl"):
        intent = str(row["intent"])
        if intent not in SLOTTED and intent not in ("oos", "out_of_scope"):
            by_intent.setdefault(intent, []).append(str(row["text"]))
    groups += [
        Group("clinc150", intent, tuple(Question(text, "en", f"clinc150/{intent}") for text in texts), same=0.85)
        for intent, texts in sorted(by_intent.items())
    ]
    by_paragraph: dict[str, list[Question]] = {}
    for row in _rows(data / "cache" / "xquad_questions_en_es_a.jsonl"):
        for language in ("en", "es"):
            question = Question(str(row[language]), language, f"xquad/{row['id']}")
            by_paragraph.setdefault(str(row["para"]), []).append(question)
    groups += [Group("xquad", name, tuple(questions)) for name, questions in sorted(by_paragraph.items())]
    return groups


def slots(data: Path) -> list[Pair]:
    """SLURP requests of one intent that name different things: look-alikes."""
    by_intent: dict[str, list[tuple[str, frozenset[str]]]] = {}
    for row in _rows(data / "cache" / "slurp_en.jsonl"):
        named = frozenset(f"{kind}={value}" for kind, value in _slots(row["slots"]))
        by_intent.setdefault(str(row["intent"]), []).append((str(row["text"]), named))
    chance = random.Random(7)
    pairs = []
    for _, requests in sorted(by_intent.items()):
        chance.shuffle(requests)
        for (a, first), (b, second) in zip(requests[::2], requests[1::2], strict=False):
            if first and second and not first & second:
                pairs.append(Pair("slurp", a, b, 0.0, "en"))
    return pairs


def pairs(data: Path) -> list[Pair]:
    """PAWS-X, STS-B (a soft target) and the similar pairs of GPTCache's tests."""
    found = []
    for language in ("en", "es"):
        for row in _rows(data / "cache" / f"pawsx_{language}_a.jsonl"):
            found += [Pair("pawsx", str(row["a"]), str(row["b"]), float(str(row["label"])), language)]
        for row in _rows(data / "cache" / f"stsb_{language}_train.jsonl"):
            # 5 is the same, 4 differs in a detail that may matter, below 3 they are about different things.
            same = min(1.0, max(0.0, (float(str(row["score"])) - 3.2) / 1.6))
            found += [Pair("stsb", str(row["a"]), str(row["b"]), same, language)]
    for row in _rows(data / "cache" / "gptcache_mock_en.jsonl"):
        found += [Pair("gptcache", str(row["a"]), str(row["b"]), float(str(row["label"])), "en")]
    return found + slots(data)


def _rows(path: Path) -> Iterator[dict[str, object]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            row: dict[str, object] = json.loads(line)
            yield row


def _slots(value: object) -> list[tuple[str, str]]:
    return [(str(kind), str(text)) for kind, text in value] if isinstance(value, list) else []


def worn(text: str, chance: random.Random, often: float) -> str:
    """The text as people also type it: without capitals and marks, without accents, with a letter less."""
    if chance.random() < often:
        text = text.lower().strip("¿?¡!. ")
    if chance.random() < often / 3:
        text = text.translate(str.maketrans("áéíóúÁÉÍÓÚ", "aeiouAEIOU"))
    if chance.random() < often / 3 and len(text) > 12:
        i = chance.randrange(1, len(text) - 1)
        text = text[:i] + text[i + 1 :] if text[i].isalpha() else text
    return text


def texts(groups: Iterable[Group], more: Iterable[Pair]) -> list[str]:
    """Every text, to make a vocabulary from."""
    return [q.text for g in groups for q in g.questions] + [t for p in more for t in (p.a, p.b)]
