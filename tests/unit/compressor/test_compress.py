"""What of a chat is shortened, and what never."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.chat import Chat, ImagePart, Message, Role, TextPart, Tool, ToolCall
from services.common.tokens import estimate_tokens
from services.compressor.domain.compress import Order, compress
from services.compressor.domain.units import paragraphs_of

FILLER = [
    f"Chapter {n} is about the weather in region {n}, where the wind blows and the people grow plants of kind {n}."
    for n in range(60)
]
FACT = "The Kudzu vine was introduced to the United States at the Philadelphia exposition of 1876."
QUESTION = "When was kudzu introduced to the United States?"


def document(*facts: str) -> str:
    lines = list(FILLER)
    for number, fact in enumerate(facts):
        lines.insert(20 + 7 * number, fact)
    return "\n\n".join(" ".join(lines[i : i + 4]) for i in range(0, len(lines), 4))


def user(*texts: str) -> Message:
    return Message(Role.USER, tuple(map(TextPart, texts)))


def compressed(*messages: Message, **fields):
    return compress(Order(Chat(messages), **fields))


def test_the_answer_stays_and_about_half_goes():
    outcome = compressed(user(f"{document(FACT)}\n\n{QUESTION}"))
    assert outcome.applied
    assert FACT in outcome.chat.messages[0].text
    assert outcome.chat.messages[0].text.endswith(f"\n\n{QUESTION}")
    assert 0.4 < outcome.kept_tokens / outcome.original_tokens < 0.55
    assert [block.method for block in outcome.blocks] == ["extractive"]


def test_spanish_questions_find_inflected_words():
    fact = "El puente colgante fue construido por los ingenieros alemanes en 1893."
    filler = " ".join(f"El capítulo {n} habla del tiempo de la región {n} y de sus plantas." for n in range(60))
    outcome = compressed(
        user(f"{filler}\n\n{fact}\n\n{filler}\n\n¿Qué ingeniero construyó los puentes colgantes?"), rate=0.33
    )
    assert fact in outcome.chat.messages[0].text


def test_documents_in_earlier_messages_are_shortened_by_the_last_question():
    outcome = compressed(user(document(FACT)), Message(Role.ASSISTANT, (TextPart("Read."),)), user(QUESTION))
    assert FACT in outcome.chat.messages[0].text
    assert outcome.blocks[0].kept_tokens < outcome.blocks[0].original_tokens
    assert outcome.chat.messages[1:] == (Message(Role.ASSISTANT, (TextPart("Read."),)), user(QUESTION))


def test_tool_results_are_shortened():
    result = Message(Role.TOOL, (TextPart(document(FACT)),), tool_call_id="c1")
    call = Message(Role.ASSISTANT, tool_calls=(ToolCall("c1", "search", '{"q": "kudzu"}'),))
    outcome = compressed(user(QUESTION), call, result)
    assert outcome.applied
    assert FACT in outcome.chat.messages[2].text
    assert outcome.chat.messages[2].tool_call_id == "c1"
    assert outcome.chat.messages[:2] == (user(QUESTION), call)


def test_system_text_tools_assistants_and_images_are_never_touched():
    image = ImagePart(url="https://example.org/x.png")
    messages = (
        Message(Role.SYSTEM, (TextPart(document()),)),
        Message(Role.ASSISTANT, (TextPart(document()),)),
        Message(Role.USER, (image, TextPart(document(FACT)), TextPart(QUESTION))),
    )
    chat = Chat(messages, tools=(Tool("t", document()),))
    outcome = compress(Order(chat))
    assert outcome.applied
    assert outcome.chat.messages[:2] == messages[:2]
    assert outcome.chat.tools == chat.tools
    assert outcome.chat.messages[2].parts[0] is image
    assert outcome.chat.messages[2].parts[2] == TextPart(QUESTION)


def test_protected_messages_stay_as_they_are():
    messages = (user(document(FACT)), user(document(FACT, "Kudzu is a plant.")), user(QUESTION))
    outcome = compressed(*messages, protected_messages=1)
    assert outcome.chat.messages[0] == messages[0]
    assert outcome.chat.messages[1] != messages[1]
    assert {block.message for block in outcome.blocks} == {1}


def test_short_texts_stay():
    outcome = compressed(user(f"{FACT}\n\n{QUESTION}"))
    assert not outcome.applied
    assert outcome.chat.messages == (user(f"{FACT}\n\n{QUESTION}"),)


def test_the_original_is_sent_when_little_would_be_saved():
    chat = Chat((Message(Role.SYSTEM, (TextPart(document() * 30),)), user(f"{document(FACT)}\n\n{QUESTION}")))
    outcome = compress(Order(chat))
    assert not outcome.applied
    assert outcome.chat is chat
    assert outcome.kept_tokens == outcome.original_tokens
    assert "3%" in outcome.reason
    assert all(block.method == "kept" for block in outcome.blocks)


@pytest.mark.parametrize("question", ["Summarize the text.", "Traduce el texto al inglés", "xylophone quartz?"])
def test_without_a_question_to_search_by_only_copies_go(question):
    text = document(FACT)
    outcome = compressed(user(f"{text}\n\n\n\n{text}\n\n{question}"))
    assert outcome.applied
    assert outcome.chat.messages[0].text == f"{text}\n\n{question}"
    assert [block.method for block in outcome.blocks] == ["cleaned"]


def test_a_copy_of_an_earlier_document_goes():
    outcome = compressed(user(document(FACT), document(FACT)), user("Summarize the text."))
    assert not outcome.applied or outcome.chat.messages[0].parts[0] == TextPart(document(FACT))


def test_code_and_json_stay_whole():
    code = "```python\ndef kudzu():\n    return 1876\n\n\nprint(kudzu())\n```"
    value = '{"weather": [1, 2, 3],\n "name": "x. Y"}'
    text = document(FACT).replace(FILLER[8], f"{FILLER[8]}\n\n{code}\n\n{value}\n\n")
    outcome = compressed(user(f"{text}\n\n{QUESTION}"), rate=0.33)
    assert outcome.applied
    assert code in outcome.chat.messages[0].text
    assert value in outcome.chat.messages[0].text


def test_every_document_keeps_at_least_its_best_sentence():
    outcome = compressed(user(document(FACT)), user(document()), user(document()), user(QUESTION), rate=0.33)
    assert all(message.text.strip() for message in outcome.chat.messages)
    assert all(block.kept_tokens > 0 for block in outcome.blocks)


def test_a_relevant_document_gets_more_of_the_budget():
    facts = [
        FACT,
        "Kudzu grew in the states of the South.",
        "The kudzu was introduced to farmers.",
        "United kudzu is a company.",
    ]
    outcome = compressed(user(document(*facts * 4)), user(document()), user(QUESTION), rate=0.33)
    rich, poor = outcome.blocks
    assert rich.kept_tokens > poor.kept_tokens


def test_huge_texts_are_left_alone():
    outcome = compressed(user(f"{document(FACT)}\n\n{QUESTION}"), max_characters=1000)
    assert not outcome.applied
    assert "1000" in outcome.reason


def test_the_same_request_gives_the_same_bytes():
    message = user(f"{document(FACT)}\n\n{QUESTION}")
    assert compressed(message) == compressed(message)


sentences = st.lists(
    st.sampled_from(
        [
            "The kudzu vine is green.",
            "In 1876 it was introduced, for 3.50 dollars.",
            'They said "Look. It grows." to all.',
            "See https://example.org/k?v=1 for more.",
            "Nothing of note happened in the region at all that year.",
            "The States were united by then.",
        ]
    ),
    min_size=60,
    max_size=150,
)


@settings(max_examples=40, deadline=None)
@given(sentences, st.floats(0.05, 1.0), st.integers(2, 9))
def test_what_is_kept_is_a_subsequence_of_whole_sentences_within_the_budget(texts, rate, width):
    # Numbered, so that no paragraph is a copy of another.
    numbered = [f"Item {n}: {text}" for n, text in enumerate(texts)]
    context = "\n\n".join(" ".join(numbered[i : i + width]) for i in range(0, len(numbered), width))
    outcome = compressed(user(f"{context}\n\n{QUESTION}"), rate=rate)
    text = outcome.chat.messages[0].text
    assert text.endswith(f"\n\n{QUESTION}")
    kept = [unit.text for paragraph in paragraphs_of(text.removesuffix(QUESTION)) for unit in paragraph.units]
    remaining = iter(numbered)
    assert all(sentence in remaining for sentence in kept)
    if outcome.applied:
        assert estimate_tokens(text.removesuffix(f"\n\n{QUESTION}")) <= rate * estimate_tokens(context)
        assert outcome.kept_tokens <= 0.97 * outcome.original_tokens


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(Role), sentences), min_size=1, max_size=4), st.integers(0, 4))
def test_what_is_protected_comes_out_as_it_went_in(turns, protected):
    messages = (*(Message(role, (TextPart(" ".join(texts)),)) for role, texts in turns), user(QUESTION))
    outcome = compressed(*messages, protected_messages=protected)
    assert len(outcome.chat.messages) == len(messages)
    for index, (before, after) in enumerate(zip(messages, outcome.chat.messages, strict=True)):
        if index < protected or before.role in (Role.SYSTEM, Role.ASSISTANT) or index == len(turns):
            assert before == after
        assert re.sub(r"\s", "", after.text)
