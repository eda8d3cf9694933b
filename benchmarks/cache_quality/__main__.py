"""`python -m benchmarks.cache_quality`: hits against wrong hits, the cache's own verdict beside what others decide by."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cache_quality import contestants, measure, plot, sets
from benchmarks.cache_quality.contestants import Contestant
from benchmarks.cache_quality.models import Remembered, remembered
from benchmarks.cache_quality.results import Curve, Results, Row
from benchmarks.cache_quality.sets import BANKING, HELP_DESK, QQP, Pairs, Sets, Stream
from benchmarks.cache_quality.table import table
from benchmarks.machine import machine
from services.cache.convert import rules_of
from services.cache.domain.calibration import Calibration
from services.cache.domain.ports import CacheRules
from services.common.policy import SHIPPED, Policy
from services.common.prices import PriceBook
from services.embedder.adapters.loader import LOOKALIKE, load_encoder
from services.embedder.adapters.lookalike import Lookalike
from services.embedder.settings import EmbedderSettings

OTHERS = ("all-MiniLM-L6-v2", "all-mpnet-base-v2", "use-multilingual-v3")
SEED = 1
QUICK = 0.1

Measured = tuple[list[Row], list[Curve]]
Job = Callable[[], Measured]


def main() -> None:
    """Measures, prints the table, writes the file and the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache_quality", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of every set: shows that it runs, proves nothing")
    parser.add_argument("--model", type=Path, help="folder of an exported text model, in place of the shipped one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "cache_quality.json")
    options = parser.parse_args()
    found = sets.load(sets.data_folder(), SEED, QUICK if options.quick else 1.0)
    results: Results = {
        "machine": machine(),
        "quick": options.quick,
        "seed": SEED,
        "skipped": list(found.skipped),
        "encoders": [],
        "rows": [],
        "curves": [],
    }
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        texts = _texts(found)
        task = progress.add_task("", total=1)
        for encoder, own in _encoders(options.model, results["skipped"]):
            name = encoder.info.model_id
            progress.reset(task, description=f"{name}: reading", total=len(texts))
            encoder.read(texts, lambda done: progress.advance(task, done))
            jobs = list(_ours(found, encoder) if own else []) + list(_plain(found, encoder, own=own))
            progress.reset(task, description=f"{name}: deciding", total=len(jobs))
            for job in jobs:
                rows, curves = job()
                results["rows"] += rows
                results["curves"] += curves
                progress.advance(task)
            results["encoders"].append(encoder.cost())
    Console(width=max(console.width, 170)).print(table(results))
    for line in results["skipped"]:
        print(f"left out: {line}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")
    plot.save(results, options.out.with_suffix(".png"))


def _encoders(model: Path | None, skipped: list[str]) -> Iterator[tuple[Remembered, bool]]:
    """The encoders, one after the other, and whether each is our own; what cannot be loaded is skipped with the reason."""
    settings = EmbedderSettings.load()
    yield remembered(Lookalike(model, threads=1) if model else load_encoder(LOOKALIKE, settings)), True
    for name in OTHERS:
        try:
            encoder = load_encoder(name, settings)
        except (FileNotFoundError, ImportError) as error:
            skipped.append(f"{name}: {error}")
            continue
        yield remembered(encoder), False


def _ours(found: Sets, encoder: Remembered) -> Iterator[Job]:
    """The cache and its parts. Parts are compared on the pairs, the help desk and one order of Banking77."""
    rules = _rules()
    for contestant in contestants.ours(encoder, rules, Calibration.load()):
        for stream in found.streams:
            if contestant.whole or (stream.order == 1 and stream.name in (BANKING, HELP_DESK)):
                yield partial(_our_stream, stream, encoder, contestant, rules)
        for pairs in found.pairs:
            if contestant.whole or (pairs.name != QQP and not contestant.of_streams):
                yield partial(_our_pairs, pairs, encoder, contestant, rules)


def _plain(found: Sets, encoder: Remembered, *, own: bool) -> Iterator[Job]:
    for stream in found.streams:
        yield partial(_plain_stream, stream, encoder, own=own)
    for pairs in found.pairs:
        yield partial(_plain_pairs, pairs, encoder, own=own)


def _our_stream(stream: Stream, encoder: Remembered, contestant: Contestant, rules: CacheRules) -> Measured:
    return [measure.our_stream(stream, encoder, contestant, rules)], []


def _our_pairs(pairs: Pairs, encoder: Remembered, contestant: Contestant, rules: CacheRules) -> Measured:
    row, curve = measure.our_pairs(pairs, encoder, contestant, rules)
    # The probabilities are the same at any budget: one curve is enough.
    return [row], [curve] if contestant.delta == contestants.DELTAS[0] else []


def _plain_stream(stream: Stream, encoder: Remembered, *, own: bool) -> Measured:
    rows, curve = measure.plain_stream(stream, encoder, own=own)
    return rows, [curve] if stream.order == 1 else []


def _plain_pairs(pairs: Pairs, encoder: Remembered, *, own: bool) -> Measured:
    rows, curve = measure.plain_pairs(pairs, encoder, own=own)
    return rows, [curve]


def _rules() -> CacheRules:
    return rules_of(Policy.load(SHIPPED, PriceBook.load()))["default"]


def _texts(found: Sets) -> Sequence[str]:
    asked = [text for stream in found.streams for text, _ in stream.items]
    return list(dict.fromkeys([*asked, *(text for pairs in found.pairs for a, b, _ in pairs.pairs for text in (a, b))]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
