from services.provider.domain.breaker import Breaker, Entry


class Hand:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entered(breaker: Breaker) -> Entry:
    entry = breaker.enter()
    assert entry is not None
    return entry


def opened(clock: Hand) -> Breaker:
    breaker = Breaker(3, 10.0, clock)
    for _ in range(3):
        breaker.failed(entered(breaker))
    return breaker


def test_opens_after_faults_in_a_row_only() -> None:
    breaker = Breaker(3, 10.0, Hand())
    for _ in range(2):
        breaker.failed(entered(breaker))
    breaker.succeeded(entered(breaker))
    for _ in range(2):
        breaker.failed(entered(breaker))
    assert breaker.open_for_s == 0
    breaker.failed(entered(breaker))
    assert breaker.open_for_s == 10.0
    assert breaker.enter() is None


def test_lets_one_probe_through_after_a_while() -> None:
    clock = Hand()
    breaker = opened(clock)
    clock.now += 4
    assert breaker.open_for_s == 6.0
    clock.now += 6
    assert breaker.open_for_s == 0
    assert breaker.enter() is not None
    assert breaker.open_for_s > 0
    assert breaker.enter() is None


def test_a_good_probe_closes_it() -> None:
    clock = Hand()
    breaker = opened(clock)
    clock.now += 10
    breaker.succeeded(entered(breaker))
    breaker.failed(entered(breaker))
    assert breaker.open_for_s == 0


def test_a_bad_probe_opens_it_again() -> None:
    clock = Hand()
    breaker = opened(clock)
    clock.now += 10
    breaker.failed(entered(breaker))
    assert breaker.open_for_s == 10.0


def test_a_probe_that_says_nothing_leaves_room_for_another() -> None:
    clock = Hand()
    breaker = opened(clock)
    clock.now += 10
    breaker.left(entered(breaker))
    assert breaker.open_for_s == 0


def test_a_call_from_before_it_opened_makes_no_room_for_a_second_probe() -> None:
    clock = Hand()
    breaker = Breaker(3, 10.0, clock)
    early, other = entered(breaker), entered(breaker)
    for _ in range(3):
        breaker.failed(entered(breaker))
    clock.now += 4
    breaker.failed(early)
    assert breaker.open_for_s == 6.0
    clock.now += 6
    probe = entered(breaker)
    breaker.left(other)
    assert breaker.enter() is None
    breaker.succeeded(probe)
    assert breaker.enter() is not None


def test_a_vendor_that_asked_to_wait_is_held_without_being_ill() -> None:
    clock = Hand()
    breaker = Breaker(3, 10.0, clock)
    breaker.hold(20.0)
    breaker.hold(5.0)
    assert (breaker.held_for_s, breaker.open_for_s) == (20.0, 0)
    clock.now += 20
    assert breaker.held_for_s == 0
    breaker.hold(900_000.0)
    assert breaker.held_for_s == 60.0
