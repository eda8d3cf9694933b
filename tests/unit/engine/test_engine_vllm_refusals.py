"""What vLLM and its template refuse is the request's fault. vLLM itself is played: it has an environment of its own."""

import sys
from collections.abc import AsyncGenerator
from types import ModuleType, SimpleNamespace

import pytest
from jinja2 import TemplateError

from services.common.chat import Chat, Message, ResponseFormat, Role, TextPart
from services.common.errors import InvalidInput, MeshError, StreamCut
from services.engine.adapters.vllm import Vllm
from services.engine.settings import EngineSettings

CHAT = Chat((Message(Role.USER, (TextPart("secret"),)),))


class GenerateError(Exception):
    """vLLM's wrapper."""


class ClientError(Exception):
    """vLLM's own class for what is wrong with a request."""


class FakeVllm:
    """Stands in for the tokenizer and for AsyncLLM."""

    def __init__(self, template: Exception | None = None, engine: Exception | None = None, after: int = 0) -> None:
        self._template = template
        self._error = engine
        self._after = after

    def get_tokenizer(self) -> "FakeVllm":
        return self

    def apply_chat_template(self, *_: object, **__: object) -> list[int]:
        if self._template:
            raise self._template
        return [1, 2, 3]

    async def generate(self, *_: object, **__: object) -> AsyncGenerator[SimpleNamespace]:
        for _token in range(self._after):
            answer = SimpleNamespace(token_ids=[1], text="a", finish_reason=None)
            yield SimpleNamespace(num_cached_tokens=0, outputs=[answer])
        if self._error:
            raise self._error


def wrapped(cause: Exception) -> GenerateError:
    error = GenerateError()
    error.__cause__ = cause
    return error


@pytest.fixture(autouse=True)
def sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    class Structured:
        def __init__(self, json: object = None, json_object: bool = False) -> None:
            if json == {}:
                raise ValueError("secret: cannot compile")

    module = ModuleType("vllm.sampling_params")
    vars(module).update(
        RequestOutputKind=SimpleNamespace(DELTA=1), SamplingParams=dict, StructuredOutputsParams=Structured
    )
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", module)


async def error_of(fake: FakeVllm, chat: Chat = CHAT) -> MeshError:
    vllm = Vllm(EngineSettings(backend="vllm", vllm_model="tiny"))
    vllm._engine, vllm._max_context_tokens = fake, 100
    vllm._faults, vllm._refusals = (GenerateError,), (TemplateError, ValueError, ClientError)
    with pytest.raises(MeshError) as caught:
        [event async for event in vllm.generate(chat, None)]
    return caught.value


@pytest.mark.parametrize("error", [TemplateError("secret: roles must alternate"), ValueError("secret")])
async def test_a_chat_that_the_template_cannot_render(error: Exception) -> None:
    refused = await error_of(FakeVllm(template=error))
    assert isinstance(refused, InvalidInput)
    assert "template" in refused.message
    assert "secret" not in refused.message


async def test_a_schema_that_no_grammar_can_be_made_of() -> None:
    chat = Chat(CHAT.messages, response_format=ResponseFormat("json_schema", "a", "{}"))
    assert isinstance(await error_of(FakeVllm(), chat), InvalidInput)


@pytest.mark.parametrize("error", [ClientError("secret"), ValueError("secret"), wrapped(ValueError("secret"))])
async def test_a_request_that_the_engine_refuses(error: Exception) -> None:
    refused = await error_of(FakeVllm(engine=error))
    assert isinstance(refused, InvalidInput)
    assert "secret" not in refused.message


async def test_a_fault_of_the_engine_cuts_the_answer() -> None:
    assert isinstance(await error_of(FakeVllm(engine=wrapped(RuntimeError("gone")))), StreamCut)
    assert isinstance(await error_of(FakeVllm(engine=wrapped(ValueError("a bug")), after=1)), StreamCut)
