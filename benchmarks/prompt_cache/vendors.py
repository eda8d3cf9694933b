"""The vendor-like servers, each with its clock and its invoice, and the provider's configuration for it."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks.prompt_cache.workload import ANSWER
from services.common.chat import Delta
from services.common.money import Rates
from services.provider.domain.prompt_cache import Breakpoint, CacheHints
from services.provider.domain.vendor import Call, Completion, Vendor
from services.provider.vendors import VendorConfig, load_vendors
from tests.vendors import anthropic_like, bedrock_like, gemini_like, openai_like
from tests.vendors.openai_cache import PromptCache

Mode = Literal["naive", "automatic", "planner"]
MODES: tuple[Mode, ...] = ("naive", "automatic", "planner")
# Name in the price book, and the vendor's id.
MODELS = {
    "openai": ("gpt-4.1", "gpt-4.1"),
    "anthropic": ("claude-sonnet-4.5", "claude-sonnet-4-5"),
    "bedrock": ("claude-sonnet-4.5", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    "gemini": ("gemini-2.5-flash", "gemini-2.5-flash"),
}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": bedrock_like.ACCESS_KEY,
    "AWS_SECRET_ACCESS_KEY": "test-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "no_proxy": "127.0.0.1",
}


@dataclass(frozen=True)
class Running:
    """A vendor that runs: how the provider is to reach it, and what it charged so far, in nano-USD."""

    config: VendorConfig
    vendor: Vendor
    invoice: Callable[[], int]


@asynccontextmanager
async def started(
    name: str, mode: Mode, folder: Path, rates: Rates, now: Callable[[], float], seed: int
) -> AsyncIterator[Running]:
    """Starts a vendor by its kind. The automatic mode of OpenAI and Gemini needs no word; Anthropic's is a breakpoint at the end
    of the request, which is what its top-level `cache_control` comes to; Bedrock, which has none, gets the same.
    """
    model, vendor_model = MODELS[name]
    async with AsyncExitStack() as stack:
        match name:
            case "openai":
                cache = PromptCache(now, rates, seed=seed)
                script = openai_like.Script(text=ANSWER)
                openai = await stack.enter_async_context(openai_like.OpenAILike(script=script, prompt_cache=cache))
                invoice: Callable[[], int] = lambda: openai.invoice  # noqa: E731
                fields = f"base_url: '{openai.base_url}', prompt_cache_fields: breakpoints"
            case "anthropic":
                anthropic = await stack.enter_async_context(
                    anthropic_like.AnthropicLike(now=now, rates=rates, script=anthropic_like.Script(text=ANSWER))
                )
                invoice, fields = lambda: anthropic.invoice, f"base_url: '{anthropic.url}'"
            case "bedrock":
                bedrock = await stack.enter_async_context(bedrock_like.BedrockLike(rates, now=now))
                bedrock.always = bedrock_like.Script(text=ANSWER)
                invoice, fields = lambda: bedrock.invoice, f"region: us-east-1, endpoint_url: '{bedrock.url}'"
            case _:
                gemini = await stack.enter_async_context(gemini_like.GeminiLike(clock=now))
                gemini.always = gemini_like.Script(text=ANSWER)
                invoice, fields = lambda: gemini.invoice({vendor_model: rates}), f"base_url: '{gemini.url}'"
        path = folder / "vendors.yaml"
        path.write_text(
            f"vendors: [{{name: {name}, kind: {name}, {fields}, models: {{'{model}': '{vendor_model}'}}}}]",
            encoding="utf-8",
        )
        (config,) = load_vendors(path)
        vendor = await config.open(stack)
        marked = mode == "automatic" and name in ("anthropic", "bedrock")
        yield Running(config, _MarkedAtTheEnd(vendor) if marked else vendor, invoice)


class _MarkedAtTheEnd:
    """A vendor whose requests end with a breakpoint."""

    def __init__(self, vendor: Vendor) -> None:
        self._vendor = vendor

    async def call(self, call: Call) -> AsyncGenerator[Delta | Completion]:
        hints = CacheHints((Breakpoint(len(call.chat.messages) - 1),))
        async with aclosing(self._vendor.call(replace(call, hints=hints))) as events:
            async for event in events:
                yield event
