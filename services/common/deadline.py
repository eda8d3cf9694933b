"""The caller's deadline, from hop to hop."""

import time
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def set_remaining(seconds: float | None) -> None:
    """Sets the deadline of the current task, in seconds from now; None for no deadline."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)


def remaining(keep: float = 0.05, at_most: float | None = None) -> float | None:
    """Seconds that a call to the next hop may take, leaving `keep` seconds for our own clean-up; at least 1 ms.

    None when there is no deadline and no `at_most`.
    """
    deadline = _deadline.get()
    if deadline is None:
        return at_most
    left = max(deadline - time.monotonic() - keep, 0.001)
    return left if at_most is None else min(left, at_most)
