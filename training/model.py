"""The encoder: the lower layers of a transformer read a question, and the mean of their states is its vector.

While it is trained, the upper layers judge pairs of questions from those states: an auxiliary loss that keeps in the states
what tells look-alikes apart (the split is that of DeFormer, arXiv 2005.00697). They are not shipped: the verifier is a model
of its own.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertModel

HIDDEN = 384
LOWER = 8
MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class States:
    """Token states of n questions, (n, tokens, HIDDEN), and how many tokens each has, (n,)."""

    hidden: Tensor
    lengths: Tensor

    @property
    def mask(self) -> Tensor:
        """(n, tokens), true where there is a token."""
        return torch.arange(self.hidden.shape[1])[None, :] < self.lengths[:, None]


def pretrained_bert(folder: Path) -> BertModel:
    """The weights to start from. Without dropout, which costs a CPU more time than it brings in few steps."""
    return BertModel.from_pretrained(
        folder,
        add_pooling_layer=False,
        attn_implementation="sdpa",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


class TextModel(nn.Module):
    """Encoder and auxiliary judge over one transformer."""

    def __init__(self, bert: BertModel, lower: int = LOWER) -> None:
        super().__init__()
        self.embeddings = bert.embeddings
        self.lower = nn.ModuleList(bert.encoder.layer[:lower])
        self.upper = nn.ModuleList(bert.encoder.layer[lower:])
        self.sides = nn.Parameter(torch.zeros(2, HIDDEN))
        self.head = nn.Linear(4 * HIDDEN, 1)
        nn.init.normal_(self.sides, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def pretrained(cls, folder: Path) -> "TextModel":
        """From a folder with a BertModel."""
        return cls(pretrained_bert(folder))

    def read(self, ids: Tensor, lengths: Tensor) -> States:
        """Token ids, (n, tokens) padded with 1, to the lower layers' states."""
        hidden = self.embeddings(input_ids=ids)
        hidden = _through(self.lower, hidden, lengths)
        return States(hidden, lengths)

    @staticmethod
    def vectors(states: States) -> Tensor:
        """Unit vectors, (n, HIDDEN)."""
        mask = states.mask.unsqueeze(-1).to(states.hidden.dtype)
        return nn.functional.normalize((states.hidden * mask).sum(1) / mask.sum(1), dim=1)

    def judge(self, states: States, a: Tensor, b: Tensor) -> Tensor:
        """Logits, (pairs,), for the questions with indices `a` and `b`, each (pairs,)."""
        first, second = states.lengths[a], states.lengths[b]
        total = first + second
        width = int(total.max())
        place = torch.arange(width)[None, :].expand(len(a), width)
        is_second = place >= first[:, None]
        row = torch.where(is_second, b[:, None], a[:, None])
        column = torch.where(is_second, place - first[:, None], place).clamp(max=states.hidden.shape[1] - 1)
        joint = states.hidden.reshape(-1, HIDDEN)[(row * states.hidden.shape[1] + column).reshape(-1)]
        joint = joint.reshape(len(a), width, HIDDEN) + self.sides[is_second.long()]
        joint = _through(self.upper, joint, total)
        inside = place < total[:, None]
        ma = mean(joint, inside & ~is_second)
        mb = mean(joint, inside & is_second)
        ca, cb = joint[:, 0], joint[torch.arange(len(a)), first]
        features = torch.cat([ca + cb, (ca - cb).abs(), (ma - mb).abs(), ma * mb], dim=1)
        return torch.as_tensor(self.head(features)).squeeze(-1)


def mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of the states, (n, tokens, HIDDEN), over the tokens of `mask`, (n, tokens)."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def _through(layers: nn.ModuleList, hidden: Tensor, lengths: Tensor) -> Tensor:
    """`hidden`, (n, tokens, HIDDEN), through `layers`; tokens past `lengths` are not looked at."""
    inside = torch.arange(hidden.shape[1])[None, :] < lengths[:, None]
    mask = None if bool(inside.all()) else inside[:, None, None, :].expand(-1, 1, hidden.shape[1], -1)
    for layer in layers:
        out = layer(hidden, attention_mask=mask)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden
