"""Tiers and prices out of the policy file and the price book."""

from datetime import UTC, date, datetime
from pathlib import Path

from services.common.clock import Clock
from services.common.policy import Policy
from services.common.prices import PriceBook
from services.router.domain.routing import Catalogue, Speed, TierRules


class PolicyFiles:
    """Reads both files once; a price that becomes valid on a later day is used from that day (UTC) on."""

    def __init__(self, policy_file: Path, prices_file: Path, clock: Clock) -> None:
        """Raises ConfigError naming file and line."""
        self._prices = PriceBook.load(prices_file)
        self._policy = Policy.load(policy_file, self._prices)
        self._clock = clock
        self._day = self._today()
        self._catalogue = self._build()

    def catalogue(self) -> Catalogue:
        """What may be routed to today."""
        if self._today() != self._day:
            self._day = self._today()
            self._catalogue = self._build()
        return self._catalogue

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock.now(), UTC).date()

    def _build(self) -> Catalogue:
        tiers = {
            name: TierRules(tier.candidates, tier.expected_output_tokens) for name, tier in self._policy.tiers.items()
        }
        prices, speeds = {}, {}
        for model, entry in self._prices.models.items():
            if (tariff := self._prices.tariff(model, self._day)) is not None:
                prices[model] = tariff
            if entry.speed is not None:
                speeds[model] = Speed(entry.speed.first_token_s, entry.speed.tokens_per_s)
        return Catalogue(tiers, prices, speeds)
