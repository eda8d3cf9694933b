"""A sample of a stream of requests: blocks that follow one another in the log, so that the questions before are known."""

from dataclasses import dataclass, field, replace
from random import Random

from services.common.chat import Chat
from services.common.money import Usage

BLOCKS = 10
WARM = 4
"""Requests that come before each judged one in its block, and fill the cache that it is judged with."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A sampled request. `chat` is None where it only fills the cache; `scope` is None where no cache may answer it.

    `cost` is what nobody has claimed yet, in nano-USD; `priced` what its model costs by the book, None where that has no price.
    `readable` estimated prompt tokens were warm at the vendor, `premium` of them are written at a premium first.
    """

    line: int
    at: float | None
    model: str
    endpoint: str
    scope: int | None
    text: str
    answer: str
    chat: Chat | None
    usage: Usage
    cost: int
    counts_cached: bool
    readable: int = 0
    premium: int = 0


@dataclass(slots=True)
class Block:
    """Consecutive requests; those before `judged_from` are only there to be known."""

    index: int
    judged_from: int
    requests: list[Kept] = field(default_factory=list)


class Blocks:
    """A reservoir of blocks, each as probable as any other. While there are no more than `BLOCKS`, all is kept and judged."""

    def __init__(self, judged: int, seed: int) -> None:
        """About `judged` requests are judged."""
        self._each = max(1, judged // BLOCKS)
        self._size = self._each * (1 + WARM)
        self._random = Random(seed)
        self._kept: list[Block] = []
        self._current: Block | None = None
        self.seen = 0

    @property
    def count(self) -> int:
        """How many blocks the stream has had."""
        return -(-self.seen // self._size)

    @property
    def complete(self) -> bool:
        """Whether nothing was left out."""
        return self.count <= BLOCKS

    @property
    def wants(self) -> bool:
        """Whether the next request will be kept."""
        index, place = divmod(self.seen, self._size)
        if place == 0:
            self._begin(index)
        return self._current is not None

    def add(self, kept: Kept | None) -> None:
        """Takes the next request of the stream, which is None where it was not wanted."""
        place = self.seen % self._size
        self.seen += 1
        if self._current is None or kept is None:
            return
        only_known = not self.complete and place < self._current.judged_from
        self._current.requests.append(replace(kept, chat=None) if only_known else kept)

    def blocks(self) -> list[Block]:
        """The sample, in the log's order; one block of everything where nothing was left out."""
        kept = sorted(self._kept, key=lambda block: block.index)
        if self.complete:
            return [Block(0, 0, [request for block in kept for request in block.requests])]
        return [block for block in kept if len(block.requests) > block.judged_from]

    def _begin(self, index: int) -> None:
        if self._current is not None and self._current.index == index:
            return
        if index == BLOCKS:
            for block in self._kept:
                front = [replace(request, chat=None) for request in block.requests[: block.judged_from]]
                block.requests[: block.judged_from] = front
        block = Block(index, self._size - self._each)
        place = index if index < BLOCKS else self._random.randrange(index + 1)
        if place >= BLOCKS:
            self._current = None
            return
        self._current = block
        if place < len(self._kept):
            self._kept[place] = block
        else:
            self._kept.append(block)
