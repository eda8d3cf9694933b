"""vLLM in process: AsyncLLM with continuous batching and prefix caching, on GPUs or CPU.

vLLM lives in an environment of its own (deploy/vllm); nothing of it is imported before the backend starts.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from services.common.chat import Chat, FinishReason, ImagePart, Message, TextDelta
from services.common.errors import InvalidInput, StreamCut, Violation
from services.common.yaml_file import ConfigError
from services.engine.adapters.vllm_arguments import engine_arguments
from services.engine.domain.backend import Completed, ModelAbsent, Piece, PromptSize
from services.engine.settings import EngineSettings

_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}
_CANNOT_FOLLOW = "the model cannot follow it: its form or its sampling is not one that this engine can keep to"


class Vllm:
    """A model in vLLM's V1 engine, whose core runs in a process of its own."""

    name = "vllm"

    def __init__(self, settings: EngineSettings) -> None:
        """Loads nothing yet. Raises ConfigError when no model is named, or an adapter has its name."""
        if not settings.vllm_model:
            raise ConfigError("LLMMESH_ENGINE_VLLM_MODEL: the vllm backend needs a model")
        if {"", settings.model_name} & settings.vllm_lora_adapters.keys():
            raise ConfigError("LLMMESH_ENGINE_VLLM_LORA_ADAPTERS: an adapter needs a name, other than the model's")
        self._settings = settings
        self._loras: dict[str, Any] = {}
        self._engine: Any = None
        self._defaults: dict[str, Any] = {}
        self._max_context_tokens = 0
        self._faults: tuple[type[Exception], ...] = ()
        self._refusals: tuple[type[Exception], ...] = ()

    @property
    def adapters(self) -> tuple[str, ...]:
        return tuple(self._loras)

    @property
    def max_context_tokens(self) -> int:
        return self._max_context_tokens

    @property
    def kv_cache_use(self) -> float | None:
        return self.metrics().get("vllm:kv_cache_usage_perc")

    def metrics(self) -> Mapping[str, float]:
        return _metrics() if self._engine is not None else {}

    @property
    def fault(self) -> str | None:
        return "vLLM's engine process died" if self._engine is None or self._engine.errored else None

    async def start(self) -> None:
        for name, folder in self._settings.vllm_lora_adapters.items():
            if not (folder / "adapter_config.json").is_file():
                raise ModelAbsent(f"{folder}: no LoRA adapter is there, for {name}")
        self._engine = await asyncio.to_thread(self._load)
        config = self._engine.model_config
        self._max_context_tokens = config.max_model_len
        self._defaults = config.get_diff_sampling_param()
        await self._load_adapters()

    async def close(self) -> None:
        """Stops vLLM's processes."""
        if self._engine is not None:
            await asyncio.to_thread(self._engine.shutdown)

    async def generate(self, chat: Chat, adapter: str | None) -> AsyncGenerator[PromptSize | Piece | Completed]:
        _refuse_what_it_cannot(chat)
        try:
            prompt = await asyncio.to_thread(self._prompt, chat)
        except self._refusals as error:
            # The messages of these errors may quote the chat, so they are not passed on.
            raise _refused("the model's chat template cannot render it") from error
        room = self._max_context_tokens - len(prompt)
        if room < 1:
            description = f"{len(prompt)} tokens; this model takes at most {self._max_context_tokens - 1}"
            raise InvalidInput(violations=[Violation("chat.messages", description)])
        try:
            sampling = self._sampling(chat, room)
        except self._refusals as error:
            raise _refused(_CANNOT_FOLLOW) from error
        yield PromptSize(len(prompt))
        lora = self._loras[adapter] if adapter else None
        outputs = self._engine.generate({"prompt_token_ids": prompt}, sampling, uuid4().hex, lora_request=lora)
        cached = output_tokens = 0
        try:
            async with aclosing(outputs):  # closing aborts the request in the engine
                async for output in outputs:
                    if output.num_cached_tokens and not cached:
                        cached = output.num_cached_tokens
                        yield PromptSize(len(prompt), cached)
                    answer = output.outputs[0]
                    output_tokens += len(answer.token_ids)
                    if answer.text:
                        yield Piece(TextDelta(answer.text))
                    if answer.finish_reason in _FINISH:
                        yield Completed(_FINISH[answer.finish_reason], len(prompt), cached, output_tokens)
        except self._refusals as error:
            raise _refused(_CANNOT_FOLLOW) from error
        except self._faults as error:
            if isinstance(error.__cause__, self._refusals) and not output_tokens:
                raise _refused(_CANNOT_FOLLOW) from error
            raise StreamCut("vLLM failed to compute the answer") from error

    def _load(self) -> Any:
        # A fork of a process that runs gRPC threads may hang.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        from jinja2 import TemplateError
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.exceptions import VLLMClientError
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        self._faults = (EngineDeadError, EngineGenerateError)
        self._refusals = (TemplateError, ValueError, VLLMClientError)
        arguments = engine_arguments(self._settings, on_cpu=current_platform.is_cpu())
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))

    async def _load_adapters(self) -> None:
        from vllm.lora.request import LoRARequest

        for number, (name, folder) in enumerate(self._settings.vllm_lora_adapters.items(), 1):
            lora = LoRARequest(name, number, str(folder))
            await self._engine.add_lora(lora)
            self._loras[name] = lora

    def _prompt(self, chat: Chat) -> list[int]:
        tokenizer = self._engine.get_tokenizer()
        messages = [_message(message) for message in chat.messages]
        tokens: list[int] = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return tokens

    def _sampling(self, chat: Chat, room: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        wanted, form = chat.sampling, chat.response_format
        given: dict[str, Any] = {
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "seed": None if wanted.seed is None else wanted.seed & 0x7FFF_FFFF_FFFF_FFFF,
            "presence_penalty": wanted.presence_penalty,
            "frequency_penalty": wanted.frequency_penalty,
            "stop": list(wanted.stop) or None,
        }
        if form.kind == "json_object":
            given["structured_outputs"] = StructuredOutputsParams(json_object=True)
        elif form.kind == "json_schema":
            given["structured_outputs"] = StructuredOutputsParams(json=json.loads(form.json_schema))
        given["max_tokens"] = min(wanted.max_output_tokens or self._settings.default_output_tokens, room)
        given["output_kind"] = RequestOutputKind.DELTA
        return SamplingParams(**self._defaults | {name: value for name, value in given.items() if value is not None})


def _refuse_what_it_cannot(chat: Chat) -> None:
    violations = [
        Violation(f"chat.messages[{i}].parts[{j}]", "this engine takes no pictures")
        for i, message in enumerate(chat.messages)
        for j, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    ]
    if chat.tools:
        violations.append(Violation("chat.tools", "this engine does not call tools"))
    if violations:
        raise InvalidInput(violations=violations)


def _refused(description: str) -> InvalidInput:
    return InvalidInput(violations=[Violation("chat", description)])


def _message(message: Message) -> dict[str, Any]:
    entry: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if message.tool_calls:
        entry["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments_json)}}
            for call in message.tool_calls
        ]
    return entry


def _metrics() -> dict[str, float]:
    """The library's gauges and counters, summed over their labels; of its histograms sums and counts."""
    from prometheus_client import REGISTRY

    found: dict[str, float] = {}
    for family in REGISTRY.collect():
        if not family.name.startswith("vllm:") or family.type == "info":
            continue
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
