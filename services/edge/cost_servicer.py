"""RPC to ledger and budgets. A key sees its own tenant's money, an admin's key everybody's."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from llmmesh.edge.v1 import costs_pb2, costs_pb2_grpc
from services.common.clock import Clock
from services.edge.convert import (
    asked_tenant,
    budget_to_pb,
    costs_to_pb,
    query_from_pb,
    record_to_pb,
    stretch_from_pb,
)
from services.edge.domain.budgets import BudgetReader
from services.edge.domain.costs import Costs, tenant_for
from services.edge.domain.keys import Keys, Scope
from services.edge.servicer import headers_of

Context = grpc.aio.ServicerContext[Any, Any]
AnyRequest = costs_pb2.QueryCostsRequest | costs_pb2.ExportRecordsRequest | costs_pb2.ListBudgetsRequest


class CostServicer(costs_pb2_grpc.CostServiceServicer):
    """What was spent and saved, and what may be spent."""

    def __init__(
        self, costs: Costs, budgets: BudgetReader, keys: Keys, clock: Clock, pending: Callable[[], int]
    ) -> None:
        """`pending` tells how many records this replica holds that the sums lack."""
        self._costs = costs
        self._budgets = budgets
        self._keys = keys
        self._clock = clock
        self._pending = pending

    async def QueryCosts(self, request: costs_pb2.QueryCostsRequest, context: Context) -> costs_pb2.QueryCostsResponse:
        query = query_from_pb(request, self._tenant(request, context), self._clock.now())
        rows, total = await self._costs.sums(query)
        return costs_to_pb(rows, total, self._pending())

    async def ExportRecords(
        self, request: costs_pb2.ExportRecordsRequest, context: Context
    ) -> AsyncIterator[costs_pb2.ExportRecordsResponse]:
        tenant = self._tenant(request, context)
        start, end = stretch_from_pb(request, self._clock.now())
        async for records in self._costs.records(tenant, start, end):
            yield costs_pb2.ExportRecordsResponse(records=map(record_to_pb, records))

    async def ListBudgets(
        self, request: costs_pb2.ListBudgetsRequest, context: Context
    ) -> costs_pb2.ListBudgetsResponse:
        found = await self._budgets.status(self._tenant(request, context))
        return costs_pb2.ListBudgetsResponse(budgets=map(budget_to_pb, found))

    def _tenant(self, request: AnyRequest, context: Context) -> str | None:
        authorization, _ = headers_of(context)
        return tenant_for(self._keys.identify(authorization, Scope.COSTS), asked_tenant(request))
