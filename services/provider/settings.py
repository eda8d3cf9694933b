"""Settings of the provider service, prefix LLMMESH_PROVIDER_, and its vendors file."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.common.prices import SHIPPED as SHIPPED_PRICES
from services.common.settings import ServiceSettings, settings_config
from services.common.yaml_file import ConfigError, find_line, load_yaml_model


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


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64, description="Name of the vendor in attempts, spans and errors.")
    models: dict[str, str] = Field(
        min_length=1, description="Name of the model in the price book → the vendor's id of it."
    )
    timeout_s: float = Field(60.0, gt=0, le=3600, description="How long a stream may stay silent, in seconds.")
    unary_timeout_s: float = Field(
        600.0, gt=0, le=3600, description="How long an answer that is not streamed may take, in seconds."
    )
    max_concurrency: int = Field(64, ge=1, le=1000, description="Calls at once; further ones wait.")
    max_waiting: int = Field(256, ge=0, description="How many may wait; others go on to the next candidate at once.")
    max_wait_s: float = Field(5.0, gt=0, le=3600, description="How long one waits before it goes on, in seconds.")


class OpenAIVendor(_Strict):
    """A vendor with an OpenAI-compatible API."""

    kind: Literal["openai"]
    base_url: str = Field(pattern=r"^https?://", description="Address up to and including the version: https://…/v1.")
    api_key_env: str | None = Field(None, description="Environment variable that holds the key. Unset: no key needed.")
    output_limit_field: Literal["max_completion_tokens", "max_tokens"] = Field(
        "max_completion_tokens", description="Request field in which the vendor expects the output limit."
    )


class EngineVendorConfig(_Strict):
    """Our own engine."""

    kind: Literal["engine"]
    address: str = Field(min_length=1, description="host:port or dns:///name:port of the engine service.")


VendorConfig = Annotated[OpenAIVendor | EngineVendorConfig, Field(discriminator="kind")]


class VendorsFile(BaseModel):
    """The vendors, in order of preference where several serve one model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vendors: tuple[VendorConfig, ...]


def load_vendors(path: Path) -> tuple[VendorConfig, ...]:
    """Reads the vendors file. Raises ConfigError naming file and line."""
    vendors = load_yaml_model(path, VendorsFile).vendors
    if not vendors:
        raise ConfigError(f"{path}:{find_line(path, 'vendors')}: no vendors")
    seen: set[str] = set()
    for index, vendor in enumerate(vendors):
        if vendor.name in seen:
            line = find_line(path, "vendors", index, "name")
            raise ConfigError(f"{path}:{line}: a second vendor is named {vendor.name}")
        seen.add(vendor.name)
        if isinstance(vendor, OpenAIVendor) and vendor.api_key_env and not os.environ.get(vendor.api_key_env):
            line = find_line(path, "vendors", index, "api_key_env")
            raise ConfigError(f"{path}:{line}: the environment variable {vendor.api_key_env} is not set")
    return vendors
