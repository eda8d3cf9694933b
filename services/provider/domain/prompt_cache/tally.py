"""What prompt caches brought, counted by tenant, endpoint and model since the process began."""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from services.common.money import Usage
from services.provider.domain.prompt_cache import CacheOutcome, PromptCacheReport

_MAX_ROWS = 4096


@dataclass(slots=True)
class Row:
    """Counts of one tenant's endpoint at one model of one vendor.

    `saved` is in nano-USD: what reads cost less than input, less what writes cost more; negative where writes were in vain.
    `volatile` counts requests with volatile fields in their system text.
    """

    tenant: str
    endpoint: str
    model: str
    vendor: str
    requests: int = 0
    input_tokens: int = 0
    read_tokens: int = 0
    written_tokens: int = 0
    saved: int = 0
    volatile: int = 0
    outcomes: Counter[CacheOutcome] = field(default_factory=Counter)


class Tally:
    """The rows, at most so many: those that were counted last."""

    def __init__(self, limit: int = _MAX_ROWS) -> None:
        self._limit = limit
        self._rows: OrderedDict[tuple[str, str, str, str], Row] = OrderedDict()

    def count(
        self, scope: tuple[str, str], model: str, vendor: str, usage: Usage, report: PromptCacheReport, saved: int
    ) -> None:
        """One answer."""
        key = (*scope, model, vendor)
        row = self._rows.setdefault(key, Row(*key))
        self._rows.move_to_end(key)
        if len(self._rows) > self._limit:
            self._rows.popitem(last=False)
        row.requests += 1
        row.input_tokens += usage.input_tokens
        row.read_tokens += report.read_tokens
        row.written_tokens += report.written_tokens
        row.saved += saved
        row.volatile += bool(report.volatile)
        row.outcomes[report.outcome] += 1

    def rows(self, tenant: str = "", endpoint: str | None = None) -> list[Row]:
        """All rows, or those of a tenant, or of an endpoint, by name."""
        chosen = [
            row
            for row in self._rows.values()
            if (not tenant or row.tenant == tenant) and (endpoint is None or row.endpoint == endpoint)
        ]
        return sorted(chosen, key=lambda row: (row.tenant, row.endpoint, row.model, row.vendor))
