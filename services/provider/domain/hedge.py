"""When a second candidate is started beside one that is slow."""

from collections import deque
from dataclasses import dataclass

_REMEMBERED = 64
_ENOUGH = 8


class Pace:
    """How long a candidate recently took to its first piece."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_REMEMBERED)

    def note(self, seconds: float) -> None:
        """It gave its first piece after so long, or lost a race that took so long: then it would have taken longer yet."""
        self._seconds.append(seconds)

    def quantile(self, share: float) -> float | None:
        """The time that `share` of the last calls did not exceed, in seconds; None while there were too few."""
        if len(self._seconds) < _ENOUGH:
            return None
        ordered = sorted(self._seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


@dataclass(frozen=True, slots=True)
class HedgeRules:
    """A second candidate starts when the first is slower than `quantile` of its recent calls, never before `floor_s`."""

    quantile: float = 0.95
    floor_s: float = 1.0

    def delay_s(self, pace: Pace) -> float:
        """Seconds to wait for the first candidate alone."""
        return max(pace.quantile(self.quantile) or 0.0, self.floor_s)
