"""`llmmesh chat`: one streamed answer, and what it cost."""

import grpc
from rich.console import Console

from llmmesh.common.v1 import chat_pb2
from llmmesh.edge.v1 import inference_pb2
from services.cli.client import connect, in_words, text_message
from services.cli.mesh import MeshError, MeshJson
from services.common.money import usd

OUTCOMES = {number: name.removeprefix("OUTCOME_").lower() for name, number in inference_pb2.Outcome.items()}


async def chat(mesh: MeshJson, console: Console, text: str, tenant: str, model: str, system: str | None) -> None:
    """Streams the answer to `text` and prints one line about it. Raises MeshError with the mesh's error in words."""
    messages = [text_message(chat_pb2.ROLE_SYSTEM, system)] if system else []
    messages.append(text_message(chat_pb2.ROLE_USER, text))
    request = inference_pb2.StreamCompleteRequest(
        chat=chat_pb2.Chat(messages=messages, sampling=chat_pb2.Sampling(max_output_tokens=256)),
        model=model,
        endpoint="cli",
    )
    async with connect(mesh, tenant) as client:
        finished = None
        try:
            async for event in client.inference.StreamComplete(request, metadata=client.metadata, timeout=120):
                if event.HasField("delta"):
                    console.print(event.delta.text, end="", markup=False, highlight=False)
                elif event.HasField("finished"):
                    finished = event.finished
        except grpc.aio.AioRpcError as error:
            console.print()
            raise MeshError(in_words(error)) from None
    console.print()
    if finished is None:
        raise MeshError("the answer broke off")
    receipt = finished.receipt
    bill = receipt.bill
    saved = bill.baseline_nanousd - bill.actual_nanousd
    similarity = (
        f" (similarity {receipt.similarity:.3f})" if receipt.HasField("similarity") and receipt.similarity else ""
    )
    console.print(
        f"[dim]{OUTCOMES[receipt.outcome]}{similarity} · {receipt.model} · tier {receipt.tier or '-'} · "
        f"{finished.usage.input_tokens}+{finished.usage.output_tokens} tokens · cost {usd(bill.actual_nanousd)} · "
        f"saved {usd(saved)} · request {receipt.request_id}[/dim]"
    )
