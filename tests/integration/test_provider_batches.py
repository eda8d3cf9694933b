"""The provider's batches against vendors that behave like OpenAI and Anthropic on the wire, through the official SDKs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from llmmesh.common.v1 import caller_pb2, chat_pb2, usage_pb2
from llmmesh.provider.v1 import batch_pb2, batch_pb2_grpc
from services.common.errors import (
    FailedPrecondition,
    InvalidInput,
    MeshError,
    NotReady,
    RateLimited,
    UnknownModel,
    UpstreamRejected,
    UpstreamUnavailable,
    from_rpc_error,
)
from services.common.testing import serve
from services.provider.app import build
from services.provider.settings import ProviderSettings
from tests.vendors.anthropic_batch_like import AnthropicBatchLike
from tests.vendors.batches import BatchScript
from tests.vendors.openai_batch_like import OpenAIBatchLike
from tests.vendors.openai_like import Script
from tests.waiting import until

CALLER = caller_pb2.Caller(tenant="acme")
KEY = "sk-test-0123456789"
SUBMISSION = "s0123456789abcdef"
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku"}
BOTH = pytest.mark.parametrize("vendor", ["openai", "anthropic"])

Batches: TypeAlias = "batch_pb2_grpc.BatchServiceAsyncStub"
Vendors: TypeAlias = "dict[str, OpenAIBatchLike | AnthropicBatchLike]"


@pytest.fixture
async def vendors() -> AsyncIterator[Vendors]:
    async with OpenAIBatchLike(api_key=KEY) as openai, AnthropicBatchLike(KEY) as anthropic:
        yield {"openai": openai, "anthropic": anthropic}


@pytest.fixture
async def batches(vendors: Vendors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Batches]:
    monkeypatch.setenv("TEST_VENDOR_KEY", KEY)
    path = tmp_path / "vendors.yaml"
    path.write_text(
        f"""
vendors:
  - name: plain
    kind: openai
    base_url: {vendors["openai"].url}/v1
    api_key_env: TEST_VENDOR_KEY
    models: {{gpt-4o: big, gpt-4o-mini: mini}}
  - name: openai
    kind: openai
    batch: true
    base_url: {vendors["openai"].url}/v1
    api_key_env: TEST_VENDOR_KEY
    models: {{gpt-4o-mini: mini-2026}}
  - name: anthropic
    kind: anthropic
    base_url: {vendors["anthropic"].url}
    api_key_env: TEST_VENDOR_KEY
    models: {{claude-haiku: claude-3-haiku-20240307, mystery: claude-mystery}}
"""
    )
    settings = ProviderSettings(vendors_file=path, max_attempts=2, backoff_base_s=0, breaker_faults=100)
    async with AsyncExitStack() as stack:
        services = await build(settings, stack)
        channel = await stack.enter_async_context(serve(services))
        yield batch_pb2_grpc.BatchServiceStub(channel)


def chat(text: str, **sampling: float) -> chat_pb2.Chat:
    message = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return chat_pb2.Chat(messages=[message], sampling=chat_pb2.Sampling(**sampling))


def at(seconds: float) -> Timestamp:
    return Timestamp(seconds=int(seconds))


def items(*texts: str) -> list[batch_pb2.SubmittedItem]:
    return [batch_pb2.SubmittedItem(id=str(i), chat=chat(text)) for i, text in enumerate(texts)]


def submission(at_vendor: str, *texts: str, **more) -> batch_pb2.SubmitBatchRequest:
    fields = {
        "caller": CALLER,
        "submission_id": SUBMISSION,
        "model": MODELS[at_vendor],
        "vendor": at_vendor,
        "items": items(*texts),
        "not_after": at(time.time() + 60),
    }
    return batch_pb2.SubmitBatchRequest(**(fields | more))


async def submitted(batches: Batches, vendor: str, *texts: str) -> str:
    response = await batches.SubmitBatch(submission(vendor, *texts))
    assert not response.refused
    return response.vendor_batch_id


async def found(batches: Batches, vendor: str, size: int, since: float | None = None) -> str:
    now = time.time()
    request = batch_pb2.FindVendorBatchRequest(
        submission_id=SUBMISSION, vendor=vendor, since=at(since or now - 60), not_after=at(now + 60), items=size
    )
    return (await batches.FindVendorBatch(request)).vendor_batch_id


async def poll(batches: Batches, vendor: str, batch_id: str) -> str:
    response = await batches.PollBatch(batch_pb2.PollBatchRequest(vendor=vendor, vendor_batch_id=batch_id))
    return batch_pb2.VendorBatchState.Name(response.state).removeprefix("VENDOR_BATCH_STATE_").lower()


async def ended(batches: Batches, vendor: str, batch_id: str) -> str:
    while (state := await poll(batches, vendor, batch_id)) == "running":
        pass
    return state


async def results(batches: Batches, vendor: str, batch_id: str, size: int, **more) -> list[batch_pb2.ItemResult]:
    fields = {
        "submission_id": SUBMISSION,
        "model": MODELS[vendor],
        "vendor": vendor,
        "vendor_batch_id": batch_id,
        "items": [batch_pb2.SentItem(id=str(i), estimated_input_tokens=7) for i in range(size)],
    }
    request = batch_pb2.FetchBatchResultsRequest(**(fields | more))
    return [response.result async for response in batches.FetchBatchResults(request)]


async def refusal(call) -> MeshError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_models_say_how_they_take_batches(batches):
    listed = await batches.ListBatchModels(batch_pb2.ListBatchModelsRequest())
    mode = batch_pb2.BatchMode.Name
    assert [(m.model, m.vendor, mode(m.mode).removeprefix("BATCH_MODE_")) for m in listed.models] == [
        ("claude-haiku", "anthropic", "VENDOR"),
        ("gpt-4o", "plain", "RUN"),
        ("gpt-4o-mini", "openai", "VENDOR"),
        ("gpt-4o-mini", "plain", "RUN"),
        ("mystery", "anthropic", "VENDOR"),
    ]


@BOTH
async def test_a_batch_goes_through_the_vendors_states_to_its_answers(batches, vendors, vendor):
    vendors[vendor].usual = BatchScript(steps=3)
    batch_id = await submitted(batches, vendor, "one", "two")
    states = [await poll(batches, vendor, batch_id) for _ in range(4)]
    assert states == ["running", "running", "running", "completed"]
    by_id = {r.id: r.answer for r in await results(batches, vendor, batch_id, 2)}
    assert {id_: a.answer.message.parts[0].text for id_, a in by_id.items()} == {"0": "About one", "1": "About two"}
    assert {a.answer.finish_reason for a in by_id.values()} == {chat_pb2.FINISH_REASON_STOP}
    assert {a.model for a in by_id.values()} == {MODELS[vendor]}
    sent = [body["model"] for _, body in vendors[vendor].bodies]
    assert set(sent) == {"mini-2026" if vendor == "openai" else "claude-3-haiku-20240307"}


async def test_an_openai_item_costs_what_the_list_says_of_batches_to_the_nanodollar(batches, vendors):
    vendors["openai"].usage = {
        "prompt_tokens": 1001,
        "completion_tokens": 77,
        "total_tokens": 1078,
        "prompt_tokens_details": {"cached_tokens": 301},
        "completion_tokens_details": {"reasoning_tokens": 33},
    }
    batch_id = await submitted(batches, "openai", "one")
    await ended(batches, "openai", batch_id)
    (result,) = await results(batches, "openai", batch_id, 1)
    # List, by hand: 700 x $.15/M + 301 x $.075/M + 77 x $.60/M = 105,000 + 22,575 + 46,200 nano-USD.
    charge = result.answer.charge
    assert charge.batch_discount_nanousd + charge.cost_nanousd == 173_775
    # A batch pays half, but for cached input, which has one price: 52,500 + 22,575 + 23,100.
    assert charge.cost_nanousd == 98_175
    assert charge.rates.input_nanousd_per_mtok == 150_000_000
    assert charge.component == usage_pb2.COST_COMPONENT_PROVIDER
    assert result.answer.usage.reasoning_output_tokens == 33
    assert result.answer.usage.cache_read_input_tokens == 301


async def test_an_anthropic_item_costs_half_of_the_list_to_the_nanodollar(batches, vendors):
    vendors["anthropic"].usage = {
        "input_tokens": 500,
        "output_tokens": 40,
        "cache_read_input_tokens": 200,
        "cache_creation_input_tokens": 300,
        "cache_creation": {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 200},
    }
    batch_id = await submitted(batches, "anthropic", "one")
    await ended(batches, "anthropic", batch_id)
    (result,) = await results(batches, "anthropic", batch_id, 1)
    # List, by hand: 500 x .25 + 200 x .03 + 100 x .30 + 200 x .50 + 40 x 1.25 $/M = 125 + 6 + 30 + 100 + 50 micro-USD.
    charge = result.answer.charge
    assert (charge.cost_nanousd, charge.batch_discount_nanousd) == (155_500, 155_500)
    assert result.answer.usage.input_tokens == 1000


@BOTH
async def test_an_item_without_usage_is_estimated_and_never_free(batches, vendors, vendor):
    vendors[vendor].usual = BatchScript(no_usage=frozenset({"one"}))
    batch_id = await submitted(batches, vendor, "one")
    await ended(batches, vendor, batch_id)
    (result,) = await results(batches, vendor, batch_id, 1)
    assert result.answer.usage.estimated
    assert result.answer.usage.input_tokens == 7
    assert result.answer.charge.cost_nanousd > 0


async def test_an_item_of_a_model_without_a_price_is_unpriced(batches, vendors):
    response = await batches.SubmitBatch(submission("anthropic", "one", model="mystery"))
    await ended(batches, "anthropic", response.vendor_batch_id)
    (result,) = await results(batches, "anthropic", response.vendor_batch_id, 1, model="mystery")
    assert result.answer.charge.unpriced
    assert not result.answer.charge.batch_discount_nanousd


ENDS = {
    "openai": {"bad": (400, "invalid_value"), "busy": (503, "overloaded"), "long": (400, "context_length_exceeded")},
    "anthropic": {
        "bad": (0, "invalid_request_error"),
        "busy": (0, "overloaded_error"),
        "long": (0, "request_too_large"),
    },
}


@BOTH
async def test_items_fail_one_by_one_with_their_reasons(batches, vendors, vendor):
    vendors[vendor].usual = BatchScript(
        errors=ENDS[vendor], undone=frozenset({"late"}), missing=frozenset({"lost"}), nonsense=frozenset({"odd"})
    )
    batch_id = await submitted(batches, vendor, "bad", "busy", "long", "late", "lost", "odd", "good")
    await ended(batches, vendor, batch_id)
    by_id = {r.id: r for r in await results(batches, vendor, batch_id, 7)}
    told = {id_: (r.failure.reason, r.failure.retryable) for id_, r in by_id.items() if r.HasField("failure")}
    assert told == {
        "0": ("UPSTREAM_REJECTED", False),
        "1": ("UPSTREAM_UNAVAILABLE", True),
        "2": ("INVALID_INPUT", False),
        "3": ("DEADLINE_EXCEEDED", True),
        "5": ("UPSTREAM_UNAVAILABLE", True),
    }
    assert by_id["5"].failure.wasted_nanousd > 0
    assert "about" not in str([r.failure.message for r in by_id.values()])
    assert by_id["6"].answer.answer.message.parts[0].text == "About good"


@BOTH
async def test_results_of_other_items_are_left_out_and_duplicates_are_passed_on(batches, vendors, vendor):
    vendors[vendor].usual = BatchScript(twice=frozenset({"two"}))
    batch_id = await submitted(batches, vendor, "one", "two", "three")
    await ended(batches, vendor, batch_id)
    wanted = [batch_pb2.SentItem(id="1"), batch_pb2.SentItem(id="2")]
    got = await results(batches, vendor, batch_id, 3, items=wanted)
    assert sorted(r.id for r in got) == ["1", "1", "2"]
    assert await results(batches, vendor, batch_id, 3, submission_id="another0submission") == []


@BOTH
async def test_results_that_break_off_are_an_error_and_not_fewer_results(batches, vendors, vendor):
    vendors[vendor].cut_files = 1
    batch_id = await submitted(batches, vendor, "one", "two")
    await ended(batches, vendor, batch_id)
    assert isinstance(await refusal(results(batches, vendor, batch_id, 2)), UpstreamUnavailable)
    assert len(await results(batches, vendor, batch_id, 2)) == 2


@BOTH
async def test_a_line_that_is_no_json_is_nobodys_result(batches, vendors, vendor):
    vendors[vendor].usual = BatchScript(garbled=frozenset({"two"}))
    batch_id = await submitted(batches, vendor, "one", "two", "three")
    await ended(batches, vendor, batch_id)
    assert sorted(r.id for r in await results(batches, vendor, batch_id, 3)) == ["0", "2"]


@BOTH
async def test_a_batch_that_is_cancelled_keeps_what_was_finished(batches, vendors, vendor):
    vendors[vendor].usual = BatchScript(steps=100, undone=frozenset({"two"}))
    batch_id = await submitted(batches, vendor, "one", "two")
    request = batch_pb2.CancelVendorBatchRequest(vendor=vendor, vendor_batch_id=batch_id)
    await batches.CancelVendorBatch(request)
    assert await ended(batches, vendor, batch_id) == "cancelled"
    by_id = {r.id: r for r in await results(batches, vendor, batch_id, 2)}
    assert by_id["0"].HasField("answer")
    assert by_id["1"].failure.reason == "UPSTREAM_UNAVAILABLE"
    await batches.CancelVendorBatch(request)  # nothing happens to one that has ended


@BOTH
async def test_a_batch_that_the_vendor_does_not_know_is_gone(batches, vendor):
    assert await poll(batches, vendor, "batch_404") == "gone"


async def test_a_batch_that_fails_as_a_whole_names_the_items_at_fault(batches, vendors):
    vendors["openai"].usual = BatchScript(ends="failed", refused=frozenset({"two"}))
    batch_id = await submitted(batches, "openai", "one", "two", "three")
    assert await ended(batches, "openai", batch_id) == "failed"
    (result,) = await results(batches, "openai", batch_id, 3)
    assert (result.id, result.failure.reason) == ("1", "UPSTREAM_REJECTED")


async def test_a_submission_is_found_by_its_marker_among_many(batches, vendors):
    first = await submitted(batches, "openai", "one")
    for number in range(5):
        await batches.SubmitBatch(submission("openai", "x", submission_id=f"another{number}"))
    assert await found(batches, "openai", 1) == first
    assert await found(batches, "openai", 1, since=time.time() + 1000) == ""


async def test_a_submission_that_never_arrived_is_not_found(batches):
    assert await found(batches, "openai", 1) == ""
    assert await found(batches, "anthropic", 1) == ""


async def test_a_vendor_without_metadata_cannot_tell_until_its_batches_end(batches, vendors):
    vendors["anthropic"].next_batch(BatchScript(steps=0), BatchScript(steps=0), BatchScript(steps=2))
    await submitted(batches, "anthropic", "larger", "than", "sought")
    other = await batches.SubmitBatch(submission("anthropic", "x", submission_id="another0submission"))
    await ended(batches, "anthropic", other.vendor_batch_id)
    assert await found(batches, "anthropic", 1) == ""
    mine = await submitted(batches, "anthropic", "one")
    assert isinstance(await refusal(found(batches, "anthropic", 1)), NotReady)
    await ended(batches, "anthropic", mine)
    assert await found(batches, "anthropic", 1) == mine


@BOTH
async def test_a_broken_connection_leaves_open_whether_the_vendor_has_it(batches, vendors, vendor):
    vendors[vendor].next_batch(BatchScript(steps=0, lost=True))
    assert isinstance(await refusal(batches.SubmitBatch(submission(vendor, "one"))), UpstreamUnavailable)
    (there,) = vendors[vendor].batches
    there.polls = 1
    assert await found(batches, vendor, 1) == there.id


async def test_a_limit_means_that_the_vendor_has_nothing(batches, vendors):
    vendors["openai"].refusals.append((429, {"retry-after": "17"}))
    error = await refusal(batches.SubmitBatch(submission("openai", "one")))
    assert isinstance(error, RateLimited)
    assert error.retry_after_s == 17
    vendors["openai"].refusals.append((400, {}))
    assert isinstance(await refusal(batches.SubmitBatch(submission("openai", "one"))), UpstreamRejected)
    assert not vendors["openai"].batches


@BOTH
async def test_a_submission_that_comes_too_late_is_not_sent(batches, vendors, vendor):
    late = submission(vendor, "one", not_after=at(time.time() - 1))
    assert isinstance(await refusal(batches.SubmitBatch(late)), FailedPrecondition)
    assert not vendors[vendor].batches


async def test_an_item_that_the_vendor_cannot_be_told_is_left_out(batches, vendors):
    hot = batch_pb2.SubmittedItem(id="hot", chat=chat("hot", temperature=1.5))
    response = await batches.SubmitBatch(submission("anthropic", items=[*items("one"), hot]))
    assert [(r.id, r.failure.reason) for r in response.refused] == [("hot", "INVALID_INPUT")]
    assert [text for text, _ in vendors["anthropic"].bodies] == ["one"]
    response = await batches.SubmitBatch(submission("anthropic", items=[hot]))
    assert not response.vendor_batch_id
    assert len(response.refused) == 1
    assert len(vendors["anthropic"].batches) == 1


BAD = {
    "no items": ({"items": []}, "items"),
    "one id twice": ({"items": items("a") + items("b")}, "items"),
    "an odd id": ({"items": [batch_pb2.SubmittedItem(id="a-b", chat=chat("x"))]}, "items[0].id"),
    "an empty chat": ({"items": [batch_pb2.SubmittedItem(id="a")]}, "items[0].chat.messages"),
    "a short submission id": ({"submission_id": "a"}, "submission_id"),
    "no time": ({"not_after": None}, "not_after"),
    "nobody": ({"caller": caller_pb2.Caller()}, "caller.tenant"),
}


@pytest.mark.parametrize(("fields", "field"), BAD.values(), ids=BAD)
async def test_a_submission_is_checked(batches, vendors, fields, field):
    error = await refusal(batches.SubmitBatch(submission("openai", "one", **fields)))
    assert isinstance(error, InvalidInput)
    assert field in [violation.field for violation in error.violations]
    assert not vendors["openai"].batches


async def test_a_vendor_without_a_batch_api_takes_none(batches):
    for fields in ({"vendor": "plain"}, {"vendor": "nobody"}, {"model": "gpt-4o"}):
        assert isinstance(await refusal(batches.SubmitBatch(submission("openai", "one", **fields))), UnknownModel)


async def test_items_are_run_one_by_one_where_there_is_no_batch_api(batches, vendors):
    vendors["openai"].next(Script(text="first"), Script(status=400, error={"code": "bad"}), Script(text="third"))
    request = batch_pb2.RunBatchRequest(caller=CALLER, candidates=["gpt-4o"], items=items("one", "two", "three"))
    got = {r.result.id: r.result async for r in batches.RunBatch(request)}
    assert sorted(got) == ["0", "1", "2"]
    answers = {r.answer.answer.message.parts[0].text for r in got.values() if r.HasField("answer")}
    assert answers == {"first", "third"}
    (failure,) = [r.failure for r in got.values() if r.HasField("failure")]
    assert (failure.reason, failure.retryable) == ("UPSTREAM_REJECTED", False)
    assert all(not r.answer.charge.batch_discount_nanousd for r in got.values())


async def test_few_items_are_run_at_once_and_none_after_the_caller_left(batches, vendors):
    vendors["openai"].always = Script(fault="hang")
    request = batch_pb2.RunBatchRequest(caller=CALLER, candidates=["gpt-4o"], items=items(*"abcdefgh"))
    call = batches.RunBatch(request)
    reading = asyncio.ensure_future(call.read())
    await until(lambda: len(vendors["openai"].requests) == 2)
    call.cancel()
    await until(lambda: vendors["openai"].hang_ups == 2)
    assert len(vendors["openai"].requests) == 2
    with pytest.raises(asyncio.CancelledError):
        await reading
