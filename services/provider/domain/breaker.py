"""A breaker keeps requests away from a vendor that fails, and lets one through now and then to see."""

from collections.abc import Callable

_LONGEST_HOLD_S = 60.0


class Entry:
    """A call that the breaker let through. Its end is told to the breaker."""


class Breaker:
    """Opens after `threshold` faults in a row; `open_s` later one call may probe, and its end decides."""

    def __init__(self, threshold: int, open_s: float, monotonic: Callable[[], float]) -> None:
        self._threshold = threshold
        self._open_s = open_s
        self._monotonic = monotonic
        self._faults = 0
        self._open_until = 0.0
        self._probe: Entry | None = None
        self._held_until = 0.0

    @property
    def held_for_s(self) -> float:
        """Seconds until the vendor wants to be asked again, by anybody; 0 when it may be now."""
        return max(self._held_until - self._monotonic(), 0.0)

    def hold(self, seconds: float) -> None:
        """The vendor asked to be left alone for so long; nobody is kept from it for more than a minute by that."""
        self._held_until = max(self._held_until, self._monotonic() + min(seconds, _LONGEST_HOLD_S))

    @property
    def open_for_s(self) -> float:
        """Seconds until a call may be tried; 0 when one may be now."""
        if self._faults < self._threshold:
            return 0.0
        left = self._open_until - self._monotonic()
        if left <= 0 and self._probe:
            return self._open_s
        return max(left, 0.0)

    def enter(self) -> Entry | None:
        """A call begins; None while the breaker keeps calls away. One of succeeded, failed and left must follow."""
        if self.open_for_s:
            return None
        entry = Entry()
        if self._faults >= self._threshold:
            self._probe = entry
        return entry

    def succeeded(self, entry: Entry) -> None:
        """The vendor works."""
        self._faults = 0
        self._probe = None

    def failed(self, entry: Entry) -> None:
        """The vendor is at fault."""
        if self._faults >= self._threshold and entry is not self._probe:
            return  # it began before the breaker opened: no news
        self.left(entry)
        self._faults += 1
        if self._faults >= self._threshold:
            self._open_until = self._monotonic() + self._open_s

    def left(self, entry: Entry) -> None:
        """The call ended and says nothing about the vendor."""
        if entry is self._probe:
            self._probe = None
