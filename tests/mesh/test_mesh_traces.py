"""One trace per request over all services, received over OTLP as a collector would."""

import secrets

import pytest

from llmmesh.edge.v1 import inference_pb2
from services.common import telemetry
from tests.mesh.conftest import ONE_LINE, Answer, Mesh, Span, ask, chat, stream
from tests.waiting import until

INNER = {
    "exact_hit": {"llmmesh-cache"},
    "semantic_hit": {"llmmesh-cache", "llmmesh-embedder"},
    "miss": {"llmmesh-cache", "llmmesh-embedder", "llmmesh-router", "llmmesh-provider"},
}
SECRET = "xyzzy"


def metadata() -> tuple[str, tuple[tuple[str, str], ...]]:
    """A caller's own trace."""
    trace_id = secrets.token_hex(16)
    return trace_id, (("traceparent", f"00-{trace_id}-{'1' * 16}-01"),)


async def trace_of(mesh: Mesh, trace_id: str, count: int) -> list[Span]:
    """The whole trace: so many spans, and every parent among them."""
    await until(lambda: len(mesh.receiver.trace(trace_id)) >= count)
    spans = mesh.receiver.trace(trace_id)
    ids = {span.span_id for span in spans} | {"1" * 16}
    assert all(span.parent_id in ids for span in spans)
    assert len(spans) == count, sorted(span.name for span in spans)
    return spans


def check(spans: list[Span], answer: Answer) -> Span:
    """Names and money; returns the root."""
    (root,) = (span for span in spans if span.service == "llmmesh-edge")
    assert root.parent_id == "1" * 16
    assert root.name.startswith("llmmesh.edge.v1.InferenceService/")
    emitted = {name for span in spans for name in span.attributes}
    assert emitted <= telemetry.ATTRIBUTES, emitted - telemetry.ATTRIBUTES
    assert not any(SECRET in f"{span.name}{span.attributes}" for span in spans)
    bill = answer.receipt.bill
    assert root.attributes[telemetry.COST_ACTUAL] == bill.actual_nanousd
    assert root.attributes[telemetry.COST_BASELINE] == bill.baseline_nanousd
    assert root.attributes[telemetry.COST_OVERHEAD] == bill.overhead_nanousd
    for layer, attribute in telemetry.COST_SAVED.items():
        # A layer that saved nothing is left out.
        assert root.attributes.get(attribute, 0) == getattr(bill.savings, f"{layer}_nanousd")
    assert root.attributes[telemetry.OUTCOME] == answer.outcome
    assert root.attributes[telemetry.TENANT] == "acme-shop"
    assert sum(int(str(span.attributes.get(telemetry.COST_SPAN, 0))) for span in spans) == bill.actual_nanousd
    return root


@pytest.mark.parametrize(("model", "vendor"), [("smollm2-135m-instruct", "engine"), ("gpt-4o-mini", "stand-in")])
@pytest.mark.parametrize("call", [ask, stream], ids=["complete", "stream"])
async def test_a_miss_is_one_trace_over_all_services(mesh, acme, model, vendor, call):
    # A scope of its own: where there is a candidate, the verifier's span comes on top.
    scope = f"You name things. {model} {call.__name__}"
    question = chat(f"Name a fruit, {SECRET} {model} {call.__name__}", ONE_LINE, system=scope)
    trace_id, extra = metadata()
    if call is ask:
        answer = await ask(acme, question, model=model, metadata=extra)
    else:
        acme.metadata = (*acme.metadata, *extra)
        answer = await stream(acme, question, model=model)
    services = INNER["miss"] | {"llmmesh-edge"} | ({"llmmesh-engine"} if vendor == "engine" else set())
    spans = await trace_of(mesh, trace_id, 11 if vendor == "engine" else 10)
    root = check(spans, answer)
    assert {span.service for span in spans} == services
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        if span.service in ("llmmesh-cache", "llmmesh-embedder", "llmmesh-router"):
            assert span.parent_id == root.span_id
    names = [span.name.rsplit("/", 1)[1] for span in spans if span.service == "llmmesh-cache"]
    assert sorted(names) == ["AcquireLease", "Lookup", "Lookup", "PublishLease", "Store"]
    (attempt,) = (span for span in spans if span.name == f"chat {model}")
    assert by_id[attempt.parent_id].service == "llmmesh-provider"
    assert by_id[attempt.parent_id].parent_id == root.span_id
    assert attempt.attributes[telemetry.GEN_AI_PROVIDER] == vendor
    assert attempt.attributes[telemetry.GEN_AI_OUTPUT_TOKENS] > 0
    assert attempt.attributes[telemetry.COST_SPAN] > 0
    engine = [span for span in spans if span.service == "llmmesh-engine"]
    assert [span.parent_id for span in engine] == ([attempt.span_id] if vendor == "engine" else [])
    (router,) = (span for span in spans if span.service == "llmmesh-router")
    assert router.attributes[telemetry.ROUTE_REASON]


async def test_hits_are_short_traces(mesh, acme):
    text = f"How do I clean a jacket, {SECRET}?"
    assert (await ask(acme, text)).receipt.entry_id
    for asked, outcome in ((text, "exact_hit"), (f"How can I clean a jacket, {SECRET}?", "semantic_hit")):
        trace_id, extra = metadata()
        answer = await ask(acme, asked, metadata=extra)
        assert answer.outcome == outcome
        spans = await trace_of(mesh, trace_id, 2 if outcome == "exact_hit" else 5)
        check(spans, answer)
        assert {span.service for span in spans} == INNER[outcome] | {"llmmesh-edge"}


async def test_compression_is_part_of_the_trace(mesh, acme):
    trace_id, extra = metadata()
    control = inference_pb2.CacheControl(bypass=True)
    answer = await ask(acme, "What is a jacket?", namespace="documents", model="gpt-4o", cache=control, metadata=extra)
    spans = await trace_of(mesh, trace_id, 6)
    check(spans, answer)
    (compressor,) = (span for span in spans if span.service == "llmmesh-compressor")
    assert compressor.attributes[telemetry.COMPRESS_ORIGINAL_TOKENS] > 0
