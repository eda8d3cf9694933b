"""Charts as inline SVG. They stretch to the page's width, so words stand beside them in HTML and colours in the style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

SERIES = 7
"""Colours that the style sheet has, c0 to c6; the last is for what is left over."""
_WIDTH, _HEIGHT = 1000.0, 200.0


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of a stacked chart; a value and its words for each slot."""

    name: str
    colour: int
    values: Sequence[float]
    words: Sequence[str]


def top_of(highest: float) -> float:
    """The end of an axis: 1, 2, 2.5 or 5 times a power of ten, at least `highest`; 1 where there is nothing."""
    if highest <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next((step * power for step in (1.0, 2.0, 2.5, 5.0) if highest <= step * power * (1 + 1e-9)), 10 * power)


def columns(series: Sequence[Series], slots: Sequence[str], top: float, label: str) -> Markup:
    """Stacked columns, one a slot, on an axis from 0 to `top`."""
    wide = _WIDTH / max(len(slots), 1)
    parts = [_lines()]
    for index, slot in enumerate(slots):
        y = _HEIGHT
        for one in series:
            height = max(one.values[index], 0.0) / top * _HEIGHT
            if height <= 0:
                continue
            y -= height
            words = f"{slot}, {one.name}: {one.words[index]}"
            parts.append(_rect(index * wide + wide * 0.12, y, wide * 0.76, height, f"c{one.colour}", words))
    return _svg(label, parts)


def line(values: Sequence[float | None], slots: Sequence[str], words: Sequence[str], label: str) -> Markup:
    """A line over the slots, values 0 to 1; None leaves a gap."""
    wide = _WIDTH / max(len(slots), 1)
    parts = [_lines()]
    run: list[tuple[float, float]] = []

    def end_run() -> None:
        if len(run) == 1:  # a point alone has no length: it is drawn across half of its slot
            (x, y) = run[0]
            run[:] = [(x - wide / 4, y), (x + wide / 4, y)]
        if run:
            points = " ".join(f"{x:.1f},{y:.1f}" for x, y in run)
            drawn = Markup('<polyline class="line" points="{}" vector-effect="non-scaling-stroke"/>')
            parts.append(drawn.format(points))
        run.clear()

    for index, value in enumerate(values):
        if value is None:
            end_run()
            continue
        x = (index + 0.5) * wide
        run.append((x, _HEIGHT * (1 - min(max(value, 0.0), 1.0))))
        # What a pointer rests on to read the value.
        parts.append(_rect(index * wide, 0, wide, _HEIGHT, "touch", f"{slots[index]}: {words[index]}"))
    end_run()
    return _svg(label, parts)


def span(start: float, end: float, top: float, kind: str) -> Markup:
    """A bar from `start` to `end` on an axis from 0 to `top`."""
    left, right = sorted((_share(start, top), _share(end, top)))
    return _row([_rect(left, 2, max(right - left, 2.0), 16, kind)])


def meter(parts: Sequence[tuple[float, str]], top: float) -> Markup:
    """Bars one after the other, each with its class, on a track from 0 to `top`."""
    drawn, at = [_rect(0, 2, _WIDTH, 16, "track")], 0.0
    for value, kind in parts:
        wide = min(_share(value, top), _WIDTH - at)
        if wide > 0:
            drawn.append(_rect(at, 2, wide, 16, kind))
            at += wide
    return _row(drawn)


def interval(low: float, high: float, limit: float) -> Markup:
    """Where a share lies, and the limit that it should keep, on an axis to twice the limit or more."""
    top = max(2 * limit, high * 1.05)
    mark = _share(limit, top)
    kind = "bad" if low > limit else "unsure" if high > limit else "good"
    left = _share(low, top)
    wide = max(_share(high, top) - left, 6.0)
    return _row([_rect(0, 7, _WIDTH, 6, "track"), _rect(left, 3, wide, 14, kind), _rect(mark - 3, 0, 6, 20, "limit")])


def _share(value: float, top: float) -> float:
    return min(max(value / top, 0.0), 1.0) * _WIDTH if top > 0 else 0.0


def _rect(x: float, y: float, width: float, height: float, kind: str, words: str = "") -> Markup:
    title = Markup("<title>{}</title>").format(words) if words else ""
    rect = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.2f}">{}</rect>')
    return rect.format(kind, x, y, width, height, title)


def _lines() -> Markup:
    one = Markup('<line class="grid" x1="0" x2="{:.0f}" y1="{:.0f}" y2="{:.0f}" vector-effect="non-scaling-stroke"/>')
    return Markup("").join(one.format(_WIDTH, y, y) for y in (0.0, _HEIGHT / 2, _HEIGHT))


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    picture = Markup('<svg viewBox="0 0 {:.0f} {:.0f}" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>')
    return picture.format(_WIDTH, _HEIGHT, label, Markup("").join(parts))


def _row(parts: Sequence[Markup]) -> Markup:
    """A bar within a row of text, which says the same in words."""
    row = Markup('<svg class="bar" viewBox="0 0 {:.0f} 20" preserveAspectRatio="none" aria-hidden="true">{}</svg>')
    return row.format(_WIDTH, Markup("").join(parts))
