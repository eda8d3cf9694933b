"""Batch files: OpenAI's form is read whole or refused, never in part."""

import base64
import json

import pytest

from llmmesh.common.v1 import chat_pb2, usage_pb2
from llmmesh.edge.v1 import batch_pb2, inference_pb2
from services.cli.batch.file import read, result_line
from services.common.yaml_file import ConfigError

USER = {"role": "user", "content": "Where is my order?"}


def line(custom_id: str = "a", **body: object) -> dict[str, object]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-4o-mini", "messages": [USER]} | body,
    }


def items(tmp_path, *lines: object, model: str | None = None) -> list[batch_pb2.BatchItem]:
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines))
    return read(file, model)


def test_a_line_becomes_an_item_with_all_of_its_fields(tmp_path):
    (item,) = items(
        tmp_path,
        line(
            messages=[
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "t1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "t1", "content": "done"},
            ],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}],
            tool_choice={"type": "function", "function": {"name": "f"}},
            response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            temperature=0,
            max_completion_tokens=7,
            stop="\n",
            seed=3,
            reasoning_effort="low",
        ),
    )
    assert (item.custom_id, item.model) == ("a", "gpt-4o-mini")
    chat = item.chat
    assert [m.role for m in chat.messages] == [
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_USER,
        chat_pb2.ROLE_ASSISTANT,
        chat_pb2.ROLE_TOOL,
    ]
    assert chat.messages[1].parts[0].text == "Hi"
    assert chat.messages[2].tool_calls[0].name == "f"
    assert chat.tools[0].strict
    assert (chat.tool_choice.mode, chat.tool_choice.name) == (chat_pb2.ToolChoice.MODE_NAMED, "f")
    assert chat.response_format.kind == chat_pb2.ResponseFormat.KIND_JSON_SCHEMA
    assert (chat.sampling.max_output_tokens, list(chat.sampling.stop), chat.sampling.seed) == (7, ["\n"], 3)
    assert chat.sampling.HasField("temperature")
    assert not chat.sampling.HasField("top_p")


def test_pictures_come_as_urls_or_as_bytes(tmp_path):
    data = base64.b64encode(b"png").decode()
    parts = [
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
    ]
    (item,) = items(tmp_path, line(messages=[{"role": "user", "content": parts}]))
    first, second = item.chat.messages[0].parts
    assert first.image.url == "https://x/y.png"
    assert (second.image.data, second.image.media_type) == (b"png", "image/png")


def test_the_model_can_be_given_for_all_lines(tmp_path):
    assert [i.model for i in items(tmp_path, line("a"), "", line("b"), model="auto")] == ["auto", "auto"]


WRONG = {
    "not json": ("{", "not JSON"),
    "no custom_id": ({"body": line()["body"]}, "custom_id"),
    "another url": (line() | {"url": "/v1/embeddings"}, "url"),
    "what would be left out": (line(logit_bias={"1": 2}), "body.logit_bias"),
    "more answers than one": (line(n=2), "body.n"),
    "a stream": (line(stream=True), "body.stream"),
    "no messages": (line(messages=[]), "body.messages"),
    "a temperature that is none": (line(temperature=9), "body.sampling.temperature"),
    "bytes that are none": (
        line(
            messages=[
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}]}
            ]
        ),
        "base64",
    ),
}


@pytest.mark.parametrize(("wrong", "said"), WRONG.values(), ids=WRONG)
def test_a_line_that_is_wrong_is_named(tmp_path, wrong, said):
    with pytest.raises(ConfigError, match=rf"in\.jsonl:2: .*{said}"):
        items(tmp_path, line("first"), wrong)


def test_an_id_that_stands_twice_is_named_with_both_lines(tmp_path):
    with pytest.raises(ConfigError, match=r"in\.jsonl:3: custom_id: 'a' stands in line 1 too"):
        items(tmp_path, line("a"), line("b"), line("a"))


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no lines"):
        items(tmp_path, "")


def test_a_result_is_a_line_of_openais_output_file():
    message = chat_pb2.Message(
        role=chat_pb2.ROLE_ASSISTANT,
        parts=[chat_pb2.ContentPart(text="Yes.")],
        tool_calls=[chat_pb2.ToolCall(id="t", name="f", arguments_json="{}")],
    )
    result = batch_pb2.StreamBatchResultsResponse(
        custom_id="a",
        answer=chat_pb2.Answer(message=message, finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS),
        usage=usage_pb2.Usage(input_tokens=3, output_tokens=4),
        receipt=inference_pb2.Receipt(request_id="b-0", model="m"),
    )
    body = json.loads(result_line(result))["response"]["body"]
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    assert body["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert body["usage"]["total_tokens"] == 7
