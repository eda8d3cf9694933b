"""Trains the verifier: `python -m training.verifier --weights DIR --data DIR --out DIR`.

A cross-encoder: both questions go through all layers together. Stage "mined" draws what a cache gets wrong: wordings of one
answer that share few words, and look-alikes that share many. Alone it would teach that shared words speak against one answer;
stage "matched" therefore draws both kinds with the same share of common words, and adds questions that have little to do with
each other; stage "framed" also puts questions together from parts (`frames.py`).
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertModel

from training import data, frames
from training.data import Group, Pair, Question, worn
from training.model import HIDDEN, MAX_TOKENS, mean, pretrained_bert
from training.quality import Scores, quality

FRAMED = 2
"""Groups of questions put together from parts that a step of stage "framed" takes besides."""
RELATED = 0.25
"""Share of them that is about what one thing does to another: few files, and nothing else teaches it."""
HARD = 0.7
"""Share of pairs that are mined; the others are drawn blindly, as most traffic is neither."""
SELF = 0.04
"""Share of pairs that are one question and the same with slips of the finger."""
CROSS_LANGUAGE = 0.1
STRANGERS = 4
"""Pairs a step of questions from different families."""


class Verifier(nn.Module):
    """P(one answer serves both) of two questions read together."""

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.embeddings = bert.embeddings
        self.layers = nn.ModuleList(bert.encoder.layer)
        self.sides = nn.Parameter(torch.randn(2, HIDDEN) * 0.02)
        self.head = nn.Linear(3 * HIDDEN, 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def pretrained(cls, folder: Path) -> "Verifier":
        """From a folder with a BertModel."""
        return cls(pretrained_bert(folder))

    def forward(self, ids: Tensor, second: Tensor, inside: Tensor) -> Tensor:
        """Token ids, whether each is of the second question, whether it is there; all (pairs, tokens). To logits, (pairs,)."""
        hidden = self.embeddings(input_ids=ids) + self.sides[second.long()]
        mask = None if bool(inside.all()) else inside[:, None, None, :].expand(-1, 1, ids.shape[1], -1)
        for layer in self.layers:
            out = layer(hidden, attention_mask=mask)
            hidden = out[0] if isinstance(out, tuple) else out
        ma, mb = mean(hidden, inside & ~second), mean(hidden, inside & second)
        return torch.as_tensor(self.head(torch.cat([hidden[:, 0], (ma - mb).abs(), ma * mb], dim=1))).squeeze(-1)


class Sampler:
    """Draws pairs with their targets."""

    def __init__(
        self, families: Sequence[Group], intents: Sequence[Group], pairs: Sequence[Pair], *, seed: int, stage: str
    ) -> None:
        self._chance = random.Random(seed)
        self._matched = stage != "mined"
        self._framed = stage == "framed"
        self._kinds, domains = frames.load()
        self._domains = [domain for domain in domains if domain.name not in frames.DEVELOPMENT_DOMAINS]
        self._related = [domain for domain in self._domains if domain.of_pairs]
        self._families = list(families)
        self._banking = [group for group in intents if group.source == "banking77"]
        self._parallel = [group for group in intents if group.source == "xquad"]
        self._public = list(pairs)
        self._queue: list[Group] = []

    def pairs(self, families: int, each: int, banking: int, public: int) -> list[tuple[str, str, float]]:
        """`each` pairs of every one of `families` groups, and some of the public sets."""
        chance = self._chance
        found: list[tuple[str, str, float]] = []
        for _ in range(families):
            if not self._queue:
                self._queue = chance.sample(self._families, len(self._families))
            found += self._of(self._queue.pop(), each)
        for _ in range(FRAMED if self._framed else 0):
            some = self._related if chance.random() < RELATED else self._domains
            found += self._of(frames.draw(self._kinds, chance.choice(some), chance), each)
        for _ in range(banking):
            one, other = chance.sample(self._banking, 2)
            a, b = chance.sample(one.questions, 2)
            found += [(a.text, b.text, 0.9), (a.text, chance.choice(other.questions).text, 0.0)]
        found += self._of(chance.choice(self._parallel), 2)
        for _ in range(STRANGERS if self._matched else 0):
            one, other = chance.sample(self._families, 2)
            first = chance.choice(one.questions)
            second = chance.choice([q for q in other.questions if q.language == first.language])
            found.append((first.text, second.text, 0.0))
        found += [(pair.a, pair.b, pair.same) for pair in chance.sample(self._public, public)]
        return [self._turned(pair) for pair in found]

    def _of(self, group: Group, count: int) -> list[tuple[str, str, float]]:
        chance = self._chance
        alike, unlike = list[tuple[Question, Question, float]](), list[tuple[Question, Question, float]]()
        grams = [_grams(question.text) for question in group.questions]
        for i, first in enumerate(group.questions):
            for j, second in enumerate(group.questions[:i]):
                if first.language != second.language and chance.random() > CROSS_LANGUAGE:
                    continue
                shared = len(grams[i] & grams[j]) / max(1, len(grams[i] | grams[j]))
                (alike if first.key == second.key else unlike).append((first, second, shared))
        if self._matched:
            return self._level(alike, unlike, count, group.same)
        found = []
        for some, target, pull in ((alike, 1.0, -8.0), (unlike, 0.0, 10.0)):
            if not some:
                continue
            weights = [float(np.exp(pull * shared)) for *_, shared in some]
            for _ in range(count // 2):
                mined = chance.random() < HARD
                first, second, _ = chance.choices(some, weights)[0] if mined else chance.choice(some)
                found.append((first.text, second.text, target * group.same))
        return found

    def _level(
        self,
        alike: Sequence[tuple[Question, Question, float]],
        unlike: Sequence[tuple[Question, Question, float]],
        count: int,
        same: float,
    ) -> list[tuple[str, str, float]]:
        """As many of both kinds, and in both the same share of common words."""
        if not alike or not unlike:
            return []
        chance = self._chance
        found = []
        for _ in range(count // 2):
            *_, share = chance.choice(alike if chance.random() < 0.5 else unlike)
            for some, target in ((alike, same), (unlike, 0.0)):
                near = sorted(some, key=lambda pair: abs(pair[2] - share))[:4]
                first, second, _ = chance.choice(near)
                found.append((first.text, second.text, target))
        return found

    def _turned(self, pair: tuple[str, str, float]) -> tuple[str, str, float]:
        chance = self._chance
        a, b, same = pair if chance.random() < 0.5 else (pair[1], pair[0], pair[2])
        if chance.random() < SELF:
            return a, worn(a, chance, 0.9), 1.0
        return worn(a, chance, 0.15), worn(b, chance, 0.15), same


def _grams(text: str) -> frozenset[str]:
    plain = f" {text.lower()} "
    return frozenset(plain[i : i + 4] for i in range(len(plain) - 3))


class Reader:
    """Pairs of texts to padded tensors."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer = tokenizer

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
        """Token ids of both texts of each pair."""
        first = self._tokenizer.encode_batch([a for a, _ in pairs])
        second = self._tokenizer.encode_batch([b for _, b in pairs])
        return [(a.ids, b.ids) for a, b in zip(first, second, strict=True)]


def logits(model: Verifier, encoded: Sequence[tuple[list[int], list[int]]], chunk: int = 24) -> Tensor:
    """Logits of the pairs, in their order; run in chunks of like length, since padding is computed too."""
    lengths = [len(a) + len(b) for a, b in encoded]
    order = sorted(range(len(encoded)), key=lengths.__getitem__)
    pieces = []
    for start in range(0, len(order), chunk):
        some = [encoded[i] for i in order[start : start + chunk]]
        width = max(len(a) + len(b) for a, b in some)
        ids = torch.ones(len(some), width, dtype=torch.long)
        second = torch.zeros(len(some), width, dtype=torch.bool)
        inside = torch.zeros(len(some), width, dtype=torch.bool)
        for row, (a, b) in enumerate(some):
            ids[row, : len(a) + len(b)] = torch.tensor(a + b)
            second[row, len(a) : len(a) + len(b)] = True
            inside[row, : len(a) + len(b)] = True
        pieces.append(model(ids, second, inside))
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return torch.cat(pieces)[back]


def evaluate(model: Verifier, reader: Reader, groups: Sequence[Group], each: int = 8) -> dict[str, Scores]:
    """Quality on blindly drawn pairs of the groups, by language."""
    chance = random.Random(1)
    pairs: list[tuple[str, str, bool, str]] = []
    for group in groups:
        for language in ("en", "es"):
            questions = [q for q in group.questions if q.language == language]
            every = [(a.text, b.text, a.key == b.key, language) for i, a in enumerate(questions) for b in questions[:i]]
            for label in (True, False):
                some = [pair for pair in every if pair[2] == label]
                pairs += chance.sample(some, min(each // 2, len(some)))
    model.eval()
    with torch.no_grad():
        found = logits(model, reader([(a, b) for a, b, *_ in pairs])).numpy()
    model.train()
    same = np.array([pair[2] for pair in pairs])
    languages = np.array([pair[3] for pair in pairs])
    return {language: quality(found[languages == language], same[languages == language]) for language in ("en", "es")}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder of a BertModel with tokenizer.json")
    parser.add_argument("--data", type=Path, required=True, help="the public sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="state of an earlier stage to go on from")
    parser.add_argument("--stage", choices=("mined", "matched", "framed"), default="mined")
    parser.add_argument("--steps", type=int, default=1000, help="over which the rate falls")
    parser.add_argument("--stop", type=int, help="step to stop at; all of them unless given")
    parser.add_argument("--rate", type=float, default=1.2e-4)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    model = Verifier.pretrained(args.weights)
    if args.start:
        model.load_state_dict(torch.load(args.start))
    model.embeddings.requires_grad_(False)
    reader = Reader(Tokenizer.from_file(str(args.weights / "tokenizer.json")))
    written = data.families()
    held_out = [g for g in written if g.topic in data.DEVELOPMENT_TOPICS]
    trained = [g for g in written if g.topic not in data.DEVELOPMENT_TOPICS]
    public = data.intents(args.data), data.pairs(args.data)
    sampler = Sampler(trained, *public, seed=args.seed, stage=args.stage)
    asked = frames.groups(frames.DEVELOPMENT_DOMAINS, 20, seed=1)
    optimizer = torch.optim.AdamW(
        [
            {"params": [*model.layers.parameters(), model.sides], "lr": args.rate},
            {"params": list(model.head.parameters()), "lr": args.rate * 5},
        ],
        weight_decay=0.01,
    )
    warm = max(1, args.steps // 15)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min((s + 1) / warm, max(0.02, (args.steps - s) / max(1, args.steps - warm)))
    )
    args.out.mkdir(parents=True, exist_ok=True)
    model.train()
    started, seen, average = time.monotonic(), 0, 0.0
    last = args.stop or args.steps
    for number in range(1, last + 1):
        pairs = sampler.pairs(families=2 if args.stage == "framed" else 3, each=12, banking=2, public=3)
        found = logits(model, reader([(a, b) for a, b, _ in pairs]))
        loss = nn.functional.binary_cross_entropy_with_logits(found, torch.tensor([same for *_, same in pairs]))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        seen += len(pairs)
        average = loss.item() if number == 1 else 0.97 * average + 0.03 * loss.item()
        if number % 20 == 0:
            pace = (time.monotonic() - started) / number
            left = pace * (args.steps - number) / 60
            print(
                f"step {number}/{args.steps} loss {average:.3f} pairs {seen} {pace:.2f} s/step, {left:.0f} min",
                flush=True,
            )
        if number % 120 == 0 or number == last:
            torch.save(model.state_dict(), args.out / "state.pt")
            scores = evaluate(model, reader, held_out)
            scores |= {f"{name} frames": value for name, value in evaluate(model, reader, asked).items()}
            print(json.dumps({name: value.rounded() for name, value in scores.items()}), flush=True)
    (args.out / "run.json").write_text(json.dumps({"command": sys.argv[1:], "pairs": seen}, default=str))


if __name__ == "__main__":
    main()
