"""`llmmesh evaluate router`: the score of each question, higher = needs the strong model."""

import time
from collections import Counter
from pathlib import Path

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from services.cli.evaluate.rows import read_rows, write_rows
from services.common.yaml_file import ConfigError
from services.router.domain.difficulty import judge_text


class _Row(BaseModel):
    """A question; other columns are ignored."""

    model_config = ConfigDict(extra="ignore")

    id: str = ""
    prompt: str = Field(min_length=1, validation_alias=AliasChoices("prompt", "question", "text"))
    weak_correct: bool | None = None
    strong_correct: bool | None = None


def run(file: Path, out: Path | None = None) -> dict[str, object]:
    """Scores each row's `prompt` (or `question`, `text`) from 0 (simple) to 1 (reasoning).

    `out` gets a line per row: `id`, `score`, `tier`. With the columns `weak_correct` and `strong_correct`, `quality` says how
    good the answers are (mean correctness) when the hardest 0, 10, … 100% of the rows go to the strong model.
    """
    rows = list(read_rows(file, _Row))
    if not rows:
        raise ConfigError(f"{file}: no rows")
    started = time.process_time()
    judged = [judge_text(row.prompt) for row in rows]
    cpu_seconds = time.process_time() - started
    if out is not None:
        write_rows(
            out,
            [{"id": r.id, "score": j.score, "tier": j.tier.name.lower()} for r, j in zip(rows, judged, strict=True)],
        )
    result: dict[str, object] = {
        "rows": len(rows),
        "tiers": dict(Counter(j.tier.name.lower() for j in judged)),
        "mean_score": sum(j.score for j in judged) / len(rows),
        "cpu_ms": 1000 * cpu_seconds / len(rows),
    }
    labelled = [
        (j.score, r.weak_correct, r.strong_correct)
        for r, j in zip(rows, judged, strict=True)
        if r.weak_correct is not None and r.strong_correct is not None
    ]
    if labelled:
        labelled.sort(key=lambda entry: -entry[0])
        result["quality"] = {
            f"{percent}%": round(
                sum(
                    strong if index < len(labelled) * percent / 100 else weak
                    for index, (_, weak, strong) in enumerate(labelled)
                )
                / len(labelled),
                4,
            )
            for percent in range(0, 101, 10)
        }
    return result
