"""The calibration as a picture and as a page that needs no other file."""

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from services.cli.cache.calibrate import (
    SUGGESTED,
    TODAY,
    Calibrated,
    Example,
    cosine_said,
    identical_said,
    table_points,
)
from services.cli.cache.curve import Curve
from services.common.yaml_file import ConfigError

OURS, COSINE, BUDGET = "#0b6e4f", "#9a6324", "#b00020"

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
img { max-width: 100%; }
table { border-collapse: collapse; margin: 1rem 0; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.named { font-weight: 600; background: #eef6f2; }
tr.beyond { color: #777; }
.note { color: #555; }
"""


def write(found: Calibrated, folder: Path) -> tuple[Path, Path]:
    """Writes calibration.png and calibration.html; returns both. Raises ConfigError when the folder will not have them."""
    picture = png(found)
    image, page = folder / "calibration.png", folder / "calibration.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        image.write_bytes(picture)
        page.write_text(html(found, picture), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; name another folder with --out") from None
    return image, page


def png(found: Calibrated) -> bytes:
    """The picture: hit share over wrong share, ours and plain cosine, with the budget, today's and the suggested setting."""
    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    marked = [(found.today, "o", TODAY)]
    if found.suggestion.point is not None:
        marked.append((found.suggestion.point, "D", SUGGESTED))
    right = min(1.0, max(5 * found.delta, *(1.3 * point.interval[1] for point, *_ in marked)))
    curves = ((found.curve, OURS, "verdict"), (found.cosine, COSINE, "plain cosine"))
    top = 1.3 * max((p.hit_share for curve, *_ in curves for p in curve.points if p.wrong_share <= right), default=0.1)
    for curve, color, name in curves:
        _draw(axes, curve, color, name)
    axes.axvline(found.delta, color=BUDGET, linestyle="--", linewidth=1.2, label=f"delta {found.delta:.2%}")
    if 0 < found.curve.wanted <= top * found.curve.rows:
        wanted = found.curve.wanted / found.curve.rows
        axes.axhline(wanted, color="#888888", linestyle=":", linewidth=1.2, label="pairs with one answer")
    for point, marker, name in marked:
        axes.plot(
            [point.wrong_share],
            [point.hit_share],
            marker,
            color=OURS,
            markersize=10,
            markeredgecolor="white",
            clip_on=False,
            zorder=5,
            label=f"{name}: P ≥ {point.threshold:.3f}",
        )
    axes.set_xlim(-0.015 * right, right)
    axes.set_ylim(-0.02 * top, min(1.02, top))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("wrong hits, share of all pairs (shaded: 95% interval)")
    axes.set_ylabel("hits, share of all pairs")
    axes.set_title(f"{found.file}: {found.curve.rows:,} pairs", loc="left")
    axes.grid(alpha=0.25)
    axes.legend(loc="best")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _draw(axes: object, curve: Curve, color: str, name: str) -> None:
    points = curve.points
    hits = [0.0, *(p.hit_share for p in points)]
    wrong = [0.0, *(p.wrong_share for p in points)]
    low = [0.0, *(p.interval[0] for p in points)]
    high = [curve.at(2.0).interval[1], *(p.interval[1] for p in points)]
    axes.plot(wrong, hits, color=color, linewidth=2, label=name)  # type: ignore[attr-defined]
    axes.fill_betweenx(hits, low, high, color=color, alpha=0.12, linewidth=0)  # type: ignore[attr-defined]


def html(found: Calibrated, picture: bytes) -> str:
    """The page, with the picture in it."""
    image = base64.b64encode(picture).decode()
    head = ("P required", "hits", "hit share", "wrong", "wrong share", "95% interval")
    rows = []
    for point, name in table_points(found):
        low, high = point.interval
        cells = (
            f"{point.threshold:.4f}",
            f"{point.hits:,}",
            f"{point.hit_share:.1%}",
            f"{point.wrong:,}",
            f"{point.wrong_share:.2%}",
            f"{low:.2%} – {high:.2%}",
        )
        kind = "named" if name else ("beyond" if high > found.delta else "")
        numbers = "".join(f'<td class="n">{cell}</td>' for cell in cells)
        rows.append(f'<tr class="{kind}">{numbers}<td>{escape(name)}</td></tr>')
    heads = "".join(f'<th class="n">{name}</th>' for name in head)
    notes = [cosine_said(found), *([identical_said(found)] if found.identical else []), found.caution]
    title = f"Calibration on {found.file}"
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f"<p>{found.curve.rows:,} pairs, {found.curve.wanted:,} with one answer; model {escape(found.model_id)}.</p>",
            f"<p><strong>{escape(found.verdict)}</strong></p>",
            f'<img alt="Hit share over wrong share" src="data:image/png;base64,{image}">',
            f"<table><thead><tr>{heads}<th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>",
            *(f'<p class="note">{escape(note)}</p>' for note in notes),
            *_examples("Worst wrong hits", "Served, and they have different answers.", found.worst),
            *_examples("Best missed pairs", "Not served, although one answer serves both.", found.missed),
            "</body></html>\n",
        )
    )


def _examples(title: str, what: str, examples: Sequence[Example]) -> list[str]:
    if not examples:
        return [f'<h2>{title}</h2><p class="note">None.</p>']
    rows = "".join(
        f'<tr><td>{escape(e.a)}</td><td>{escape(e.b)}</td><td class="n">'
        f'{"–" if e.probability is None else f"{e.probability:.4f}"}</td><td class="n">{e.similarity:.3f}</td>'
        f"<td>{escape(e.reason)}</td></tr>"
        for e in examples
    )
    heads = '<th>a</th><th>b</th><th class="n">P</th><th class="n">cosine</th><th>decision today</th>'
    return [
        f"<h2>{title}</h2><p>{what}</p>",
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>",
    ]
