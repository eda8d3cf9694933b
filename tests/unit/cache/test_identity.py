"""Requests that differ in any field of the identity never share a key; ways of writing the same request always do."""

import json
import os
import random
import unicodedata
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.cache.domain.identity import Identity, Keys
from services.common.chat import (
    Chat,
    ImagePart,
    Message,
    ResponseFormat,
    Role,
    Sampling,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)

EXAMPLES = settings(max_examples=1_000 if os.environ.get("CI") else 100, deadline=None)

names = st.text("abc", max_size=3)
texts = st.sampled_from(["", "a", "é", "e\u0301", "the question", "ñandú", "\x00", "日本", "🙂"])
schemas = st.sampled_from(
    [
        "{}",
        '{"a": 1}',
        '{"a": 1.0}',
        '{"a": true}',
        '{"é": {"b": [1, null], "a": "x"}, "a": 1}',
        '{"a": {"b": [null, 1], "a": "x"}}',
        '{"type": "object", "required": ["a", "é"]}',
    ]
)
parts = st.builds(TextPart, texts) | st.builds(
    ImagePart,
    st.sampled_from(["", "https://a", "https://b"]),
    st.binary(max_size=2),
    st.sampled_from(["", "image/png"]),
)
calls = st.builds(ToolCall, names, names, schemas)
messages = st.builds(
    Message,
    st.sampled_from(Role),
    st.lists(parts, max_size=2).map(tuple),
    names,
    st.lists(calls, max_size=1).map(tuple),
    names,
    names,
)
tools = st.lists(st.builds(Tool, names, names, schemas, st.booleans()), max_size=2, unique_by=lambda t: t.name).map(
    tuple
)
samplings = st.builds(
    Sampling,
    st.none() | st.sampled_from([0.0, 0.5, 1.0]),
    st.none() | st.sampled_from([0.5, 1.0]),
    st.none() | st.integers(1, 3),
    st.lists(names, max_size=2).map(tuple),
    st.none() | st.integers(0, 2),
    st.none() | st.sampled_from([0.0, 1.0]),
    st.none() | st.sampled_from([0.0, 1.0]),
    st.sampled_from(["", "low"]),
)
chats = st.builds(
    Chat,
    st.lists(messages, min_size=1, max_size=3).map(tuple),
    tools,
    st.builds(ToolChoice, st.sampled_from(["", "auto", "named"]), names),
    st.builds(ResponseFormat, st.sampled_from(["text", "json_schema"]), names, schemas),
    samplings,
)
requests = st.fixed_dictionaries(
    {"tenant": names, "namespace": names, "user": names, "requested_model": names, "chat": chats}
)


def keys(request, version: int = 0) -> Keys:
    return Identity(**request).keys(version)


def canonical(value):
    """The same request however it was written."""
    match value:
        case str():
            try:
                parsed = json.loads(value)
            except ValueError:
                parsed = None
            if isinstance(parsed, dict):
                return canonical_json(parsed)
            return unicodedata.normalize("NFC", value)
        case dict():
            return {key: canonical(item) for key, item in value.items()}
        case tuple():
            items = [canonical(item) for item in value]
            return sorted(items, key=repr) if value and isinstance(value[0], Tool) else items
        case _ if hasattr(value, "__dataclass_fields__"):
            return (type(value).__name__, {f: canonical(getattr(value, f)) for f in value.__dataclass_fields__})
        case _:
            return (type(value).__name__, value)


def canonical_json(value):
    """JSON in one form; repr tells True from 1 and 1 from 1.0."""
    if isinstance(value, dict):
        pairs = [(unicodedata.normalize("NFC", key), canonical_json(item)) for key, item in value.items()]
        return ("object", sorted(pairs, key=repr))
    if isinstance(value, list):
        return ("array", [canonical_json(item) for item in value])
    return repr(unicodedata.normalize("NFC", value) if isinstance(value, str) else value)


@EXAMPLES
@given(requests, requests, st.sampled_from(["tenant", "namespace", "requested_model", "chat"]))
def test_requests_that_differ_in_one_field_never_share_an_exact_key(one, other, field):
    changed = {**one, field: other[field]}
    assume(canonical(changed[field]) != canonical(one[field]))
    assert keys(one).exact != keys(changed).exact


@EXAMPLES
@given(requests, chats, st.sampled_from(["messages", "tools", "tool_choice", "response_format", "sampling"]))
def test_chats_that_differ_in_one_field_never_share_an_exact_key(request, other, field):
    chat = request["chat"]
    changed = replace(chat, **{field: getattr(other, field)})
    assume(canonical(changed) != canonical(chat))
    assert keys(request).exact != keys({**request, "chat": changed}).exact


def last_text_removed(chat: Chat) -> Chat:
    last = chat.last_user_index
    if last is None:
        return chat
    hollow = replace(
        chat.messages[last],
        parts=tuple(TextPart("") if isinstance(part, TextPart) else part for part in chat.messages[last].parts),
    )
    return replace(chat, messages=(*chat.messages[:last], hollow, *chat.messages[last + 1 :]))


@EXAMPLES
@given(requests, requests, st.sampled_from(["tenant", "namespace", "requested_model", "chat"]))
def test_scope_is_shared_exactly_when_only_the_last_user_text_differs(one, other, field):
    changed = {**one, field: other[field]}
    alike = canonical({**one, "chat": last_text_removed(one["chat"])}) == canonical(
        {**changed, "chat": last_text_removed(changed["chat"])}
    )
    # The place of the last user message is part of the scope.
    alike = alike and one["chat"].last_user_index == changed["chat"].last_user_index
    assert (keys(one).scope == keys(changed).scope) == alike


@EXAMPLES
@given(requests, texts)
def test_last_user_text_changes_the_exact_key_and_never_the_scope(request, text):
    def ask(words: str):
        chat = request["chat"]
        return {**request, "chat": replace(chat, messages=(*chat.messages, Message(Role.USER, (TextPart(words),))))}

    one, other = ask("the question"), ask(text)
    assert keys(one).scope == keys(other).scope
    assert (keys(one).exact == keys(other).exact) == (unicodedata.normalize("NFC", text) == "the question")


@EXAMPLES
@given(requests, st.integers(0, 3), st.integers(0, 3))
def test_namespace_version_is_part_of_every_key(request, one, other):
    assume(one != other)
    a, b = keys(request, one), keys(request, other)
    assert a.exact != b.exact
    assert a.scope != b.scope


@EXAMPLES
@given(requests, names)
def test_user_counts_only_in_the_users_own_keys(request, user):
    a, b = keys(request), keys({**request, "user": user})
    assert (a.exact, a.scope) == (b.exact, b.scope)
    same = request["user"] == user
    assert (a.user_exact == b.user_exact) == same
    assert (a.user_scope == b.user_scope) == same
    assert (b.user_exact is None) == (user == "")


@EXAMPLES
@given(requests)
def test_no_two_keys_of_one_request_are_alike(request):
    found = keys(request)
    present = [key for key in (found.exact, found.scope, found.user_exact, found.user_scope) if key is not None]
    assert len(set(present)) == len(present)


def rewritten(chat: Chat) -> Chat:
    """The same chat in decomposed Unicode, tools turned round, schemas with other key order and white space."""

    def text(value: str) -> str:
        return unicodedata.normalize("NFD", value)

    def schema(value: str) -> str:
        loaded = json.loads(value)
        return json.dumps(dict(reversed(loaded.items())), indent=3, ensure_ascii=False)

    def part(value):
        return TextPart(text(value.text)) if isinstance(value, TextPart) else value

    return replace(
        chat,
        messages=tuple(replace(m, parts=tuple(part(p) for p in m.parts), name=text(m.name)) for m in chat.messages),
        tools=tuple(
            replace(tool, parameters_json_schema=schema(tool.parameters_json_schema)) for tool in reversed(chat.tools)
        ),
        response_format=replace(chat.response_format, json_schema=schema(chat.response_format.json_schema)),
    )


@EXAMPLES
@given(requests)
def test_key_order_unicode_form_white_space_and_order_of_tools_do_not_matter(request):
    again = {**request, "chat": rewritten(request["chat"])}
    assert keys(request, 7) == keys(again, 7)


def schema_key(schema: str) -> bytes:
    chat = Chat((Message(Role.USER, (TextPart("q"),)),), (Tool("t", parameters_json_schema=schema),))
    return Identity("t", "n", "", "auto", chat).keys(0).exact


def test_numbers_in_schemas_keep_their_type_and_their_digits():
    assert len({schema_key(f'{{"a": {number}}}') for number in ("1", "1.0", "1.00", "true", '"1"', "1e0", "null")}) == 7


def test_schema_with_a_repeated_key_is_taken_as_text():
    assert schema_key('{"a": 1, "a": 2}') != schema_key('{"a": 2}')
    assert schema_key('{"a": 1, "a": 2}') != schema_key('{"a":1,"a":2}')


def test_text_cannot_pass_for_two_parts():
    def key(*texts: str) -> bytes:
        chat = Chat((Message(Role.USER, tuple(TextPart(text) for text in texts)),))
        return Identity("t", "n", "", "auto", chat).keys(0).exact

    assert len({key("ab", "c"), key("a", "bc"), key("abc"), key("abc", ""), key("a\x00bc")}) == 5


def test_picture_beside_the_question_is_in_the_scope():
    def scope(url: str) -> bytes:
        chat = Chat((Message(Role.USER, (TextPart("what is this?"), ImagePart(url))),))
        return Identity("t", "n", "", "auto", chat).keys(0).scope

    assert scope("https://a") != scope("https://b")


MANY = 10_000


def random_chat(source: random.Random, text: str) -> Chat:
    """A chat of which every field may be set."""

    def word() -> str:
        return source.choice(["", "a", "b", "é", "ñandú", "the answer", "日本"])

    def json_text() -> str:
        value = {word() or "k": source.choice([1, 1.5, True, None, "é", [1, {"b": 2, "a": "ñ"}]]) for _ in range(3)}
        return json.dumps(value)

    def earlier() -> Message:
        calls = (ToolCall(word(), word(), json_text()),) if source.random() < 0.3 else ()
        return Message(source.choice(list(Role)), (TextPart(word()),), word(), calls, word(), word())

    return Chat(
        (*(earlier() for _ in range(source.randrange(3))), Message(Role.USER, (TextPart(text),))),
        tuple(Tool(name, word(), json_text(), source.random() < 0.5) for name in source.sample("pqr", 2)),
        ToolChoice(source.choice(["", "auto", "named"]), word()),
        ResponseFormat(source.choice(["text", "json_schema"]), word(), json_text()),
        Sampling(source.choice([None, 0.0, 0.7]), None, source.choice([None, 5]), (word(),), source.choice([None, 1])),
    )


def changes(source: random.Random, request: dict[str, object], chat: Chat) -> dict[str, dict[str, object]]:
    """The same request with one field of its identity changed, by the field's name."""
    first = chat.messages[0]
    tool = chat.tools[0]
    system = Message(Role.SYSTEM, (TextPart("You help."),))

    def with_chat(**fields: object) -> dict[str, object]:
        return {**request, "chat": replace(chat, **fields)}

    return {
        "tenant": {**request, "tenant": f"{request['tenant']}x"},
        "namespace": {**request, "namespace": f"{request['namespace']}x"},
        "requested_model": {**request, "requested_model": f"{request['requested_model']}x"},
        "history": with_chat(messages=(system, *chat.messages)),
        "name": with_chat(messages=(replace(first, name=f"{first.name}x"), *chat.messages[1:])),
        "reasoning": with_chat(messages=(replace(first, reasoning=f"{first.reasoning}x"), *chat.messages[1:])),
        "tools": with_chat(tools=(replace(tool, description=f"{tool.description}x"), *chat.tools[1:])),
        "strict": with_chat(tools=(replace(tool, strict=not tool.strict), *chat.tools[1:])),
        "tool_choice": with_chat(tool_choice=replace(chat.tool_choice, name=f"{chat.tool_choice.name}x")),
        "schema": with_chat(response_format=replace(chat.response_format, json_schema='{"other": 1}')),
        "temperature": with_chat(sampling=replace(chat.sampling, temperature=source.uniform(1, 2))),
        "stop": with_chat(sampling=replace(chat.sampling, stop=(*chat.sampling.stop, "x"))),
        "seed": with_chat(sampling=replace(chat.sampling, seed=source.randrange(10, 10**9))),
    }


def random_request(source: random.Random) -> tuple[dict[str, object], Chat]:
    chat = random_chat(source, f"question {source.randrange(100)}")
    names = {field: source.choice(["", "a", "b", "ab"]) for field in ("tenant", "namespace", "user", "requested_model")}
    return {**names, "chat": chat}, chat


def test_ten_thousand_pairs_that_differ_in_one_field_share_neither_key_nor_scope():
    source = random.Random(11)
    for _ in range(MANY):
        request, chat = random_request(source)
        field, changed = source.choice(list(changes(source, request, chat).items()))
        one, other = keys(request), keys(changed)
        assert one.exact != other.exact, field
        assert one.scope != other.scope, field
        mine = {key for key in (one.exact, one.scope, one.user_exact, one.user_scope) if key}
        theirs = {key for key in (other.exact, other.scope, other.user_exact, other.user_scope) if key}
        assert not mine & theirs, field


def test_ten_thousand_pairs_that_differ_in_what_must_not_matter_share_all_keys():
    source = random.Random(12)

    def schema(text: str) -> str:
        pairs = list(json.loads(text).items())
        source.shuffle(pairs)
        return json.dumps(dict(pairs), indent=source.choice([None, 1, 4]), ensure_ascii=source.random() < 0.5)

    def words(text: str) -> str:
        return unicodedata.normalize(source.choice(["NFC", "NFD"]), text)

    for _ in range(MANY):
        request, chat = random_request(source)
        again = replace(
            chat,
            messages=tuple(
                replace(
                    message,
                    parts=tuple(TextPart(words(part.text)) for part in message.parts if isinstance(part, TextPart)),
                    name=words(message.name),
                    tool_calls=tuple(replace(c, arguments_json=schema(c.arguments_json)) for c in message.tool_calls),
                )
                for message in chat.messages
            ),
            tools=tuple(
                replace(tool, parameters_json_schema=schema(tool.parameters_json_schema))
                for tool in source.sample(chat.tools, len(chat.tools))
            ),
            response_format=replace(chat.response_format, json_schema=schema(chat.response_format.json_schema)),
        )
        version = source.randrange(3)
        assert keys(request, version) == keys({**request, "chat": again}, version)
