"""Settings of the provider service, prefix LLMMESH_PROVIDER_; its vendors stand in a file of their own (vendors.py)."""

from pathlib import Path

from pydantic import Field, SecretStr

from services.common.prices import SHIPPED as SHIPPED_PRICES
from services.common.settings import ServiceSettings, settings_config
from services.provider.cache_rules import SHIPPED as SHIPPED_CACHE_RULES


class ProviderSettings(ServiceSettings):
    """What the provider can be told."""

    model_config = settings_config("LLMMESH_PROVIDER_")

    vendors_file: Path = Field(description="YAML file of the vendors: where they are and which models they serve.")
    prices_file: Path = Field(SHIPPED_PRICES, description="YAML price book. Default: the one that is shipped.")
    max_attempts: int = Field(
        4,
        ge=1,
        le=16,
        description="Vendor calls per request over all candidates, unless the request sets fewer or more.",
    )
    backoff_base_s: float = Field(
        0.2,
        ge=0,
        le=60,
        description="Upper limit of the first pause before the same candidate is tried again, in seconds.",
    )
    backoff_max_s: float = Field(5.0, ge=0, le=300, description="Upper limit of every such pause, in seconds.")
    breaker_faults: int = Field(
        5, ge=1, description="Faults in a row after which a candidate is left alone for a while."
    )
    breaker_open_s: float = Field(
        10.0, gt=0, description="How long it is left alone before one call may probe it, in seconds."
    )
    redis_url: SecretStr | None = Field(
        None,
        description="Redis in which replicas share the vendors' limits: redis://, rediss:// (TLS) or unix://. Unset: each "
        "counts for itself.",
    )
    limit_replicas: int = Field(
        1,
        ge=1,
        description="Provider replicas: without Redis, or while it is down, each keeps to this share of a vendor's limits.",
    )
    hedge_quantile: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Where the policy allows hedging: a second candidate starts when the first is slower than this share of "
        "its recent calls.",
    )
    hedge_floor_s: float = Field(
        1.0, ge=0, le=600, description="Before this time no second candidate starts, in seconds."
    )
    batch_concurrency: int = Field(
        2,
        ge=1,
        le=64,
        description="Items of batches that are answered at once by vendors without a batch API, such as our own engine: few, "
        "since callers who wait go first.",
    )
    prompt_cache: bool = Field(
        True,
        description="Plan what vendors keep of prompts: stable bytes, breakpoints, cache keys, warm candidates first.",
    )
    prompt_cache_file: Path = Field(
        SHIPPED_CACHE_RULES, description="YAML file of how vendors keep prompts. Default: the one that is shipped."
    )
    prompt_cache_move_volatile: bool = Field(
        False,
        description="Send sentences of the system text that hold times, ids or counters behind the newest message, so that "
        "what stands before them can be kept.",
    )
