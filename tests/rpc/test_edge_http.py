"""The HTTP door with OpenAI's own client and on the wire, over a world of fakes."""

import asyncio
import base64
import json
from contextlib import AsyncExitStack
from dataclasses import dataclass

import httpx2 as httpx
import openai
import pytest

from services.common.chat import (
    Answer,
    FinishReason,
    ImagePart,
    Message,
    ReasoningDelta,
    Role,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
)
from services.common.errors import (
    AllCandidatesFailed,
    BudgetExceeded,
    DeadlineExceeded,
    MeshError,
    RateLimited,
    UpstreamRejected,
)
from services.edge.adapters.keys import KeyFile, hash_key
from services.edge.door import Door
from services.edge.http.app import Api, make_app
from services.edge.http.errors import status_of
from services.edge.http.openai_answer import Chunks
from services.edge.http.server import serve_http
from tests.unit.edge.fakes import NoLimits, World, hit
from tests.waiting import until

ASK = {"model": "auto", "messages": [{"role": "user", "content": "Where is my order?"}]}
BEARER = {"authorization": "Bearer k-1"}
MAX_BODY = 200_000


@dataclass
class Http:
    world: World
    url: str
    limits: "Closed"
    wire: httpx.AsyncClient
    client: openai.AsyncOpenAI


class Closed(NoLimits):
    """Lets everybody in, until told otherwise."""

    error: MeshError | None = None

    async def admit(self, key) -> None:
        if self.error:
            raise self.error


@pytest.fixture
async def http(tmp_path):
    path = tmp_path / "keys.json"
    scopes = {hash_key("k-1"): {"tenant": "acme"}, hash_key("costs"): {"tenant": "acme", "scopes": ["costs"]}}
    path.write_text(json.dumps(scopes))
    world, limits = World(), Closed()

    async def missing() -> str | None:
        return "redis: ConnectionError"

    door = Door(world.walk, KeyFile(path), limits, 30.0)
    api = Api(door, ["auto", "simple", "gpt-4o-mini"], world.embedder, world.spool, missing, MAX_BODY)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serve_http(make_app(api), "127.0.0.1", 0, 1.0))
        url = f"http://127.0.0.1:{port}"
        wire = await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers=BEARER, timeout=20))
        client = await stack.enter_async_context(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k-1", max_retries=0))
        yield Http(world, url, limits, wire, client)


async def test_a_whole_answer_and_its_receipt(http):
    raw = await http.client.chat.completions.with_raw_response.create(**ASK)
    done = raw.parse()
    assert done.choices[0].message.content
    assert done.choices[0].finish_reason == "stop"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens > 0
    record = http.world.record
    assert raw.headers["x-llmmesh-outcome"] == "miss" == record.outcome
    assert int(raw.headers["x-llmmesh-cost-nanousd"]) == record.bill.actual
    assert int(raw.headers["x-llmmesh-saved-nanousd"]) == record.bill.savings.total
    assert raw.headers["x-request-id"] == record.request_id
    assert (raw.headers["x-llmmesh-model"], raw.headers["x-llmmesh-tier"]) == (record.model, record.tier)
    told = done.model_extra["llmmesh"]
    assert (
        told["baseline_nanousd"] - sum(told["saved_nanousd"].values()) + told["overhead_nanousd"] == record.bill.actual
    )


async def test_a_hit_says_so(http):
    http.world.cache.exact = hit()
    raw = await http.client.chat.completions.with_raw_response.create(**ASK)
    assert raw.headers["x-llmmesh-outcome"] == "exact_hit"
    assert raw.parse().choices[0].message.content == "Yes."


async def test_a_stream_ends_with_usage_receipt_and_done(http):
    stream = await http.client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["stop"]
    assert chunks[-1].usage.total_tokens > 0
    assert chunks[-1].model_extra["llmmesh"]["cost_nanousd"] == http.world.record.bill.actual
    text = (await http.wire.post("/v1/chat/completions", json=ASK | {"stream": True})).text
    assert text.endswith("data: [DONE]\n\n")
    assert '"usage"' not in text


async def test_a_stream_that_breaks_is_an_error_and_never_done(http):
    http.world.provider.cut_after = 1
    response = await http.wire.post("/v1/chat/completions", json=ASK | {"stream": True})
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    last = json.loads(response.text.strip().rsplit("\n\n", 1)[-1].removeprefix("data: "))
    assert last["error"]["code"] == "stream_cut"
    with pytest.raises(openai.APIError):
        async for _ in await http.client.chat.completions.create(**ASK, stream=True):
            pass


async def test_an_error_before_the_first_token_has_its_status(http):
    http.world.provider.error = AllCandidatesFailed("no candidate answered")
    with pytest.raises(openai.InternalServerError) as caught:
        await http.client.chat.completions.create(**ASK, stream=True)
    assert caught.value.status_code == 503


async def test_tools_reasoning_and_pictures_go_through(http):
    picture = base64.b64encode(b"\x89PNG").decode()
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}}
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}, "strict": True}}
    http.world.provider.answer = Answer(
        Message(Role.ASSISTANT, (), tool_calls=(ToolCall("c2", "find", "{}"),), reasoning="Look it up."),
        FinishReason.TOOL_CALLS,
    )
    done = await http.client.chat.completions.create(
        model="gpt-4o-mini",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "nothing"},
        ],
        tools=[tool],
        tool_choice={"type": "function", "function": {"name": "find"}},
        temperature=0,
        max_tokens=9,
        stop="END",
        seed=7,
        extra_headers={"x-llmmesh-endpoint": "faq", "x-llmmesh-user": "ana", "x-llmmesh-cache": "bypass"},
    )
    message = done.choices[0].message
    assert done.choices[0].finish_reason == "tool_calls"
    assert (message.tool_calls[0].function.name, message.content) == ("find", None)
    assert message.model_extra["reasoning_content"] == "Look it up."
    chat, record = http.world.provider.chats[-1], http.world.record
    assert (record.endpoint, record.user, record.outcome) == ("faq", "ana", "bypass")
    assert [m.role for m in chat.messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL]
    assert chat.messages[1].parts == (TextPart("What is it?"), ImagePart(data=b"\x89PNG", media_type="image/png"))
    assert chat.messages[2].tool_calls == (ToolCall("c1", "find", '{"q": 1}'),)
    assert (chat.tools[0].name, chat.tools[0].strict, chat.tool_choice.name) == ("find", True, "find")
    sampling = chat.sampling
    assert (sampling.temperature, sampling.max_output_tokens, sampling.stop, sampling.seed) == (0, 9, ("END",), 7)


def test_every_kind_of_piece_has_its_place_in_a_chunk():
    chunks = Chunks("r", "m", 1)
    assert chunks.piece(TextDelta("a"))["choices"][0]["delta"] == {"content": "a"}
    assert chunks.piece(ReasoningDelta("b"))["choices"][0]["delta"] == {"reasoning_content": "b"}
    first, more = chunks.piece(ToolCallDelta(1, "c1", "find", "")), chunks.piece(ToolCallDelta(1, "", "", "{}"))
    call = {"index": 1, "function": {"arguments": "", "name": "find"}, "id": "c1", "type": "function"}
    assert first["choices"][0]["delta"]["tool_calls"] == [call]
    assert more["choices"][0]["delta"]["tool_calls"] == [{"index": 1, "function": {"arguments": "{}"}}]


WRONG = {
    "not JSON": (b"{", "body"),
    "no object": (b"[]", "body"),
    "no messages": ({"model": "auto"}, "messages"),
    "a role": ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    "a content": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    "a part": ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
    "two answers": (ASK | {"n": 2}, "n"),
    "log probabilities": (ASK | {"logprobs": True}, "logprobs"),
    "an unknown field": (ASK | {"web_search_options": {}}, "web_search_options"),
    "a temperature": (ASK | {"temperature": "hot"}, "temperature"),
    "too high a temperature": (ASK | {"temperature": 9}, "temperature"),
    "a limit": (ASK | {"max_tokens": -1}, "max_completion_tokens"),
    "a form": (ASK | {"response_format": {"type": "xml"}}, "response_format.type"),
    "a tool": (ASK | {"tools": [{"type": "custom"}]}, "tools[0].type"),
    "a choice": (ASK | {"tool_choice": "maybe"}, "tool_choice"),
    "a stream": (ASK | {"stream": "yes"}, "stream"),
}


@pytest.mark.parametrize(("body", "param"), WRONG.values(), ids=WRONG)
async def test_bad_input_names_the_parameter(http, body, param):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = await http.wire.post("/v1/chat/completions", content=content)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert response.headers["x-should-retry"] == "false"
    assert not http.world.spool.records


@pytest.mark.parametrize(
    "header",
    [
        {"x-llmmesh-cache": "all"},
        {"x-llmmesh-min-similarity": "nan"},
        {"x-llmmesh-max-age": "1e30"},
        {"x-llmmesh-timeout": "0"},
        {"x-llmmesh-namespace": "none such"},
        {"x-request-id": "with space"},
    ],
    ids=str,
)
async def test_bad_headers_are_named(http, header):
    response = await http.wire.post("/v1/chat/completions", json=ASK, headers=header)
    assert response.status_code == 400
    assert response.json()["error"]["param"]


@pytest.mark.parametrize(
    ("authorization", "status", "raised"),
    [
        (None, 401, openai.AuthenticationError),
        ("nobody", 401, openai.AuthenticationError),
        ("costs", 403, openai.PermissionDeniedError),
    ],
)
async def test_keys_are_wanted_everywhere(http, authorization, status, raised):
    headers = {} if authorization is None else {"authorization": f"Bearer {authorization}"}
    async with httpx.AsyncClient(base_url=http.url, headers=headers) as wire:
        for method, path in (("POST", "/v1/chat/completions"), ("POST", "/v1/embeddings"), ("GET", "/v1/models")):
            assert (await wire.request(method, path, json=ASK)).status_code == status
    if authorization:
        async with openai.AsyncOpenAI(base_url=f"{http.url}/v1", api_key=authorization, max_retries=0) as client:
            with pytest.raises(raised):
                await client.chat.completions.create(**ASK)


ERRORS = {
    "a spent budget": (BudgetExceeded("spent", retry_after_s=60), 429, "insufficient_quota", "false"),
    "a limit": (RateLimited("slow down", retry_after_s=2), 429, "rate_limited", "true"),
    "nobody answered": (AllCandidatesFailed("none"), 503, "all_candidates_failed", "true"),
    "too late": (DeadlineExceeded("late"), 504, "deadline_exceeded", None),
    "a vendor's no": (UpstreamRejected("no"), None, "upstream_rejected", "false"),
}


@pytest.mark.parametrize(("error", "status", "code", "retry"), ERRORS.values(), ids=ERRORS)
async def test_errors_have_openais_form(http, error, status, code, retry):
    http.world.provider.error = error
    response = await http.wire.post("/v1/chat/completions", json=ASK)
    assert response.status_code == (status or status_of(error))
    assert response.json()["error"]["code"] == code
    if retry:
        assert response.headers["x-should-retry"] == retry
    if error.retry_after_s:
        assert response.headers["retry-after"] == str(int(error.retry_after_s))


async def test_a_keys_limit_holds_here_too(http):
    http.limits.error = RateLimited("60 a minute", retry_after_s=7)
    with pytest.raises(openai.RateLimitError) as caught:
        await http.client.chat.completions.create(**ASK)
    assert caught.value.response.headers["retry-after"] == "7"


async def test_a_defect_is_not_told(http):
    http.world.provider.error = RuntimeError("secret inside")
    response = await http.wire.post("/v1/chat/completions", json=ASK)
    assert response.status_code == 500
    assert "secret" not in response.text


async def test_a_body_too_large_is_refused(http):
    response = await http.wire.post("/v1/chat/completions", content=b" " * (MAX_BODY + 1))
    assert response.status_code == 413


async def test_who_hangs_up_cancels_the_walk(http):
    http.world.provider.hangs = True
    for streaming in (False, True):
        before, calls = len(http.world.spool.records), len(http.world.provider.chats)
        request = asyncio.create_task(http.wire.post("/v1/chat/completions", json=ASK | {"stream": streaming}))
        await until(lambda c=calls: len(http.world.provider.chats) > c)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await until(lambda b=before: len(http.world.spool.records) > b)
        assert http.world.spool.records[-1].error == "CANCELLED"


async def test_models_embeddings_and_health(http):
    models = await http.client.models.list()
    assert [model.id for model in models.data] == ["auto", "simple", "gpt-4o-mini"]
    assert (await http.client.models.retrieve("simple")).owned_by == "llmmesh"
    with pytest.raises(openai.NotFoundError):
        await http.client.models.retrieve("none/such")
    found = await http.client.embeddings.create(model="any", input=["one", "two"])
    assert [item.index for item in found.data] == [0, 1]
    assert found.data[0].embedding
    (record,) = http.world.spool.records
    assert (record.outcome, record.bill.identity_holds) == ("embedding", True)
    plain = await http.wire.post("/v1/embeddings", json={"input": "one", "model": "any"})
    assert plain.json()["data"][0]["embedding"] == pytest.approx(found.data[0].embedding)
    for wrong in (
        {},
        {"input": []},
        {"input": [1, 2]},
        {"input": "x", "dimensions": 3},
        {"input": "x", "encoding_format": "f"},
    ):
        assert (await http.wire.post("/v1/embeddings", json=wrong)).status_code == 400
    assert (await http.wire.get("/healthz")).json() == {"status": "ok", "missing": "redis: ConnectionError"}
    assert "python_info" in (await http.wire.get("/metrics")).text or "llm_" in (await http.wire.get("/metrics")).text
    assert (await http.wire.get("/nowhere")).status_code == 404
    assert (await http.wire.get("/v1/chat/completions")).json()["error"]["type"] == "invalid_request_error"
