"""The waterfall and the days as pictures."""

import io
from datetime import date

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from services.cli.audit.audit import Audit
from services.cli.audit.plan import SHORT, dollars, share
from services.common.money import NANO

SPENT, SAVED, LEFT, EDGE = "#3b4a5a", "#0b8a5f", "#2f6fb3", "#8a949e"


def waterfall(found: Audit) -> bytes:
    """PNG: from what is spent down to what remains, a bar for each class of waste, with its interval."""
    fall = found.waterfall
    scale = found.monthly(NANO) or NANO  # a dollar of the log in a month's
    each = [(saving, saving.nanousd / NANO * scale / NANO) for saving in fall.savings]
    spend = fall.spend / NANO * scale / NANO
    shown = [(saving, amount) for saving, amount in each if saving.nanousd]
    figure = Figure(figsize=(9.6, 1.4 + 0.52 * (len(shown) + 2)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = ["you spend", *(SHORT[saving.waste] for saving, _ in shown), "what remains"]
    axes.barh(0, spend, color=SPENT, height=0.62)
    axes.text(spend, 0, f"  {_short(spend)}", va="center", ha="left", fontweight="bold")
    left = spend
    for row, (saving, amount) in enumerate(shown, 1):
        axes.barh(row, amount, left=left - amount, color=SAVED, height=0.62)
        axes.plot([left, left], [row - 1.31 + 1.0, row - 0.31], color=EDGE, linewidth=0.8)
        less, more = (
            (saving.nanousd - saving.low) / NANO * scale / NANO,
            (saving.high - saving.nanousd) / NANO * scale / NANO,
        )
        if less or more:
            axes.errorbar(
                left - amount, row, xerr=[[more], [less]], color="#0a3d2c", capsize=3, linewidth=1.2, capthick=1.2
            )
        percent = share(saving.nanousd, fall.spend)
        axes.text(left, row, f"  – {_short(amount)}  ({percent})", va="center", ha="left")
        left -= amount
    last = len(shown) + 1
    axes.barh(last, left, color=LEFT, height=0.62)
    percent = share(fall.remaining, fall.spend)
    axes.text(left, last, f"  {_short(left)}  ({percent})", va="center", ha="left", fontweight="bold")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * spend or 1.0)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_xlabel("dollars a month" if found.monthly(1) is not None else "dollars in this log")
    return _png(figure)


def days(found: Audit) -> bytes | None:
    """PNG: what each day cost; None for fewer than three days."""
    rows = [(date.fromisoformat(name), spent.nanousd / NANO) for name, spent in found.by["day"] if name[:1].isdigit()]
    if len(rows) < 3:
        return None
    figure = Figure(figsize=(9.6, 2.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    with rc_context({"date.converter": "concise"}):
        axes.bar([day for day, _ in rows], [cost for _, cost in rows], color=LEFT, width=0.8)  # type: ignore[arg-type]  # it takes dates
    axes.yaxis.set_major_formatter(lambda value, _: _short(value))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    return _png(figure)


def _short(amount: float) -> str:
    return dollars(round(amount * NANO))


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
