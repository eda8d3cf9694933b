"""What can go without any question at stake: paragraphs that occur twice (and, as text is parsed, superfluous blank lines)."""

from services.compressor.domain.units import Paragraph

# Short repeats ("Yes.", "---", a heading) carry structure; only longer ones are copies.
_SHORTEST_COPY_TOKENS = 12


def without_copies(paragraphs: list[Paragraph], seen: set[str]) -> list[Paragraph]:
    """Drops paragraphs that already occurred, here or in `seen`, which it adds to. Code and JSON always stay."""
    kept = []
    for paragraph in paragraphs:
        if paragraph.verbatim or sum(unit.tokens for unit in paragraph.units) < _SHORTEST_COPY_TOKENS:
            kept.append(paragraph)
            continue
        key = " ".join(paragraph.text.split())
        if key not in seen:
            seen.add(key)
            kept.append(paragraph)
    return kept
