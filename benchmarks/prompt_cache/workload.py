"""Two workloads in virtual time: a long conversation, and a help desk that many people ask once."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from llmmesh.common.v1 import chat_pb2

STATIC_TOKENS = 3200
LETTERS_A_TOKEN = 4
"""As the vendor-like servers count."""
TURNS = 20
REQUESTS = 500
ANSWER = (
    "Thank you for asking. Your order left our warehouse yesterday evening and is with the carrier now, who brings it within "
    "two working days. You get a message with a link on the morning of the delivery, and you may choose another day or a "
    "neighbour there. Should nothing have come by Friday, write to us again and we send it anew at no cost to you."
)

_DATA = Path(__file__).parents[1] / "cache_quality" / "data"
_START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
_TOOLS = {
    "find_order": ("Finds an order by its number or by the address it goes to.", ("order_number", "postcode")),
    "track_parcel": ("Says where a parcel is and when it is expected.", ("tracking_code",)),
    "start_return": ("Opens a return and sends the label by mail.", ("order_number", "reason")),
    "refund_payment": ("Pays back an order, in whole or in part.", ("order_number", "amount")),
    "change_address": ("Changes the address of an order that has not left yet.", ("order_number", "address")),
    "call_a_person": ("Hands the conversation to somebody of the team.", ("summary",)),
}


@dataclass(frozen=True)
class Asked:
    """One request: seconds after the one before it, what is asked, and whether it goes on with the conversation."""

    after_s: float
    question: str
    continues: bool


def conversation(seed: int) -> Iterator[Asked]:
    """Twenty turns, half a minute to two minutes apart; once the person is called away for a while."""
    draw = random.Random(seed)
    for turn, question in enumerate(_questions(seed)[:TURNS]):
        pause = 780.0 if turn == 12 else draw.uniform(30, 120)
        yield Asked(pause if turn else 0.0, question, continues=turn > 0)


def support_desk(seed: int) -> Iterator[Asked]:
    """Five hundred people with a question each: about one a minute, with lulls in which nobody comes for a quarter of an hour."""
    draw = random.Random(seed)
    for number, question in enumerate(_questions(seed)[:REQUESTS]):
        pause = draw.expovariate(1 / 60)
        if number % 50 == 49:
            pause += draw.uniform(600, 1500)
        yield Asked(pause, question, continues=False)


WORKLOADS = {"conversation": conversation, "support_desk": support_desk}


def stamp(now_s: float) -> str:
    """What applications like to put in front of everything."""
    return f"Current time: {(_START + timedelta(seconds=now_s)).isoformat(timespec='seconds')}"


def tools() -> list[chat_pb2.Tool]:
    """The tools of the desk."""
    return [
        chat_pb2.Tool(
            name=name,
            description=description,
            parameters_json_schema=json.dumps(
                {
                    "type": "object",
                    "properties": {field: {"type": "string"} for field in fields},
                    "required": list(fields),
                }
            ),
        )
        for name, (description, fields) in _TOOLS.items()
    ]


def system_text() -> str:
    """The desk's rules: with the tools STATIC_TOKENS long."""
    letters = STATIC_TOKENS * LETTERS_A_TOKEN - sum(
        len(tool.name + tool.description + tool.parameters_json_schema) for tool in tools()
    )
    lines = ["You answer customers of an online shop. Keep to these answers, be kind and brief.", ""]
    rows = (_DATA / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    for row in map(json.loads, rows):
        lines += [f"Question: {row['question']}", f"Answer: {row['stored']}", ""]
    return "\n".join(lines)[:letters]


def _questions(seed: int) -> list[str]:
    rows = (_DATA / "help_desk.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [str(json.loads(row)["text"]) for row in rows]
    random.Random(seed).shuffle(questions)
    return questions
