"""Device time, shared among the requests that were computed in it."""

from collections.abc import Callable
from dataclasses import dataclass, field

NANOSECONDS_PER_HOUR = 3_600_000_000_000
DECODE_WEIGHT = 4
"""A token of an answer weighs as much as so many of a prompt: each is read from memory alone, a prompt's in bulk."""


@dataclass(frozen=True, slots=True)
class _Slice:
    """What a prompt paid for a slice of time: `elapsed_ns` were shared by weight, `own` of `all`."""

    elapsed_ns: int
    paid_ns: int
    own: int
    all: int

    def with_weight(self, own: int) -> "_Slice":
        """Had it weighed so much, which is no more than it did."""
        whole = self.all - self.own + own
        return _Slice(self.elapsed_ns, min(self.paid_ns, self.elapsed_ns * own // whole), own, whole)


@dataclass(slots=True, eq=False)
class Share:
    """One request's part of the device time, in device-nanoseconds. The rest is the meter's."""

    prefill_ns: int = 0
    decode_ns: int = 0
    decoding: bool = False
    prompt_tokens: int = 1
    since_ns: int = 0
    slices: list[_Slice] = field(default_factory=list)


class DeviceMeter:
    """Divides each slice of wall-clock time over the requests that ran in it, by the tokens that a step computes for them.

    A step of continuous batching computes one token for each answer under way (weight `decode_weight`) and fills up with
    prompts, first come first served (weight 1 a token, at most `step_tokens` in all). Tokens of a cached prefix are not
    computed and weigh nothing; how many those are is often known only when the prompt is done: then its share is worked
    out again, and the difference goes to those who ran beside it and are still there.

    The shares of all requests, running and gone, sum exactly to `busy_ns`; time in which nothing ran is `idle_ns` and
    belongs to nobody. No share is ever negative, and that of a request that has gone never changes.
    """

    def __init__(
        self,
        now_ns: Callable[[], int],
        devices: int = 1,
        *,
        step_tokens: int = 2048,
        decode_weight: int = DECODE_WEIGHT,
    ) -> None:
        """Starts idle. `now_ns` never goes back; one wall-clock second is `devices` device-seconds."""
        self._now_ns = now_ns
        self._devices = devices
        self._step_tokens = step_tokens
        self._decode_weight = decode_weight
        self._running: list[Share] = []
        self._since = now_ns()
        self._busy_ns = 0
        self._idle_ns = 0

    @property
    def running(self) -> int:
        """Requests being computed."""
        return len(self._running)

    @property
    def busy_ns(self) -> int:
        """Device time in which something was computed."""
        self._close_slice()
        return self._busy_ns

    @property
    def idle_ns(self) -> int:
        """Device time in which nothing was computed."""
        self._close_slice()
        return self._idle_ns

    def start(self, prompt_tokens: int = 1) -> Share:
        """A request began to compute, with its prompt of about so many tokens."""
        self._close_slice()
        share = Share(prompt_tokens=max(1, prompt_tokens), since_ns=self._since)
        self._running.append(share)
        return share

    def correct(self, share: Share, prompt_tokens: int) -> None:
        """The tokens of its prompt that really are to be computed. Fewer than was thought count from the start."""
        self._close_slice()
        prompt_tokens = max(1, prompt_tokens)
        if prompt_tokens < share.prompt_tokens and not share.decoding:
            self._give_back(share, prompt_tokens)
        share.prompt_tokens = prompt_tokens

    def first_token(self, share: Share) -> None:
        """The request's prompt is done."""
        self._close_slice()
        share.decoding = True
        share.slices.clear()

    def stop(self, share: Share) -> None:
        """The request left the device. The share is final."""
        self._close_slice()
        self._running.remove(share)

    def _close_slice(self) -> None:
        now = self._now_ns()
        elapsed = (now - self._since) * self._devices
        self._since = now
        if not self._running:
            self._idle_ns += elapsed
            return
        self._busy_ns += elapsed
        weights = self._weights()
        total = sum(weights)
        for share, part, weight in zip(self._running, _divide(elapsed, weights), weights, strict=True):
            if share.decoding:
                share.decode_ns += part
            else:
                share.prefill_ns += part
                if part:
                    share.slices.append(_Slice(elapsed, part, weight, total))

    def _weights(self) -> list[int]:
        """What a step computes for each running request, weighted; never all zero."""
        room = self._step_tokens - sum(share.decoding for share in self._running)
        weights = []
        for share in self._running:
            if share.decoding:
                weights.append(self._decode_weight)
                continue
            computed = max(0, min(share.prompt_tokens, room))
            room -= computed
            weights.append(computed)
        return weights

    def _give_back(self, share: Share, prompt_tokens: int) -> None:
        lower = [slice_.with_weight(min(slice_.own, prompt_tokens)) for slice_ in share.slices]
        owed = sum(slice_.paid_ns for slice_ in share.slices) - sum(slice_.paid_ns for slice_ in lower)
        others = [other for other in self._running if other is not share]
        # Each pays for the time in which it ran beside the prompt.
        claims = [
            (self._decode_weight if other.decoding else min(other.prompt_tokens, self._step_tokens))
            * (self._since - max(share.since_ns, other.since_ns))
            for other in others
        ]
        if not owed or not sum(claims):
            return
        share.prefill_ns -= owed
        share.slices = lower
        for other, part in zip(others, _divide(owed, claims), strict=True):
            if other.decoding:
                other.decode_ns += part
            else:
                other.prefill_ns += part


def _divide(amount: int, weights: list[int]) -> list[int]:
    """Whole parts of `amount` by weight, of which none is lost. Not all weights are zero."""
    total, given, before, parts = sum(weights), 0, 0, []
    for weight in weights:
        before += weight
        up_to = amount * before // total
        parts.append(up_to - given)
        given = up_to
    return parts


@dataclass(frozen=True, slots=True)
class ComputeCost:
    """What computing an answer took: device-nanoseconds and nano-USD. `cost_nanousd` includes the prefill's part."""

    prefill_ns: int
    decode_ns: int
    cost_nanousd: int
    prefill_cost_nanousd: int


def compute_cost(share: Share, nanousd_per_device_hour: int) -> ComputeCost:
    """Prices a share, rounding each of its two parts to the nearest nano-USD."""
    prefill = _price(share.prefill_ns, nanousd_per_device_hour)
    decode = _price(share.decode_ns, nanousd_per_device_hour)
    return ComputeCost(share.prefill_ns, share.decode_ns, prefill + decode, prefill)


def _price(device_ns: int, nanousd_per_device_hour: int) -> int:
    return (device_ns * nanousd_per_device_hour + NANOSECONDS_PER_HOUR // 2) // NANOSECONDS_PER_HOUR
