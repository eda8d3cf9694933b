"""Trains the encoder: `python -m training.encoder --weights DIR --data DIR --out DIR`.

Every step mixes groups of look-alike questions with labelled pairs. Two losses: vectors of one answer's wordings must be nearer
than those of its look-alikes (supervised contrast, arXiv 2004.11362), and the verdict on sampled pairs must match their label.
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from training import data
from training.data import Group, Pair, Question, worn
from training.model import MAX_TOKENS, States, TextModel
from training.quality import Scores, quality

TEMPERATURE = 0.06
CONTRAST = 0.4
PAIRS_PER_FAMILY = 36
CROSS_LANGUAGE = 0.15
WORN = 0.15
"""How many texts are seen as people type in a hurry."""


@dataclass(frozen=True, slots=True)
class Step:
    """Texts with their answers' keys ("" where a text takes part in pairs only), and pairs by index with targets."""

    texts: list[str]
    keys: list[str]
    pairs: list[tuple[int, int, float]]


class Sampler:
    """Draws steps."""

    def __init__(self, families: Sequence[Group], intents: Sequence[Group], pairs: Sequence[Pair], seed: int) -> None:
        self._chance = random.Random(seed)
        self._families = list(families)
        self._sources = {name: [g for g in intents if g.source == name] for name in ("banking77", "clinc150", "xquad")}
        self._near = {name: _near(groups) for name, groups in self._sources.items() if name != "xquad"}
        self._pairs = list(pairs)
        self._queue: list[Group] = []

    def step(self, families: int, others: int, pairs: int) -> Step:
        """`families` written groups, `others` of public intents, and `pairs` labelled ones."""
        step = Step([], [], [])
        for _ in range(families if self._families else 0):
            if not self._queue:
                self._queue = self._chance.sample(self._families, len(self._families))
            self._family(self._queue.pop(), step)
        for _ in range(others):
            name = self._chance.choices(("banking77", "clinc150", "xquad"), (5, 2, 3))[0]
            if name == "xquad":
                group = self._chance.choice(self._sources[name])
                keys = list({q.key for q in group.questions})
                some = set(self._chance.sample(keys, min(5, len(keys))))
                self._add(step, [q for q in group.questions if q.key in some], group.same, 14)
            else:
                self._intents(name, step)
        for pair in self._chance.sample(self._pairs, min(pairs, len(self._pairs))):
            i = len(step.texts)
            step.texts.extend((pair.a, pair.b))
            step.keys.extend(("", ""))
            step.pairs.append((i, i + 1, pair.same) if self._chance.random() < 0.5 else (i + 1, i, pair.same))
        return step

    def _family(self, group: Group, step: Step) -> None:
        by_key: dict[tuple[str, str], list[Question]] = {}
        for question in group.questions:
            by_key.setdefault((question.key, question.language), []).append(question)
        keys = sorted({key for key, _ in by_key})
        keep = set(self._chance.sample(keys, min(4, len(keys))))
        chosen = [
            question
            for (key, _), wordings in sorted(by_key.items())
            if key in keep
            for question in self._chance.sample(wordings, min(3, len(wordings)))
        ]
        self._add(step, chosen, group.same, PAIRS_PER_FAMILY)

    def _intents(self, name: str, step: Step) -> None:
        groups = self._sources[name]
        near = self._chance.choice(self._near[name])
        some = [near[0], *self._chance.sample(near[1:], 3)]
        chosen = [q for i in some for q in self._chance.sample(groups[i].questions, 3)]
        self._add(step, chosen, groups[0].same, 14)

    def _add(self, step: Step, questions: list[Question], same: float, pairs: int) -> None:
        """Puts questions into the step and draws pairs of them: as many of one answer as of two."""
        start = len(step.texts)
        step.texts.extend(worn(q.text, self._chance, WORN) for q in questions)
        step.keys.extend(q.key for q in questions)
        alike, unlike = list[tuple[int, int]](), list[tuple[int, int]]()
        for i, first in enumerate(questions):
            for j, second in enumerate(questions[:i]):
                if first.language != second.language and self._chance.random() > CROSS_LANGUAGE:
                    continue
                pair = (start + i, start + j) if self._chance.random() < 0.5 else (start + j, start + i)
                (alike if first.key == second.key else unlike).append(pair)
        for found, target in ((alike, same), (unlike, 0.0)):
            for i, j in self._chance.sample(found, min(pairs // 2, len(found))):
                step.pairs.append((i, j, target))


def _near(groups: Sequence[Group]) -> list[list[int]]:
    """For each group the eight most like it by their words, itself first."""
    counts: list[dict[str, float]] = []
    for group in groups:
        words: dict[str, float] = {}
        for question in group.questions:
            for word in question.text.lower().split():
                words[word] = words.get(word, 0.0) + 1
        counts.append(words)
    vocabulary = {word: i for i, word in enumerate(sorted({w for c in counts for w in c}))}
    table = np.zeros((len(groups), len(vocabulary)))
    for row, words in enumerate(counts):
        for word, count in words.items():
            table[row, vocabulary[word]] = np.log1p(count)
    table *= np.log(len(groups) / (1e-9 + (table > 0).sum(0)))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return [[int(j) for j in np.argsort(-row)[:9]] for row in table @ table.T]


class Reader:
    """Texts to padded ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids, (n, tokens) padded with 1, and lengths, (n,)."""
        encoded = [e.ids for e in self._tokenizer.encode_batch(list(texts))]
        lengths = torch.tensor([len(ids) for ids in encoded])
        ids = torch.ones(len(encoded), int(lengths.max()), dtype=torch.long)
        for row, values in enumerate(encoded):
            ids[row, : len(values)] = torch.tensor(values)
        return ids, lengths


def read(model: TextModel, reader: Reader, texts: Sequence[str], chunk: int = 48) -> States:
    """States of the texts in their order; read in chunks of like length, since padding is computed too."""
    ids, lengths = reader(texts)
    order = torch.argsort(lengths)
    pieces = []
    for some in order.split(chunk):
        width = int(lengths[some].max())
        hidden = model.read(ids[some, :width], lengths[some]).hidden
        pieces.append(nn.functional.pad(hidden, (0, 0, 0, ids.shape[1] - width)))
    back = torch.argsort(order)
    return States(torch.cat(pieces)[back], lengths)


def judge(model: TextModel, states: States, pairs: Sequence[tuple[int, int]], chunk: int = 48) -> Tensor:
    """Logits, (pairs,), in the order of `pairs`."""
    a, b = torch.tensor([i for i, _ in pairs]), torch.tensor([j for _, j in pairs])
    order = torch.argsort(states.lengths[a] + states.lengths[b])
    logits = torch.cat([model.judge(states, a[some], b[some]) for some in order.split(chunk)])
    return logits[torch.argsort(order)]


def contrast(vectors: Tensor, keys: Sequence[str]) -> Tensor:
    """Supervised contrastive loss over the questions that have a key."""
    index = torch.tensor([i for i, key in enumerate(keys) if key])
    numbers = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    labels = torch.tensor([numbers[keys[i]] for i in index.tolist()])
    vectors = vectors[index]
    alike = vectors @ vectors.T / TEMPERATURE
    alike = alike.masked_fill(torch.eye(len(index), dtype=torch.bool), -1e4)
    positive = (labels[:, None] == labels[None, :]) & ~torch.eye(len(index), dtype=torch.bool)
    logs = alike - alike.logsumexp(1, keepdim=True)
    counts = positive.sum(1)
    kept = counts > 0
    return -((logs * positive).sum(1)[kept] / counts[kept]).mean()


def evaluate(model: TextModel, reader: Reader, groups: Sequence[Group], seed: int = 1) -> dict[str, Scores]:
    """Quality on pairs of the groups, by language; and of cosine alone."""
    chance = random.Random(seed)
    texts: list[str] = []
    pairs: list[tuple[int, int, bool, str]] = []
    for group in groups:
        start = len(texts)
        texts.extend(q.text for q in group.questions)
        alike, unlike = list[tuple[int, int, bool, str]](), list[tuple[int, int, bool, str]]()
        for i, first in enumerate(group.questions):
            for j, second in enumerate(group.questions[:i]):
                if first.language == second.language:
                    same = first.key == second.key
                    (alike if same else unlike).append((start + i, start + j, same, first.language))
        pairs += chance.sample(alike, min(10, len(alike))) + chance.sample(unlike, min(10, len(unlike)))
    model.eval()
    with torch.no_grad():
        states = read(model, reader, texts)
        vectors = model.vectors(states)
        logits = judge(model, states, [(i, j) for i, j, _, _ in pairs]).numpy()
    cosines = np.array([float(vectors[i] @ vectors[j]) for i, j, _, _ in pairs])
    labels = np.array([same for _, _, same, _ in pairs])
    languages = np.array([language for *_, language in pairs])
    model.train()
    found = {}
    for language in ("en", "es"):
        mine = languages == language
        found[language] = quality(logits[mine], labels[mine])
        found[f"{language} cosine"] = quality(cosines[mine], labels[mine])
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder of a BertModel with tokenizer.json")
    parser.add_argument("--data", type=Path, required=True, help="the shared data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="state of an earlier stage to go on from")
    parser.add_argument("--steps", type=int, default=1000, help="over which the rate falls")
    parser.add_argument("--stop", type=int, help="step to stop at; all of them unless given")
    parser.add_argument("--families", type=int, default=4, help="written groups a step")
    parser.add_argument("--others", type=int, default=2, help="groups of public intents a step")
    parser.add_argument("--pairs", type=int, default=8, help="labelled public pairs a step")
    parser.add_argument("--rate", type=float, default=1.5e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    model = TextModel.pretrained(args.weights)
    reader = Reader(Tokenizer.from_file(str(args.weights / "tokenizer.json")))
    if args.start:
        model.load_state_dict(torch.load(args.start))
    model.embeddings.requires_grad_(False)
    written = data.families()
    held_out = [g for g in written if g.topic in data.DEVELOPMENT_TOPICS]
    sampler = Sampler(
        [g for g in written if g.topic not in data.DEVELOPMENT_TOPICS],
        data.intents(args.data),
        data.pairs(args.data),
        args.seed,
    )
    slow = [p for layer in model.lower for p in layer.parameters()]
    fast = [p for layer in model.upper for p in layer.parameters()] + [model.sides]
    optimizer = torch.optim.AdamW(
        [
            {"params": slow, "lr": args.rate * 0.6},
            {"params": fast, "lr": args.rate},
            {"params": list(model.head.parameters()), "lr": args.rate * 5},
        ],
        weight_decay=0.01,
    )
    warm = max(1, min(60, args.steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, max(0.02, (args.steps - s) / max(1, args.steps - warm)))
    )
    args.out.mkdir(parents=True, exist_ok=True)
    model.train()
    started, seen = time.monotonic(), 0
    totals = np.zeros(2)
    last = args.stop or args.steps
    for number in range(1, last + 1):
        step = sampler.step(args.families, args.others, args.pairs)
        states = read(model, reader, step.texts)
        logits = judge(model, states, [(i, j) for i, j, _ in step.pairs])
        targets = torch.tensor([same for *_, same in step.pairs])
        verdict = nn.functional.binary_cross_entropy_with_logits(logits, targets)
        near = contrast(model.vectors(states), step.keys)
        (verdict + CONTRAST * near).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        seen += len(step.pairs)
        totals = (
            0.98 * totals + 0.02 * np.array([verdict.item(), near.item()])
            if number > 1
            else np.array([verdict.item(), near.item()])
        )
        if number % 20 == 0:
            pace = (time.monotonic() - started) / number
            print(
                f"step {number}/{args.steps} verdict {totals[0]:.3f} contrast {totals[1]:.3f} pairs {seen} "
                f"{pace:.2f} s/step, {pace * (args.steps - number) / 60:.0f} min to go",
                flush=True,
            )
        if number % 200 == 0 or number == last:
            torch.save(model.state_dict(), args.out / "state.pt")
            if held_out:
                scores = evaluate(model, reader, held_out)
                print(json.dumps({name: value.rounded() for name, value in scores.items()}), flush=True)
    (args.out / "run.json").write_text(json.dumps({"command": sys.argv[1:], "pairs": seen}, default=str))


if __name__ == "__main__":
    main()
