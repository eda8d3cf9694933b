"""Query-aware extraction: which units of a text answer a question, under a token budget."""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.compressor.domain.units import Paragraph, Unit

K1 = 1.2
B = 0.75
# Beside a unit's own score: its paragraph's, its better neighbour's, and for the first of a paragraph, which says what the
# paragraph is about, a share of the best unit's.
PARAGRAPH_WEIGHT = 1.0
NEIGHBOUR_WEIGHT = 0.5
LEAD_WEIGHT = 0.1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a unit stands."""

    paragraph: int
    unit: int


def bm25(documents: Sequence[Counter[str]], lengths: Sequence[int], query: Counter[str]) -> list[float]:
    """The score of each document for the query, 0 or more. Documents hold counts of query terms only."""
    if not documents:
        return []
    average = max(sum(lengths) / len(lengths), 1.0)
    frequency = Counter(term for document in documents for term in document)
    idf = {term: math.log(1 + (len(documents) - n + 0.5) / (n + 0.5)) for term, n in frequency.items()}
    scores = []
    for document, length in zip(documents, lengths, strict=True):
        norm = K1 * (1 - B + B * length / average)
        scores.append(sum(query[term] * idf[term] * n * (K1 + 1) / (n + norm) for term, n in document.items()))
    return scores


def score_units(paragraphs: Sequence[Paragraph], query: str, terms: Callable[[str], list[str]]) -> list[list[float]]:
    """A score for each unit of each paragraph; all are 0 when the query shares no term with any."""
    wanted = Counter(terms(query))
    counts: list[Counter[str]] = []
    lengths: list[int] = []
    whole_counts: list[Counter[str]] = []
    whole_lengths: list[int] = []
    for paragraph in paragraphs:
        total: Counter[str] = Counter()
        length = 0
        for unit in paragraph.units:
            found = terms(unit.text)
            count = Counter(term for term in found if term in wanted)
            counts.append(count)
            lengths.append(len(found))
            total.update(count)
            length += len(found)
        whole_counts.append(total)
        whole_lengths.append(length)
    own = bm25(counts, lengths, wanted)
    whole = bm25(whole_counts, whole_lengths, wanted)
    lead = LEAD_WEIGHT * max(own, default=0.0)
    scores = []
    position = 0
    for paragraph, above in zip(paragraphs, whole, strict=True):
        mine = own[position : position + len(paragraph.units)]
        position += len(paragraph.units)
        around = [0.0, *mine, 0.0]
        scores.append(
            [
                score
                + PARAGRAPH_WEIGHT * above
                + NEIGHBOUR_WEIGHT * max(around[i], around[i + 2])
                + (lead if i == 0 else 0.0)
                for i, score in enumerate(mine)
            ]
        )
    return scores


def size_of(paragraphs: Sequence[Paragraph]) -> int:
    """Tokens of the paragraphs that `select` chooses from, the line breaks between them included."""
    return sum(_cost(unit, first=u == 0) for p in paragraphs if not p.verbatim for u, unit in enumerate(p.units))


def _cost(unit: Unit, *, first: bool) -> int:
    return unit.tokens + (first or "\n" in unit.gap)


def select(
    paragraphs: Sequence[Paragraph], scores: Sequence[Sequence[float]], budget: int, blocks: Sequence[range]
) -> set[Place]:
    """The units that fit into `budget` tokens, line breaks included: the best one of each block first, so that none ends up
    empty, then the best of all; equal scores in order of appearance.

    `blocks` are ranges of paragraphs. The title of a paragraph comes with the first unit that is taken from it. Verbatim
    paragraphs are neither chosen nor counted here: they stay.
    """
    chosen = _Selection(paragraphs, budget)
    ranked = {
        block: sorted((-score, p, u) for p in block if not paragraphs[p].verbatim for u, score in enumerate(scores[p]))
        for block in blocks
    }
    for best in sorted(order[0] for order in ranked.values() if order):
        chosen.take(best[1], best[2])
    for _, p, u in heapq.merge(*ranked.values()):
        chosen.take(p, u)
    return chosen.kept


class _Selection:
    """Units taken so far, and the tokens that are left."""

    def __init__(self, paragraphs: Sequence[Paragraph], budget: int) -> None:
        self.kept: set[Place] = set()
        self._paragraphs = paragraphs
        self._opened: set[int] = set()
        self._left = budget

    def take(self, p: int, u: int) -> None:
        """Takes a unit, with its paragraph's title, unless it is taken already or does not fit."""
        if Place(p, u) in self.kept:
            return
        paragraph = self._paragraphs[p]
        opens = p not in self._opened
        cost = _cost(paragraph.units[u], first=opens)
        places = [Place(p, u)]
        if opens and paragraph.titled and u != 0:
            cost += paragraph.units[0].tokens + 1
            places.append(Place(p, 0))
        if cost <= self._left:
            self._left -= cost
            self._opened.add(p)
            self.kept.update(places)


def assemble(paragraphs: Sequence[Paragraph], kept: set[Place], within: range) -> str:
    """What is kept of the paragraphs `within`, in its order, with the white space that stood before each unit."""
    texts = []
    for p in within:
        paragraph = paragraphs[p]
        chosen = [unit for u, unit in enumerate(paragraph.units) if paragraph.verbatim or Place(p, u) in kept]
        if chosen:
            texts.append(chosen[0].text + "".join(unit.gap + unit.text for unit in chosen[1:]))
    return "\n\n".join(texts)
