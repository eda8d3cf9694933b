"""What vLLM is told. That it knows these names is tested where vLLM is: tests/vllm."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from services.common.yaml_file import ConfigError
from services.engine.adapters.vllm import Vllm
from services.engine.adapters.vllm_arguments import engine_arguments
from services.engine.domain.backend import ModelAbsent
from services.engine.settings import EngineSettings


def settings(**given: object) -> EngineSettings:
    return EngineSettings(backend="vllm", **({"vllm_model": "llama"} | given))  # type: ignore[arg-type]


def test_what_is_unset_is_left_to_vllm() -> None:
    arguments = engine_arguments(settings())
    assert arguments["model"] == "llama"
    assert None not in arguments.values()
    assert not {"quantization", "block_size", "max_model_len", "enable_lora", "max_lora_rank"} & arguments.keys()


def test_every_setting_reaches_vllm_under_its_own_name() -> None:
    given = {
        "tensor_parallel_size": 4,
        "pipeline_parallel_size": 2,
        "gpu_memory_utilization": 0.8,
        "max_model_len": 8192,
        "max_num_seqs": 128,
        "max_num_batched_tokens": 4096,
        "block_size": 32,
        "enable_prefix_caching": False,
        "kv_cache_dtype": "fp8",
        "kv_offloading_size": 16.0,
        "cpu_offload_gb": 4.0,
        "quantization": "awq",
        "dtype": "bfloat16",
        "enforce_eager": True,
        "load_format": "dummy",
    }
    arguments = engine_arguments(settings(**{f"vllm_{name}": value for name, value in given.items()}))
    assert given.items() <= arguments.items()
    ours = {name.removeprefix("vllm_") for name in EngineSettings.model_fields if name.startswith("vllm_")}
    assert ours - arguments.keys() == {"lora_adapters", "max_lora_rank", "max_loras"}


def test_adapters_switch_lora_on_and_all_stay_in_memory() -> None:
    adapters = {f"tenant-{n}": Path(f"/adapters/{n}") for n in range(3)}
    arguments = engine_arguments(settings(vllm_lora_adapters=adapters, vllm_max_lora_rank=64, vllm_max_loras=8))
    assert (arguments["enable_lora"], arguments["max_lora_rank"]) == (True, 64)
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (3, 3)
    assert engine_arguments(settings(vllm_lora_adapters=adapters, vllm_max_loras=2))["max_loras"] == 2


def test_on_cpu_a_slot_stays_empty_for_requests_without_an_adapter() -> None:
    adapters = {f"tenant-{n}": Path(f"/adapters/{n}") for n in range(3)}
    arguments = engine_arguments(settings(vllm_lora_adapters=adapters, vllm_max_loras=2), on_cpu=True)
    assert (arguments["max_loras"], arguments["max_cpu_loras"]) == (4, 4)


def test_settings_come_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMMESH_ENGINE_VLLM_MAX_LORA_RANK", "64")
    monkeypatch.setenv("LLMMESH_ENGINE_VLLM_LORA_ADAPTERS", '{"legal": "/adapters/legal"}')
    loaded = EngineSettings.load()
    assert loaded.vllm_max_lora_rank == 64
    assert loaded.vllm_lora_adapters == {"legal": Path("/adapters/legal")}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tensor_parallel_size", 0),
        ("gpu_memory_utilization", 1.1),
        ("quantization", "gguf"),
        ("quantization", "bitsandbytes"),
        ("dtype", "int3"),
        ("kv_cache_dtype", "int3"),
        ("max_lora_rank", 17),
        ("max_num_batched_tokens", 1),
        ("block_size", 0),
        ("kv_offloading_size", 0),
    ],
)
def test_what_vllm_cannot_do_is_refused_at_start(name: str, value: object) -> None:
    with pytest.raises(ValidationError):
        settings(**{f"vllm_{name}": value})


@pytest.mark.parametrize("name", ["", "smollm2-135m-instruct"])
def test_an_adapter_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(ConfigError, match="LORA_ADAPTERS"):
        Vllm(settings(vllm_lora_adapters={name: Path("/adapters/a")}))


async def test_an_adapter_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    vllm = Vllm(settings(vllm_lora_adapters={"legal": tmp_path}))
    with pytest.raises(ModelAbsent, match="for legal"):
        await vllm.start()
