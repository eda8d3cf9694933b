"""What the embedder can be told, by LLMMESH_EMBEDDER_* variables."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.settings import ServiceSettings, cache_home, settings_config


class EmbedderSettings(ServiceSettings):
    """Settings of the embedder."""

    model_config = settings_config("LLMMESH_EMBEDDER_")

    models: tuple[str, ...] = Field(
        ("lookalike-1",),
        min_length=1,
        description='Models to load, the default first, as JSON: ["lookalike-1", "all-MiniLM-L6-v2"]. lookalike-1 is shipped; '
        "it reads English and Spanish questions and is the one that the verifier and the calibration belong to.",
    )
    weights: dict[str, str] = Field(
        default_factory=dict,
        description="Folder or hub id of a model's sentence-transformers weights, by model id, as JSON. "
        "all-MiniLM-L6-v2 and use-multilingual-v3 come out of their packages.",
    )
    backend: Literal["auto", "onnx-int8", "torch"] = Field(
        "auto", description="What runs the models; auto takes onnx-int8 for all-MiniLM-L6-v2 and torch for others."
    )
    verifier_model: str = Field(
        "lookalike-1",
        description="What scores pairs: lookalike-1, or the folder or hub id of a cross-encoder; empty means nothing does.",
    )
    model_dir: Path = Field(
        default_factory=lambda: cache_home() / "models", description="Where converted models are kept between starts."
    )
    threads: int = Field(1, ge=1, le=64, description="CPU threads for one batch.")
    max_batch: int = Field(32, ge=1, le=256, description="Most texts that run together.")
    max_wait_ms: float = Field(
        0.0, ge=0, le=100, description="How long an idle worker waits for more texts before it starts a batch."
    )
    max_queue: int = Field(
        4096, ge=1, description="Most texts that wait; a call beyond is RESOURCE_EXHAUSTED (RATE_LIMITED)."
    )
    price_usd_per_hour: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="Price of one CPU for an hour in dollars, for the cost of each call; 0 means free.",
    )
