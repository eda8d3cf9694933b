import pytest

from services.provider.domain.prompt_cache import VolatileKind
from services.provider.domain.prompt_cache.volatile import MAX_SCANNED, Finder, Found, take_out

UUID = "123e4567-e89b-12d3-a456-426614174000"


def find_volatile(text: str) -> tuple[Found, ...]:
    return Finder().find(text)


def kinds(text: str) -> list[str]:
    return [one.kind.value for one in find_volatile(text)]


@pytest.mark.parametrize(
    "text",
    [
        "Current time: 2025-11-24T10:33:01Z",
        "Now is 2025-11-24 10:33:01.123+01:00.",
        "Today is Monday, 24 November 2025, 10:33 AM.",
        "It is Nov 24, 2025 at 10:33.",
        "Date: 11/24/2025 10:33:01",
        "10:33 on 24 November 2025",
        "The current time is 10:33.",
        "timestamp: 1763980381",
        "timestamp=1763980381123",
        "Hoy es lunes, 24 de noviembre de 2025 a las 10:33.",
        "Fecha y hora: 24/11/2025 10:33:01",
        "Hora actual: 10:33",
        "Son las 10:33 del 24 de noviembre de 2025.",
    ],
)
def test_times_are_found(text: str) -> None:
    assert kinds(text) == ["timestamp"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (f"Ticket {UUID}", "uuid"),
        ("Request ID: req_8f3k2", "id"),
        ("request-id=abc-123", "id"),
        ("x-request-id: 7f00a1", "id"),
        ("Session id: 4711-abcd", "id"),
        ('The trace_id is "0af7651916cd43dd8448eb211c80319c".', "id"),
        ("ID de la solicitud: 8f3k2-77", "id"),
        ("Identificador de sesión: a1b2c3", "id"),
        ("nonce: 99af01", "id"),
        ("Request number 17", "counter"),
        ("Request #4711", "counter"),
        ("Message count: 12", "counter"),
        ("Consulta n.º 12", "counter"),
        ("Solicitud número: 12", "counter"),
        ("Número de la petición: 12", "counter"),
        ("Contador: 3", "counter"),
    ],
)
def test_ids_and_counters_are_found(text: str, kind: str) -> None:
    assert kinds(text) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "We are open from 09:00 to 17:00.",
        "Abrimos de 09:00 a 17:00.",
        "Prices are valid from 2025-01-01 on.",
        "Founded on 24 November 2025.",
        "Our policy of 14 days holds since 2024.",
        "Return the session id that the user gives you.",
        "Answer in at most 3 sentences.",
        "Call 0800 123 4567 or ext. 12.",
        "Version 1.2.3 of the schema",
        "Ask for the request id, which has 8 letters.",
        "Deliveries at 10:30 are free.",
        "",
    ],
)
def test_what_stays_the_same_is_not_taken_for_volatile(text: str) -> None:
    assert kinds(text) == []


def test_a_sentence_is_taken_out_and_its_line_goes_when_nothing_is_left() -> None:
    text = "You are Ana. The current time is 10:33 a.m. UTC. Be brief.\nRequest ID: r-17\n\nNever guess."
    rest, taken = take_out(text, find_volatile(text))
    assert rest == "You are Ana. Be brief.\n\nNever guess."
    assert taken == ("The current time is 10:33 a.m. UTC.", "Request ID: r-17")


def test_a_text_of_nothing_else_is_empty_afterwards() -> None:
    text = "Current time: 2025-11-24T10:33:01Z\nRequest #17\n"
    assert take_out(text, find_volatile(text)) == ("", ("Current time: 2025-11-24T10:33:01Z", "Request #17"))


@pytest.mark.parametrize(
    "text",
    [
        f"```\nid {UUID}\n```",
        f'{{\n "now": "2025-11-24T10:33:01Z",\n "id": "{UUID}"\n}}',
        f"| {UUID} | open |",
        "The current time is 2025-11-24T10:33:01Z " + "and this goes on without an end " * 6,
    ],
)
def test_data_code_and_long_sentences_are_reported_and_stay(text: str) -> None:
    found = find_volatile(text)
    assert found
    assert take_out(text, found) == (text, ())


def test_code_before_prose_does_not_keep_the_prose() -> None:
    text = "```\ncode\n```\nCurrent time: 2025-11-24T10:33:01Z\nBe brief."
    assert take_out(text, find_volatile(text))[0] == "```\ncode\n```\nBe brief."


def test_two_fields_of_one_sentence_are_taken_once() -> None:
    text = f"Trace id {UUID.replace('-', '')} at 2025-11-24T10:33:01Z.\nBe brief."
    found = find_volatile(text)
    assert [one.kind for one in found] == [VolatileKind.ID, VolatileKind.TIMESTAMP]
    assert take_out(text, found)[1] == (text.split("\n")[0],)


def test_places_are_letters() -> None:
    assert find_volatile("¡Señal! Hora actual: 10:33")[0].start == len("¡Señal! ")


def test_only_the_front_of_a_long_text_is_looked_at() -> None:
    assert find_volatile("x\n" * MAX_SCANNED + "Request #17") == ()


def test_a_line_that_was_seen_before_has_the_same_fields() -> None:
    finder = Finder(limit=2)
    text = "Request #17\nBe brief.\nRequest #17\nNonce: a1b2c3"
    assert finder.find(text) == finder.find(text) == find_volatile(text)
