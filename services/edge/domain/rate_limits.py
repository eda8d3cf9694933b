"""Requests per minute of a key: a replica leases a few of the minute's requests at a time and lets them pass without asking.

A lease is about as much as the replica has used so far in the minute, and at most a sixteenth of what is left, so that
little lies unused in one replica while another refuses. All leases of a minute together never exceed the limit.
"""

from dataclasses import dataclass

WINDOW_S = 60
SHARE = 16
MOST_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Lease:
    """So many requests of a minute, numbered from the epoch, that ends at `ends` on this process's clock."""

    minute: int
    ends: float
    requests: int


@dataclass(slots=True)
class Allowance:
    """What one replica knows of one key's minute. `unshared` are requests that it let pass while nobody else could know."""

    minute: int = -1
    ends: float = 0.0
    left: int = 0
    used: int = 0
    unshared: int = 0
    refused: bool = False

    def take(self, now: float) -> bool:
        """Lets one request pass, if there is one left of a lease."""
        if self.left == 0 or now >= self.ends:
            return False
        self.left -= 1
        self.used += 1
        return True

    def wait_s(self, now: float) -> float:
        """Seconds until the next minute where this one is used up, else 0."""
        return max(self.ends - now, 0.0) if self.refused else 0.0

    def wanted(self, waiting: int) -> int:
        """How many to ask for when so many wait, at least 1."""
        return max(self.used + 1, waiting)

    def leased(self, lease: Lease) -> None:
        """A lease came, maybe one of nothing."""
        self._begin(lease)
        self.left = lease.requests
        self.unshared = 0
        self.refused = lease.requests == 0

    def take_alone(self, share: int, minute: int, ends: float) -> bool:
        """Lets one request pass of this replica's share, which what passed in this minute counts against."""
        self._begin(Lease(minute, ends, 0))
        if self.used >= share:
            return False
        self.used += 1
        self.unshared += 1
        return True

    def _begin(self, lease: Lease) -> None:
        if lease.minute != self.minute:
            self.minute, self.left, self.used, self.unshared, self.refused = lease.minute, 0, 0, 0, False
        self.ends = lease.ends
