"""The vendors file: where models answer. A kind of vendor is one class here and one module in adapters/.

An adapter is imported when a vendor of its kind is opened: SDKs are slow to import, and most meshes use few of them.
"""

import os
from abc import abstractmethod
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.common.channels import open_channel
from services.common.yaml_file import ConfigError, find_line, load_yaml_model
from services.provider.domain.vendor import Vendor


class _AnyVendor(BaseModel):
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

    @property
    def component(self) -> Literal["provider", "engine"]:
        """Where its cost arises."""
        return "provider"

    @property
    def secrets(self) -> tuple[tuple[str, str], ...]:
        """(field, environment variable) of what must be set."""
        return ()

    @abstractmethod
    async def open(self, stack: AsyncExitStack) -> Vendor:
        """The vendor; the stack closes it."""


class _VendorWithKey(_AnyVendor):
    api_key_env: str | None = Field(None, description="Environment variable that holds the key. Unset: no key needed.")

    @property
    def api_key(self) -> str:
        """The key, "none" where none is needed."""
        return os.environ[self.api_key_env] if self.api_key_env else "none"

    @property
    def secrets(self) -> tuple[tuple[str, str], ...]:
        return (("api_key_env", self.api_key_env),) if self.api_key_env else ()


class OpenAIVendor(_VendorWithKey):
    """OpenAI and vendors with an OpenAI-compatible API."""

    kind: Literal["openai"]
    base_url: str = Field(pattern=r"^https?://", description="Address up to and including the version: https://…/v1.")
    output_limit_field: Literal["max_completion_tokens", "max_tokens"] = Field(
        "max_completion_tokens", description="Request field in which the vendor expects the output limit."
    )

    async def open(self, stack: AsyncExitStack) -> Vendor:
        from services.provider.adapters.openai import OpenAI

        vendor = OpenAI(
            self.name, base_url=self.base_url, api_key=self.api_key, output_limit_field=self.output_limit_field
        )
        stack.push_async_callback(vendor.close)
        return vendor


class AnthropicVendor(_VendorWithKey):
    """Anthropic's Messages API."""

    kind: Literal["anthropic"]
    base_url: str = Field(
        "https://api.anthropic.com", pattern=r"^https?://", description="Address without the version."
    )

    async def open(self, stack: AsyncExitStack) -> Vendor:
        from services.provider.adapters.anthropic import Anthropic

        vendor = Anthropic(self.name, base_url=self.base_url, api_key=self.api_key)
        stack.push_async_callback(vendor.close)
        return vendor


class BedrockVendor(_AnyVendor):
    """Amazon Bedrock's Converse API. Credentials are found as boto3 finds them."""

    kind: Literal["bedrock"]
    region: str = Field(min_length=1, description="Region of the endpoint, such as us-east-1.")
    endpoint_url: str | None = Field(None, pattern=r"^https?://", description="Address instead of the region's own.")

    async def open(self, stack: AsyncExitStack) -> Vendor:
        from services.provider.adapters.bedrock import Bedrock

        vendor = Bedrock(
            self.name, region=self.region, endpoint_url=self.endpoint_url, max_concurrency=self.max_concurrency
        )
        stack.push_async_callback(vendor.close)
        return vendor


class GeminiVendor(_VendorWithKey):
    """Google's Gemini API."""

    kind: Literal["gemini"]
    base_url: str = Field(
        "https://generativelanguage.googleapis.com", pattern=r"^https?://", description="Address without the version."
    )

    async def open(self, stack: AsyncExitStack) -> Vendor:
        from services.provider.adapters.gemini import Gemini

        vendor = Gemini(self.name, base_url=self.base_url, api_key=self.api_key)
        stack.push_async_callback(vendor.close)
        return vendor


class EngineVendorConfig(_AnyVendor):
    """Our own engine."""

    kind: Literal["engine"]
    address: str = Field(min_length=1, description="host:port or dns:///name:port of the engine service.")

    @property
    def component(self) -> Literal["provider", "engine"]:
        return "engine"

    async def open(self, stack: AsyncExitStack) -> Vendor:
        from services.provider.adapters.engine import EngineVendor

        return EngineVendor(self.name, await stack.enter_async_context(open_channel(self.address)))


VendorConfig = Annotated[
    OpenAIVendor | AnthropicVendor | BedrockVendor | GeminiVendor | EngineVendorConfig, Field(discriminator="kind")
]


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
        for field, variable in vendor.secrets:
            if not os.environ.get(variable):
                line = find_line(path, "vendors", index, field)
                raise ConfigError(f"{path}:{line}: the environment variable {variable} is not set")
    return vendors
