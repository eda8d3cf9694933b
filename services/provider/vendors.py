"""The vendors file: where models answer. A kind of vendor is one class here and one module in adapters/.

An adapter is imported when a vendor of its kind is opened: SDKs are slow to import, and most meshes use few of them.
"""

import os
from abc import abstractmethod
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.common.channels import open_channel
from services.common.yaml_file import ConfigError, find_line, load_yaml_model
from services.provider.cache_rules import CacheRules
from services.provider.domain.limits import Quota
from services.provider.domain.prompt_cache import Control, VendorCache
from services.provider.domain.vendor import Vendor


class _Limited(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: int | None = Field(None, ge=1, description="Calls in any minute, over all replicas.")
    tokens_per_minute: int | None = Field(None, ge=1, description="Tokens in any minute, over all replicas.")

    def quotas_of(self, vendor: str, model: str = "") -> tuple[Quota, ...]:
        """The limits as they are counted; without a model, for all models of the vendor together."""
        requests, tokens = self.requests_per_minute, self.tokens_per_minute
        return (
            *(() if requests is None else (Quota(vendor, model, "requests", requests),)),
            *(() if tokens is None else (Quota(vendor, model, "tokens", tokens),)),
        )


class _AnyVendor(_Limited):
    kind: str
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
    model_limits: dict[str, _Limited] = Field(
        default_factory=dict,
        description="Name of the model in the price book → its own requests_per_minute and tokens_per_minute.",
    )

    @model_validator(mode="after")
    def _limits_of_own_models(self) -> Self:
        if others := sorted(set(self.model_limits) - set(self.models)):
            raise ValueError(f"model_limits: {', '.join(others)} is not among the models")
        return self

    def quotas(self, model: str) -> tuple[Quota, ...]:
        """What limits the calls of a model."""
        own = self.model_limits.get(model)
        return self.quotas_of(self.name) + (own.quotas_of(self.name, model) if own else ())

    def cache_of(self, model: str, rules: CacheRules) -> VendorCache:
        """How the vendor keeps prefixes of a model."""
        return rules.cache_of(self.kind, self.models[model])

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
    batch: bool = Field(False, description="The vendor has OpenAI's Batch API, with files; OpenAI itself has.")
    prompt_cache_fields: Literal["none", "key", "breakpoints"] | None = Field(
        None,
        description="Which fields about the prompt cache the vendor takes; others are refused by some: `key` is "
        "prompt_cache_key, `breakpoints` also prompt_cache_options and prompt_cache_breakpoint where the model has them. "
        "Default: breakpoints for api.openai.com, none elsewhere.",
    )

    @property
    def cache_fields(self) -> Literal["none", "key", "breakpoints"]:
        """The same, with the default in its place."""
        own = urlsplit(self.base_url).hostname == "api.openai.com"
        return self.prompt_cache_fields or ("breakpoints" if own else "none")

    def cache_of(self, model: str, rules: CacheRules) -> VendorCache:
        cache = super().cache_of(model, rules)
        if cache.control is Control.BREAKPOINTS and self.cache_fields != "breakpoints":
            return replace(cache, control=Control.AUTOMATIC)
        return cache

    async def open(self, stack: AsyncExitStack) -> Vendor:
        from services.provider.adapters.openai import OpenAI
        from services.provider.adapters.openai_batch import OpenAIBatch

        vendor = (OpenAIBatch if self.batch else OpenAI)(
            self.name,
            base_url=self.base_url,
            api_key=self.api_key,
            output_limit_field=self.output_limit_field,
            cache_fields=self.cache_fields,
        )
        stack.push_async_callback(vendor.close)
        return vendor


class AnthropicVendor(_VendorWithKey):
    """Anthropic's Messages API."""

    kind: Literal["anthropic"]
    base_url: str = Field(
        "https://api.anthropic.com", pattern=r"^https?://", description="Address without the version."
    )
    batch: bool = Field(True, description="The vendor has the Message Batches API.")

    async def open(self, stack: AsyncExitStack) -> Vendor:
        from services.provider.adapters.anthropic import Anthropic
        from services.provider.adapters.anthropic_batch import AnthropicBatch

        vendor = (AnthropicBatch if self.batch else Anthropic)(self.name, base_url=self.base_url, api_key=self.api_key)
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
