"""Questions to the ledger: sums over any dimensions, and the records themselves, of one tenant or of all."""

from collections.abc import AsyncIterator, Awaitable, Callable

from services.common.errors import PermissionDenied
from services.edge.domain.keys import Key, Scope
from services.edge.domain.ledger import CostQuery, CostSum, LedgerReader, Sums, UsageRecord, hour_of

HOUR_S = 3600
EVERYBODY = "*"
EXPORTED_AT_ONCE = 500


def tenant_for(key: Key, asked: str) -> str | None:
    """Whose costs the key's holder asks for, None for everybody's. Raises PermissionDenied where they are not its business."""
    if asked in ("", key.tenant):
        return key.tenant
    if not key.may(Scope.ADMIN):
        whose = "all tenants" if asked == EVERYBODY else "another tenant"
        raise PermissionDenied(f"the costs of {whose} take a key with the scope admin")
    return None if asked == EVERYBODY else asked


class Costs:
    """Answers them. `flush` brings what this replica still holds to the ledger; it raises MeshError."""

    def __init__(self, ledger: LedgerReader, flush: Callable[[], Awaitable[None]]) -> None:
        self._ledger = ledger
        self._flush = flush

    async def sums(self, query: CostQuery) -> tuple[list[CostSum], CostSum]:
        """Rows, dearest first, and their total. Raises NotReady."""
        await self._flush()
        sums = Sums(query.group_by, query.where)
        first, end = hour_of(query.start), hour_of(query.end)
        for tenant in await self._tenants(query.tenant):
            async for hour, rows in self._ledger.rollups(tenant, first, end, by_user=query.by_user):
                sums.add(tenant, hour, rows)
        return sums.result()

    async def records(self, tenant: str | None, start: float, end: float) -> AsyncIterator[list[UsageRecord]]:
        """Records from a time up to and without another (unix seconds), the oldest first, at most EXPORTED_AT_ONCE at a time.

        Holds one hour's at a time. Raises NotReady.
        """
        await self._flush()
        hours: dict[str, list[str]] = {}
        for name in await self._tenants(tenant):
            # The end's own hour may have begun.
            for hour in await self._ledger.hours(name, hour_of(start), hour_of(end + HOUR_S)):
                hours.setdefault(hour, []).append(name)
        for hour in sorted(hours):
            found = {
                record.record_id: record
                for name in hours[hour]
                async for record in self._ledger.records(name, hour)
                if start <= record.at < end
            }
            ordered = sorted(found.values(), key=lambda record: (record.at, record.record_id))
            for index in range(0, len(ordered), EXPORTED_AT_ONCE):
                yield ordered[index : index + EXPORTED_AT_ONCE]

    async def _tenants(self, tenant: str | None) -> list[str]:
        return await self._ledger.tenants() if tenant is None else [tenant]
