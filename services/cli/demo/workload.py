"""The support-desk workload: requests with labels, see README.md beside it."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from llmmesh.common.v1 import chat_pb2
from services.cli.client import text_message

FOLDER = Path(__file__).parent
# One sentence an answer: the small model is quick then, and a truncated answer would, rightly, not be cached.
MAX_OUTPUT_TOKENS = 64
STOP = ("\n", ". ")
_ROLES = {"user": chat_pb2.ROLE_USER, "assistant": chat_pb2.ROLE_ASSISTANT}


@dataclass(frozen=True)
class Request:
    """One request of the workload. Two requests may share an answer exactly when their `answer_id` is the same."""

    id: str
    tenant: str
    endpoint: str
    user: str
    answer_id: str
    trap: str | None
    chat: chat_pb2.Chat


def load() -> list[Request]:
    """All requests, in the order in which they are replayed."""
    catalog = yaml.safe_load((FOLDER / "catalog.yaml").read_text(encoding="utf-8"))
    requests = []
    for line in (FOLDER / "workload.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        messages = [text_message(chat_pb2.ROLE_SYSTEM, catalog["systems"][row["system"]])]
        messages += [text_message(_ROLES[turn["role"]], turn["content"]) for turn in row["history"]]
        messages.append(text_message(chat_pb2.ROLE_USER, row["text"]))
        sampling = chat_pb2.Sampling(temperature=0, max_output_tokens=MAX_OUTPUT_TOKENS, stop=STOP)
        chat = chat_pb2.Chat(messages=messages, sampling=sampling)
        requests.append(
            Request(row["id"], row["tenant"], row["endpoint"], row["user"], row["answer_id"], row["trap"], chat)
        )
    return requests
