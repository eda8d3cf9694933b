"""What the audit judges with: the policy and prices of a mesh, its cache's verdict, its router and its compressor."""

from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path

from services.cache.convert import rules_of
from services.cache.domain.ports import CacheRules
from services.cli.logs.names import book_name, vendor_kind
from services.common.clock import SystemClock
from services.common.money import Rates, Usage, price
from services.common.policy import NamespacePolicy, Policy
from services.common.prices import PriceBook
from services.provider.cache_rules import CacheRules as PromptCacheRules
from services.provider.domain.prompt_cache import NO_CACHE, VendorCache
from services.router.adapters.policy_files import PolicyFiles
from services.router.domain.routing import Catalogue


@dataclass(frozen=True, slots=True)
class Tools:
    """Everything that decides. Logs are judged by the rules of the namespace "default", which a policy may lack."""

    book: PriceBook
    policy: Policy
    namespace: NamespacePolicy
    rules: CacheRules
    catalogue: Catalogue
    prompt_caches: PromptCacheRules

    @classmethod
    def load(cls, policy_file: Path, prices_file: Path) -> "Tools":
        """Reads both files. Raises ConfigError naming file and line."""
        book = PriceBook.load(prices_file)
        policy = Policy.load(policy_file, book)
        name = "default" if "default" in policy.namespaces else next(iter(policy.namespaces))
        return cls(
            book,
            policy,
            policy.namespaces[name],
            rules_of(policy)[name],
            PolicyFiles(policy_file, prices_file, SystemClock()).catalogue(),
            PromptCacheRules.load(),
        )


class Pricing:
    """Prices by a log's names of models; what was asked is remembered."""

    def __init__(self, book: PriceBook, prompt_caches: PromptCacheRules) -> None:
        self._book = book
        self._caches = prompt_caches
        self.name = lru_cache(maxsize=4096)(self._name)
        self.vendor_cache = lru_cache(maxsize=4096)(self._vendor_cache)

    def rates(self, model: str, at: float | None, input_tokens: int) -> Rates | None:
        """Rates of that day; those of the first day on which the book has the model for an earlier one; None without a price."""
        name = self.name(model)
        day = None if at is None else _day(int(at // 86_400))
        rates = self._book.rates(name, day, input_tokens)
        if rates is None and (entry := self._book.models.get(name)) is not None:
            return self._book.rates(name, min(price.valid_from for price in entry.prices), input_tokens)
        return rates

    def cost(self, model: str, at: float | None, usage: Usage) -> int | None:
        """What a call costs by the book, in nano-USD; None without a price."""
        rates = self.rates(model, at, usage.input_tokens)
        return None if rates is None else price(rates, usage)

    def _name(self, model: str) -> str:
        return book_name(model, self._book)

    def _vendor_cache(self, model: str) -> VendorCache:
        kind = vendor_kind(model)
        return self._caches.cache_of(kind, model.rpartition("/")[2]) if kind else NO_CACHE


@lru_cache(maxsize=1024)
def _day(number: int) -> date:
    return datetime.fromtimestamp(number * 86_400, UTC).date()


def day_of(at: float) -> str:
    """The day (UTC) of a time in Unix seconds, as 2026-11-24."""
    return _day(int(at // 86_400)).isoformat()
