"""Device time, shared among the requests that were computed in it."""

from collections.abc import Callable
from dataclasses import dataclass

NANOSECONDS_PER_HOUR = 3_600_000_000_000


@dataclass(slots=True, eq=False)
class Share:
    """One request's part of the device time, in device-nanoseconds."""

    prefill_ns: int = 0
    decode_ns: int = 0
    decoding: bool = False


class DeviceMeter:
    """Divides each slice of wall-clock time equally over the requests that were being computed in it.

    A request's share falls to prefill until its first token and to decode afterwards. A prompt whose prefix is cached
    reaches its first token sooner, so the cached tokens cost it nothing. The shares of all requests, running and gone,
    sum exactly to `busy_ns`; time in which nothing ran is `idle_ns` and belongs to nobody.
    """

    def __init__(self, now_ns: Callable[[], int], devices: int = 1) -> None:
        """Starts idle. `now_ns` never goes back; one wall-clock second is `devices` device-seconds."""
        self._now_ns = now_ns
        self._devices = devices
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

    def start(self) -> Share:
        """A request began to compute, with its prompt."""
        self._close_slice()
        share = Share()
        self._running.append(share)
        return share

    def first_token(self, share: Share) -> None:
        """The request's prompt is done."""
        self._close_slice()
        share.decoding = True

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
        each, left_over = divmod(elapsed, len(self._running))
        for position, share in enumerate(self._running):
            part = each + (position < left_over)  # whole nanoseconds only, and none lost
            if share.decoding:
                share.decode_ns += part
            else:
                share.prefill_ns += part


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
