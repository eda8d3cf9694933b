"""What the engine has done so far."""

from collections import deque
from collections.abc import Callable

from services.common.money import Usage

WINDOW_NS = 60_000_000_000


class Tally:
    """Counts since start, and the pace of the last minute."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        """`now_ns` never goes back."""
        self._now_ns = now_ns
        self._start = now_ns()
        self._recent: deque[tuple[int, int]] = deque()
        self.answers = 0
        self.input_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.unbilled_ns = 0

    def answered(self, usage: Usage) -> None:
        """An answer is complete."""
        self.answers += 1
        self.input_tokens += usage.input_tokens
        self.cached_tokens += usage.cache_read_input_tokens
        self.output_tokens += usage.output_tokens
        self._recent.append((self._now_ns(), usage.output_tokens))
        self._forget()

    def lost(self, device_ns: int) -> None:
        """A request left without an answer: cancelled, refused or cut."""
        self.unbilled_ns += device_ns

    @property
    def prefix_hit_rate(self) -> float:
        """Share of all prompt tokens that were not computed, 0 to 1."""
        return self.cached_tokens / self.input_tokens if self.input_tokens else 0.0

    @property
    def output_tokens_per_second(self) -> float:
        """Output tokens of the answers that ended in the last minute, a second; in the first minute since the start."""
        now = self._now_ns()
        self._forget()
        seconds = min(WINDOW_NS, now - self._start) / 1e9
        return sum(tokens for _, tokens in self._recent) / seconds if seconds else 0.0

    def _forget(self) -> None:
        oldest = self._now_ns() - WINDOW_NS
        while self._recent and self._recent[0][0] <= oldest:
            self._recent.popleft()
