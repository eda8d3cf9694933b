"""The engine's settings as vLLM's: the one place that knows the names of AsyncEngineArgs (vLLM 0.32)."""

from services.engine.settings import EngineSettings

Argument = str | int | float | bool | None


def engine_arguments(settings: EngineSettings, *, on_cpu: bool = False) -> dict[str, Argument]:
    """Keyword arguments for AsyncEngineArgs. What is unset is left to vLLM."""
    adapters = len(settings.vllm_lora_adapters)
    arguments: dict[str, Argument] = {
        "model": settings.vllm_model,
        "tensor_parallel_size": settings.vllm_tensor_parallel_size,
        "pipeline_parallel_size": settings.vllm_pipeline_parallel_size,
        "gpu_memory_utilization": settings.vllm_gpu_memory_utilization,
        "max_model_len": settings.vllm_max_model_len,
        "max_num_seqs": settings.vllm_max_num_seqs,
        "max_num_batched_tokens": settings.vllm_max_num_batched_tokens,
        "block_size": settings.vllm_block_size,
        "enable_prefix_caching": settings.vllm_enable_prefix_caching,
        "kv_cache_dtype": settings.vllm_kv_cache_dtype,
        "kv_offloading_size": settings.vllm_kv_offloading_size,
        "cpu_offload_gb": settings.vllm_cpu_offload_gb,
        "quantization": settings.vllm_quantization,
        "dtype": settings.vllm_dtype,
        "enforce_eager": settings.vllm_enforce_eager,
        "load_format": settings.vllm_load_format,
        # Its metrics are what GetStatus passes on.
        "disable_log_stats": False,
    }
    if adapters:
        arguments |= {
            "enable_lora": True,
            "max_lora_rank": settings.vllm_max_lora_rank,
            # On CPU, requests without an adapter get what is in the last slot as soon as others in their step have one
            # (0.32 takes index -1 for a place in the list): it stays empty.
            "max_loras": adapters + 1 if on_cpu else min(settings.vllm_max_loras, adapters),
            # All of them stay in memory: none is loaded while somebody waits for its answer.
            "max_cpu_loras": adapters + on_cpu,
        }
    return {name: value for name, value in arguments.items() if value is not None}
