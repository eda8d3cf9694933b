"""An audit as one JSON object. Money in nano-USD, times in Unix seconds."""

from services.cli.audit.audit import Audit
from services.cli.audit.claims import Saving
from services.cli.audit.plan import caveats, headline, plan
from services.cli.audit.tally import Spent

ROWS = 100


def as_json(found: Audit) -> dict[str, object]:
    """Everything that was found; of each breakdown the dearest hundred names. Texts are in it only where they were asked for."""
    counts, fall = found.counts, found.waterfall
    return {
        "file": found.file,
        "form": found.form.value,
        "headline": headline(found),
        "requests": counts.requests,
        "failed": counts.failed,
        "malformed": counts.malformed,
        "first_malformed": [{"line": bad.line, "reason": bad.reason} for bad in counts.first_malformed],
        "first_at": counts.first,
        "last_at": counts.last,
        "spend_nanousd": fall.spend,
        "avoidable_nanousd": fall.avoidable,
        "avoidable_low_nanousd": fall.low,
        "avoidable_high_nanousd": fall.high,
        "remaining_nanousd": fall.remaining,
        "monthly": {
            "spend_nanousd": found.monthly(fall.spend),
            "avoidable_nanousd": found.monthly(fall.avoidable),
            "avoidable_low_nanousd": found.monthly(fall.low),
            "avoidable_high_nanousd": found.monthly(fall.high),
        },
        "waste": [_saving(saving) for saving in fall.savings],
        "oversized": [
            {
                "kind": one.kind,
                "median_tokens": one.median_tokens,
                "answers": one.answers,
                "long_answers": one.long_answers,
                "unlimited": one.unlimited,
                "nanousd": one.nanousd,
            }
            for one in found.oversized
        ],
        "by": {name: [_spent(*row) for row in rows[:ROWS]] for name, rows in found.by.items()},
        "unpriced": [_spent(*row) for row in found.unpriced[:ROWS]],
        "routes": [{"from": old, "to": new, "judged_requests": count} for old, new, count in found.routes],
        "sample": {
            "judged": found.sampled.judged,
            "blocks": found.sampled.blocks,
            "complete": found.sampled.complete,
            "questions": found.sampled.questions,
            "served": found.sampled.served,
            "contradicted": found.sampled.contradicted,
        },
        "plan": [
            {
                "step": step.number,
                "waste": step.saving.waste.value,
                "title": step.kind.title,
                "takes": step.kind.takes,
                "risk": step.kind.risk,
                "share": round(step.share, 4),
                "monthly_nanousd": step.monthly,
                "monthly_low_nanousd": step.monthly_low,
                "monthly_high_nanousd": step.monthly_high,
            }
            for step in plan(found)
        ],
        "examples": {
            waste.value: [
                {
                    "line": one.line,
                    "times": one.times,
                    "nanousd": one.nanousd,
                    "model": one.model,
                    "endpoint": one.endpoint,
                    "note": one.note,
                    **({"text": one.text} if one.text else {}),
                    **({"other": one.other} if one.other else {}),
                }
                for one in shown
            ]
            for waste, shown in found.examples.items()
        },
        "caveats": caveats(found),
    }


def _saving(saving: Saving) -> dict[str, object]:
    return {
        "waste": saving.waste.value,
        "requests": saving.requests,
        "nanousd": saving.nanousd,
        "low_nanousd": saving.low,
        "high_nanousd": saving.high,
        "estimated": saving.estimated,
    }


def _spent(name: str, spent: Spent) -> dict[str, object]:
    return {
        "name": name,
        "requests": spent.requests,
        "input_tokens": spent.input_tokens,
        "output_tokens": spent.output_tokens,
        "nanousd": spent.nanousd,
    }
