"""What is asked: questions that get stored, other wordings of them, and questions that nobody asked before."""

import itertools
import random
from collections.abc import Iterator

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import inference_pb2

SYSTEM = (
    "You are the support desk of an online shop for home and garden. Answer in two short sentences, be friendly, "
    "and never promise a refund that the terms of sale do not give."
)

_TASKS = (
    "reset my password",
    "change my delivery address",
    "track my parcel",
    "download my invoice",
    "cancel my subscription",
    "return a damaged item",
    "update my credit card",
    "close my account",
    "redeem a gift card",
    "contact the support team",
    "change my email address",
    "report a missing item",
    "apply a discount code",
    "pause my subscription",
    "exchange the wrong size",
    "leave a product review",
)
_OPENINGS = (
    "",
    "Hi, ",
    "Hello, ",
    "Hello there, ",
    "Good morning, ",
    "Hey, ",
    "Dear team, ",
    "Excuse me, ",
    "Hi there, ",
)
_WORDINGS = ("how can I {}", "how could I {}", "how may I {}", "how do I {}", "how should I {}", "how would I {}")
_ENDINGS = (
    "?",
    ", please?",
    "? Thanks!",
    "? Thank you!",
    "? Many thanks.",
    ", thanks?",
    "? Cheers!",
    "? Thanks a lot!",
)

# fmt: off
_WORDS = [
    "amber", "anchor", "badger", "basalt", "cedar", "cobalt", "comet", "copper", "coral", "crater", "delta",
    "ember", "falcon", "fennel", "fjord", "gannet", "garnet", "glacier", "harbour", "hazel", "heron", "indigo",
    "island", "jasper", "juniper", "kestrel", "lagoon", "lantern", "larch", "lichen", "lizard", "magnet", "maple",
    "marble", "meadow", "mirror", "nectar", "nickel", "oyster", "pebble", "pepper", "pigeon", "plasma", "quartz",
    "rabbit", "raven", "saffron", "salmon", "silver", "sparrow", "spruce", "summit", "thistle", "thunder",
    "timber", "tulip", "velvet", "walnut", "willow", "zephyr", "zinc",
]
# fmt: on
_FRAMES = (
    "Write a note in which a {} meets a {} beside the {} of a {}, with a {} and some {}.",
    "Which {} suits a {} when the {} near the {} is gone and the {} needs a {}?",
    "Compare the {} with a {} and tell me where {} and {} differ from {} or {}.",
)


def request_of(text: str) -> inference_pb2.CompleteRequest:
    """A request of about 300 bytes."""
    return inference_pb2.CompleteRequest(
        chat=chat_pb2.Chat(
            messages=[
                chat_pb2.Message(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text=SYSTEM)]),
                chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)]),
            ]
        )
    )


def seeds() -> list[str]:
    """Questions to be stored."""
    return [f"How do I {task}?" for task in _TASKS]


def wordings() -> list[str]:
    """Each seed in other words; every text is different from all others and from the seeds."""
    texts = {
        (opening + wording.format(task) + ending)
        for opening, wording, task, ending in itertools.product(_OPENINGS, _WORDINGS, _TASKS, _ENDINGS)
    }
    ordered = sorted({text[0].upper() + text[1:] for text in texts} - set(seeds()))
    random.Random(7).shuffle(ordered)
    return ordered


def unasked() -> Iterator[str]:
    """Questions without end, no two of which mean the same."""
    dice = random.Random(11)
    given: set[str] = set()
    while True:
        text = dice.choice(_FRAMES).format(*dice.sample(_WORDS, 6))
        if text not in given:
            given.add(text)
            yield text
