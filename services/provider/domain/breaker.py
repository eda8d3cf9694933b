"""A breaker keeps requests away from a vendor that fails, and lets one through now and then to see."""

from collections.abc import Callable


class Breaker:
    """Opens after `threshold` faults in a row; `open_s` later one call may probe, and its end decides."""

    def __init__(self, threshold: int, open_s: float, monotonic: Callable[[], float]) -> None:
        self._threshold = threshold
        self._open_s = open_s
        self._monotonic = monotonic
        self._faults = 0
        self._open_until = 0.0
        self._probing = False

    @property
    def open_for_s(self) -> float:
        """Seconds until a call may be tried; 0 when one may be now."""
        if self._faults < self._threshold:
            return 0.0
        left = self._open_until - self._monotonic()
        if left <= 0 and self._probing:
            return self._open_s
        return max(left, 0.0)

    def enter(self) -> None:
        """A call begins, after `open_for_s` was 0. One of succeeded, failed and left must follow."""
        self._probing = self._faults >= self._threshold

    def succeeded(self) -> None:
        """The vendor works."""
        self._faults = 0
        self._probing = False

    def failed(self) -> None:
        """The vendor is at fault."""
        self._faults += 1
        self._probing = False
        if self._faults >= self._threshold:
            self._open_until = self._monotonic() + self._open_s

    def left(self) -> None:
        """The call ended and says nothing about the vendor."""
        self._probing = False
