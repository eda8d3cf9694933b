"""Settings of the provider service, prefix LLMMESH_PROVIDER_; its vendors stand in a file of their own (vendors.py)."""

from pathlib import Path

from pydantic import Field

from services.common.prices import SHIPPED as SHIPPED_PRICES
from services.common.settings import ServiceSettings, settings_config


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
