"""Which kept answers become training examples, and in what form."""

from collections.abc import AsyncIterator

from hypothesis import given
from hypothesis import strategies as st

from services.cli.export.examples import Quality, examples, line
from services.common.chat import Answer, Chat, FinishReason, ImagePart, Message, Role, TextPart, Tool, ToolCall
from services.edge.adapters.traffic import KeptPair, Marks

SAID_NOTHING = Marks(frozenset(), frozenset(), frozenset(), frozenset())


def message(role: Role, text: str, **fields) -> Message:
    return Message(role, (TextPart(text),) if text else (), **fields)


def pair(
    question: str = "Where is it?", answer: str = "There.", request_id: str = "r", entry: str = "", **fields
) -> KeptPair:
    chat = fields.pop("chat", Chat((message(Role.SYSTEM, "Be brief."), message(Role.USER, question))))
    given_answer = fields.pop("given", Answer(message(Role.ASSISTANT, answer), FinishReason.STOP))
    return KeptPair("default", request_id, entry, 1_700_000_000.0, "gpt-4o", "complex", chat, given_answer)


async def chosen(
    pairs: list[KeptPair], marks: Marks = SAID_NOTHING, quality: Quality = Quality.UNREFUTED
) -> list[tuple[str, str]]:
    async def read() -> AsyncIterator[KeptPair]:
        for one in pairs:
            yield one

    lines = [found async for found in examples(read, marks, quality, set())]
    return [(str(found["messages"][1]["content"]), str(found["messages"][-1]["content"])) for found in lines]


def marks(*, right: str = "", wrong: str = "", right_entry: str = "", wrong_entry: str = "") -> Marks:
    return Marks(*(frozenset([x] if x else []) for x in (right, wrong, right_entry, wrong_entry)))


async def test_the_same_question_counts_once_and_the_newest_answer_wins() -> None:
    pairs = [pair("Q", "new"), pair("Q", "old"), pair("Other", "old")]
    assert await chosen(pairs) == [("Q", "new"), ("Other", "old")]


async def test_an_answer_that_was_called_wrong_is_left_out_each_time_it_was_given() -> None:
    pairs = [pair("Q", "bad", "r1"), pair("Q", "bad", "r2"), pair("Q", "good", "r3"), pair("P", "bad", "r4")]
    assert await chosen(pairs, marks(wrong="r2")) == [("Q", "good"), ("P", "bad")]


async def test_a_wrong_hit_is_the_stored_answers_fault() -> None:
    pairs = [pair("Q", "bad", "r1", entry="e1"), pair("P", "fine", "r2", entry="e2")]
    assert await chosen(pairs, marks(wrong="later", wrong_entry="e1")) == [("P", "fine")]


async def test_confirmed_means_that_somebody_called_it_right() -> None:
    pairs = [pair("Q", "a", "r1"), pair("P", "b", "r2", entry="e2"), pair("O", "c", "r3")]
    assert await chosen(pairs, marks(right="r1", right_entry="e2"), Quality.CONFIRMED) == [("Q", "a"), ("P", "b")]
    assert await chosen(pairs, quality=Quality.CONFIRMED) == []


async def test_no_entry_is_not_an_entry_in_common() -> None:
    pairs = [pair("Q", "a", "r1"), pair("P", "b", "r2")]
    assert await chosen(pairs, marks(wrong="r1")) == [("P", "b")]


@given(st.lists(st.tuples(st.sampled_from("QPO"), st.sampled_from("abc"), st.booleans()), max_size=12))
async def test_no_question_twice_and_nothing_that_was_called_wrong(said: list[tuple[str, str, bool]]) -> None:
    pairs = [pair(question, answer, str(number)) for number, (question, answer, _) in enumerate(said)]
    wrong = frozenset(str(number) for number, (_, _, bad) in enumerate(said) if bad)
    found = await chosen(pairs, Marks(frozenset(), wrong, frozenset(), frozenset()))
    refuted = {(question, answer) for question, answer, bad in said if bad}
    assert not refuted & set(found)
    assert len({question for question, _ in found}) == len(found)
    assert {question for question, _ in found} == {q for q, a, _ in said if (q, a) not in refuted}


def test_a_line_is_a_chat_with_its_tools_and_where_it_came_from() -> None:
    call = ToolCall("c1", "order", '{"id": 7}')
    chat = Chat(
        (
            message(Role.SYSTEM, "Be brief."),
            message(Role.USER, "Where is order 7?", name="ann"),
            message(Role.ASSISTANT, "", tool_calls=(call,)),
            message(Role.TOOL, "shipped", tool_call_id="c1"),
        ),
        tools=(Tool("order", "Looks an order up.", '{"type": "object"}', strict=True),),
    )
    answer = Answer(message(Role.ASSISTANT, "On its way.", reasoning="It says shipped."), FinishReason.STOP)
    assert line(pair(chat=chat, given=answer)) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where is order 7?", "name": "ann"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "order", "arguments": '{"id": 7}'}}
                ],
            },
            {"role": "tool", "content": "shipped", "tool_call_id": "c1"},
            {"role": "assistant", "content": "On its way.", "reasoning_content": "It says shipped."},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": "order",
                    "description": "Looks an order up.",
                    "parameters": {"type": "object"},
                    "strict": True,
                },
            }
        ],
        "metadata": {
            "model": "gpt-4o",
            "tier": "complex",
            "namespace": "default",
            "request_id": "r",
            "asked_at": "2023-11-14T22:13:20+00:00",
        },
    }


def test_pictures_stay_in_their_places() -> None:
    parts = (
        TextPart("What is this?"),
        ImagePart(data=b"\x01", media_type="image/png"),
        ImagePart(url="https://x/y.png"),
    )
    found = line(pair(chat=Chat((Message(Role.USER, parts),))))["messages"]
    assert isinstance(found, list)
    assert found[0]["content"] == [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AQ=="}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
    ]
