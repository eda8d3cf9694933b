"""What to switch on first: the steps in their order, what each takes, and caveats. All in words for people who pay."""

from dataclasses import dataclass

from services.cli.audit.audit import Audit
from services.cli.audit.claims import Saving, Waste
from services.common.money import NANO, usd

LEAST_SHARE = 0.005
"""Of the spend; less is not worth a step."""

NAMES = {
    Waste.RETRIES: "Paid twice after a failure",
    Waste.REPEATED: "Same question, word for word",
    Waste.NEAR_REPEATED: "Same question, other words",
    Waste.ROUTING: "Simple question, dear model",
    Waste.COMPRESSION: "Context that was not needed",
    Waste.PROMPT_CACHE: "Same instructions, full price",
}
SHORT = {
    Waste.RETRIES: "retries",
    Waste.REPEATED: "repeated",
    Waste.NEAR_REPEATED: "near-repeated",
    Waste.ROUTING: "simple on premium",
    Waste.COMPRESSION: "long context",
    Waste.PROMPT_CACHE: "prompt cache",
}
MEANING = {
    Waste.RETRIES: "An answer failed or was cut off, and the same request was sent and paid for again within ten minutes.",
    Waste.REPEATED: "The very same request had been answered shortly before; the stored answer would have served.",
    Waste.NEAR_REPEATED: "A differently worded question that an earlier answer serves, by the cache's own verdict.",
    Waste.ROUTING: "A question that the router would have sent to a cheaper model.",
    Waste.COMPRESSION: "Parts of long documents that the question at hand did not need.",
    Waste.PROMPT_CACHE: "Instructions and earlier turns that the vendor had read minutes before, paid again at full price.",
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What switching something on takes: the stage (1 comes first), a title, what to do, and what it may do to answers."""

    stage: int
    title: str
    takes: str
    risk: str


KINDS = {
    Waste.REPEATED: Kind(
        1,
        "Exact cache",
        "Change the base URL of your clients to the mesh; the shipped policy has it on.",
        "None: the same words get the same answer, until its lifetime ends.",
    ),
    Waste.PROMPT_CACHE: Kind(
        1,
        "Prompt-cache planning",
        "Nothing beside the base URL: the mesh keeps prompts stable and asks vendors to keep them.",
        "None: the model reads the same text.",
    ),
    Waste.RETRIES: Kind(
        1,
        "Retries in one place",
        "Take retry loops out of the clients and let the mesh retry; give answers that are cut off a higher limit.",
        "None.",
    ),
    Waste.NEAR_REPEATED: Kind(
        2,
        "Semantic cache",
        "Leave it on in the policy, with the share of wrong answers that you accept (1% unless you say otherwise).",
        "Small and measured: a share of hits is checked, and the cache tightens itself when too many are wrong.",
    ),
    Waste.ROUTING: Kind(
        3,
        "Routing by difficulty",
        "Name your models by tier in the policy; let a few percent of the traffic go first and compare.",
        "To be measured: another model answers. This log does not say how well.",
    ),
    Waste.COMPRESSION: Kind(
        3,
        "Compression of long context",
        "Switch it on for the namespaces with documents; try it on questions of yours with `llmmesh evaluate compressor`.",
        "To be measured: sentences that the question does not need are left out.",
    ),
}


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the plan. `saving` is the log's; the month's sums are None where the log is too short to say."""

    number: int
    saving: Saving
    kind: Kind
    share: float
    monthly: int | None
    monthly_low: int | None
    monthly_high: int | None


def plan(found: Audit) -> list[Step]:
    """What is worth switching on: first what cannot change an answer, then by how much has to be tried out, then by money."""
    spend = max(1, found.waterfall.spend)
    worth = [saving for saving in found.waterfall.savings if saving.nanousd >= LEAST_SHARE * spend]
    worth.sort(key=lambda saving: (KINDS[saving.waste].stage, -saving.nanousd))
    return [
        Step(
            number,
            saving,
            KINDS[saving.waste],
            saving.nanousd / spend,
            found.monthly(saving.nanousd),
            found.monthly(saving.low),
            found.monthly(saving.high),
        )
        for number, saving in enumerate(worth, 1)
    ]


def headline(found: Audit) -> str:
    """The finding in a sentence."""
    fall = found.waterfall
    spend, avoidable = found.monthly(fall.spend), found.monthly(fall.avoidable)
    if spend is None or avoidable is None:
        lead = f"This log cost {dollars(fall.spend)}"
        return f"{lead}; {dollars(fall.avoidable)} of it ({share(fall.avoidable, fall.spend)}) is avoidable"
    return (
        f"You spend {dollars(spend)} a month; {dollars(avoidable)} of it "
        f"({share(fall.avoidable, fall.spend)}) is avoidable"
    )


def margin(found: Audit) -> str:
    """How sure the headline is, as "± $120"; empty where nothing was estimated."""
    fall = found.waterfall
    half = max(fall.high - fall.avoidable, fall.avoidable - fall.low)
    monthly = found.monthly(half)
    return f"± {dollars(half if monthly is None else monthly)}" if half else ""


def caveats(found: Audit) -> list[str]:
    """What a reader must know before believing a figure."""
    counts, sampled = found.counts, found.sampled
    said = []
    if counts.stated_costs == counts.requests:
        said.append("Costs are those that the log states.")
    elif counts.stated_costs:
        said.append(
            f"{counts.stated_costs:,} requests have a cost in the log; the others are priced by the price book."
        )
    else:
        said.append(
            "Costs are computed with the price book's list prices of each day; discounts of yours are not in them."
        )
    if found.unpriced:
        names = ", ".join(name for name, _ in found.unpriced[:3])
        requests = sum(spent.requests for _, spent in found.unpriced)
        said.append(
            f"{requests:,} requests to models without a known price ({names}) are in no sum; add them to the price book."
        )
    if counts.estimated_tokens:
        said.append(
            f"{counts.estimated_tokens:,} requests have no token counts in the log; theirs are estimated from the texts."
        )
    if counts.untimed:
        said.append(
            f"{counts.untimed:,} requests have no time: a repeat among them counts however long after, which is an upper bound."
        )
    elif found.span_s < 3600:
        said.append("The log covers less than an hour, too little for a figure per month.")
    elif found.span_s < 7 * 86_400:
        said.append(
            f"The month is extrapolated from {found.span_s / 86_400:.1f} days; a week or more would count weekends too."
        )
    if not sampled.complete:
        said.append(
            f"Rewordings, routing, long context and prompt caching were judged on {sampled.judged:,} requests in "
            f"{sampled.blocks} stretches of the log and extrapolated; the intervals (95%) are those of this sample, and say "
            "nothing about how traffic will change."
        )
        said.append(
            "Only a few hundred earlier questions were known to each judged one: a running cache knows more and finds more."
        )
    if sampled.served:
        said.append(
            f"Of {sampled.questions:,} questions the cache would have answered {sampled.served:,} from a differently worded one; "
            f"in {sampled.contradicted:,} of these the log's two answers contradict each other, and no saving is counted."
        )
    if counts.uncounted_cache:
        said.append(
            f"{counts.uncounted_cache:,} requests went to vendors that cache by themselves, and the log does not say how much "
            "they read: no prompt-cache saving is counted for them."
        )
    said.append(
        "Whether a cheaper model or a shorter prompt answers as well is not in a log: try both on a part of the traffic."
    )
    if found.overflowed:
        said.append(
            "There were too many different requests within an answer's lifetime to remember all: some repeats were missed."
        )
    return said


def dollars(nanousd: int) -> str:
    """A sum for people: whole dollars from 1,000 on, cents below, and more digits for less than a cent."""
    amount = nanousd / NANO
    if abs(amount) >= 1000:
        return f"${amount:,.0f}"
    return f"${amount:,.2f}" if abs(amount) >= 0.1 or not nanousd else usd(nanousd)


def share(part: int, whole: int) -> str:
    """A share in whole percent; with a digit more below 10."""
    percent = 100 * part / whole if whole else 0.0
    return f"{percent:.0f}%" if percent >= 10 or not part else f"{percent:.1f}%"
