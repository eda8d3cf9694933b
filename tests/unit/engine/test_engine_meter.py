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
    meter = DeviceMeter(clock)
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


@given(st.lists(st.tuples(st.sampled_from(["start", "token", "stop"]), st.integers(0, 10**12), st.integers(0, 9))))
def test_shares_sum_to_busy_time(steps: list[tuple[str, int, int]]) -> None:
    clock = Hand()
    meter = DeviceMeter(clock)
    running: list[Share] = []
    shares: list[Share] = []
    for action, elapsed, which in steps:
        clock.now += elapsed
        if action == "start" or not running:
            share = meter.start()
            running.append(share)
            shares.append(share)
        elif action == "token":
            meter.first_token(running[which % len(running)])
        else:
            meter.stop(running.pop(which % len(running)))
    total = clock.now - 1_000
    assert meter.busy_ns + meter.idle_ns == total
    assert sum(s.prefill_ns + s.decode_ns for s in shares) == meter.busy_ns
    assert meter.running == len(running)


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
