"""Makes an int8 ONNX file out of sentence-transformers weights; a program of its own.

It runs in its own process so that the service never loads torch: `python -m services.embedder.adapters.onnx_export
WEIGHTS TARGET`. Needs torch, transformers, onnx and onnxscript.
"""

import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoModel

MODEL_FILE = "model.int8.onnx"
TOKENIZER_FILE = "tokenizer.json"


class _SentenceEncoder(torch.nn.Module):
    """Encoder, mean over the tokens that are not padding, and unit length, as one graph."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self._encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Token ids and mask, both (batch, tokens) int64, to (batch, dimensions) float32 of unit length."""
        hidden = self._encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def export(weights: Path, target: Path) -> None:
    """Writes `target` (a folder that must not exist) with the model and its tokenizer, all or nothing."""
    encoder = AutoModel.from_pretrained(weights, attn_implementation="eager").eval()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        ids = torch.randint(0, 1_000, (2, 16))
        batch, tokens = torch.export.Dim("batch", min=1, max=1_024), torch.export.Dim("tokens", min=2, max=512)
        program = torch.onnx.export(
            _SentenceEncoder(encoder),
            (ids, torch.ones_like(ids)),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
            dynamo=True,
            verbose=False,
        )
        if program is None:
            raise RuntimeError("the exporter returned nothing")
        program.save(str(work / "model.onnx"))
        model = onnx.load(work / "model.onnx")
        del model.graph.value_info[:]  # the quantiser mistrusts the exporter's symbolic shapes
        quantize_dynamic(
            model,
            work / MODEL_FILE,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
        for leftover in work.glob("model.onnx*"):
            leftover.unlink()
        shutil.copyfile(weights / TOKENIZER_FILE, work / TOKENIZER_FILE)
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # exporters warn about their own internals
    export(Path(sys.argv[1]), Path(sys.argv[2]))
