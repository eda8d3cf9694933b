"""What the embedder is made of."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack

from llmmesh.embedder.v1.embedder_pb2_grpc import add_EmbedderServiceServicer_to_server
from services.common.money import NANO
from services.common.runtime import Service
from services.embedder.adapters.loader import load_all
from services.embedder.domain import Embedder, Price
from services.embedder.servicer import EmbedderServicer
from services.embedder.settings import EmbedderSettings

SERVICE = "llmmesh.embedder.v1.EmbedderService"


async def build(settings: EmbedderSettings, stack: AsyncExitStack) -> list[Service]:
    """Starts loading the models and returns the service at once."""
    worker = ThreadPoolExecutor(1, thread_name_prefix="embedder")
    stack.callback(worker.shutdown, wait=False, cancel_futures=True)
    embedder = Embedder(settings.models, worker, verifier_expected=bool(settings.verifier_model))
    loading = asyncio.create_task(load_all(embedder, settings, worker))
    stack.callback(loading.cancel)
    price = Price(round(settings.price_usd_per_hour * NANO))
    return [
        Service(
            SERVICE, EmbedderServicer(embedder, price), add_EmbedderServiceServicer_to_server, missing=embedder.missing
        )
    ]
