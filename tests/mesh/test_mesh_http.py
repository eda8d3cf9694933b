"""Callers' own libraries against a running mesh, with nothing changed but base URL and key."""

import asyncio
import json
import os
import sys
from pathlib import Path

import openai
import pytest

KEY_OF = "acme-shop"
BRIEF = {"model": "auto", "temperature": 0, "max_tokens": 24, "stop": ["\n", "."]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CLIENTS = Path(os.environ.get("LLMMESH_CLIENTS_PYTHON") or Path(__file__).parents[2] / ".venv-clients/bin/python")


def asked(text: str) -> dict:
    return BRIEF | {"messages": [{"role": "user", "content": text}]}


@pytest.fixture
def settings(mesh) -> dict[str, str]:
    return {"base_url": f"{mesh.json['http']}/v1", "api_key": mesh.json["keys"][KEY_OF]}


async def test_the_same_question_twice_is_a_hit_that_costs_next_to_nothing(settings):
    async with openai.AsyncOpenAI(**settings) as client:
        first = await client.chat.completions.with_raw_response.create(**asked("Which door is open on Mondays?"))
        again = await client.chat.completions.with_raw_response.create(**asked("Which door is open on Mondays?"))
    assert (first.headers["x-llmmesh-outcome"], again.headers["x-llmmesh-outcome"]) == ("miss", "exact_hit")
    assert first.parse().choices[0].message.content == again.parse().choices[0].message.content
    assert int(again.headers["x-llmmesh-saved-nanousd"]) > 0
    assert int(again.headers["x-llmmesh-cost-nanousd"]) == 0


def test_the_plain_client_works_without_a_loop(settings):
    with openai.OpenAI(**settings) as client:
        done = client.chat.completions.create(**asked("Is the shop open at noon?"))
        pieces = list(client.chat.completions.create(**asked("Is the shop shut at noon?"), stream=True))
        vectors = client.embeddings.create(model="any", input=["one", "two"])
        names = [model.id for model in client.models.list()]
    assert done.choices[0].message.content
    assert pieces[-1].choices[0].finish_reason in ("stop", "length")
    assert len(vectors.data) == 2
    assert names[0] == "auto"


async def test_tools_and_structured_output(settings):
    async with openai.AsyncOpenAI(**settings) as client:
        done = await client.chat.completions.create(**asked("What is the weather in Lima?"), tools=[WEATHER])
        form = {"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}}}
        formed = await client.chat.completions.create(**asked("Name a city as JSON."), response_format=form)
    assert done.choices[0].message.content or done.choices[0].message.tool_calls
    assert formed.choices[0].finish_reason in ("stop", "length")


async def test_errors_are_the_clients_own(settings):
    async with openai.AsyncOpenAI(**settings, max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**asked("Hello?") | {"model": "none-such"})
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(**asked("Hello?") | {"temperature": 9})
        assert caught.value.param == "temperature"
        with pytest.raises(openai.APITimeoutError):
            await client.with_options(timeout=0.001).chat.completions.create(**asked("What takes so long?"))
    async with openai.AsyncOpenAI(base_url=settings["base_url"], api_key="nobody", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


async def test_langchain_and_llamaindex_need_only_the_address(settings):
    if not CLIENTS.is_file():
        pytest.skip(f"LangChain and LlamaIndex are not installed: `make clients` makes {CLIENTS}")
    script = Path(__file__).parents[1] / "clients" / "ask.py"
    process = await asyncio.create_subprocess_exec(
        str(CLIENTS), str(script), settings["base_url"], settings["api_key"], stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    told = json.loads(out.splitlines()[-1])
    assert told["langchain"]["whole"] == told["langchain"]["stream"] != ""
    assert told["langchain"]["tokens"] == told["langchain"]["stream_tokens"] > 0
    assert told["langchain"]["dimensions"] > 100
    assert told["llama_index"]["whole"] == told["llama_index"]["stream"] != ""
    assert told["wrong_key"] == "401"


async def test_health_and_metrics(mesh):
    import httpx2

    async with httpx2.AsyncClient(base_url=mesh.json["http"]) as client:
        assert (await client.get("/healthz")).json()["status"] == "ok"
        text = (await client.get("/metrics")).text
    assert "llm_requests_total" in text
    assert sys.executable not in text
