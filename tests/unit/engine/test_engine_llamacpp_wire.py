from services.common.chat import Chat, Message, Role, TextPart, Tool, ToolChoice
from services.engine.adapters.llamacpp import _finish_reason, request_of

CHAT = (Message(Role.USER, (TextPart("Weather?"),)),)
TOOLS = (Tool("weather"), Tool("time"))


def test_a_named_tool_is_the_only_one_that_is_offered() -> None:
    request = request_of(Chat(CHAT, TOOLS, ToolChoice("named", "time")), 9)
    assert [tool["function"]["name"] for tool in request["tools"]] == ["time"]
    assert request["tool_choice"] == "required"


def test_any_other_choice_offers_all_tools() -> None:
    request = request_of(Chat(CHAT, TOOLS, ToolChoice("auto")), 9)
    assert [tool["function"]["name"] for tool in request["tools"]] == ["weather", "time"]
    assert request["tool_choice"] == "auto"


def test_an_unknown_finish_reason_is_no_end() -> None:
    assert _finish_reason({"choices": [{"finish_reason": "error"}]}) is None
