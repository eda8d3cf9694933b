"""The edge behind a real channel: bad input of every kind, the four shapes of calls, peers that fail."""

import asyncio
import json
import math
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from llmmesh.cache.v1 import cache_pb2, cache_pb2_grpc
from llmmesh.common.v1 import chat_pb2, usage_pb2
from llmmesh.edge.v1 import costs_pb2, costs_pb2_grpc, inference_pb2, inference_pb2_grpc
from llmmesh.embedder.v1 import embedder_pb2, embedder_pb2_grpc
from llmmesh.provider.v1 import provider_pb2, provider_pb2_grpc
from services.common.channels import open_channel, outgoing_metadata, remaining
from services.common.chat import TextDelta
from services.common.deadline import set_remaining
from services.common.errors import (
    STATUS_TRAILER,
    AllCandidatesFailed,
    BudgetExceeded,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidInput,
    MeshError,
    NotReady,
    PermissionDenied,
    RateLimited,
    StreamCut,
    TooLarge,
    Unauthenticated,
    Unimplemented,
    UnknownModel,
    from_rpc_error,
)
from services.common.interceptors import DEFAULT_DEADLINE_S
from services.common.money import Bill, CostItem, Savings, Usage
from services.common.runtime import Service
from services.common.telemetry import extract
from services.common.testing import serve
from services.edge.adapters.keys import KeyFile, hash_key
from services.edge.adapters.peers import CachePeer, EmbedderPeer, LeasePeer, ProviderPeer, RouterPeer
from services.edge.convert import receipt_to_pb
from services.edge.cost_servicer import CostServicer
from services.edge.domain.budgets import BudgetStatus, Mode
from services.edge.domain.costs import Costs
from services.edge.domain.ledger import METRICS, Rows, UsageRecord
from services.edge.domain.ports import Found, LessonKind
from services.edge.door import Door
from services.edge.servicer import InferenceServicer
from tests.unit.edge.fakes import Clock, NoLimits, World, hit, question, text_answer
from tests.waiting import until

INFERENCE = "llmmesh.edge.v1.InferenceService"
KEY = (("authorization", "Bearer k-1"),)
ADMIN = (("authorization", "Bearer k-admin"),)


NOON = 1_700_000_000.0
HOUR = "2023-11-14T22"


def spent(cost: int, tenant: str = "acme") -> UsageRecord:
    """A record of an hour of the memory ledger."""
    usage = Usage(10, 5, cache_writes=((300, 2),), estimated=True)
    savings = Savings(cache=1, routing=2, compression=3, prompt_cache=4, batch=5)
    bill = Bill(cost, cost + 15, savings, (CostItem("provider", "gpt-4o", cost),))
    who = ("r", NOON, tenant, "default", "faq", "ann", "gpt-4o", "medium", "miss", usage, bill)
    return UsageRecord(f"id{cost}", *who, reservation_id="secret", kind="question")


class MemoryLedger:
    """A ledger that is up, or not: one hour of two tenants."""

    def __init__(self) -> None:
        self.error: MeshError | None = None
        self.asked: list[tuple[str, str, str, bool]] = []
        self.written = [spent(1), spent(2), spent(4, "volta")]

    async def tenants(self) -> list[str]:
        return ["acme", "volta"]

    async def hours(self, tenant: str, first_hour: str, end_hour: str) -> list[str]:
        if self.error:
            raise self.error
        return [HOUR]

    async def rollups(
        self, tenant: str, first_hour: str, end_hour: str, *, by_user: bool = False
    ) -> AsyncIterator[tuple[str, Rows]]:
        if self.error:
            raise self.error
        self.asked.append((tenant, first_hour, end_hour, by_user))
        sums = {"requests": 2, "actual": 50}
        row = ("faq", "gpt-4o", "miss", "medium", "question", "default", *(("ann",) if by_user else ()))
        yield HOUR, {row: [sums.get(metric, 0) for metric in METRICS]}

    async def records(self, tenant: str, hour: str) -> AsyncIterator[UsageRecord]:
        for record in self.written:
            if record.tenant == tenant:
                yield record


class FixedBudgets:
    """One budget of each tenant."""

    async def status(self, tenant: str | None) -> list[BudgetStatus]:
        return [
            BudgetStatus("all", name, "faq", "", "", "2023-11-14", Mode.SOFT, 100, 40, 7, NOON)
            for name in ("acme", "volta")
            if tenant in (None, name)
        ]


async def no_spool() -> None:
    return None


class Edge:
    """The edge's services over a world of fakes."""

    def __init__(self, channel: grpc.aio.Channel, world: World, ledger: MemoryLedger) -> None:
        self.channel = channel
        self.world = world
        self.ledger = ledger
        self.inference = inference_pb2_grpc.InferenceServiceStub(channel)
        self.costs = costs_pb2_grpc.CostServiceStub(channel)


@pytest.fixture
async def edge(tmp_path):
    path = tmp_path / "keys.json"
    kept = {hash_key("k-1"): {"tenant": "acme"}, hash_key("k-2"): {"tenant": "volta"}}
    kept |= {hash_key("k-admin"): {"tenant": "admin", "scopes": ["admin"]}}
    kept |= {hash_key("k-asks"): {"tenant": "acme", "scopes": ["inference"]}}
    path.write_text(json.dumps(kept))
    keys, world, ledger = KeyFile(path), World(budgeted=True), MemoryLedger()
    limits = NoLimits()
    services = [
        Service(
            INFERENCE,
            InferenceServicer(Door(world.walk, keys, limits, 30.0)),
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
        ),
        Service(
            "llmmesh.edge.v1.CostService",
            CostServicer(Costs(ledger, no_spool), FixedBudgets(), keys, Clock(), lambda: 3),
            costs_pb2_grpc.add_CostServiceServicer_to_server,
        ),
    ]
    async with serve(services) as channel:
        yield Edge(channel, world, ledger)


def user(text: str = "Where is my order?") -> chat_pb2.Message:
    return chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])


def chat(**fields) -> chat_pb2.Chat:
    return chat_pb2.Chat(**({"messages": [user()]} | fields))


def fields(**more) -> dict:
    return {"chat": chat()} | more


def sampling(**values) -> dict:
    return fields(chat=chat(sampling=chat_pb2.Sampling(**values)))


def control(**values) -> dict:
    return fields(cache=inference_pb2.CacheControl(**values))


def aged(seconds: int, nanos: int = 0) -> dict:
    request = inference_pb2.CacheControl()
    request.max_age.seconds, request.max_age.nanos = seconds, nanos
    return fields(cache=request)


def tools(schema: str) -> dict:
    return fields(chat=chat(tools=[chat_pb2.Tool(name="find", parameters_json_schema=schema)]))


def status_of(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    return status_pb2.Status.FromString(dict(error.trailing_metadata())[STATUS_TRAILER])


def check_public(error: grpc.aio.AioRpcError) -> None:
    """Whatever was sent, nothing of our inside is told."""
    said = f"{error.details()}{status_of(error)}"
    for secret in ("Traceback", 'File "', "services/", "Error(", "0x", "127.0.0.1", "k-1"):
        assert secret not in said, said
    info = error_details_pb2.ErrorInfo()
    assert status_of(error).details[0].Unpack(info)
    assert info.domain == "llmmesh"
    assert status_of(error).code == error.code().value[0]


async def drained(call, seen: list | None = None) -> None:
    """Reads a stream to its end."""
    async for response in call:
        if seen is not None:
            seen.append(response)


async def refusal(edge: Edge, request_fields: dict, metadata=KEY, streaming: bool = False) -> MeshError:
    """The error of a call, checked on the wire."""
    if streaming:
        call = drained(
            edge.inference.StreamComplete(inference_pb2.StreamCompleteRequest(**request_fields), metadata=metadata)
        )
    else:
        call = edge.inference.Complete(inference_pb2.CompleteRequest(**request_fields), metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    check_public(caught.value)
    error = from_rpc_error(caught.value)
    assert caught.value.code() is type(error).status
    return error


BAD = {
    "nothing at all": ({}, "chat.messages"),
    "no messages": (fields(chat=chat_pb2.Chat()), "chat.messages"),
    "empty text": (fields(chat=chat(messages=[user("")])), "chat.messages[0].parts"),
    "10 MB": (fields(chat=chat(messages=[user("x" * 10_000_000)])), "chat.messages[0].parts[0].text"),
    "10,000 messages": (fields(chat=chat(messages=[user()] * 10_000)), "chat.messages"),
    "temperature -1": (sampling(temperature=-1), "chat.sampling.temperature"),
    "temperature NaN": (sampling(temperature=math.nan), "chat.sampling.temperature"),
    "namespace with a slash": (fields(namespace="a/b"), "namespace"),
    "namespace that is not there": (fields(namespace="nowhere"), "namespace"),
    "endpoint with a line break": (fields(endpoint="a\r\nx-evil: 1"), "endpoint"),
    "endpoint with a separator": (fields(endpoint="a\x1fb"), "endpoint"),
    "long user": (fields(user="u" * 129), "user"),
    "long model": (fields(model="m" * 129), "model"),
    "similarity 2": (control(min_similarity=2), "cache.min_similarity"),
    "similarity NaN": (control(min_similarity=math.nan), "cache.min_similarity"),
    "seventeen tags": (control(tags=["t"] * 17), "cache.tags"),
    "empty tag": (control(tags=[""]), "cache.tags"),
    "negative age": (aged(-1), "cache.max_age"),
    "slightly negative age": (aged(0, -1), "cache.max_age"),
    "age beyond all time": (aged(2**63 - 1), "cache.max_age"),
    "schema not JSON": (tools("{"), "chat.tools[0].parameters_json_schema"),
    "schema far too deep": (tools('{"a":' * 100_000), "chat.tools[0].parameters_json_schema"),
    "half a surrogate pair": (tools('{"a": "\\udc80"}'), "chat.tools[0].parameters_json_schema"),
}


@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
@pytest.mark.parametrize(("request_fields", "field"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_named(edge, request_fields, field, streaming):
    error = await refusal(edge, request_fields, streaming=streaming)
    assert isinstance(error, InvalidInput)
    assert field in [violation.field for violation in error.violations]
    assert edge.world.spool.records == []


async def test_everything_wrong_is_told_at_once(edge):
    error = await refusal(edge, {"chat": chat_pb2.Chat(), "namespace": "a b", "model": "m" * 200})
    assert {v.field for v in error.violations} == {"chat.messages", "namespace", "model"}


@pytest.mark.parametrize(
    "metadata",
    [(), (("authorization", "Bearer k-9"),), (("authorization", "k-1"),), (("authorization", "Bearer "),),
     (("authorization", "Bearer k-1,k-2"),), (("x-tenant", "acme"),),
     (("authorization", "Bearer k-1"), ("authorization", "Bearer k-2"))],
)  # fmt: skip
@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
async def test_a_missing_or_wrong_key_is_refused_before_anything_else(edge, metadata, streaming):
    assert isinstance(await refusal(edge, {}, metadata, streaming), Unauthenticated)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.costs.QueryCosts(costs_pb2.QueryCostsRequest(), metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("request_id", ["", " ", "a b", "x" * 129, "x" * 4000])
async def test_a_request_id_that_could_confuse_a_log_is_refused(edge, request_id):
    error = await refusal(edge, fields(), (*KEY, ("x-request-id", request_id)))
    assert [v.field for v in error.violations] == ["metadata.x-request-id"]


async def test_a_header_larger_than_the_limit_of_headers_is_refused(edge):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.inference.Complete(
            inference_pb2.CompleteRequest(chat=chat()), metadata=(*KEY, ("x-request-id", "x" * 1_000_000))
        )
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert type(from_rpc_error(caught.value)) is TooLarge


async def test_a_message_above_the_limit_is_refused(edge):
    call = edge.channel.unary_unary(f"/{INFERENCE}/Complete")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\n" * (32 * 1024 * 1024 + 1), metadata=KEY)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


GARBAGE = {
    "invalid UTF-8": b"\x12\x02\xff\xfe",
    "invalid UTF-8 deep inside": inference_pb2.CompleteRequest(chat=chat(messages=[user("QQQQ")]))
    .SerializeToString()
    .replace(b"QQQQ", b"\xed\xa0\x80Q"),
    "a cut message": inference_pb2.CompleteRequest(chat=chat()).SerializeToString()[:-3],
    "noise": bytes(range(255, 0, -1)),
    "a length beyond the end": b"\x0a\xff\xff\xff\xff\x0f",
    "a group without end": b"\x0b",
    "nested without end": b"\x0a\x7f" * 10_000,
}


@pytest.mark.parametrize("data", GARBAGE.values(), ids=GARBAGE.keys())
@pytest.mark.parametrize("method", ["Complete", "StreamComplete"])
async def test_bytes_that_are_no_message_are_bad_input(edge, data, method):
    path = f"/{INFERENCE}/{method}"
    if method == "Complete":
        call = edge.channel.unary_unary(path)(data, metadata=KEY)
    else:
        call = drained(edge.channel.unary_stream(path)(data, metadata=KEY))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    check_public(caught.value)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidInput)
    assert [v.field for v in error.violations] == ["request"]


@pytest.mark.parametrize("seconds", [0, -5])
async def test_a_past_deadline_is_a_deadline_exceeded(edge, seconds):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.inference.Complete(inference_pb2.CompleteRequest(chat=chat()), metadata=KEY, timeout=seconds)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await edge.inference.Complete(inference_pb2.CompleteRequest(chat=chat()), metadata=KEY)


@pytest.mark.parametrize("seconds", [None, 1e6, 1e8])
async def test_a_deadline_far_away_or_none_is_fine(edge, seconds):
    response = await edge.inference.Complete(inference_pb2.CompleteRequest(chat=chat()), metadata=KEY, timeout=seconds)
    assert response.receipt.outcome == inference_pb2.OUTCOME_MISS


async def test_a_deadline_that_passes_on_the_way_is_named_and_recorded(edge):
    edge.world.provider.hangs = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.inference.Complete(inference_pb2.CompleteRequest(chat=chat()), metadata=KEY, timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: bool(edge.world.spool.records))
    assert edge.world.record.outcome == "error"


@pytest.mark.parametrize(
    ("port", "error"),
    [
        ("router", UnknownModel("no model is named x")),
        ("provider", AllCandidatesFailed("tried gpt-4o-mini")),
        ("provider", RateLimited("vendor limits us", retry_after_s=2.0)),
        ("budgets", BudgetExceeded("spent", retry_after_s=5.0, metadata={"resets_at": "tomorrow"})),
    ],
)
@pytest.mark.parametrize("streaming", [False, True], ids=["complete", "stream"])
async def test_an_error_of_the_walk_arrives_as_itself(edge, port, error, streaming):
    getattr(edge.world, port).error = error
    found = await refusal(edge, fields(), streaming=streaming)
    assert type(found) is type(error)
    assert (found.message, found.retry_after_s) == (error.message, error.retry_after_s)


async def test_a_whole_answer_says_where_it_came_from(edge):
    response = await edge.inference.Complete(
        inference_pb2.CompleteRequest(chat=chat(), endpoint="faq"), metadata=(*KEY, ("x-request-id", "mine-1"))
    )
    assert response.answer.message.parts[0].text == "Yes."
    assert response.receipt.request_id == "mine-1"
    bill = response.receipt.bill
    saved = sum(getattr(bill.savings, field.name) for field in bill.savings.DESCRIPTOR.fields)
    assert bill.baseline_nanousd - saved + bill.overhead_nanousd == bill.actual_nanousd > 0
    assert sum(item.cost_nanousd for item in bill.items) == bill.actual_nanousd
    assert edge.world.record.tenant == "acme"


async def test_the_tenant_is_the_keys_and_never_the_messages(edge):
    for key, tenant in (("k-1", "acme"), ("k-2", "volta")):
        edge.world.spool.records.clear()
        await edge.inference.Complete(
            inference_pb2.CompleteRequest(chat=chat(), user="acme"), metadata=(("authorization", f"Bearer {key}"),)
        )
        assert edge.world.record.tenant == tenant


async def test_ids_are_made_where_none_is_given(edge):
    ids = {
        (await edge.inference.Complete(inference_pb2.CompleteRequest(chat=chat()), metadata=KEY)).receipt.request_id
        for _ in range(3)
    }
    assert len(ids) == 3
    assert all(ids)


async def test_a_stream_begins_goes_on_and_finishes(edge):
    request = inference_pb2.StreamCompleteRequest(chat=chat())
    events = [event async for event in edge.inference.StreamComplete(request, metadata=KEY)]
    assert [event.WhichOneof("event") for event in events] == ["started", "delta", "delta", "finished"]
    assert "".join(event.delta.text for event in events) == "Yes."
    assert not events[0].started.receipt.HasField("bill")
    assert events[-1].finished.receipt.bill.actual_nanousd == edge.world.record.bill.actual


async def test_a_hit_streams_its_whole_receipt_at_once(edge):
    edge.world.cache.exact = hit()
    request = inference_pb2.StreamCompleteRequest(chat=chat())
    events = [event async for event in edge.inference.StreamComplete(request, metadata=KEY)]
    assert events[0].started.receipt == events[-1].finished.receipt
    assert events[0].started.receipt.outcome == inference_pb2.OUTCOME_EXACT_HIT


async def test_a_cut_stream_has_no_finish_and_a_retryable_error(edge):
    edge.world.provider.error, edge.world.provider.cut_after = StreamCut("the answer broke off"), 1
    seen: list[inference_pb2.StreamCompleteResponse] = []
    call = edge.inference.StreamComplete(inference_pb2.StreamCompleteRequest(chat=chat()), metadata=KEY)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await drained(call, seen)
    assert [event.WhichOneof("event") for event in seen] == ["started", "delta"]
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    error = from_rpc_error(caught.value)
    assert isinstance(error, StreamCut)
    assert error.retryable
    assert edge.world.cache.stored == []


async def test_a_caller_who_hangs_up_stops_the_model_and_is_billed_for_what_came(edge):
    edge.world.provider.hangs = True
    call = edge.inference.StreamComplete(inference_pb2.StreamCompleteRequest(chat=chat()), metadata=KEY)
    async for event in call:
        if event.HasField("delta"):
            break
    call.cancel()
    await until(lambda: bool(edge.world.spool.records))
    assert edge.world.provider.closed
    assert edge.world.record.error == "CANCELLED"
    assert [i.model for i in edge.world.record.bill.items if i.component == "provider"] == ["gpt-4o-mini"]


async def test_costs_are_the_callers_own(edge):
    request = costs_pb2.QueryCostsRequest(group_by=[costs_pb2.COST_DIMENSION_MODEL, costs_pb2.COST_DIMENSION_TENANT])
    response = await edge.costs.QueryCosts(request, metadata=KEY)
    assert [list(row.key) for row in response.rows] == [["gpt-4o", "acme"]]
    assert (response.total.requests, response.total.bill.actual_nanousd, response.pending_records) == (2, 50, 3)
    assert edge.ledger.asked == [("acme", "2023-11-13T22", "2023-11-14T23", False)]


async def test_an_admin_sees_every_tenants_costs(edge):
    request = costs_pb2.QueryCostsRequest(group_by=[costs_pb2.COST_DIMENSION_TENANT], tenant="*")
    response = await edge.costs.QueryCosts(request, metadata=ADMIN)
    assert [(list(row.key), row.bill.actual_nanousd) for row in response.rows] == [(["acme"], 50), (["volta"], 50)]
    assert response.total.bill.actual_nanousd == 100
    response = await edge.costs.QueryCosts(costs_pb2.QueryCostsRequest(tenant="volta"), metadata=ADMIN)
    assert response.total.requests == 2
    assert edge.ledger.asked[-1][0] == "volta"


async def test_costs_by_all_dimensions_and_only_what_is_asked_for(edge):
    every = [number for number in costs_pb2.CostDimension.values() if number]
    request = costs_pb2.QueryCostsRequest(group_by=every, tenant="acme")
    (row,) = (await edge.costs.QueryCosts(request, metadata=KEY)).rows
    named = dict(
        zip((costs_pb2.CostDimension.Name(d).removeprefix("COST_DIMENSION_") for d in every), row.key, strict=True)
    )
    assert named == {
        "ENDPOINT": "faq",
        "MODEL": "gpt-4o",
        "OUTCOME": "miss",
        "HOUR": HOUR,
        "TIER": "medium",
        "TENANT": "acme",
        "USER": "ann",
        "KIND": "question",
        "NAMESPACE": "default",
        "DAY": "2023-11-14",
    }
    for user, requests in (("ann", 2), ("bob", 0), ("", 0)):
        where = [costs_pb2.CostFilter(dimension=costs_pb2.COST_DIMENSION_USER, value=user)]
        response = await edge.costs.QueryCosts(costs_pb2.QueryCostsRequest(where=where), metadata=KEY)
        assert response.total.requests == requests


async def exported(edge, metadata=KEY, **fields) -> list[costs_pb2.UsageRecord]:
    request = costs_pb2.ExportRecordsRequest(**fields)
    getattr(request, "from").FromSeconds(int(NOON) - 60)
    request.to.FromSeconds(int(NOON) + 60)
    return [record async for found in edge.costs.ExportRecords(request, metadata=metadata) for record in found.records]


async def test_records_are_exported_with_everything_but_their_reservations(edge):
    mine = await exported(edge)
    assert [record.record_id for record in mine] == ["id1", "id2"]
    (record, bill) = (mine[0], mine[0].bill)
    assert (record.request_id, record.at.ToSeconds(), record.tenant, record.user) == ("r", int(NOON), "acme", "ann")
    assert (record.namespace, record.endpoint, record.model, record.tier) == ("default", "faq", "gpt-4o", "medium")
    assert (record.outcome, record.kind, record.error) == ("miss", "question", "")
    assert (record.usage.input_tokens, record.usage.estimated, record.usage.cache_writes[0].tokens) == (10, True, 2)
    assert (bill.actual_nanousd, bill.baseline_nanousd, bill.savings.batch_nanousd) == (1, 16, 5)
    assert bill.items[0].model == "gpt-4o"
    assert "secret" not in str(mine)
    assert [record.tenant for record in await exported(edge, ADMIN, tenant="*")] == ["acme", "acme", "volta"]


async def test_an_export_without_its_store_is_unavailable(edge):
    edge.ledger.error = NotReady("redis: ConnectionError")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await exported(edge)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_budgets_are_the_callers_own(edge):
    (budget,) = (await edge.costs.ListBudgets(costs_pb2.ListBudgetsRequest(), metadata=KEY)).budgets
    assert (budget.name, budget.tenant, budget.endpoint, budget.period) == ("all", "acme", "faq", "2023-11-14")
    assert budget.mode == costs_pb2.BUDGET_MODE_SOFT
    assert (budget.limit_nanousd, budget.spent_nanousd, budget.reserved_nanousd) == (100, 40, 7)
    assert budget.resets_at.ToSeconds() == int(NOON)
    everybodys = (await edge.costs.ListBudgets(costs_pb2.ListBudgetsRequest(tenant="*"), metadata=ADMIN)).budgets
    assert [b.tenant for b in everybodys] == ["acme", "volta"]


@pytest.mark.parametrize("tenant", ["volta", "*"])
async def test_anothers_costs_take_an_admins_key(edge, tenant):
    calls = (
        edge.costs.QueryCosts(costs_pb2.QueryCostsRequest(tenant=tenant), metadata=KEY),
        edge.costs.ListBudgets(costs_pb2.ListBudgetsRequest(tenant=tenant), metadata=KEY),
        exported(edge, tenant=tenant),
        edge.costs.QueryCosts(costs_pb2.QueryCostsRequest(), metadata=(("authorization", "Bearer k-asks"),)),
    )
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert isinstance(from_rpc_error(caught.value), PermissionDenied)
        check_public(caught.value)
    assert edge.ledger.asked == []


def window(start: int | None, end: int | None, **more) -> costs_pb2.QueryCostsRequest:
    request = costs_pb2.QueryCostsRequest(**more)
    if start is not None:
        getattr(request, "from").seconds = start
    if end is not None:
        request.to.seconds = end
    return request


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (window(10, 10), "to"),
        (window(10, 5), "to"),
        (window(0, 400 * 86_400), "from"),
        (window(10**15, 10**15 + 3600), "from"),
        (window(-(2**63), None), "from"),
        (window(None, 2**63 - 1), "to"),
        (window(None, None, group_by=[0]), "group_by[0]"),
        (window(None, None, group_by=[99]), "group_by[0]"),
        (window(None, None, group_by=[1, 1]), "group_by"),
        (window(None, None, group_by=[1] * 10_000), "group_by"),
        (window(None, None, where=[costs_pb2.CostFilter(dimension=0)]), "where[0].dimension"),
        (window(None, None, where=[costs_pb2.CostFilter(dimension=99)]), "where[0].dimension"),
        (window(None, None, where=[costs_pb2.CostFilter(dimension=4)]), "where[0].dimension"),
        (window(None, None, where=[costs_pb2.CostFilter(dimension=10)]), "where[0].dimension"),
        (window(None, None, where=[costs_pb2.CostFilter(dimension=7, value="x" * 129)]), "where[0].value"),
        (window(None, None, where=[costs_pb2.CostFilter(dimension=1)] * 101), "where"),
        (window(None, None, tenant="a b"), "tenant"),
        (window(None, None, tenant="**"), "tenant"),
    ],
)
async def test_a_question_about_costs_that_makes_no_sense_names_its_field(edge, request_, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.costs.QueryCosts(request_, metadata=KEY)
    check_public(caught.value)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidInput)
    assert field in [v.field for v in error.violations]


async def test_costs_without_their_store_are_unavailable(edge):
    edge.ledger.error = NotReady("redis: ConnectionError")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.costs.QueryCosts(costs_pb2.QueryCostsRequest(), metadata=KEY)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    check_public(caught.value)


# The interceptor, over all four shapes.


class Shapes:
    """Four methods of raw bytes; each does what its first request says."""

    def __init__(self) -> None:
        self.traces: list[str] = []
        self.deadlines: list[float | None] = []
        self.ended: list[str] = []

    async def act(self, command: bytes, context) -> bytes:
        self.traces.append(dict(outgoing_metadata()).get("traceparent", ""))
        self.deadlines.append(remaining(keep=0))
        match command:
            case b"mesh error":
                raise RateLimited("slow down", retry_after_s=1.5)
            case b"bug":
                raise ZeroDivisionError("secret at services/edge/walk.py")
            case b"abort":
                await context.abort(grpc.StatusCode.ABORTED, "by itself")
            case b"missing":
                raise NotImplementedError("Method not implemented!")
        return command

    async def unary_unary(self, request, context):
        return await self.act(request, context)

    async def unary_stream(self, request, context) -> AsyncIterator[bytes]:
        yield b"first"
        yield await self.act(request, context)

    async def stream_unary(self, requests, context):
        return b"".join([await self.act(request, context) async for request in requests])

    async def stream_stream(self, requests, context) -> AsyncIterator[bytes]:
        try:
            async for request in requests:
                yield await self.act(request, context)
        finally:
            self.ended.append("stream_stream")

    def add(self, _servicer, server) -> None:
        def parse(data: bytes) -> bytes:
            return embedder_pb2.EmbedRequest.FromString(data).model.encode()

        handlers = {
            name: getattr(grpc, f"{name}_rpc_method_handler")(getattr(self, name), parse, None)
            for name in ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        }
        server.add_registered_method_handlers("llmmesh.test.Shapes", handlers)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("llmmesh.test.Shapes", handlers),))


SHAPES = pytest.mark.parametrize("shape", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])


@pytest.fixture
async def shapes():
    servicer = Shapes()
    async with serve([Service("llmmesh.test.Shapes", servicer, servicer.add)]) as channel:
        servicer.channel = channel  # type: ignore[attr-defined]
        yield servicer


async def invoke(shapes, shape: str, command: str | bytes, **options) -> list[bytes]:
    data = command if isinstance(command, bytes) else embedder_pb2.EmbedRequest(model=command).SerializeToString()
    method = getattr(shapes.channel, shape)(f"/llmmesh.test.Shapes/{shape}")

    async def requests():
        yield data

    call = method(requests() if shape.startswith("stream") else data, **options)
    return [part async for part in call] if shape.endswith("stream") else [await call]


@SHAPES
async def test_every_shape_answers(shapes, shape):
    assert (await invoke(shapes, shape, "hello"))[-1] == b"hello"


@SHAPES
async def test_every_shape_names_its_errors(shapes, shape):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await invoke(shapes, shape, "mesh error")
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    error = from_rpc_error(caught.value)
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 1.5


@SHAPES
async def test_every_shape_hides_a_bug(shapes, shape, capsys):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await invoke(shapes, shape, "bug")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    check_public(caught.value)
    said = f"{caught.value.details()}{status_of(caught.value)}{caught.value.debug_error_string()}"
    assert "secret" not in said
    assert "ZeroDivision" not in said
    # For us the log has all of it.
    logged = capsys.readouterr()
    assert "ZeroDivisionError: secret" in logged.out + logged.err


@SHAPES
async def test_every_shape_takes_bytes_that_are_no_message_for_bad_input(shapes, shape):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await invoke(shapes, shape, b"\x12\x02\xff\xfe")
    assert isinstance(from_rpc_error(caught.value), InvalidInput)


@SHAPES
async def test_every_shape_lets_an_abort_through(shapes, shape):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await invoke(shapes, shape, "abort")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ABORTED, "by itself")


@SHAPES
async def test_every_shape_says_what_is_not_there_yet(shapes, shape):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await invoke(shapes, shape, "missing")
    assert isinstance(from_rpc_error(caught.value), Unimplemented)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


TRACE = "0af7651916cd43dd8448eb211c80319c"


@SHAPES
async def test_every_shape_continues_the_callers_trace(shapes, shape):
    await invoke(shapes, shape, "hello", metadata=(("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),))
    context = extract(shapes.traces[0], None)
    assert context is not None
    assert f"{context.trace_id:032x}" == TRACE
    assert context.trace_flags == 1


@pytest.mark.parametrize(
    "header",
    ["", "00", f"00-{'0' * 32}-b7ad6b7169203331-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-b7ad6b7169203331-01",
     f"00-{TRACE[:-1]}x-b7ad6b7169203331-01", "0" * 5000, f"00-{'-' * 32}-{'-' * 16}-01", f"00-+{TRACE[1:]}-b7ad6b7169203331-01"],
)  # fmt: skip
async def test_a_trace_header_that_is_none_is_ignored(shapes, header):
    assert await invoke(shapes, "unary_unary", "hello", metadata=(("traceparent", header),)) == [b"hello"]
    assert extract(shapes.traces[0], None) is None


@pytest.mark.parametrize("state", ["", "=", ",,,", "a=b" * 1000, "a=b,a=b"])
async def test_a_trace_state_that_is_none_does_no_harm(shapes, state):
    parent = ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01")
    assert await invoke(shapes, "unary_unary", "hello", metadata=(parent, ("tracestate", state))) == [b"hello"]
    assert TRACE in shapes.traces[0]


@SHAPES
async def test_every_shape_hands_the_deadline_on(shapes, shape):
    # gRPC writes a timeout with few digits, rounded up.
    await invoke(shapes, shape, "hello", timeout=49)
    await invoke(shapes, shape, "hello")
    assert shapes.deadlines[0] is not None
    assert 0 < shapes.deadlines[0] <= 50
    # A call without a deadline gets one.
    assert 500 < shapes.deadlines[1] <= DEFAULT_DEADLINE_S


async def test_a_stream_that_the_caller_leaves_is_closed(shapes):
    ready = asyncio.Event()

    async def requests():
        yield embedder_pb2.EmbedRequest(model="hello").SerializeToString()
        ready.set()
        await asyncio.Event().wait()

    call = shapes.channel.stream_stream("/llmmesh.test.Shapes/stream_stream")(requests())
    assert await call.read() == b"hello"
    await ready.wait()
    call.cancel()
    await until(lambda: bool(shapes.ended))


async def test_health_and_reflection_need_no_key(edge):
    answer = await health_pb2_grpc.HealthStub(edge.channel).Check(health_pb2.HealthCheckRequest())
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.channel.unary_unary("/llmmesh.edge.v1.InferenceService/Nothing")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


# The peers, as the edge's adapters see them.


class Provider(provider_pb2_grpc.ProviderServiceServicer):
    def __init__(self) -> None:
        self.answer = chat_pb2.Answer(message=chat_pb2.Message(role=3), finish_reason=chat_pb2.FINISH_REASON_STOP)
        self.error: MeshError | None = None
        self.cut = False
        self.deadline: float | None = None

    async def Generate(self, request, context):
        self.deadline = context.time_remaining()
        self.hedge = request.hedge
        if self.error:
            raise self.error
        return provider_pb2.GenerateResponse(
            answer=self.answer, usage=usage_pb2.Usage(input_tokens=5), model="gpt-4o", vendor="v"
        )

    async def StreamGenerate(self, request, context):
        self.hedge = request.hedge
        yield provider_pb2.StreamGenerateResponse(started=provider_pb2.Started(model="gpt-4o", vendor="v"))
        if self.error:
            raise self.error
        if self.cut:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")


@pytest.fixture
async def provider():
    servicer = Provider()
    name = "llmmesh.provider.v1.ProviderService"
    async with serve([Service(name, servicer, provider_pb2_grpc.add_ProviderServiceServicer_to_server)]) as channel:
        servicer.peer = ProviderPeer(channel)  # type: ignore[attr-defined]
        yield servicer


async def test_an_empty_answer_of_a_model_is_an_answer(provider):
    made = await provider.peer.generate(question(), question().chat, ["gpt-4o"])
    assert made.answer.message.text == ""


@pytest.mark.parametrize("hedge", [False, True])
async def test_the_provider_is_told_whether_it_may_hedge(provider, hedge):
    await provider.peer.generate(question(), question().chat, ["gpt-4o"], hedge=hedge)
    assert provider.hedge is hedge
    provider.hedge = None
    assert [type(e) async for e in provider.peer.stream(question(), question().chat, ["gpt-4o"], hedge=hedge)]
    assert provider.hedge is hedge


async def test_the_deadline_goes_on_to_a_peer(provider):
    set_remaining(20)
    await provider.peer.generate(question(), question().chat, ["gpt-4o"])
    set_remaining(None)
    assert provider.deadline is not None
    assert 0 < provider.deadline <= 20


async def test_a_model_without_a_vendor_is_named_in_the_callers_words(provider):
    provider.error = UnknownModel("no vendor serves the model gpt-4o", field="candidates[0]")
    with pytest.raises(UnknownModel) as caught:
        await provider.peer.generate(question(), question().chat, ["gpt-4o"])
    assert [v.field for v in caught.value.violations] == ["model"]


async def read(peer) -> None:
    async for _ in peer.stream(question(), question().chat, ["gpt-4o"]):
        pass


async def test_a_provider_that_dies_in_a_stream_is_a_cut(provider):
    provider.cut = True
    with pytest.raises(StreamCut):
        await read(provider.peer)


@pytest.mark.parametrize("kind", [StreamCut, DeadlineExceeded])
async def test_what_a_cut_cost_comes_with_it(provider, kind):
    provider.error = kind("broke off", metadata={"wasted_nanousd": "77"})
    with pytest.raises(kind) as caught:
        await read(provider.peer)
    assert caught.value.metadata == {"wasted_nanousd": "77"}


async def test_a_provider_with_a_bug_is_an_internal_error_without_a_word(provider):
    provider.error = ValueError("secret")  # type: ignore[assignment]
    with pytest.raises(MeshError) as caught:
        await provider.peer.generate(question(), question().chat, ["gpt-4o"])
    assert type(caught.value) is MeshError
    assert "secret" not in caught.value.message


async def test_nobody_there_is_not_ready_at_once():
    async with open_channel("127.0.0.1:1") as channel:
        for call in (EmbedderPeer(channel, 5.0).embed("x"), RouterPeer(channel, 5.0).route(question(), None)):
            with pytest.raises(NotReady):
                await call


class NoVectors(embedder_pb2_grpc.EmbedderServiceServicer):
    async def Embed(self, request, context):
        return embedder_pb2.EmbedResponse()


async def test_an_embedder_that_answers_nothing_is_as_good_as_none():
    name = "llmmesh.embedder.v1.EmbedderService"
    async with serve([Service(name, NoVectors(), embedder_pb2_grpc.add_EmbedderServiceServicer_to_server)]) as channel:
        with pytest.raises(NotReady):
            await EmbedderPeer(channel, 5.0).embed("x")


# A caller's word.


def word(**values) -> inference_pb2.GiveFeedbackRequest:
    return inference_pb2.GiveFeedbackRequest(**({"request_id": "r-1", "right": False} | values))


async def test_a_callers_word_reaches_the_cache_with_the_keys_tenant(edge):
    assert (await edge.inference.GiveFeedback(word(), metadata=KEY)).counted
    assert not (await edge.inference.GiveFeedback(word(request_id="unknown", right=True), metadata=KEY)).counted
    assert edge.world.cache.words == [("acme", "default", "r-1", False), ("acme", "default", "unknown", True)]
    assert edge.world.spool.records == []


@pytest.mark.parametrize(
    ("said", "field"),
    [
        (word(request_id=""), "request_id"),
        (word(request_id="a b"), "request_id"),
        (word(request_id="x" * 129), "request_id"),
        (inference_pb2.GiveFeedbackRequest(request_id="r-1"), "right"),
        (word(namespace="a/b"), "namespace"),
        (word(namespace="nowhere"), "namespace"),
    ],
)
async def test_a_word_that_makes_no_sense_is_named(edge, said, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.inference.GiveFeedback(said, metadata=KEY)
    check_public(caught.value)
    assert [violation.field for violation in from_rpc_error(caught.value).violations] == [field]
    assert edge.world.cache.words == []


async def test_a_word_needs_a_key_and_a_cache(edge):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.inference.GiveFeedback(word())
    assert isinstance(from_rpc_error(caught.value), Unauthenticated)
    edge.world.down("cache")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await edge.inference.GiveFeedback(word(), metadata=KEY)
    error = from_rpc_error(caught.value)
    assert isinstance(error, NotReady)
    assert error.retryable


# Answers that are shared.


async def test_identical_calls_at_once_get_one_answer_and_say_so(edge):
    edge.world.cache.exact = Found(exact_key=b"k" * 32)
    edge.world.provider.hangs = True
    stream = inference_pb2.StreamCompleteRequest(chat=chat())
    seen: list[list[inference_pb2.StreamCompleteResponse]] = [[], []]
    streams = [
        asyncio.create_task(drained(edge.inference.StreamComplete(stream, metadata=KEY), events)) for events in seen
    ]
    whole = edge.inference.Complete(inference_pb2.CompleteRequest(chat=chat()), metadata=KEY)
    await until(lambda: edge.world.cache.calls == 4 and edge.world.provider.calls == 1)
    edge.world.provider.hang.set()
    await asyncio.gather(*streams)
    receipts = [(await whole).receipt, *(events[-1].finished.receipt for events in seen)]
    assert sorted(receipt.outcome for receipt in receipts) == [
        inference_pb2.OUTCOME_MISS, inference_pb2.OUTCOME_COALESCED, inference_pb2.OUTCOME_COALESCED,
    ]  # fmt: skip
    for events in seen:
        assert [event.WhichOneof("event") for event in events[:1] + events[-1:]] == ["started", "finished"]
        assert "".join(event.delta.text for event in events) == "Yes."
    for receipt in receipts:
        bill = receipt.bill
        shared = receipt.outcome == inference_pb2.OUTCOME_COALESCED
        assert (bill.actual_nanousd == 0) == shared
        assert (bill.savings.cache_nanousd == bill.baseline_nanousd) == shared
    assert edge.world.provider.calls == 1


async def test_a_canary_is_a_bypass_to_its_caller():
    world = World(canary_share=1.0)
    done = await world.walk.complete(question())
    response = receipt_to_pb(done.receipt)
    assert (response.outcome, response.cache_reason) == (inference_pb2.OUTCOME_BYPASS, "canary")


class CacheService(cache_pb2_grpc.CacheServiceServicer):
    """What the cache's peer is told and says."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.answer: object = cache_pb2.LookupResponse()

    async def Lookup(self, request, context):
        self.said.append(request)
        return self.answer

    async def Learn(self, request, context):
        self.said.append(request)
        return cache_pb2.LearnResponse()

    async def Feedback(self, request, context):
        self.said.append(request)
        return cache_pb2.FeedbackResponse(counted=request.right)

    async def PublishLease(self, request_iterator, context):
        async for _ in request_iterator:
            raise FailedPrecondition("the lease is lost")


@pytest.fixture
async def cache():
    servicer = CacheService()
    name = "llmmesh.cache.v1.CacheService"
    async with serve([Service(name, servicer, cache_pb2_grpc.add_CacheServiceServicer_to_server)]) as channel:
        servicer.peer = CachePeer(channel, 5.0, 5.0)  # type: ignore[attr-defined]
        servicer.leases = LeasePeer(channel, 5.0)  # type: ignore[attr-defined]
        yield servicer


async def test_what_the_cache_tells_of_a_lookup_arrives(cache):
    verdict = cache_pb2.Verdict(reason="served", alias=True, candidates=[cache_pb2.Candidate(similarity=0.9)])
    cache.answer = cache_pb2.LookupResponse(exact_key=b"k", lesson=b"l", verdict=verdict, namespace_version=3)
    missed = await cache.peer.lookup(question(), None)
    assert (missed.answer, missed.exact_key, missed.lesson, missed.namespace_version) == (None, b"k", b"l", 3)
    cache.answer.outcome = cache_pb2.OUTCOME_SEMANTIC_HIT
    cache.answer.entry.answer.message.CopyFrom(chat_pb2.Message(role=chat_pb2.ROLE_ASSISTANT))
    cache.answer.entry.answer.message.parts.add(text="Yes.")
    cache.answer.entry.answer.finish_reason = chat_pb2.FINISH_REASON_STOP
    found = await cache.peer.lookup(question(), None)
    assert (found.semantic, found.alias, found.exact_key, found.lesson) == (True, True, b"k", b"l")


@pytest.mark.parametrize(
    ("kind", "name"),
    [(LessonKind.MISS, "MISS"), (LessonKind.SHADOW, "SHADOW"), (LessonKind.STALENESS, "STALENESS")],
)
async def test_a_lesson_goes_back_as_it_came(cache, kind, name):
    await cache.peer.learn(question(), b"l", text_answer(), kind)
    (said,) = cache.said
    assert (said.caller.tenant, said.lesson, said.answer.message.parts[0].text) == ("acme", b"l", "Yes.")
    assert cache_pb2.LessonKind.Name(said.kind) == f"LESSON_KIND_{name}"


async def test_a_word_goes_on_with_its_tenant_and_namespace(cache):
    assert await cache.peer.feedback("acme", "help", "r-9", right=True)
    assert not await cache.peer.feedback("acme", "help", "r-9", right=False)
    assert [(s.caller.tenant, s.caller.namespace, s.request_id, s.right) for s in cache.said] == [
        ("acme", "help", "r-9", True), ("acme", "help", "r-9", False),
    ]  # fmt: skip


async def test_a_holder_that_lost_its_lease_cannot_go_on_talking(cache):
    async def batches():
        while True:
            yield (TextDelta("x"),)
            await asyncio.sleep(0)

    # gRPC loses the reason when the call ends in the middle of a write.
    with pytest.raises(MeshError):
        await cache.leases.publish(question(), b"k" * 32, 1, batches())
