import json
from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from services.common.chat import Chat, ImagePart, Message, ResponseFormat, Role, TextPart, Tool, ToolCall
from services.common.chat_pb import Caller
from services.common.money import Rates
from services.provider.domain.prompt_cache import MAX_BREAKPOINTS, Control, VendorCache
from services.provider.domain.prompt_cache.canonical import NOTE, Canonical, canonical, canonical_schema
from services.provider.domain.prompt_cache.prefix import PartBook, Prefix
from services.provider.domain.prompt_cache.prompts import PromptCache
from services.provider.domain.prompt_cache.volatile import Finder
from tests.unit.provider.prompt_cache_fakes import Spot

RATES = Rates(input=3_000_000, output=15_000_000, cache_read=300_000, cache_write=3_750_000, cache_write_long=6_000_000)
CALLER = Caller("acme", "default", "support", "", "r1")


def message(role: Role, text: str) -> Message:
    return Message(role, (TextPart(text),))


def settle(chat: Chat, *, move: bool = True) -> Canonical:
    return canonical(chat, Finder(), move_volatile=move)


words = st.sampled_from(["order", "return", "jacket", "¿dónde?", "size", "blue", "policy", "\n", "Be brief."])
sentences = st.lists(words, max_size=12).map(" ".join)
volatile = st.sampled_from(
    [
        "Current time: 2025-11-24T10:33:01Z",
        "Request ID: r-17",
        "Hora actual: 10:33",
        "Solicitud número: 12",
        "Trace 123e4567-e89b-12d3-a456-426614174000.",
        '{"now": "2025-11-24T10:33:01Z"}',
    ]
)
system_texts = st.lists(st.one_of(sentences, volatile), min_size=1, max_size=5).map("\n".join)
schemas = st.recursive(
    st.one_of(st.integers(), st.booleans(), st.text(max_size=4), st.floats(allow_nan=False)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["type", "properties", "a", "b", "enum"]), inner, max_size=4),
    ),
    max_leaves=8,
)
tools = st.builds(
    Tool,
    st.sampled_from(["find", "cancel", "refund"]),
    sentences,
    st.one_of(st.just(""), schemas.map(json.dumps)),
    st.booleans(),
)
turns = st.lists(
    st.builds(message, st.sampled_from([Role.USER, Role.ASSISTANT, Role.TOOL, Role.SYSTEM]), sentences),
    min_size=1,
    max_size=8,
)
chats = st.builds(
    lambda system, rest, tools: Chat((*(message(Role.SYSTEM, text) for text in system), *rest), tuple(tools)),
    st.lists(system_texts, max_size=2),
    turns,
    st.lists(tools, max_size=4),
)


def asked(tool: Tool) -> tuple[object, ...]:
    schema = json.dumps(json.loads(tool.parameters_json_schema), sort_keys=True) if tool.parameters_json_schema else ""
    return (tool.name, tool.description, schema, tool.strict)


@given(chats, st.booleans())
def test_what_is_asked_stays_the_same(chat: Chat, move: bool) -> None:
    sent = settle(chat, move=move)
    assert Counter(map(asked, sent.chat.tools)) == Counter(map(asked, chat.tools))
    assert [asked(sent.chat.tools[i]) for i in range(len(sent.tools))] == [asked(chat.tools[i]) for i in sent.tools]
    kept = sent.chat.messages[:-1] if sent.note else sent.chat.messages
    assert [m.role for m in kept] == [chat.messages[i].role for i in sent.messages]
    assert sent.note == any(one.moved for one in sent.volatile)
    for now, index in zip(kept, sent.messages, strict=True):
        before = chat.messages[index]
        if before.role is not Role.SYSTEM:
            assert now == before
        assert replace(now, parts=()) == replace(before, parts=())
        left = iter(before.text.split())
        assert all(word in left for word in now.text.split())  # in the same order
    # Every word of the system texts is there once: in its place, or among what was moved, as it stood.
    before = Counter(word for m in chat.messages if m.role is Role.SYSTEM for word in m.text.split())
    after = Counter(word for m in kept if m.role is Role.SYSTEM for word in m.text.split())
    moved = sent.chat.messages[-1].text.split("\n")[1:] if sent.note else []
    assert before == after + Counter(word for line in moved for word in line.split())
    assert all(any(line in m.text for m in chat.messages) for line in moved)
    left_out = set(range(len(chat.messages))) - set(sent.messages)
    assert all(chat.messages[i].role is Role.SYSTEM for i in left_out)
    assert (sent.chat.sampling, sent.chat.tool_choice) == (chat.sampling, chat.tool_choice)


@given(chats, st.booleans())
def test_it_is_deterministic_and_done_once(chat: Chat, move: bool) -> None:
    sent = settle(chat, move=move)
    assert settle(chat, move=move) == sent
    assert settle(replace(chat, tools=chat.tools[::-1]), move=move).chat == sent.chat
    assert settle(sent.chat, move=move).chat == sent.chat


def read(sent: Canonical) -> Prefix:
    return PartBook().read(sent.chat, "acme", note=sent.note)


@given(
    st.lists(sentences, min_size=1, max_size=4), st.lists(tools, max_size=4), volatile, volatile, sentences, sentences
)
def test_equal_static_parts_give_equal_prefixes(
    system: list[str], tools: list[Tool], one: str, other: str, question: str, another: str
) -> None:
    def ask(stamp: str, question: str, tools: list[Tool]) -> Canonical:
        text = "\n".join([stamp, *system])
        return settle(Chat((message(Role.SYSTEM, text), message(Role.USER, question)), tuple(tools)))

    if one.startswith("{") or other.startswith("{"):  # data is not moved
        one = other
    first, second = ask(one, question, tools), ask(other, another, tools[::-1])
    assert first.chat.tools == second.chat.tools
    a, b = read(first), read(second)
    assert (a.tools, a.system) == (b.tools, b.system)
    assert a.digests[: a.system] == b.digests[: b.system]
    if a.system > a.tools:
        assert first.chat.messages[0] == second.chat.messages[0]


@given(chats, st.floats(0, 7200), st.booleans())
def test_breakpoints_are_few_in_order_and_the_longer_ones_first(chat: Chat, gap: float, reads: bool) -> None:
    now = [0.0]
    cache = PromptCache(lambda model, input_tokens=0: RATES, lambda: now[0], move_volatile=True)
    spot = Spot(cache=VendorCache(Control.BREAKPOINTS, 1, 300, 3600))
    for _ in range(4):
        prompt = cache.prepare(chat, CALLER, [spot])
        hints = prompt.hints(spot)
        assert hints == prompt.hints(spot)
        places = [-1 if point.message is None else point.message for point in hints.breakpoints]
        assert len(places) <= MAX_BREAKPOINTS
        assert places == sorted(set(places))
        assert all(place < len(prompt.chat.messages) for place in places)
        lifetimes = [point.ttl_s for point in hints.breakpoints]
        assert lifetimes == sorted(lifetimes, reverse=True)
        prompt.answered(spot, spot.usage(read=5 if reads else 0, written=5))
        now[0] += gap


def test_tools_are_sorted_and_the_callers_places_are_known() -> None:
    chat = Chat((message(Role.USER, "Hi"),), (Tool("refund"), Tool("cancel"), Tool("find")))
    sent = settle(chat)
    assert [tool.name for tool in sent.chat.tools] == ["cancel", "find", "refund"]
    assert sent.tools == (1, 2, 0)


def test_schemas_are_one_text_whatever_the_order_of_their_keys() -> None:
    one = '{"type": "object", "properties": {"b": {"type": "string"}, "a": {"enum": [2, 1]}}}'
    other = '{"properties":{"a":{"enum":[2,1]},"b":{"type":"string"}},"type":"object"}'
    assert canonical_schema(one, keep_properties=False) == canonical_schema(other, keep_properties=False) == other


def test_the_order_in_which_a_model_must_write_is_kept() -> None:
    schema = '{"type": "object", "properties": {"why": {"type": "string"}, "answer": {"type": "string"}}}'
    kept = '{"properties":{"why":{"type":"string"},"answer":{"type":"string"}},"type":"object"}'
    form = ResponseFormat("json_schema", "verdict", schema)
    sent = settle(Chat((message(Role.USER, "Hi"),), (Tool("t", "", schema, strict=True),), response_format=form))
    assert sent.chat.response_format.json_schema == kept
    assert sent.chat.tools[0].parameters_json_schema == kept


def test_what_is_no_object_or_cannot_be_written_stays() -> None:
    for text in ("[1, 2]", "{oops", '{"a": NaN}', '{"a": "\\ud800"}', '{"a":' * 5000 + "1" + "}" * 5000):
        assert canonical_schema(text, keep_properties=False) == text


def test_moved_sentences_come_last_in_the_order_of_the_text() -> None:
    system = "You are Ana.\nCurrent time: 2025-11-24T10:33:01Z\nRequest ID: r-17"
    sent = settle(Chat((message(Role.SYSTEM, system), message(Role.USER, "Hi"))))
    assert [m.text for m in sent.chat.messages] == [
        "You are Ana.",
        "Hi",
        f"{NOTE}\nCurrent time: 2025-11-24T10:33:01Z\nRequest ID: r-17",
    ]
    assert sent.chat.messages[-1].role is Role.USER
    assert [(one.part, one.offset, one.moved) for one in sent.volatile] == [
        ("messages[0]", 27, True),
        ("messages[0]", 48, True),
    ]


def test_without_the_setting_volatile_fields_are_only_reported() -> None:
    chat = Chat((message(Role.SYSTEM, "¡Hola!\nHora actual: 10:33"), message(Role.USER, "Hi")))
    sent = settle(chat, move=False)
    assert sent.chat == chat
    assert [(one.kind, one.offset, one.moved) for one in sent.volatile] == [("timestamp", 8, False)]


def test_nothing_is_put_behind_words_that_the_assistant_is_to_continue() -> None:
    chat = Chat((message(Role.SYSTEM, "Hora actual: 10:33"), message(Role.USER, "Hi"), message(Role.ASSISTANT, "Well")))
    assert settle(chat).chat == chat


def test_a_system_message_of_nothing_else_is_left_out() -> None:
    chat = Chat(
        (message(Role.SYSTEM, "Hora actual: 10:33"), message(Role.SYSTEM, "Be brief."), message(Role.USER, "Hi"))
    )
    sent = settle(chat)
    assert [m.text for m in sent.chat.messages] == ["Be brief.", "Hi", f"{NOTE}\nHora actual: 10:33"]
    assert sent.messages == (1, 2)


def test_a_request_is_split_into_what_stays_and_what_is_new() -> None:
    call = Message(Role.ASSISTANT, (), tool_calls=(ToolCall("c1", "find", "{}"),))
    chat = Chat(
        (
            message(Role.SYSTEM, "You are Ana."),
            message(Role.USER, "Hi"),
            message(Role.ASSISTANT, "Hello"),
            message(Role.USER, "Where is it?"),
            call,
            Message(Role.TOOL, (TextPart("Lyon"),), tool_call_id="c1"),
        ),
        (Tool("find"),),
    )
    prefix = read(settle(chat))
    assert (prefix.tools, prefix.system, prefix.previous, prefix.earlier, prefix.newest) == (1, 2, 5, 6, 7)
    first = read(settle(replace(chat, messages=chat.messages[:2])))
    assert (first.system, first.previous, first.earlier, first.newest) == (2, 0, 2, 3)
    assert first.chain == prefix.chain[:3]


def test_parts_differ_by_whatever_the_model_sees() -> None:
    base = message(Role.USER, "Hi")
    others = [
        message(Role.ASSISTANT, "Hi"),
        replace(base, name="bob"),
        replace(base, tool_call_id="c1"),
        replace(base, parts=(*base.parts, ImagePart(data=b"1", media_type="image/png"))),
        replace(base, parts=(*base.parts, ImagePart(data=b"2", media_type="image/png"))),
        replace(base, tool_calls=(ToolCall("c1", "find", "{}"),)),
        replace(base, tool_calls=(ToolCall("c2", "find", "{}"),)),
    ]
    digests = {read(settle(Chat((one,)))).digests for one in [base, *others]}
    assert len(digests) == len(others) + 1
