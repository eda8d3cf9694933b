from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.chat import Chat, Message, Role, Sampling, TextPart, Tool
from services.common.chat_pb import Caller
from services.common.money import Rates, Usage
from services.provider.domain.prompt_cache import (
    LONG_TTL_S,
    SHORT_TTL_S,
    Breakpoint,
    CacheHints,
    CacheOutcome,
    Control,
    PromptCacheReport,
    VendorCache,
)
from services.provider.domain.prompt_cache.planner import Segment, cheapest_marks, expected_cost
from services.provider.domain.prompt_cache.prompts import PromptCache
from services.provider.domain.prompt_cache.reuse import Kind, Reuse
from tests.unit.provider.prompt_cache_fakes import Spot

SONNET = Rates(
    input=3_000_000, output=15_000_000, cache_read=300_000, cache_write=3_750_000, cache_write_long=6_000_000
)
MINI = Rates(input=150_000, output=600_000, cache_read=75_000, cache_write=150_000, cache_write_long=150_000)
BOOK = {
    "sonnet": SONNET,
    "sonnet-2": SONNET,
    "mini": MINI,
    "dear": Rates(9_000_000, 9_000_000, 9_000_000, 9_000_000, 9_000_000),
}
MARKED = VendorCache(Control.BREAKPOINTS, 1024, 300, 3600)
AUTOMATIC = VendorCache(Control.AUTOMATIC, 1024, 300)
SYSTEM = "You answer questions of customers of a shop for jackets, always kindly and in one sentence. " * 80
ACME = Caller("acme", "default", "support", "", "r1")
SCOPE = ("acme", "support")


def text(role: Role, words: str) -> Message:
    return Message(role, (TextPart(words),))


def ask(question: str = "Where is it?", *, system: str = SYSTEM, tools: Sequence[Tool] = (), turns: int = 0) -> Chat:
    earlier = [text(role, f"Turn {n}") for n in range(turns) for role in (Role.USER, Role.ASSISTANT)]
    return Chat((text(Role.SYSTEM, system), *earlier, text(Role.USER, question)), tuple(tools))


class Desk:
    """A planner with a clock of its own."""

    def __init__(self, **options: bool) -> None:
        self.now = 0.0
        self.cache = PromptCache(lambda model, input_tokens=0: BOOK.get(model), lambda: self.now, **options)

    def hints(self, chat: Chat, spot: Spot, caller: Caller = ACME) -> CacheHints:
        return self.cache.prepare(chat, caller, [spot]).hints(spot)

    def send(
        self, chat: Chat, spot: Spot, *, read: int = 0, written: int = 0, caller: Caller = ACME
    ) -> PromptCacheReport:
        prompt = self.cache.prepare(chat, caller, [spot])
        prompt.hints(spot)
        whole = self.cache.book.read(prompt.chat, "", note=False).tokens[-1]
        return prompt.answered(spot, spot.usage(read, written, whole))

    def first(self, chat: Chat, *spots: Spot) -> Spot:
        return self.cache.prepare(chat, ACME, spots).ordered(spots)[0]


# What is worth keeping.

segments = st.lists(
    st.builds(
        lambda tokens, markable, short, more, longer, warm, further: Segment(
            tokens, markable, short, min(short + more, 1.0) if longer else None, warm, further
        ),
        st.integers(0, 5000),
        st.booleans(),
        st.floats(0, 1),
        st.floats(0, 1),
        st.booleans(),
        st.booleans(),
        st.floats(0, 20),
    ),
    min_size=1,
    max_size=4,
)


def segment(tokens: int, short: float, long: float | None, *, warm: bool = False, further: float = 8.0) -> Segment:
    return Segment(tokens, True, short, long, warm, further)


@given(segments)
def test_no_other_choice_of_marks_is_cheaper(segments: list[Segment]) -> None:
    chosen = cheapest_marks(segments, SONNET)
    least = expected_cost(segments, chosen, SONNET)
    assert least <= expected_cost(segments, [None] * len(segments), SONNET)
    for choice in product([None, SHORT_TTL_S, LONG_TTL_S], repeat=len(segments)):
        fits = all(
            ttl is None or (s.markable and s.tokens and (ttl == SHORT_TTL_S or s.long is not None))
            for s, ttl in zip(segments, choice, strict=True)
        )
        marked = [ttl for ttl in choice if ttl]
        if fits and marked == sorted(marked, reverse=True):
            assert least <= expected_cost(segments, choice, SONNET)


def test_a_prefix_that_never_returns_is_not_written() -> None:
    assert cheapest_marks([segment(3000, 0.1, 0.2)], SONNET) == (None,)


def test_what_returns_within_minutes_is_kept_for_minutes_and_what_takes_longer_for_an_hour() -> None:
    assert cheapest_marks([segment(3000, 0.9, 0.9)], SONNET) == (SHORT_TTL_S,)
    assert cheapest_marks([segment(3000, 0.2, 0.95)], SONNET) == (LONG_TTL_S,)


def test_without_a_price_for_reads_nothing_is_kept() -> None:
    same = Rates(9_000_000, 9_000_000, 9_000_000, 9_000_000, 9_000_000)
    assert cheapest_marks([segment(3000, 1.0, 1.0)], same) == (None,)


def test_a_lifetime_that_costs_more_now_must_have_the_uses_to_pay_for_it() -> None:
    # One gap in ten was too long for the shorter one.
    assert cheapest_marks([segment(3000, 0.9, 0.99, further=4)], SONNET) == (SHORT_TTL_S,)
    assert cheapest_marks([segment(3000, 0.9, 0.99, further=40)], SONNET) == (LONG_TTL_S,)


def test_what_is_warm_is_read_though_it_will_hardly_return() -> None:
    assert cheapest_marks([segment(3000, 0.0, 0.0, warm=True, further=0), segment(100, 0.0, 0.0)], SONNET) == (
        SHORT_TTL_S,
        None,
    )


def test_expected_cost_is_that_of_reads_and_writes() -> None:
    segments = [segment(1000, 0.5, None, further=3), segment(100, 0.0, None)]
    written_now = 3_750_000 + 3 * (0.5 * 300_000 + 0.5 * 3_750_000)
    assert expected_cost(segments, (SHORT_TTL_S, None), SONNET) == 1000 * written_now / 4 + 100 * 3_000_000


# How soon prefixes come back.


def test_reuse_is_learnt_from_the_gaps() -> None:
    reuse = Reuse()
    for n in range(40):
        reuse.note(SCOPE, Kind.SYSTEM, b"p", n * 1000.0)
    now = 39 * 1000.0
    assert reuse.share(SCOPE, Kind.SYSTEM, b"p", 300, now) < 0.1
    assert reuse.share(SCOPE, Kind.SYSTEM, b"p", 3600, now) > 0.9


def test_a_use_that_may_come_back_yet_says_nothing() -> None:
    reuse = Reuse()
    before = reuse.share(SCOPE, Kind.SYSTEM, b"p", 300, 0)
    for n in range(50):
        reuse.note(SCOPE, Kind.SYSTEM, b"%d" % n, 0.0)
    assert reuse.share(SCOPE, Kind.SYSTEM, b"new", 300, 100) == before
    assert reuse.share(SCOPE, Kind.SYSTEM, b"new", 300, 400) < before / 4


def test_a_new_prefix_is_believed_to_be_like_those_of_its_endpoint_alone() -> None:
    reuse = Reuse()
    for n in range(50):
        reuse.note(SCOPE, Kind.SYSTEM, b"%d" % n, n * 400.0)
    assert reuse.share(SCOPE, Kind.SYSTEM, b"new", 300, 20_400) < 0.1
    assert reuse.share(("acme", "other"), Kind.SYSTEM, b"new", 300, 20_400) == 0.5
    assert reuse.share(("umbrella", "support"), Kind.SYSTEM, b"new", 300, 20_400) == 0.5


def test_what_is_remembered_is_bounded() -> None:
    reuse = Reuse(kinds=2, prefixes=3)
    for n in range(100):
        reuse.note(("acme", str(n)), Kind.SYSTEM, b"%d" % n, float(n))
    assert len(reuse._kinds) == 2
    assert len(reuse._prefixes) == 3


# Breakpoints.


def test_a_support_desk_marks_its_static_prefix_and_not_the_question() -> None:
    desk, spot = Desk(), Spot()
    for n in range(30):
        hints = desk.hints(ask(f"Question {n}"), spot)
        desk.now += 20
    assert hints.breakpoints == (Breakpoint(0, SHORT_TTL_S),)


def test_a_slow_support_desk_keeps_its_prefix_for_an_hour() -> None:
    desk, spot = Desk(), Spot()
    for n in range(30):
        hints = desk.hints(ask(f"Question {n}"), spot)
        desk.now += 900
    assert hints.breakpoints == (Breakpoint(0, LONG_TTL_S),)


def test_a_desk_that_is_asked_once_a_day_marks_nothing() -> None:
    desk, spot = Desk(), Spot()
    for n in range(30):
        hints = desk.hints(ask(f"Question {n}"), spot)
        desk.now += 86_400
    assert hints.breakpoints == ()


def test_a_conversation_marks_where_it_was_and_where_it_is() -> None:
    desk, spot = Desk(), Spot()
    for n in range(6):
        hints = desk.hints(ask("And now?", turns=n), spot)
        desk.now += 30
    # system, the last request's question, this one's
    assert [point.message for point in hints.breakpoints] == [0, 9, 11]


def test_tools_have_a_breakpoint_of_their_own_where_the_vendor_takes_one() -> None:
    tools = [Tool(f"tool{n}", SYSTEM[:2000], '{"type": "object"}') for n in range(4)]
    assert Desk().hints(ask(tools=tools), Spot()).breakpoints[0] == Breakpoint(None)
    no_tools = Spot(cache=VendorCache(Control.BREAKPOINTS, 1024, 300, None, tools=False))
    assert Desk().hints(ask(tools=tools), no_tools).breakpoints == (Breakpoint(0),)


def test_a_short_prefix_has_no_breakpoint() -> None:
    assert Desk().hints(ask(system="Be brief."), Spot()).breakpoints == ()


def test_a_model_without_a_price_has_no_breakpoint() -> None:
    assert Desk().hints(ask(), Spot(model="unknown")).breakpoints == ()


def test_vendors_own_counts_correct_our_estimate_of_what_is_long_enough() -> None:
    desk, spot = Desk(), Spot()
    chat = ask(system=SYSTEM[: len(SYSTEM) // 2])  # about 750 by our count
    assert desk.hints(chat, spot).breakpoints == ()
    for _ in range(10):
        desk.cache.prepare(chat, ACME, [spot]).answered(spot, Usage(1500, 10))
    assert desk.hints(chat, spot).breakpoints


# Keys.


def test_requests_that_share_a_prefix_share_a_key_and_others_do_not() -> None:
    desk, spot = Desk(), Spot(model="mini", vendor="openai", cache=AUTOMATIC)
    keys = {desk.hints(ask(f"Question {n}"), spot).key for n in range(5)}
    assert len(keys) == 1
    other = Caller("umbrella", "default", "support", "", "r1")
    assert desk.hints(ask(), spot, other).key not in keys
    assert desk.hints(ask(system="Shout. " + SYSTEM), spot).key not in keys
    assert all(0 < len(key) <= 64 for key in keys)
    assert desk.hints(ask(), spot).breakpoints == ()


def test_a_short_system_text_leaves_the_key_to_the_conversation() -> None:
    desk, spot = Desk(), Spot(model="mini", vendor="openai", cache=AUTOMATIC)

    def turn(opening: str, *more: str) -> Chat:
        messages = [text(Role.SYSTEM, "Be brief."), text(Role.USER, opening)]
        return Chat((*messages, *(text(Role.ASSISTANT, words) for words in more)))

    assert desk.hints(turn("A"), spot).key == desk.hints(turn("A", "Hm.", "Well."), spot).key
    assert desk.hints(turn("A"), spot).key != desk.hints(turn("B"), spot).key


def test_more_calls_than_one_machine_takes_are_spread_over_few_keys() -> None:
    desk, spot = Desk(), Spot(model="mini", vendor="openai", cache=AUTOMATIC)
    keys = []
    for n in range(300):
        keys.append(desk.hints(ask(f"Question {n}"), spot).key)
        desk.now += 1
    assert 2 <= len(set(keys[100:])) <= 8


# What became of it.


def test_outcomes_of_a_desk() -> None:
    desk, spot = Desk(), Spot()
    assert desk.send(ask("One"), spot, written=1500).outcome is CacheOutcome.FIRST
    desk.now = 10
    report = desk.send(ask("Two"), spot, read=1500)
    assert (report.outcome, report.read_tokens, report.written_tokens) == (CacheOutcome.HIT, 1500, 0)
    assert 1300 < report.static_tokens < 1700
    desk.now = 1000
    assert desk.send(ask("Three"), spot, written=1500).outcome is CacheOutcome.EXPIRED


def test_a_change_is_shown_where_it_is() -> None:
    desk, spot = Desk(), Spot()
    desk.send(ask(system=f"¡Hola! It is 10:33. {SYSTEM}"), spot, written=1500)
    report = desk.send(ask(system=f"¡Hola! It is 10:47. {SYSTEM}"), spot, written=1500)
    assert report.outcome is CacheOutcome.CHANGED
    assert report.change is not None
    assert (report.change.part, report.change.offset) == ("messages[0]", len("¡Hola! It is 10:".encode()))
    assert report.change.excerpt.startswith("47. You answer")
    assert len(report.change.excerpt) == 60


def test_a_changed_tool_is_named_by_the_callers_place() -> None:
    desk, spot = Desk(), Spot()
    tools = [Tool("refund", SYSTEM), Tool("cancel", SYSTEM), Tool("find", SYSTEM)]
    desk.send(ask(tools=tools), spot, written=5000)
    tools[2] = Tool("find", SYSTEM[:4000] + "Only in Lyon. " + SYSTEM[4000:])
    report = desk.send(ask(tools=tools), spot, written=5000)
    assert report.outcome is CacheOutcome.CHANGED
    assert report.change is not None
    assert report.change.part == "tools[2]"
    assert "Only in Lyon." in report.change.excerpt


def test_a_history_that_was_rewritten_is_a_change() -> None:
    desk, spot = Desk(), Spot()
    history = [text(role, f"{n} {SYSTEM[:1500]}") for n in range(3) for role in (Role.USER, Role.ASSISTANT)]
    question = text(Role.USER, "And now?")
    desk.send(Chat((*history, question)), spot, written=2000)
    history[1] = text(Role.ASSISTANT, "[left out]")
    report = desk.send(Chat((*history, question, text(Role.ASSISTANT, "Hm."), question)), spot, written=2000)
    assert report.outcome is CacheOutcome.CHANGED
    assert report.change is not None
    assert (report.change.part, report.change.offset) == ("messages[1]", 0)


def test_another_prompt_on_the_same_endpoint_is_no_change() -> None:
    desk, spot = Desk(), Spot()
    desk.send(ask(), spot, written=1500)
    other = ask(system="Translate every text into Spanish and keep its names and figures as they are. " * 90)
    assert desk.send(other, spot, written=1500).outcome is CacheOutcome.FIRST


def test_a_prefix_that_went_elsewhere_is_switched() -> None:
    desk = Desk()
    desk.send(ask(), Spot(), written=1500)
    assert desk.send(ask(), Spot(model="sonnet-2"), written=1500).outcome is CacheOutcome.SWITCHED


def test_endpoints_are_compared_with_themselves() -> None:
    desk, spot = Desk(), Spot()
    desk.send(ask(system=f"It is 10:33. {SYSTEM}"), spot, written=1500)
    other = Caller("acme", "default", "sales", "", "r1")
    report = desk.send(ask(system=f"It is 10:47. {SYSTEM}"), spot, written=1500, caller=other)
    assert report.outcome is CacheOutcome.FIRST


def test_a_short_prefix_is_too_short() -> None:
    desk, spot = Desk(), Spot()
    for _ in range(2):
        assert desk.send(ask(system="Be brief."), spot).outcome is CacheOutcome.TOO_SHORT


def test_what_is_not_reported_is_not_guessed() -> None:
    desk = Desk()
    spot = Spot(model="mini", cache=VendorCache(Control.AUTOMATIC, 1024, 300, reported=False))
    assert desk.send(ask(), spot).outcome is CacheOutcome.UNREPORTED
    assert desk.send(ask(), spot, read=1400).outcome is CacheOutcome.HIT
    prompt = desk.cache.prepare(ask(), ACME, [Spot()])
    assert prompt.answered(Spot(), Usage(1500, 10, estimated=True)).outcome is CacheOutcome.UNREPORTED


def test_without_a_cache_the_chat_stays_as_it_came() -> None:
    desk, spot = Desk(move_volatile=True), Spot(cache=VendorCache())
    chat = ask(system="Request #17\n" + SYSTEM, tools=[Tool("b"), Tool("a")])
    prompt = desk.cache.prepare(chat, ACME, [spot])
    assert prompt.chat == chat
    assert prompt.hints(spot) == CacheHints()
    assert prompt.answered(spot, Usage(1500, 10)).outcome is CacheOutcome.OFF


def test_what_costs_more_than_it_brings_is_off() -> None:
    desk = Desk()
    assert desk.send(ask(), Spot(model="dear")).outcome is CacheOutcome.OFF


def test_volatile_fields_are_in_the_report() -> None:
    desk, spot = Desk(move_volatile=True), Spot()
    report = desk.send(ask(system=f"Current time: 2025-11-24T10:33:01Z\n{SYSTEM}"), spot, written=1500)
    assert [(one.kind.value, one.offset, one.moved) for one in report.volatile] == [("timestamp", 14, True)]
    desk.now = 20
    again = desk.send(ask(system=f"Current time: 2025-11-24T10:33:21Z\n{SYSTEM}"), spot)
    assert again.outcome is CacheOutcome.EXPIRED  # the prefix is the same: the vendor should have had it


# Whom to ask first.


def test_a_warm_prefix_stays_where_it_is_while_that_is_cheaper() -> None:
    desk = Desk()
    first, second = Spot(), Spot(model="sonnet-2")
    assert desk.first(ask(), first, second) is first
    desk.send(ask(), second, written=1500)
    assert desk.first(ask(), first, second) is second
    desk.now = 301
    assert desk.first(ask(), first, second) is first


def test_what_is_warm_in_its_own_place_is_not_moved() -> None:
    desk = Desk()
    first, second = Spot(), Spot(model="mini", vendor="openai", cache=AUTOMATIC)
    for spot in (first, second):
        desk.send(ask(), spot, written=1500)
    assert desk.first(ask(), first, second) is first


def test_a_dear_model_is_not_kept_for_its_warm_prefix() -> None:
    desk = Desk()
    cheap, dear = Spot(model="mini", vendor="openai", cache=AUTOMATIC), Spot()
    desk.send(ask(), dear, written=1500)
    assert desk.first(ask(), cheap, dear) is cheap


def test_the_answers_price_counts_too() -> None:
    desk = Desk()
    wordy = Rates(3_000_000, 90_000_000, 300_000, 3_750_000, 6_000_000)
    desk.cache.rates = lambda model, input_tokens=0: wordy if model == "sonnet-2" else SONNET
    first, second = Spot(), Spot(model="sonnet-2")
    desk.send(ask(), second, written=1500)
    assert desk.first(ask(), first, second) is first
    short = Chat(ask().messages, sampling=Sampling(max_output_tokens=5))
    assert desk.first(short, first, second) is second


def test_no_candidate_is_added_lost_or_moved_but_one() -> None:
    desk = Desk()
    spots = [Spot(vendor=name) for name in "abcd"]
    desk.send(ask(), spots[2], written=1500)
    ordered = desk.cache.prepare(ask(), ACME, spots).ordered(spots)
    assert [spot.vendor for spot in ordered] == ["c", "a", "b", "d"]


def test_a_model_without_a_price_is_neither_preferred_nor_passed_over() -> None:
    desk = Desk()
    unknown = Spot(model="unknown", vendor="openai", cache=AUTOMATIC)
    desk.send(ask(), unknown, read=1024)
    assert desk.first(ask(), Spot(), unknown) == Spot()
    desk.send(ask(), Spot(), written=1500)
    desk.now = 1000
    assert desk.first(ask(), unknown, Spot()) is unknown


# Counting.


def test_rows_say_what_came_of_it() -> None:
    desk, spot = Desk(), Spot()
    desk.send(ask("One"), spot, written=1500)
    desk.send(ask("Two"), spot, read=1500)
    desk.send(ask(), spot, caller=Caller("umbrella", "default", "", "", "r1"))
    row = desk.cache.rows("acme")[0]
    assert (row.requests, row.read_tokens, row.written_tokens) == (2, 1500, 1500)
    assert dict(row.outcomes) == {CacheOutcome.FIRST: 1, CacheOutcome.HIT: 1}
    assert row.saved == (1500 * (3_000_000 - 300_000) - 1500 * (3_750_000 - 3_000_000)) // 1_000_000
    assert [r.tenant for r in desk.cache.rows()] == ["acme", "umbrella"]
    assert desk.cache.rows(endpoint="")[0].tenant == "umbrella"


@pytest.mark.parametrize("count", [5000])
def test_memory_is_bounded(count: int) -> None:
    desk, spot = Desk(), Spot(cache=VendorCache(Control.BREAKPOINTS, 1, 300, 3600))
    for n in range(count):
        caller = Caller(f"t{n}", "default", "e", "", "r")
        desk.send(ask(f"Question {n}", system=f"Be {n}."), spot, written=10, caller=caller)
    cache = desk.cache
    assert len(cache.book._known) <= 2048
    assert len(cache.tally._rows) <= 4096
    assert len(cache.warmth._trails) <= 1024
    assert len(cache.warmth._kept) <= 16_384
    assert len(cache.scales._means) <= 4096
