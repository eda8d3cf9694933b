"""What routing, compression and the vendor's prompt cache would have saved on one request, by the services' own decisions."""

from dataclasses import dataclass, replace

from services.cli.audit.claims import Claims, Waste
from services.cli.audit.sample import Kept
from services.cli.audit.tools import Pricing, Tools
from services.common.chat import Chat
from services.common.money import Rates, Usage, price
from services.common.tokens import estimate_chat_tokens
from services.compressor.domain.compress import Order, compress
from services.provider.domain.prompt_cache import Control
from services.router.domain.routing import AUTO, Question, route


@dataclass(frozen=True, slots=True)
class Found:
    """What the layers did: the model that was chosen, and why; prompt tokens before and after compression."""

    model: str
    why: str
    tokens: int
    kept_tokens: int


class Layers:
    """Claims by each layer in turn, on what the one before it left."""

    def __init__(self, tools: Tools, pricing: Pricing) -> None:
        self._tools = tools
        self._pricing = pricing

    def claim(self, kept: Kept, chat: Chat, claims: Claims) -> Found:
        """Claims on a request. Money that the book would put otherwise than the log is scaled to the log's."""
        estimated = estimate_chat_tokens(chat)
        scale = kept.usage.input_tokens / estimated if estimated else 0.0  # the log's tokens to one of ours
        rates, usage = self._pricing.rates(kept.model, kept.at, kept.usage.input_tokens), kept.usage
        model, why = kept.model, ""
        cheaper, why_cheaper = self._route(chat)
        new_rates = self._pricing.rates(cheaper, kept.at, usage.input_tokens)
        own = self._pricing.name(kept.model)
        if new_rates is not None and cheaper != own:
            now = claims.left if rates is None else price(rates, usage)
            less = now - price(new_rates, usage)
            if less > 0 and claims.claim(Waste.ROUTING, claims.left * less // now):
                model, why, rates = cheaper, why_cheaper, new_rates
        tokens = kept_tokens = estimated
        if rates is not None:
            outcome = compress(
                Order(
                    chat,
                    rate=self._tools.namespace.compression.rate,
                    min_block_tokens=self._tools.namespace.compression.min_block_tokens,
                )
            )
            if outcome.applied:
                plain = usage.input_tokens - usage.cache_read_input_tokens - usage.cache_write_input_tokens
                fewer = min(plain, int((outcome.original_tokens - outcome.kept_tokens) * scale))
                usage = self._less(Waste.COMPRESSION, usage, _without(usage, fewer), rates, rates, claims)
                tokens, kept_tokens = outcome.original_tokens, outcome.kept_tokens
            self._prompt_cache(kept, model, usage, scale, rates, claims)
        return Found(model, why, tokens, kept_tokens)

    def _route(self, chat: Chat) -> tuple[str, str]:
        """The router's first choice, and why."""
        found = route(Question(chat, AUTO), self._tools.catalogue)
        return found.candidates[0].model, found.reason

    def _prompt_cache(self, kept: Kept, model: str, usage: Usage, scale: float, rates: Rates, claims: Claims) -> None:
        automatic = self._pricing.vendor_cache(model).control is Control.AUTOMATIC
        if automatic and not kept.counts_cached:
            return  # the vendor may have read it and nobody wrote it down
        readable = min(int(kept.readable * scale), usage.input_tokens) - usage.cache_read_input_tokens
        plain = usage.input_tokens - usage.cache_read_input_tokens - usage.cache_write_input_tokens
        more = min(readable, plain)
        if more <= 0:
            return
        read = replace(usage, cache_read_input_tokens=usage.cache_read_input_tokens + more)
        premium = int(kept.premium * scale) * max(0, rates.cache_write - rates.input) // 1_000_000
        before = price(rates, usage)
        less = before - price(rates, read) - premium
        if before > 0 and less > 0:
            claims.claim(Waste.PROMPT_CACHE, claims.left * less // before)

    @staticmethod
    def _less(waste: Waste, before: Usage, after: Usage, old: Rates, new: Rates, claims: Claims) -> Usage:
        was = price(old, before)
        less = was - price(new, after)
        if was > 0 and less > 0:
            claims.claim(waste, claims.left * less // was)
        return after


def _without(usage: Usage, tokens: int) -> Usage:
    return replace(usage, input_tokens=usage.input_tokens - tokens)
