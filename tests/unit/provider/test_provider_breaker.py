from services.provider.domain.breaker import Breaker


class Hand:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def opened(clock: Hand) -> Breaker:
    breaker = Breaker(3, 10.0, clock)
    for _ in range(3):
        breaker.enter()
        breaker.failed()
    return breaker


def test_opens_after_faults_in_a_row_only() -> None:
    breaker = Breaker(3, 10.0, Hand())
    for _ in range(2):
        breaker.failed()
    breaker.succeeded()
    for _ in range(2):
        breaker.failed()
    assert breaker.open_for_s == 0
    breaker.failed()
    assert breaker.open_for_s == 10.0


def test_lets_one_probe_through_after_a_while() -> None:
    clock = Hand()
    breaker = opened(clock)
    clock.now += 4
    assert breaker.open_for_s == 6.0
    clock.now += 6
    assert breaker.open_for_s == 0
    breaker.enter()
    assert breaker.open_for_s > 0


def test_a_good_probe_closes_it() -> None:
    clock = Hand()
    breaker = opened(clock)
    clock.now += 10
    breaker.enter()
    breaker.succeeded()
    breaker.failed()
    assert breaker.open_for_s == 0


def test_a_bad_probe_opens_it_again() -> None:
    clock = Hand()
    breaker = opened(clock)
    clock.now += 10
    breaker.enter()
    breaker.failed()
    assert breaker.open_for_s == 10.0


def test_a_probe_that_says_nothing_leaves_room_for_another() -> None:
    clock = Hand()
    breaker = opened(clock)
    clock.now += 10
    breaker.enter()
    breaker.left()
    assert breaker.open_for_s == 0
