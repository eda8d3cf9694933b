"""What the cache can be told, by LLMMESH_CACHE_* variables."""

from pathlib import Path

from pydantic import Field, SecretStr

from services.common import policy, prices
from services.common.settings import ServiceSettings, settings_config


class CacheSettings(ServiceSettings):
    """Settings of the cache."""

    model_config = settings_config("LLMMESH_CACHE_")

    policy_file: Path = Field(policy.SHIPPED, description="The policy (YAML): namespaces, thresholds, lifetimes.")
    prices_file: Path = Field(
        prices.SHIPPED, description="The price book (YAML), which the policy's models must be in."
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        description="Redis for answers: redis://, rediss:// (TLS) or unix://. Run it with maxmemory-policy volatile-lru.",
    )
    redis_timeout_seconds: float = Field(0.25, gt=0, le=30, description="Longest wait for one Redis call.")
    redis_connections: int = Field(64, ge=1, le=4096, description="Most connections to Redis.")
    qdrant_address: str = Field(
        "127.0.0.1:6334", pattern=r"^.*:\d+$", description="host:port of Qdrant's gRPC API, for vectors."
    )
    qdrant_api_key: SecretStr | None = Field(None, description="Qdrant's API key; unset means none.")
    qdrant_tls: bool = Field(False, description="Speak TLS to Qdrant.")
    qdrant_timeout_seconds: float = Field(0.5, gt=0, le=30, description="Longest wait for one Qdrant call.")
    qdrant_prefix: str = Field(
        "llmmesh-", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Beginning of the names of the collections."
    )
    dimensions: dict[str, int] = Field(
        {"lookalike-1": 384, "all-MiniLM-L6-v2": 384, "all-mpnet-base-v2": 768, "use-multilingual-v3": 512},
        description="Length of the vectors by embedding model, as JSON. Vectors of these models with another length are refused.",
    )
    embedder: str = Field(
        "", description="Address of the embedder, which has the verifier; empty goes by similarity and vetoes alone."
    )
    verifier_timeout_seconds: float = Field(
        0.25, gt=0, le=30, description="Longest wait for the verifier; then similarity and vetoes decide."
    )
    embed_timeout_seconds: float = Field(
        5.0, gt=0, le=60, description="Longest wait for the vectors of two answers that are compared, off the hot path."
    )
    provider: str = Field(
        "", description="Address of the provider, by which a policy's judge is asked; empty asks none."
    )
    quality_seconds: float = Field(
        1.0,
        gt=0,
        description="How often what was counted, learned and kept for review is written to Redis, and read from there.",
    )
    sweep_seconds: float = Field(60.0, gt=0, description="How often vectors of expired answers are removed.")
    request_memory_seconds: int = Field(
        86_400, ge=1, description="How long Invalidate by request id finds the entry that answered it."
    )
