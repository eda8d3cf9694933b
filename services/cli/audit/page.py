"""An audit as one page that needs no other file: for people who pay, without help."""

import base64
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from services.cli.audit import picture
from services.cli.audit.audit import Audit, Shown
from services.cli.audit.plan import (
    MEANING,
    NAMES,
    Step,
    caveats,
    dollars,
    headline,
    margin,
    plan,
    share,
)
from services.cli.audit.tally import Spent
from services.common.yaml_file import ConfigError

ROWS = 10

STYLE = """
:root { --ink: #1c2530; --soft: #5b6673; --line: #e3e7ec; --good: #0b8a5f; --blue: #2f6fb3; --wash: #f5f7fa; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); margin: 0; background: #fff; }
main { max-width: 62rem; margin: 0 auto; padding: 2.2rem 1.4rem 4rem; }
.over { color: var(--soft); letter-spacing: .06em; text-transform: uppercase; font-size: .78rem; margin: 0; }
h1 { font-size: 1.9rem; line-height: 1.25; margin: .3rem 0 .4rem; letter-spacing: -.01em; }
h1 small { font-size: 1.15rem; font-weight: 500; color: var(--soft); white-space: nowrap; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .5rem; }
p { margin: .4rem 0 .8rem; }
.note { color: var(--soft); font-size: .92rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .9rem; margin: 1.4rem 0; }
.card { background: var(--wash); border-radius: .6rem; padding: .9rem 1.1rem; }
.card b { display: block; font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .88rem; }
.card.good b { color: var(--good); }
img { max-width: 100%; height: auto; display: block; margin: .4rem 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 1rem; font-size: .95rem; }
th { text-align: left; font-weight: 600; color: var(--soft); font-size: .82rem; border-bottom: 2px solid var(--line);
     padding: .35rem .6rem; }
td { padding: .5rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.sum td { font-weight: 650; border-top: 2px solid var(--line); }
td small { display: block; color: var(--soft); font-size: .86rem; }
ol.plan { list-style: none; padding: 0; margin: .8rem 0; }
ol.plan li { display: grid; grid-template-columns: 2.4rem 1fr auto; gap: .2rem 1rem; border: 1px solid var(--line);
             border-radius: .6rem; padding: .9rem 1.1rem; margin: .6rem 0; }
ol.plan .no { width: 2rem; height: 2rem; border-radius: 50%; background: var(--good); color: #fff; font-weight: 650;
              display: flex; align-items: center; justify-content: center; }
ol.plan h3 { margin: 0; font-size: 1.05rem; }
ol.plan p { margin: .15rem 0; font-size: .94rem; }
ol.plan .money { text-align: right; white-space: nowrap; }
ol.plan .money b { font-size: 1.15rem; color: var(--good); }
ol.plan .money small { display: block; color: var(--soft); }
details { border-bottom: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
q { color: var(--ink); }
ul { padding-left: 1.2rem; } li { margin: .25rem 0; }
.warn { background: #fff6e0; border-radius: .6rem; padding: .7rem 1.1rem; }
@media (max-width: 40rem) {
  ol.plan li { grid-template-columns: 2.4rem 1fr; } ol.plan .money { grid-column: 2; text-align: left; }
}
@media print { main { padding: 0; } details { break-inside: avoid; } ol.plan li { break-inside: avoid; } }
"""


def write(found: Audit, path: Path) -> None:
    """Writes the page. Raises ConfigError where it cannot be written."""
    try:
        path.write_text(html(found), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name another file with --html") from None


def html(found: Audit) -> str:
    """The page."""
    return "\n".join(_page(found)) + "\n"


def _page(found: Audit) -> Iterator[str]:
    counts, fall = found.counts, found.waterfall
    title = f"Where the money goes: {found.file}"
    yield '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
    yield f'<p class="over">LLM spend audit · {escape(found.file)}{_period(found)}</p>'
    unsure = margin(found)
    small = f" <small>{escape(unsure)}</small>" if unsure else ""
    yield f"<h1>{escape(headline(found))}.{small}</h1>"
    yield f"<p>{_lead(found)}</p>"
    yield '<div class="cards">'
    monthly = found.monthly(1) is not None
    per = " a month" if monthly else " in this log"
    for kind, amount, what in (
        ("", found.monthly(fall.spend) if monthly else fall.spend, f"spent{per}"),
        ("good", found.monthly(fall.avoidable) if monthly else fall.avoidable, f"avoidable{per}"),
        ("", found.monthly(fall.remaining) if monthly else fall.remaining, f"would remain{per}"),
    ):
        yield f'<div class="card {kind}"><b>{dollars(amount or 0)}</b><span>{what}</span></div>'
    yield f'<div class="card"><b>{counts.requests:,}</b><span>requests in the log</span></div></div>'
    if counts.malformed:
        yield (
            f'<p class="warn">{counts.malformed:,} lines of the log could not be read and are in no figure. The first: '
            + "; ".join(f"line {bad.line:,} ({escape(bad.reason)})" for bad in counts.first_malformed)
            + ".</p>"
        )
    yield "<h2>From what you spend to what would remain</h2>"
    yield "<p>Each dollar is claimed once, from top to bottom. Thin lines on a bar show how far the estimate may be off.</p>"
    yield _image(picture.waterfall(found), "Bars from what is spent, less each kind of waste, to what remains")
    yield "<h2>What is avoidable, and why</h2>"
    yield from _waste(found)
    yield "<h2>What to switch on, in this order</h2>"
    yield from _plan(plan(found))
    yield from _oversized(found)
    yield "<h2>Where the money goes today</h2>"
    if (image := picture.days(found)) is not None:
        yield _image(image, "What each day cost")
    for name, rows in found.by.items():
        if name != "day" and (len(rows) > 1 or name == "model"):
            yield from _spend(name, rows, fall.spend)
    yield "<h2>Examples</h2>"
    yield from _examples(found)
    yield "<h2>How this was worked out, and what to keep in mind</h2>"
    yield from _method(found)
    yield "</main></body></html>"


def _period(found: Audit) -> str:
    first, last = found.counts.first, found.counts.last
    if first is None or last is None:
        return ""
    return f" · {_day(first)} to {_day(last)}"


def _day(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%d %b %Y}".lstrip("0")


def _lead(found: Audit) -> str:
    steps = plan(found)
    if not steps:
        return "Hardly anything in this log is avoidable: it is lean already."
    sure = [step for step in steps if step.kind.stage == 1]
    dearest = max(steps, key=lambda step: step.saving.nanousd)
    said = (
        f"The most comes from <b>{escape(NAMES[dearest.saving.waste].lower())}</b> ({dearest.share:.0%} of the spend)."
    )
    if sure:
        part = sum(step.share for step in sure)
        said += f" {part:.0%} of the spend can be saved without any change to an answer."
    return said


def _waste(found: Audit) -> Iterator[str]:
    fall = found.waterfall
    monthly = found.monthly(1) is not None
    heads = ("Requests", "A month" if monthly else "In this log", "Share", "Likely between")
    yield '<div class="scroll"><table><thead><tr><th>Why it is avoidable</th>'
    yield "".join(f'<th class="n">{head}</th>' for head in heads) + "</tr></thead><tbody>"

    def money(amount: int) -> str:
        return dollars((found.monthly(amount) or 0) if monthly else amount)

    for saving in fall.savings:
        about = "about " if saving.estimated and saving.requests else ""
        between = (
            f"{money(saving.low)} – {money(saving.high)}" if saving.high > saving.low else "counted, not estimated"
        )
        between = between if saving.nanousd else "–"
        yield (
            f"<tr><td>{NAMES[saving.waste]}<small>{MEANING[saving.waste]}</small></td>"
            f'<td class="n">{about}{saving.requests:,}</td><td class="n">{money(saving.nanousd)}</td>'
            f'<td class="n">{share(saving.nanousd, fall.spend)}</td><td class="n">{between}</td></tr>'
        )
    between = f"{money(fall.low)} – {money(fall.high)}" if fall.high > fall.low else ""
    yield (
        f'<tr class="sum"><td>All together</td><td></td><td class="n">{money(fall.avoidable)}</td>'
        f'<td class="n">{share(fall.avoidable, fall.spend)}</td><td class="n">{between}</td></tr></tbody></table></div>'
    )


def _plan(steps: Sequence[Step]) -> Iterator[str]:
    if not steps:
        yield "<p>Nothing here is worth a change.</p>"
        return
    yield "<p>First what cannot change an answer, then what is measured while it runs, then what should be tried out before.</p>"
    yield '<ol class="plan">'
    for step in steps:
        if step.monthly is None:
            amount, unit = dollars(step.saving.nanousd), "in this log"
        else:
            amount, unit = dollars(step.monthly), "a month"
        between = ""
        if step.monthly_low is not None and step.monthly_high is not None and step.monthly_high > step.monthly_low:
            between = f"<small>{dollars(step.monthly_low)} to {dollars(step.monthly_high)}</small>"
        yield (
            f'<li><span class="no">{step.number}</span><div><h3>{step.kind.title}</h3><p>{_code(step.kind.takes)}</p>'
            f'<p class="note">Risk for answers: {step.kind.risk}</p></div>'
            f'<div class="money"><b>{amount}</b> {unit}{between}</div></li>'
        )
    yield "</ol>"


def _oversized(found: Audit) -> Iterator[str]:
    if not found.oversized:
        return
    yield "<h2>Answers that are far longer than usual</h2>"
    yield "<p>This is advice and in no sum above: a long answer may be what was wanted. A length limit would tell.</p>"
    yield '<div class="scroll"><table><thead><tr><th>Kind of request</th><th class="n">Usual length</th>'
    yield '<th class="n">Over four times that</th><th class="n">of them without a limit</th>'
    yield '<th class="n">Cost of the excess</th></tr></thead><tbody>'
    for one in found.oversized[:5]:
        yield (
            f'<tr><td>{escape(one.kind)}</td><td class="n">{one.median_tokens:,} tokens</td>'
            f'<td class="n">{one.long_answers:,} of {one.answers:,}</td><td class="n">{one.unlimited:,}</td>'
            f'<td class="n">up to {dollars(one.nanousd)}</td></tr>'
        )
    yield "</tbody></table></div>"


def _spend(name: str, rows: Sequence[tuple[str, Spent]], spend: int) -> Iterator[str]:
    yield f'<div class="scroll"><table><thead><tr><th>By {name}</th><th class="n">Requests</th><th class="n">Tokens in</th>'
    yield '<th class="n">Tokens out</th><th class="n">Cost in this log</th><th class="n">Share</th></tr></thead><tbody>'
    for label, spent in rows[:ROWS]:
        yield (
            f'<tr><td>{escape(label)}</td><td class="n">{spent.requests:,}</td><td class="n">{spent.input_tokens:,}</td>'
            f'<td class="n">{spent.output_tokens:,}</td><td class="n">{dollars(spent.nanousd)}</td>'
            f'<td class="n">{share(spent.nanousd, spend)}</td></tr>'
        )
    if len(rows) > ROWS:
        rest = sum(spent.nanousd for _, spent in rows[ROWS:])
        yield f'<tr><td>{len(rows) - ROWS:,} more</td><td></td><td></td><td></td><td class="n">{dollars(rest)}</td>'
        yield f'<td class="n">{share(rest, spend)}</td></tr>'
    yield "</tbody></table></div>"


def _examples(found: Audit) -> Iterator[str]:
    texts = any(one.text for shown in found.examples.values() for one in shown)
    if not texts:
        yield '<p class="note">Line numbers of the log; what people wrote is shown only with --show-texts.</p>'
    for saving in found.waterfall.savings:
        shown = found.examples.get(saving.waste, [])
        if not shown:
            continue
        yield f'<details open><summary>{NAMES[saving.waste]}</summary><div class="scroll"><table><tbody>'
        yield from (_example(one) for one in shown)
        yield "</tbody></table></div></details>"


def _example(one: Shown) -> str:
    times = f"{one.times:,} × " if one.times > 1 else ""
    text = f"<small><q>{escape(one.text)}</q></small>" if one.text else ""
    other = f"<small>like <q>{escape(one.other)}</q></small>" if one.other else ""
    where = " · ".join(filter(None, (one.model, one.endpoint)))
    return (
        f'<tr><td class="n">line {one.line:,}</td><td>{escape(where)}</td>'
        f'<td>{times}{escape(one.note)}{text}{other}</td><td class="n">{dollars(one.nanousd)}</td></tr>'
    )


def _method(found: Audit) -> Iterator[str]:
    yield "<ul>"
    yield (
        "<li>A request counts as repeated when the very same one (instructions, conversation, tools, settings, model) was "
        f"answered within {_duration(found.ttl_s)} before, the lifetime of answers in the policy.</li>"
    )
    yield (
        "<li>Rewordings, difficulty and needed context are judged by the very code that would serve the requests: the cache's "
        "verdict, the router, the compressor, and the vendors' rules and prices for prompt caching.</li>"
    )
    yield (
        "<li>The order is retries, repeats, rewordings, routing, long context, prompt cache: what one kind has claimed of a "
        "request, no later one claims again.</li>"
    )
    yield from (f"<li>{_code(said)}</li>" for said in caveats(found))
    yield "</ul>"


def _duration(seconds: float) -> str:
    return (
        f"{seconds / 3600:g} hours" if seconds > 3600 else "an hour" if seconds == 3600 else f"{seconds / 60:g} minutes"
    )


def _code(text: str) -> str:
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _image(picture: bytes, what: str) -> str:
    return f'<img alt="{what}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
