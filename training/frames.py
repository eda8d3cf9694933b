"""Questions put together from parts: a way of asking, an action or a thing, a condition.

`frames/kinds_*.txt` holds ways of asking by kind ("how", "cost"), `frames/facts_*.txt` attributes and the things that have them,
`frames/pairs_*.txt` what one thing does to another, every other file actions and conditions of one domain. Wordings of one part
are interchangeable; another part is another question. So the same words serve questions that are alike and questions that are
not: only their meaning tells them apart.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from training.data import Group, Question

FRAMES = Path(__file__).parent / "frames"
DEVELOPMENT_DOMAINS = frozenset({"hotels", "insurance", "saas", "facts_sport", "pairs_travel"})
"""Their questions train no weight."""

SYMMETRIC = frozenset({"met", "together"})
"""Relations that ask the same the other way round."""

LANGUAGES = ("en", "es")
QUESTIONS = 6
"""Different questions in one drawn group, each in `WORDINGS` wordings a language."""
WORDINGS = 3

_IN_FRONT = 0.2
_UNCONDITIONAL = 0.4


@dataclass(frozen=True, slots=True)
class Part:
    """One meaning and its wordings by language."""

    name: str
    wordings: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Domain:
    """What can be asked about. `heads` are actions, attributes or relations, `tails` conditions or things."""

    name: str
    heads: tuple[Part, ...]
    tails: tuple[Part, ...]

    @property
    def of_facts(self) -> bool:
        """Whether a head asks about one thing."""
        return self.name.startswith("facts_")

    @property
    def of_pairs(self) -> bool:
        """Whether a head asks about two things, in their order; neither of both needs a way of asking."""
        return self.name.startswith("pairs_")


def load(folder: Path = FRAMES) -> tuple[tuple[Part, ...], tuple[Domain, ...]]:
    """The ways of asking, and the domains. Raises ValueError naming file and line of what cannot be read."""
    kinds: list[Part] = []
    domains = []
    for path in sorted(folder.glob("*.txt")):
        parts = _parts(path)
        if path.stem.startswith("kinds_"):
            kinds += parts.get("#", ())
        else:
            domains.append(Domain(path.stem, tuple(parts["="]), tuple(parts["?"])))
    return tuple(kinds), tuple(domains)


def draw(kinds: Sequence[Part], domain: Domain, chance: random.Random) -> Group:
    """Questions of a domain that differ in one part from one another or from the first."""
    if domain.of_pairs:
        return _draw_pairs(domain, chance)
    head, tail, kind = chance.choice(domain.heads), _tail(domain, chance), chance.choice(kinds)
    asked = {_key(domain, kind, head, tail): (kind, head, tail)}
    for _ in range(8 * QUESTIONS):
        if len(asked) == QUESTIONS:
            break
        # From any of those that are there, one step away: look-alikes of look-alikes.
        kind, head, tail = chance.choice(list(asked.values()))
        match chance.choice(("head", "tail") if domain.of_facts else ("head", "tail", "kind")):
            case "head":
                head = chance.choice(domain.heads)
            case "tail":
                tail = _tail(domain, chance)
            case _:
                kind = chance.choice(kinds)
        asked[_key(domain, kind, head, tail)] = (kind, head, tail)
    questions = []
    for key, (kind, head, tail) in asked.items():
        for language in LANGUAGES:
            said = {_said(domain, kind, head, tail, language, chance) for _ in range(WORDINGS)}
            questions += [Question(text, language, key) for text in sorted(said)]
    return Group("frames", domain.name, tuple(questions))


def _draw_pairs(domain: Domain, chance: random.Random) -> Group:
    """A relation of two things, the same the other way round, another relation of them, and with a third thing."""
    (head, other), (a, b, c) = chance.sample(domain.heads, 2), chance.sample(domain.tails, 3)
    questions = []
    for relation, first, second in (
        (head, a, b),
        (head, b, a),
        (other, a, b),
        (other, b, a),
        (head, a, c),
        (head, c, b),
    ):
        ends = (first.name, second.name)
        key = "/".join((domain.name, relation.name, *(sorted(ends) if relation.name in SYMMETRIC else ends)))
        for language in LANGUAGES:
            said = {
                chance.choice(relation.wordings[language])
                .replace("{a}", chance.choice(first.wordings[language]))
                .replace("{b}", chance.choice(second.wordings[language]))
                for _ in range(WORDINGS)
            }
            questions += [Question(text, language, key) for text in sorted(said)]
    return Group("frames", domain.name, tuple(questions))


def groups(names: frozenset[str], count: int, seed: int) -> list[Group]:
    """`count` drawn groups of each of the domains."""
    chance = random.Random(seed)
    kinds, domains = load()
    return [draw(kinds, domain, chance) for domain in domains if domain.name in names for _ in range(count)]


def _tail(domain: Domain, chance: random.Random) -> Part | None:
    return None if not domain.of_facts and chance.random() < _UNCONDITIONAL else chance.choice(domain.tails)


def _key(domain: Domain, kind: Part, head: Part, tail: Part | None) -> str:
    return "/".join((domain.name, "" if domain.of_facts else kind.name, head.name, "" if tail is None else tail.name))


def _said(domain: Domain, kind: Part, head: Part, tail: Part | None, language: str, chance: random.Random) -> str:
    words = chance.choice(head.wordings[language])
    condition = "" if tail is None else chance.choice(tail.wordings[language])
    if domain.of_facts:
        return words.replace("{e}", condition)
    frame = chance.choice(kind.wordings[language])
    if condition and chance.random() < _IN_FRONT and frame[0] in "¿WHCI":
        question = frame.replace("{do}", words)
        asked = question if question[0] == "¿" or question.startswith("I") else question[0].lower() + question[1:]
        return f"{condition[0].upper()}{condition[1:]}, {asked}"
    return frame.replace("{do}", f"{words} {condition}".strip())


def _parts(path: Path) -> dict[str, list[Part]]:
    """Parts by the sign before their names: "#", "=" or "?"."""
    found: dict[str, list[Part]] = {}
    wordings: dict[str, list[str]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        if line[:2] in ("# ", "= ", "? "):
            wordings = {language: [] for language in LANGUAGES}
            found.setdefault(line[0], []).append(Part(line[2:], wordings))  # type: ignore[arg-type]
        elif line:
            if not wordings:
                raise ValueError(f"{path}:{number}: a wording before any name")
            spanish = line.startswith(">")
            wordings["es" if spanish else "en"].append(line[1:].strip() if spanish else line)
    return {
        sign: [Part(part.name, {name: tuple(some) for name, some in part.wordings.items()}) for part in parts]
        for sign, parts in found.items()
    }
