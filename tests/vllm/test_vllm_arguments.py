"""The installed vLLM knows every name and every value that the settings can pass to it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import get_args

from services.engine import settings as ours
from services.engine.adapters.vllm_arguments import engine_arguments
from services.engine.settings import EngineSettings


def test_every_argument_is_a_field_of_vllms_engine_arguments(tmp_path: Path) -> None:
    from tiny_model import write_tiny_model
    from vllm.engine.arg_utils import AsyncEngineArgs

    write_tiny_model(tmp_path)
    everything = EngineSettings(
        backend="vllm",
        vllm_model=str(tmp_path),
        vllm_max_model_len=1024,
        vllm_max_num_batched_tokens=1024,
        vllm_block_size=128,
        vllm_kv_offloading_size=1.0,
        vllm_quantization="fp8",
        vllm_lora_adapters={"legal": Path("/adapters/legal")},
    )
    arguments = engine_arguments(everything)
    assert arguments.keys() <= {field.name for field in fields(AsyncEngineArgs)}
    made = AsyncEngineArgs(**arguments)
    assert {name: getattr(made, name) for name in arguments} == arguments


def test_every_choice_is_one_of_vllms() -> None:
    from vllm.config.cache import CacheDType
    from vllm.config.lora import MaxLoRARanks
    from vllm.config.model import ModelDType
    from vllm.model_executor.layers.quantization import QuantizationMethods

    for choices, known in (
        (ours.Quantization, QuantizationMethods),
        (ours.KvCacheDtype, CacheDType),
        (ours.Dtype, ModelDType),
        (ours.LoraRank, MaxLoRARanks),
    ):
        assert set(get_args(choices)) <= set(get_args(known))


def test_settings_are_vllms_under_its_own_names() -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = {field.name for field in fields(AsyncEngineArgs)}
    named = {name.removeprefix("vllm_") for name in EngineSettings.model_fields if name.startswith("vllm_")}
    assert named - known == {"lora_adapters"}
