"""The file that says how vendors keep prefixes of prompts."""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.common.yaml_file import load_yaml_model
from services.provider.domain.prompt_cache import NO_CACHE, SHORT_TTL_S, Control, VendorCache

SHIPPED = Path(__file__).parent / "data" / "prompt_cache.yaml"

Kind = Literal["openai", "anthropic", "bedrock", "gemini", "engine"]


class CacheRule(BaseModel):
    """What holds for some models of a kind of vendor. The fields are those of VendorCache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    models: tuple[str, ...] = Field(
        min_length=1, description="Patterns (*, ?, [a-z]) for the vendor's id of the model."
    )
    control: Control
    minimum_tokens: int = Field(1024, ge=1)
    short_ttl_s: int = Field(SHORT_TTL_S, ge=1)
    long_ttl_s: int | None = None
    tools: bool = True
    reported: bool = True

    @model_validator(mode="after")
    def _longer(self) -> "CacheRule":
        if self.long_ttl_s is not None and self.long_ttl_s <= self.short_ttl_s:
            raise ValueError("long_ttl_s is not longer than short_ttl_s")
        return self

    def fits(self, kind: str, vendor_model: str) -> bool:
        """Whether it holds for a model."""
        return self.kind == kind and any(fnmatchcase(vendor_model, pattern) for pattern in self.models)

    def cache(self) -> VendorCache:
        """The same for the domain."""
        return VendorCache(
            self.control, self.minimum_tokens, self.short_ttl_s, self.long_ttl_s, self.tools, self.reported
        )


class CacheRules(BaseModel):
    """The whole file; the first rule that fits counts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: tuple[CacheRule, ...]

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "CacheRules":
        """Reads it. Raises ConfigError naming file and line."""
        return load_yaml_model(path, cls)

    def cache_of(self, kind: str, vendor_model: str) -> VendorCache:
        """How a vendor of this kind keeps prefixes of a model, by the vendor's id of it."""
        return next((rule.cache() for rule in self.rules if rule.fits(kind, vendor_model)), NO_CACHE)
