"""What a fresh answer, or a caller's word, can teach about a lookup: carried outside of the cache, and holding no text."""

import json
import re
from dataclasses import dataclass
from typing import TypeGuard

from services.cache.domain.signals import FEATURES

_VERSION = 1
_KEY = re.compile(r"[0-9a-f]{64}")
_MAX_BYTES = 4_096


@dataclass(frozen=True, slots=True)
class Lesson:
    """A lookup and the entry that it served or might have served.

    `asked` is the exact key of the question and `entry_id` the entry, 64 hexadecimal digits each; `born` is when the entry was
    written, in Unix seconds. `semantic`: they are two questions. `features` are those of the pair, None where no verifier read
    it, and `probability` what was made of them.
    """

    asked: str
    entry_id: str
    born: float
    semantic: bool
    features: tuple[float, ...] | None = None
    probability: float | None = None

    def pack(self) -> bytes:
        """As bytes."""
        fields: dict[str, object] = {
            "v": _VERSION,
            "a": self.asked,
            "e": self.entry_id,
            "b": self.born,
            "s": int(self.semantic),
        }
        if self.features is not None:
            fields["f"] = [round(value, 5) for value in self.features]
        if self.probability is not None:
            fields["p"] = round(self.probability, 6)
        return json.dumps(fields, separators=(",", ":")).encode()


def unpack(data: bytes) -> Lesson | None:
    """The lesson; None for bytes that are not one of this version's."""
    if not 0 < len(data) <= _MAX_BYTES:
        return None
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("v") != _VERSION:
        return None
    asked, entry_id, born = fields.get("a"), fields.get("e"), fields.get("b")
    if not (
        isinstance(asked, str) and _KEY.fullmatch(asked) and isinstance(entry_id, str) and _KEY.fullmatch(entry_id)
    ):
        return None
    features, probability = fields.get("f"), fields.get("p")
    if not _is_number(born) or fields.get("s") not in (0, 1):
        return None
    if features is not None:
        if not isinstance(features, list) or len(features) != len(FEATURES) or not all(map(_is_number, features)):
            return None
        features = tuple(float(value) for value in features)
    if probability is not None and not (_is_number(probability) and 0 <= probability <= 1):
        return None
    return Lesson(asked, entry_id, float(born), bool(fields["s"]), features, probability)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12  # NaN is not
