"""What the router can be told."""

from pathlib import Path

from pydantic import Field

from services.common import policy, prices
from services.common.settings import ServiceSettings, settings_config


class RouterSettings(ServiceSettings):
    """Settings of the router, LLMMESH_ROUTER_*."""

    model_config = settings_config("LLMMESH_ROUTER_")

    policy_file: Path = Field(
        policy.SHIPPED, description="The policy: tiers, their models and expected answer lengths."
    )
    prices_file: Path = Field(prices.SHIPPED, description="The price book.")
