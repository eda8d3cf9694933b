import pytest

from llmmesh.common.v1 import caller_pb2, chat_pb2
from llmmesh.provider.v1 import provider_pb2
from services.common.chat_pb import finish_reason_from_pb
from services.common.errors import InvalidInput, StreamCut
from services.provider import convert


@pytest.mark.parametrize("number", [chat_pb2.FINISH_REASON_UNSPECIFIED, 99])
def test_an_answer_of_a_peer_without_a_known_end_is_cut(number: chat_pb2.FinishReason.ValueType) -> None:
    with pytest.raises(StreamCut):
        finish_reason_from_pb(number)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
def test_a_schema_with_a_number_that_json_lacks_is_refused(number: str) -> None:
    user = chat_pb2.Message(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="Hi")])
    tool = chat_pb2.Tool(name="f", parameters_json_schema=f'{{"maximum": {number}, "minimum": 1.5}}')
    request = provider_pb2.GenerateRequest(
        caller=caller_pb2.Caller(tenant="acme"),
        chat=chat_pb2.Chat(messages=[user], tools=[tool]),
        candidates=["m"],
    )
    with pytest.raises(InvalidInput) as caught:
        convert.order_from(request, streaming=False, deadline=None)
    assert caught.value.violations[0].field == "chat.tools[0].parameters_json_schema"
