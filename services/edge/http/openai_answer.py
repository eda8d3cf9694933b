"""Answers, chunks and models as OpenAI's clients read them."""

from collections.abc import Iterable
from typing import Any

from services.common.chat import Delta, FinishReason, Message, ReasoningDelta, TextDelta, ToolCallDelta
from services.common.money import Usage
from services.edge.domain.trip import Completed, Receipt

Json = dict[str, Any]


def completion(done: Completed, created: int) -> Json:
    """A whole answer."""
    receipt, message = done.receipt, done.answer.message
    return {
        "id": f"chatcmpl-{receipt.request_id}",
        "object": "chat.completion",
        "created": created,
        "model": receipt.model,
        "choices": [
            {
                "index": 0,
                "message": _message(message),
                "finish_reason": done.answer.finish_reason.value,
                "logprobs": None,
            }
        ],
        "usage": usage_of(done.usage),
        "llmmesh": receipt_of(receipt),
    }


class Chunks:
    """Makes the chunks of one stream."""

    def __init__(self, request_id: str, model: str, created: int) -> None:
        self._head: Json = {
            "id": f"chatcmpl-{request_id}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }

    def first(self) -> Json:
        """The role."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, delta: Delta) -> Json:
        """A piece of the answer."""
        match delta:
            case TextDelta(text):
                return self._chunk({"content": text})
            case ReasoningDelta(text):
                return self._chunk({"reasoning_content": text})
            case ToolCallDelta(index, call_id, name, arguments):
                function = {"arguments": arguments} | ({"name": name} if name else {})
                call: Json = {"index": index, "function": function}
                if call_id:
                    call |= {"id": call_id, "type": "function"}
                return self._chunk({"tool_calls": [call]})

    def end(self, reason: FinishReason, usage: Usage, receipt: Receipt, *, with_usage: bool) -> list[Json]:
        """Why it ended and, where wanted, the usage; the last one has the receipt."""
        chunks = [self._chunk({}, reason.value)]
        if with_usage:
            chunks.append(self._head | {"choices": [], "usage": usage_of(usage)})
        chunks[-1]["llmmesh"] = receipt_of(receipt)
        return chunks

    def _chunk(self, delta: Json, reason: str | None = None) -> Json:
        return self._head | {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}


def receipt_of(receipt: Receipt) -> Json:
    """Where the answer came from and what it cost, in nano-USD."""
    told: Json = {
        "request_id": receipt.request_id,
        "outcome": receipt.outcome,
        "model": receipt.model,
        "tier": receipt.tier,
        "degraded": list(receipt.degraded),
    }
    optional = {
        "similarity": receipt.similarity,
        "cache_reason": receipt.cache_reason,
        "route_reason": receipt.route_reason,
        "budget_notice": receipt.budget_notice,
        "entry_id": receipt.entry_id,
    }
    told |= {name: value for name, value in optional.items() if value not in (None, "")}
    bill = receipt.bill
    if bill is not None:
        saved = bill.savings
        told |= {
            "cost_nanousd": bill.actual,
            "baseline_nanousd": bill.baseline,
            "overhead_nanousd": bill.overhead,
            "saved_nanousd": {
                "cache": saved.cache,
                "routing": saved.routing,
                "compression": saved.compression,
                "prompt_cache": saved.prompt_cache,
                "batch": saved.batch,
            },
            "unpriced": bill.unpriced,
        }
    return told


def headers_of(receipt: Receipt) -> dict[str, str]:
    """The receipt as response headers, as far as it is known."""
    headers = {
        "x-request-id": receipt.request_id,
        "x-llmmesh-outcome": receipt.outcome,
        "x-llmmesh-model": receipt.model,
        "x-llmmesh-tier": receipt.tier,
    }
    if receipt.bill is not None:
        headers["x-llmmesh-cost-nanousd"] = str(receipt.bill.actual)
        headers["x-llmmesh-saved-nanousd"] = str(receipt.bill.savings.total)
    if receipt.budget_notice:
        headers["x-llmmesh-budget-notice"] = receipt.budget_notice
    if receipt.degraded:
        headers["x-llmmesh-degraded"] = ",".join(receipt.degraded)
    # A header is Latin-1 without line breaks.
    return {name: "".join(c if " " <= c <= "~" else "?" for c in value) for name, value in headers.items()}


def usage_of(usage: Usage) -> Json:
    """Tokens."""
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_input_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_output_tokens},
    }


def models(names: Iterable[str]) -> Json:
    """The list of models."""
    return {"object": "list", "data": [model(name) for name in names]}


def model(name: str) -> Json:
    """One model."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "llmmesh"}


def _message(message: Message) -> Json:
    told: Json = {"role": "assistant", "content": message.text or None, "refusal": None}
    if message.reasoning:
        told["reasoning_content"] = message.reasoning
    if message.tool_calls:
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in message.tool_calls
        ]
    elif told["content"] is None:
        told["content"] = ""
    return told
