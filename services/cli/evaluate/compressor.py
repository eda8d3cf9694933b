"""`llmmesh evaluate compressor`: how much of what a question needs survives compression, on labelled data of one's own."""

import time
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict, Field

from services.cli.evaluate.rows import read_rows, write_rows
from services.common.chat import Chat, Message, Role, TextPart
from services.common.tokens import estimate_tokens
from services.common.yaml_file import ConfigError
from services.compressor.domain.compress import Order, compress


class _Document(BaseModel):
    title: str = ""
    text: str


class _Row(BaseModel):
    """A question and its context as `paragraphs`, `docs` or `context`; other fields are ignored."""

    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)

    id: str = ""
    question: str = Field(min_length=1)
    paragraphs: list[str] = Field(default_factory=list)
    docs: list[_Document] = Field(default_factory=list)
    context: str = ""
    answers: list[str] = Field(default_factory=list)

    @property
    def text(self) -> str:
        """The whole context, its pieces set off by blank lines."""
        documents = [f"{document.title}\n{document.text}".strip() for document in self.docs]
        return "\n\n".join(filter(None, [self.context, *self.paragraphs, *documents]))


def run(file: Path, rate: float, out: Path | None = None) -> dict[str, object]:
    """Compresses each row's context for its question at `rate` (above 0, up to 1; the service's floor does not apply).

    `file` is JSONL, plain or gzip: `question`, its context as `paragraphs` (texts), `docs` (`title`, `text`) or `context` (one
    text), and where known `answers`, texts of which one should survive. `out` gets a line per row: `id`, `kept` (the text),
    `original_tokens`, `kept_tokens`, `survived` (null without answers). The result has means per row: `answer_kept` is the share
    of rows with answers that kept one (null without any), `cpu_ms` this process's CPU time. Raises ConfigError naming the line.
    """
    if not 0 < rate <= 1:
        raise ConfigError(f"rate {rate:g} must be above 0, up to 1")
    results: list[dict[str, object]] = []
    original: list[int] = []
    kept: list[int] = []
    survived: list[bool] = []
    shortened = 0
    cpu_seconds = 0.0
    for row in read_rows(file, _Row):
        text = row.text
        chat = Chat((Message(Role.USER, (TextPart(text),)), Message(Role.USER, (TextPart(row.question),))))
        started = time.process_time()
        outcome = compress(Order(chat, rate=rate, min_block_tokens=0))
        cpu_seconds += time.process_time() - started
        rest = outcome.chat.messages[0].text
        shortened += outcome.applied
        original.append(estimate_tokens(text))
        kept.append(estimate_tokens(rest))
        found = any(answer in rest for answer in row.answers) if row.answers else None
        if found is not None:
            survived.append(found)
        tokens = {"original_tokens": original[-1], "kept_tokens": kept[-1]}
        results.append({"id": row.id, "kept": rest, **tokens, "survived": found})
    if not results:
        raise ConfigError(f"{file}: no rows")
    if out is not None:
        write_rows(out, results)
    return {
        "rows": len(results),
        "rate": rate,
        "labelled": len(survived),
        "answer_kept": fmean(survived) if survived else None,
        "original_tokens": fmean(original),
        "kept_tokens": fmean(kept),
        "kept_share": sum(kept) / max(sum(original), 1),
        "compressed": shortened,
        "cpu_ms": 1000 * cpu_seconds / len(results),
    }
