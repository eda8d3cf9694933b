"""Settings of the edge."""

from pathlib import Path

from pydantic import Field, SecretStr

from services.common import policy, prices
from services.common.settings import ServiceSettings, settings_config


class EdgeSettings(ServiceSettings):
    """Environment variables LLMMESH_EDGE_*."""

    model_config = settings_config("LLMMESH_EDGE_")

    embedder: str = Field("127.0.0.1:7101", description="Address of the embedder.")
    cache: str = Field("127.0.0.1:7102", description="Address of the cache.")
    router: str = Field("127.0.0.1:7103", description="Address of the router.")
    compressor: str = Field("127.0.0.1:7104", description="Address of the compressor.")
    provider: str = Field("127.0.0.1:7105", description="Address of the provider.")
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis of ledger and budgets; redis:// or unix://."
    )
    keys_file: Path = Field(
        Path("keys.json"),
        description="Hashed API keys: {sha256 hex of the key: {tenant}}. Re-read when it changes.",
    )
    http_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="Port of the HTTP door (OpenAI's API); 0 lets the system choose. Unset: no door.",
    )
    console: bool = Field(
        True, description="Show the console, for holders of an admin key, at /console of the HTTP door."
    )
    spool_dir: Path = Field(Path("spool"), description="Folder of the usage-record spool; on a volume in production.")
    spool_fsync_seconds: float = Field(
        0.1, gt=0, le=10, description="At most this much of the spool is lost with a node (not with a killed process)."
    )
    flush_seconds: float = Field(0.5, gt=0, le=60, description="How often spooled records go to Redis.")
    records_days: int = Field(90, ge=1, le=3660, description="For so many days usage records are kept.")
    rollups_days: int = Field(
        400, ge=1, le=3660, description="For so many days sums by the hour are kept; no less than the records."
    )
    policy_file: Path = Field(policy.SHIPPED, description="The policy.")
    prices_file: Path = Field(prices.SHIPPED, description="The price book.")
    default_timeout_seconds: float = Field(120.0, gt=0, description="Deadline of a call that brings none.")
    embed_timeout_seconds: float = Field(
        1.0, gt=0, description="Longest wait for the embedder; then the answer goes on without."
    )
    cache_timeout_seconds: float = Field(0.5, gt=0, description="Longest wait for a cache lookup; then it is a miss.")
    route_timeout_seconds: float = Field(
        0.5, gt=0, description="Longest wait for the router; then the default tier is used."
    )
    compress_timeout_seconds: float = Field(
        5.0, gt=0, description="Longest wait for the compressor; then the prompt goes as it is."
    )
    store_timeout_seconds: float = Field(
        2.0,
        gt=0,
        description="Longest time for storing an answer, before the response ends; a stream's tokens do not wait.",
    )
    budget_replicas: int = Field(
        1,
        ge=1,
        description="Edge replicas: while Redis is down each may spend this share of what was left of a budget, and of a "
        "key's requests per minute.",
    )
