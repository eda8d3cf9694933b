from hypothesis import given
from hypothesis import strategies as st

from services.engine.domain.meter import NANOSECONDS_PER_HOUR, DeviceMeter, Share, compute_cost


class Hand:
    """A clock that is moved by hand, in nanoseconds."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


def test_one_request_pays_for_all_the_time_it_ran() -> None:
    clock = Hand()
    meter = DeviceMeter(clock)
    clock.now += 7
    share = meter.start()
    clock.now += 100
    meter.first_token(share)
    clock.now += 50
    meter.stop(share)
    clock.now += 3
    assert (share.prefill_ns, share.decode_ns) == (100, 50)
    assert (meter.busy_ns, meter.idle_ns) == (150, 10)


def test_requests_that_run_together_share_the_slice() -> None:
    clock = Hand()
    meter = DeviceMeter(clock, decode_weight=1)
    first = meter.start()
    clock.now += 100
    meter.first_token(first)
    second = meter.start()
    clock.now += 60
    meter.stop(second)
    clock.now += 10
    meter.stop(first)
    assert (first.prefill_ns, first.decode_ns) == (100, 40)
    assert (second.prefill_ns, second.decode_ns) == (30, 0)


def test_every_device_is_paid() -> None:
    clock = Hand()
    meter = DeviceMeter(clock, devices=4)
    share = meter.start()
    clock.now += 100
    meter.stop(share)
    assert share.prefill_ns == meter.busy_ns == 400


def test_a_token_of_an_answer_weighs_more_than_one_of_a_prompt() -> None:
    clock = Hand()
    meter = DeviceMeter(clock, decode_weight=4)
    answering = meter.start()
    meter.first_token(answering)
    prompting = meter.start(prompt_tokens=36)
    clock.now += 400
    meter.stop(prompting)
    assert (answering.decode_ns, prompting.prefill_ns) == (40, 360)


def test_prompts_are_computed_first_come_first_served() -> None:
    clock = Hand()
    meter = DeviceMeter(clock, step_tokens=100)
    first, second = meter.start(prompt_tokens=500), meter.start(prompt_tokens=500)
    clock.now += 50
    meter.first_token(first)
    meter.stop(first)
    clock.now += 50
    meter.first_token(second)
    assert first.prefill_ns == second.prefill_ns == 50


def test_cached_tokens_cost_nothing_though_they_are_known_late() -> None:
    clock = Hand()
    meter = DeviceMeter(clock, decode_weight=4)
    answering = meter.start()
    meter.first_token(answering)
    prompting = meter.start(prompt_tokens=900)
    clock.now += 8_000
    assert meter.busy_ns == 8_000
    assert prompting.prefill_ns == 7_965
    meter.correct(prompting, 4)
    meter.first_token(prompting)
    meter.stop(prompting)
    assert (answering.decode_ns, prompting.prefill_ns) == (4_000, 4_000)


def test_a_request_that_has_gone_pays_nothing_later() -> None:
    clock = Hand()
    meter = DeviceMeter(clock)
    gone, prompting = meter.start(), meter.start(prompt_tokens=99)
    clock.now += 100
    meter.stop(gone)
    assert gone.prefill_ns == 1
    meter.correct(prompting, 1)
    meter.stop(prompting)
    assert (gone.prefill_ns, prompting.prefill_ns) == (1, 99)


def test_a_longer_prompt_than_was_thought_counts_from_then_on() -> None:
    clock = Hand()
    meter = DeviceMeter(clock, decode_weight=1)
    answering = meter.start()
    meter.first_token(answering)
    prompting = meter.start(prompt_tokens=1)
    clock.now += 100
    meter.correct(prompting, 3)
    assert prompting.prefill_ns == 50
    clock.now += 100
    meter.stop(prompting)
    assert prompting.prefill_ns == 125


@given(st.integers(1, 5_000), st.integers(1, 5_000), st.integers(1, 5), st.lists(st.integers(0, 10**10), max_size=8))
def test_a_prompt_pays_as_if_its_cached_part_had_been_known(
    whole: int, computed: int, beside: int, slices: list[int]
) -> None:
    computed = min(whole, computed)

    def paid(thought: int) -> int:
        clock = Hand()
        meter = DeviceMeter(clock, step_tokens=512)
        for _ in range(beside):
            meter.first_token(meter.start())
        share = meter.start(thought)
        for elapsed in slices:
            clock.now += elapsed
            assert meter.busy_ns + meter.idle_ns > 0 or not elapsed  # a look closes the slice
        meter.correct(share, computed)
        meter.first_token(share)
        return share.prefill_ns

    assert abs(paid(whole) - paid(computed)) <= len(slices)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "correct", "token", "stop"]),
        st.integers(0, 10**12),
        st.integers(0, 9),
        st.integers(0, 3_000),
    ),
    max_size=40,
)


@given(STEPS, st.integers(1, 8), st.integers(1, 3_000), st.integers(1, 64))
def test_shares_sum_to_busy_time_and_none_is_negative(
    steps: list[tuple[str, int, int, int]], devices: int, step_tokens: int, decode_weight: int
) -> None:
    clock = Hand()
    meter = DeviceMeter(clock, devices, step_tokens=step_tokens, decode_weight=decode_weight)
    running: list[Share] = []
    shares: list[Share] = []
    final: dict[Share, tuple[int, int]] = {}
    for action, elapsed, which, tokens in steps:
        clock.now += elapsed
        if action == "start" or not running:
            share = meter.start(tokens)
            running.append(share)
            shares.append(share)
        elif action == "correct":
            meter.correct(running[which % len(running)], tokens)
        elif action == "token":
            meter.first_token(running[which % len(running)])
        else:
            gone = running.pop(which % len(running))
            meter.stop(gone)
            final[gone] = (gone.prefill_ns, gone.decode_ns)
        assert all(share.prefill_ns >= 0 and share.decode_ns >= 0 for share in shares)
    total = (clock.now - 1_000) * devices
    assert meter.busy_ns + meter.idle_ns == total
    assert sum(s.prefill_ns + s.decode_ns for s in shares) == meter.busy_ns
    assert meter.running == len(running)
    assert all((share.prefill_ns, share.decode_ns) == was for share, was in final.items())


@given(st.integers(0, 10**15), st.integers(0, 10**15), st.integers(0, 10**12))
def test_cost_is_the_price_of_the_time(prefill: int, decode: int, price: int) -> None:
    cost = compute_cost(Share(prefill, decode), price)
    exact = (prefill + decode) * price / NANOSECONDS_PER_HOUR
    assert abs(cost.cost_nanousd - exact) <= 1 + exact * 1e-9
    assert 0 <= cost.prefill_cost_nanousd <= cost.cost_nanousd


def test_a_device_hour_costs_its_price() -> None:
    share = Share(prefill_ns=NANOSECONDS_PER_HOUR // 4, decode_ns=3 * NANOSECONDS_PER_HOUR // 4)
    cost = compute_cost(share, 2_500_000_000)
    assert (cost.cost_nanousd, cost.prefill_cost_nanousd) == (2_500_000_000, 625_000_000)
