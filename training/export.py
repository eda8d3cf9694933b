"""Writes the trained models as int8 ONNX graphs: `python -m training.export --weights DIR --encoder F --verifier F --out DIR`.

`encoder.onnx`: token ids of one question to its vector. `verifier.onnx`: token ids of two questions to the log-odds that one
answer serves both. Each takes one question or pair: int8 activations are scaled over the whole input, so a batch's neighbours
would change its result.
"""

import argparse
import shutil
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from training.model import TextModel
from training.verifier import Verifier

ENCODER, VERIFIER, TOKENIZER = "encoder.onnx", "verifier.onnx", "tokenizer.json"


class _Encoder(nn.Module):
    def __init__(self, model: TextModel) -> None:
        super().__init__()
        self._model = model

    def forward(self, ids: Tensor) -> Tensor:
        """(1, tokens) int64 to the unit vector, (HIDDEN,)."""
        hidden = self._model.embeddings(input_ids=ids)
        for layer in self._model.lower:
            out = layer(hidden)
            hidden = out[0] if isinstance(out, tuple) else out
        return nn.functional.normalize(hidden[0].mean(0), dim=0)


class _Verifier(nn.Module):
    def __init__(self, model: Verifier) -> None:
        super().__init__()
        self._model = model

    def forward(self, ids: Tensor, sides: Tensor) -> Tensor:
        """Token ids and 0 or 1 for the question they belong to, both (1, tokens) int64, to a logit, (1,)."""
        model = self._model
        hidden = model.embeddings(input_ids=ids) + model.sides[sides]
        for layer in model.layers:
            out = layer(hidden)
            hidden = out[0] if isinstance(out, tuple) else out
        second = sides[0].to(hidden.dtype).unsqueeze(1)
        ma = (hidden[0] * (1 - second)).sum(0) / (1 - second).sum()
        mb = (hidden[0] * second).sum(0) / second.sum()
        return torch.as_tensor(model.head(torch.cat([hidden[0, 0], (ma - mb).abs(), ma * mb])))


def export(encoder: TextModel | None, verifier: Verifier | None, tokenizer: Path, out: Path) -> None:
    """Writes the graphs and the tokenizer; a model that is None keeps the graph that is there."""
    out.mkdir(parents=True, exist_ok=True)
    tokens = torch.export.Dim("tokens", min=2, max=512)
    ids = torch.randint(5, 1000, (1, 12))
    if encoder is not None:
        _write(_Encoder(encoder), (ids,), ({1: tokens},), ["ids"], ["vector"], out / ENCODER)
    if verifier is not None:
        sides = torch.tensor([[0] * 6 + [1] * 6])
        _write(
            _Verifier(verifier), (ids, sides), ({1: tokens}, {1: tokens}), ["ids", "sides"], ["logit"], out / VERIFIER
        )
    shutil.copyfile(tokenizer, out / TOKENIZER)


def _write(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    shapes: tuple[dict[int, object], ...],
    inputs: list[str],
    outputs: list[str],
    target: Path,
) -> None:
    program = torch.onnx.export(
        graph.eval(),
        example,
        input_names=inputs,
        output_names=outputs,
        dynamic_shapes=shapes,
        dynamo=True,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    with tempfile.TemporaryDirectory() as scratch:
        program.save(str(Path(scratch, "model.onnx")))
        exported = onnx.load(Path(scratch, "model.onnx"))
        del exported.graph.value_info[:]  # the quantiser mistrusts the exporter's symbolic shapes
        quantize_dynamic(
            exported,
            target,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="what training started from")
    parser.add_argument("--encoder", type=Path, help="state.pt of training.encoder")
    parser.add_argument("--verifier", type=Path, help="state.pt of training.verifier")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    warnings.simplefilter("ignore")  # exporters warn about their own internals
    encoder = verifier = None
    if args.encoder:
        encoder = TextModel.pretrained(args.weights)
        encoder.load_state_dict(torch.load(args.encoder))
    if args.verifier:
        verifier = Verifier.pretrained(args.weights)
        verifier.load_state_dict(torch.load(args.verifier))
    export(encoder, verifier, args.weights / TOKENIZER, args.out)
    for path in sorted(args.out.iterdir()):
        print(f"{path.name} {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
