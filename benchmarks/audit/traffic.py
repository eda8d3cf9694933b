"""A month of a company's requests as a log, seeded: four applications, each with a waste of its own."""

import json
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeAlias

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float"

QUESTIONS = Path(__file__).parents[1] / "cache_quality" / "data" / "help_desk.jsonl"
BEGIN = 1_793_491_200  # 1 November 2026
MONTH_S = 30 * 86_400

_POLICY = (
    "You are the assistant of Harbor Mobility, which runs buses, ferries and shared bikes. Answer in at most four sentences, "
    "friendly and to the point. Never promise refunds that the policy does not grant. "
)
_RULES = [
    f"Rule {n}: a {thing} that was {verb} can be {done} within {n + 3} days at any service point, with the receipt."
    for n, (thing, verb, done) in enumerate(
        (thing, verb, done)
        for thing in ("ticket", "travel card", "monthly pass", "bike rental", "parking permit", "group fare")
        for verb, done in (
            ("lost", "replaced"),
            ("bought twice", "refunded"),
            ("damaged", "exchanged"),
            ("unused", "returned"),
        )
    )
]
_SYSTEM_SHORT = _POLICY + " ".join(_RULES[:6])
_SYSTEM_LONG = _POLICY + " ".join(_RULES + [rule.replace("service point", "ferry terminal") for rule in _RULES])
_TOPICS = (
    "harbour traffic", "night buses", "bike sharing", "ticket machines", "ferry timetables", "road works", "tram noise",
    "battery depots", "school routes", "tourist passes", "winter service", "driver training", "platform safety", "parking",
)  # fmt: skip
_VERBS = ("grew", "fell", "stood still", "was reviewed", "was extended", "was criticised", "was praised", "was moved")
_TASKS = (
    "Summarise the risks of {a} for the council in a table with likelihood and impact, and justify each rating.",
    "Write a Python function that reads the CSV of {a} and returns the {n} busiest hours; handle missing rows.",
    "Prove that the schedule of {a} cannot be kept with {n} vehicles, and derive the least number that can.",
    "Draft a letter to the {n} residents who complained about {a}, in a calm tone, with three concrete offers.",
    "Compare {a} with {b}: which deserves the {n} thousand euros of the budget, and why?",
)
_SENTIMENTS = ("positive", "negative", "neutral")


def lines(count: int, seed: int) -> Iterator[str]:
    """`count` lines of JSON in the order of time."""
    random = Random(seed)
    asked = [json.loads(line) for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    order = list(range(len(asked)))
    random.shuffle(order)
    weights = list(accumulate(1 / (rank + 8) for rank in range(len(order))))  # a few questions make up most
    lost: list[tuple[int, str]] = []
    for number in range(count):
        at = BEGIN + MONTH_S * number / count
        if lost and number >= lost[0][0]:
            row = json.loads(lost.pop(0)[1])
            row["created"] = round(at, 3)
            yield json.dumps(row)
            continue
        row = _row(random, asked[order[random.choices(range(len(order)), cum_weights=weights)[0]]])
        row["id"], row["created"] = f"req-{number}", round(at, 3)
        line = json.dumps(row)
        if random.random() < 0.012:  # cut off; the client sends it again at once
            lost.append((number + 3, line))
            line = line.replace('"finish_reason": "stop"', '"finish_reason": "length"')
        yield line
        if random.random() < 0.0002:
            yield '{"request": {"model": "gpt-4o", "messa'


class Asked(NamedTuple):
    """A request of one of the applications."""

    endpoint: str
    kind: str
    model: str
    system: str
    question: str
    answer: str
    temperature: float


def _row(random: Random, question: dict[str, str]) -> dict[str, Json]:
    asked = _asked(random, question)
    prompt = 8 + (len(asked.system) + len(asked.question)) // 4
    completion = max(1, len(asked.answer) // 4)
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    return {
        "tenant": random.choice(("north", "south")),
        "user": f"u{random.randrange(40_000)}",
        "endpoint": asked.endpoint,
        "kind": asked.kind,
        "request": {
            "model": asked.model,
            "temperature": asked.temperature,
            "messages": [{"role": "system", "content": asked.system}, {"role": "user", "content": asked.question}],
        },
        "response": {
            "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": asked.answer}}],
            "usage": usage,
        },
    }


def _asked(random: Random, question: dict[str, str]) -> Asked:
    share = random.random()
    if share < 0.45:
        return Asked("help-desk", "faq", "gpt-4o", _SYSTEM_SHORT, question["text"], _faq(question["answer_id"]), 0.2)
    topic, other, number = random.choice(_TOPICS), random.choice(_TOPICS), random.randrange(3, 90)
    if share < 0.60:
        document = "\n\n".join(_paragraph(random) for _ in range(14))
        text = f"{document}\n\nWhat does the report say about {topic} in district {random.randrange(1, 30)}?"
        answer = f"{topic.capitalize()} {random.choice(_VERBS)}; the report gives {number} cases and names no other district. "
        return Asked("documents", "reading", "claude-sonnet", _POLICY, text, 2 * answer, 0.0)
    if share < 0.80:
        text = random.choice(_TASKS).format(a=f"{topic} in {random.randrange(1990, 2026)}", b=other, n=number)
        answer = " ".join(_paragraph(random) for _ in range(6))
        return Asked("assistant", "drafting", "gpt-4o", _SYSTEM_LONG, text, answer, 0.7)
    mood = random.choice(_SENTIMENTS)
    review = f"{topic.capitalize()}, visit {random.randrange(10**6)}: it {random.choice(_VERBS)}."
    text = f"Is this review positive, negative or neutral? {review}"
    answer = mood if random.random() < 0.95 else f"{mood}, because {_paragraph(random)} {_paragraph(random)}"
    return Asked("reviews", "sentiment", "gpt-4o", "You label reviews.", text, answer, 0.0)


@lru_cache(maxsize=1024)
def _faq(answer_id: str) -> str:
    words, _, language = answer_id.partition(".")
    code = f"HM-{int.from_bytes(answer_id.encode()[:6], 'big') % 9000 + 1000}"
    about = words.replace("_", " ")
    if language == "es":
        return f"Sobre {about}: rellena el formulario {code} en la aplicación y te respondemos en el mismo día."
    return f"About {about}: fill in form {code} in the app, and somebody gets back to you on the same day."


def _paragraph(random: Random) -> str:
    topic, other = random.choice(_TOPICS), random.choice(_TOPICS)
    return (
        f"In district {random.randrange(1, 30)}, {topic} {random.choice(_VERBS)} by {random.randrange(2, 60)} percent "
        f"after {other} {random.choice(_VERBS)}; {random.randrange(100, 9000)} people were asked about it in spring."
    )
