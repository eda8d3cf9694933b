"""What may be answered by what, over the whole mesh."""

import asyncio

import grpc
import pytest

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import inference_pb2
from services.common.errors import InvalidInput, UnknownModel, from_rpc_error
from tests.mesh.conftest import ONE_LINE, ask, chat, costs, recorded, stream, together

STOP = chat_pb2.FINISH_REASON_STOP
QUESTION = "How do I return a jacket?"
PARAPHRASE = "How can I return a jacket?"


async def test_the_same_question_twice_is_an_exact_hit(acme):
    first = await ask(acme, "How do I change my delivery address?")
    second = await ask(acme, "How do I change my delivery address?")
    assert (first.outcome, first.finish_reason) == ("miss", STOP)
    assert second.outcome == "exact_hit"
    assert second.text == first.text
    assert second.receipt.entry_id == first.receipt.entry_id != ""
    assert second.receipt.bill.actual_nanousd == 0
    assert second.receipt.bill.savings.cache_nanousd == second.receipt.bill.baseline_nanousd > 0


async def test_a_paraphrase_is_a_semantic_hit(acme):
    first = await ask(acme, QUESTION)
    second = await ask(acme, PARAPHRASE)
    assert second.outcome == "semantic_hit"
    assert second.text == first.text
    assert second.receipt.similarity > 0.86
    bill = second.receipt.bill
    assert bill.actual_nanousd == bill.overhead_nanousd > 0
    assert [item.component for item in bill.items] == [3, 4]  # the embedder and the verifier


TOOL = chat_pb2.Tool(name="find_order", parameters_json_schema='{"type": "object"}')
JSON = chat_pb2.ResponseFormat(kind=chat_pb2.ResponseFormat.KIND_JSON_OBJECT)
OTHERS = {
    "system prompt": {"system": "You sell energy."},
    "history": {"history": [("I bought boots.", "Nice.")]},
    "tools": {"tools": [TOOL]},
    "response format": {"response_format": JSON},
    "sampling": {"sampling": chat_pb2.Sampling(temperature=0.1, max_output_tokens=24, stop=[" ", "\n"])},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
@pytest.mark.parametrize("text", [QUESTION, PARAPHRASE], ids=["same words", "other words"])
async def test_another_context_never_shares_an_answer(acme, other, text):
    assert (await ask(acme, QUESTION)).receipt.entry_id
    control = inference_pb2.CacheControl(no_store=True)  # the two wordings of one context must not meet either
    assert (await ask(acme, chat(text, **other), cache=control)).outcome == "miss"


@pytest.mark.parametrize("text", [QUESTION, PARAPHRASE], ids=["same words", "other words"])
async def test_another_tenant_never_shares_an_answer(mesh, acme, text):
    assert (await ask(acme, QUESTION)).receipt.entry_id
    async with mesh.client("volta-energy") as volta:
        assert (await ask(volta, text, cache=inference_pb2.CacheControl(no_store=True))).outcome == "miss"


async def test_another_namespace_or_model_never_shares_an_answer(acme):
    assert (await ask(acme, QUESTION)).receipt.entry_id
    control = inference_pb2.CacheControl(no_store=True)
    assert (await ask(acme, QUESTION, namespace="documents", cache=control)).outcome == "miss"
    assert (await ask(acme, QUESTION, model="gpt-4o", cache=control)).outcome == "miss"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I cancel my order?", "Can I cancel after 48 hours?"),
        ("¿Cómo cancelo mi pedido?", "¿Puedo cancelar después de 48 horas?"),
        ("How do I cancel my order?", "¿Cómo cancelo mi pedido?"),
        ("Can I cancel my subscription?", "Can I not cancel my subscription?"),
        ("Do you ship to Peru?", "Do you ship to Chile?"),
        ("Is a refund possible within 14 days?", "Is a refund possible within 40 days?"),
    ],
)
async def test_questions_that_only_look_alike_never_share_an_answer(acme, one, other):
    for first, second in ((one, other), (other, one)):
        scope = f"Trap {first}"
        stored = await ask(acme, chat(first, system=scope))
        assert stored.receipt.entry_id
        answer = await ask(acme, chat(second, system=scope))
        assert answer.outcome == "miss"
        assert answer.receipt.entry_id != stored.receipt.entry_id


@pytest.mark.parametrize("model", ["auto", "smollm2-135m-instruct", "gpt-4o"])
async def test_a_stream_is_stored_as_it_was_streamed(acme, model):
    question = chat(f"Name a colour of the rainbow, please, {model}", ONE_LINE)
    first = await stream(acme, question, model=model)
    assert (first.outcome, first.finish_reason) == ("miss", STOP)
    assert first.pieces > 1
    whole = await ask(acme, question, model=model)
    assert whole.outcome == "exact_hit"
    assert whole.text == first.text
    again = await stream(acme, question, model=model)
    assert (again.outcome, again.text) == ("exact_hit", first.text)


async def test_a_truncated_answer_is_not_stored(acme):
    cut = chat("Tell me a long story.", chat_pb2.Sampling(temperature=0, max_output_tokens=2))
    first = await ask(acme, cut)
    assert first.finish_reason == chat_pb2.FINISH_REASON_LENGTH
    assert (await ask(acme, cut)).outcome == "miss"


async def test_an_empty_answer_is_given_and_not_stored(acme):
    letters = ["I", "T", "S", "Y", "A", "H", "N", "W"]
    empty = chat("Answer with nothing", chat_pb2.Sampling(temperature=0, max_output_tokens=1, stop=letters))
    for _ in range(2):
        answer = await ask(acme, empty)
        assert (answer.outcome, answer.receipt.entry_id) == ("miss", "")


@pytest.mark.parametrize(
    ("fields", "outcome", "stored"),
    [
        ({"cache": inference_pb2.CacheControl(bypass=True)}, "bypass", True),
        ({"cache": inference_pb2.CacheControl(no_store=True)}, "miss", False),
    ],
)
async def test_a_caller_may_tighten_the_cache(acme, fields, outcome, stored):
    answer = await ask(acme, f"Where is the shop for {outcome}?", **fields)
    assert (answer.outcome, bool(answer.receipt.entry_id)) == (outcome, stored)


async def test_a_temperature_above_the_policys_is_neither_served_nor_stored(acme):
    hot = chat("Tell me a joke.", chat_pb2.Sampling(temperature=1.5, max_output_tokens=4))
    for _ in range(2):
        answer = await ask(acme, hot)
        assert (answer.outcome, answer.receipt.entry_id) == ("bypass", "")


async def test_half_a_similarity_is_not_enough_for_a_caller_who_wants_all(acme):
    await ask(acme, QUESTION)
    strict = inference_pb2.CacheControl(min_similarity=1.0, no_store=True)
    assert (await ask(acme, PARAPHRASE, cache=strict)).outcome == "miss"
    loose = inference_pb2.CacheControl(min_similarity=0.0, no_store=True)
    assert (await ask(acme, "What is a jacket made of?", cache=loose)).outcome == "miss"


@pytest.mark.parametrize(
    ("fields", "kind", "field"),
    [
        ({"model": "nope"}, UnknownModel, "model"),
        ({"model": "claude-opus"}, UnknownModel, "model"),
        ({"namespace": "nope"}, InvalidInput, "namespace"),
    ],
)
async def test_what_only_the_inner_services_know_is_named_in_the_callers_words(acme, fields, kind, field):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(acme, "Hello", **fields)
    error = from_rpc_error(caught.value)
    assert type(error) is kind
    assert [violation.field for violation in error.violations] == [field]


async def test_every_bill_adds_up_to_what_the_ledger_says(mesh):
    async with mesh.client("volta-energy") as volta:
        before = await costs(volta)
        answers = await together(12, lambda n: ask(volta, f"How much is tariff {n % 4}?", endpoint="tariffs"))
        after = await recorded(volta, before.requests + 12)
    assert after.requests == before.requests + 12
    spent = sum(answer.receipt.bill.actual_nanousd for answer in answers)
    baseline = sum(answer.receipt.bill.baseline_nanousd for answer in answers)
    assert after.bill.actual_nanousd - before.bill.actual_nanousd == spent
    assert after.bill.baseline_nanousd - before.bill.baseline_nanousd == baseline
    for answer in answers:
        bill = answer.receipt.bill
        saved = sum(getattr(bill.savings, f.name) for f in bill.savings.DESCRIPTOR.fields)
        assert bill.baseline_nanousd - saved + bill.overhead_nanousd == bill.actual_nanousd


async def test_a_caller_who_hangs_up_is_recorded_and_frees_the_model(acme):
    before = await costs(acme)
    request = inference_pb2.StreamCompleteRequest(
        chat=chat("Count to a thousand.", chat_pb2.Sampling(temperature=0, max_output_tokens=256)),
        cache=inference_pb2.CacheControl(bypass=True),
    )

    async def hang_up(_number: int) -> None:
        call = acme.inference.StreamComplete(request, metadata=acme.metadata, timeout=60)
        async for event in call:
            if event.HasField("delta"):
                call.cancel()
                break

    async with asyncio.timeout(60):
        await together(16, hang_up)
    after = await recorded(acme, before.requests + 16)
    assert after.bill.actual_nanousd > before.bill.actual_nanousd
    assert (await ask(acme, "Are you still there?")).text
