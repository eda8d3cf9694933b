"""Settings out of the environment: one frozen class per service, prefix LLMMESH_<SERVICE>_, misspelt names refused."""

import os
import re
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from services.common.yaml_file import ConfigError


def settings_config(prefix: str) -> SettingsConfigDict:
    """The model_config of a service's settings class."""
    return SettingsConfigDict(env_prefix=prefix, frozen=True, extra="forbid", env_nested_delimiter="__")


class ServiceSettings(BaseSettings):
    """What every service can be told."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(0, ge=0, le=65535, description="Port to listen on; 0 lets the system choose and logs it.")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$", description="Lowest level that is logged.")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="Port where /metrics answers Prometheus, on the same address; unset: none."
    )
    metrics_tenants: bool = Field(False, description="Count requests and cost by tenant, too; of 200 tenants at most.")
    grace_seconds: float = Field(10.0, ge=0, le=600, description="How long open calls may finish after SIGTERM.")
    drain_seconds: float = Field(
        0.0,
        ge=0,
        le=60,
        description="How long to go on serving after readiness is off, so that callers look elsewhere.",
    )
    max_message_bytes: int = Field(
        32 * 1024 * 1024, ge=1024, description="Largest message accepted, in bytes; larger ones are RESOURCE_EXHAUSTED."
    )
    max_connection_age_seconds: float = Field(
        0.0, ge=0, description="Close connections after this long, so that clients see new replicas; 0 never."
    )

    @classmethod
    def load(cls) -> Self:
        """Reads the environment. Raises ConfigError that names every variable that is wrong or not known."""
        prefix = str(cls.model_config.get("env_prefix", ""))
        known = {f"{prefix}{name}".upper() for name in cls.model_fields}
        unknown = sorted(
            name for name in os.environ if name.upper().startswith(prefix) and name.upper().split("__")[0] not in known
        )
        if unknown:
            raise ConfigError(
                f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        try:
            return cls()
        except ValidationError as error:
            lines = [f"{prefix}{'__'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()]
            raise ConfigError("; ".join(lines)) from None
        except SettingsError as error:
            name = str(error).split('"')[1].upper()
            raise ConfigError(f"{prefix}{name}: must be JSON") from None


def cache_home() -> Path:
    """Where models that were converted once are kept: XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmmesh"


_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$")
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_duration(text: str) -> float:
    """Seconds of "45s", "10m", "24h", "14d". Raises ValueError."""
    match = _DURATION.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a duration such as 45s, 10m, 24h or 14d")
    return float(match[1]) * _SECONDS[match[2]]
