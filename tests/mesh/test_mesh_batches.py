"""A batch through the whole mesh: the cache first, then the models, whatever is killed meanwhile."""

from llmmesh.edge.v1 import batch_pb2
from tests.mesh.conftest import ask, chat, recorded

KNOWN = "How long does a parcel to Norway take?"
TEXTS = (KNOWN, "What is the capital of Norway?", "What is the capital of Peru?", "What is the capital of Chad?")


async def test_a_batch_is_answered_out_of_the_cache_and_by_models_though_services_are_killed(mesh):
    async with mesh.client("volta-energy") as client:
        await ask(client, KNOWN)
        before = (await recorded(client, 1)).requests
        items = [batch_pb2.BatchItem(custom_id=f"c{i}", chat=chat(text)) for i, text in enumerate(TEXTS)]
        request = batch_pb2.CreateBatchRequest(items=items, endpoint="nightly")
        made = (await client.batches.CreateBatch(request, metadata=client.metadata, timeout=30)).batch
        old = mesh.kill("provider")
        await mesh.until_restarted("provider", old)
        old = mesh.kill("edge")
        await mesh.until_restarted("edge", old)
    async with mesh.client("volta-energy") as client:
        follow = batch_pb2.StreamBatchResultsRequest(id=made.id, follow=True)
        call = client.batches.StreamBatchResults(follow, metadata=client.metadata, timeout=150)
        results = {result.custom_id: result async for result in call}
        assert set(results) == {"c0", "c1", "c2", "c3"}
        assert all(result.HasField("answer") for result in results.values())
        got = await client.batches.GetBatch(batch_pb2.GetBatchRequest(id=made.id), metadata=client.metadata, timeout=30)
        counts = got.batch.counts
        assert (counts.answered, counts.cached) == (4, 1)
        total = await recorded(client, before + 4)
        assert total.requests == before + 4
        assert sum(r.receipt.bill.actual_nanousd for r in results.values()) == got.batch.bill.actual_nanousd
