"""A chat model of a few hundred kilobytes with random weights: enough to run every path of vLLM."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONTEXT_TOKENS = 1024
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = ["How do I cancel my order?", "Where is the parcel?", "The refund takes five days.", "¿Dónde está mi pedido?"]


def write_tiny_model(folder: Path) -> None:
    """A two-layer Llama's configuration and a byte-level BPE tokenizer. Weights are made by load_format=dummy."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": CONTEXT_TOKENS,
        },
    )
    _write(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,  # vLLM's CPU attention takes no smaller one
            "max_position_embeddings": CONTEXT_TOKENS,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "torch_dtype": "float32",
        },
    )


def write_tiny_adapter(folder: Path, rank: int = 8) -> None:
    """A LoRA adapter of the tiny model with random weights, large enough to change what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    made = np.random.default_rng(7)
    prefix = "base_model.model.model.layers"
    weights = {
        f"{prefix}.{layer}.self_attn.{module}.lora_{half}.weight": made.standard_normal(shape).astype(np.float32)
        for layer in range(2)
        for module, out in (("v_proj", 32), ("o_proj", 64))
        for half, shape in (("A", (rank, 64)), ("B", (out, rank)))
    }
    save_file(weights, str(folder / "adapter_model.safetensors"))
    _write(
        folder / "adapter_config.json",
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": 64,
            "target_modules": ["v_proj", "o_proj"],
            "bias": "none",
        },
    )


def _write(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
