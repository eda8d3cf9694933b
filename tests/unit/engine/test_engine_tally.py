from services.common.money import Usage
from services.engine.domain.tally import Tally


class Hand:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


def test_nothing_done_is_no_rate() -> None:
    tally = Tally(Hand())
    assert (tally.prefix_hit_rate, tally.output_tokens_per_second) == (0.0, 0.0)


def test_counts_answers_and_their_tokens() -> None:
    tally = Tally(Hand())
    tally.answered(Usage(100, 5, cache_read_input_tokens=75))
    tally.answered(Usage(100, 7))
    tally.lost(12)
    assert (tally.answers, tally.input_tokens, tally.cached_tokens, tally.output_tokens) == (2, 200, 75, 12)
    assert tally.prefix_hit_rate == 0.375
    assert tally.unbilled_ns == 12


def test_the_pace_is_that_of_the_last_minute() -> None:
    clock = Hand()
    tally = Tally(clock)
    clock.pass_seconds(10)
    tally.answered(Usage(1, 50))
    assert tally.output_tokens_per_second == 5.0
    clock.pass_seconds(50)
    tally.answered(Usage(1, 70))
    assert tally.output_tokens_per_second == 2.0
    clock.pass_seconds(30)
    assert tally.output_tokens_per_second == 70 / 60
    clock.pass_seconds(30)
    assert tally.output_tokens_per_second == 0.0
