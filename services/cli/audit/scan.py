"""The pass over a log: what is counted for every request, and the sample that the dearer judgements are made on."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from services.cache.domain.identity import Identity
from services.cli.audit.claims import COUNTED, Claims, Waste
from services.cli.audit.sample import Blocks, Kept
from services.cli.audit.seen import Lately, Top
from services.cli.audit.tally import AnswerLengths, By, Spent
from services.cli.audit.tools import Pricing, Tools, day_of
from services.cli.logs import LogRecord, Malformed
from services.common.chat import Chat
from services.common.money import Rates
from services.provider.domain.prompt_cache import Control
from services.provider.domain.prompt_cache.prefix import PartBook, Prefix
from services.provider.domain.prompt_cache.warmth import Warmth

RETRY_S = 600.0
SHOWN_MALFORMED = 5
EXCERPT = 160
_UNPAID = 65_536
"""Prefixes of which it is remembered that nobody has read them since they were written."""


@dataclass(frozen=True, slots=True)
class Example:
    """A request to look at: its line, model and endpoint, and its question, cut, where texts may be shown."""

    line: int
    model: str
    endpoint: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What was claimed on a request of the log, for those who want every line."""

    line: int
    waste: Waste
    nanousd: int


@dataclass(slots=True)
class Counts:
    """What the pass has counted. Money in nano-USD; times in Unix seconds, None where the log has none."""

    requests: int = 0
    failed: int = 0
    malformed: int = 0
    first_malformed: list[Malformed] = field(default_factory=list)
    estimated_tokens: int = 0
    stated_costs: int = 0
    untimed: int = 0
    first: float | None = None
    last: float | None = None
    spend: int = 0
    unclaimed: int = 0
    counted: dict[Waste, Spent] = field(default_factory=lambda: {waste: Spent() for waste in COUNTED})
    uncounted_cache: int = 0


class Scan:
    """Takes the records of a log in their order."""

    def __init__(
        self,
        tools: Tools,
        pricing: Pricing,
        sample: int,
        *,
        texts: bool,
        claimed: Callable[[Claimed], None] | None = None,
    ) -> None:
        """About `sample` requests are judged afterwards. `texts`: examples keep the beginning of their question. `claimed` hears
        of each claim that is made here.
        """
        self._rules = tools.rules
        self._pricing = pricing
        self._texts = texts
        self._claimed = claimed
        self._ttl = tools.rules.ttl[""]
        self._per_user = "" in tools.rules.user_classes
        self._answered: Lately[tuple[float, int]] = Lately(self._ttl)
        self._lost: Lately[tuple[float, int]] = Lately(RETRY_S)
        self._parts = PartBook()
        self._warmth = Warmth(prefixes=_UNPAID)
        self._unpaid: OrderedDict[bytes, int] = OrderedDict()
        self.blocks = Blocks(sample, seed=1)
        self.counts = Counts()
        self.models = By()
        self.endpoints = By()
        self.tenants = By()
        self.days = By()
        self.unpriced = By()
        self.lengths = AnswerLengths()
        self.repeats: Top[Example] = Top()
        self.retries: Top[Example] = Top()

    @property
    def overflowed(self) -> bool:
        """Whether repeats may have been missed since there were too many different requests within a lifetime."""
        return self._answered.overflowed or self._lost.overflowed

    def add(self, item: LogRecord | Malformed) -> None:
        """Takes the next line."""
        counts = self.counts
        if isinstance(item, Malformed):
            counts.malformed += 1
            if len(counts.first_malformed) < SHOWN_MALFORMED:
                counts.first_malformed.append(item)
            return
        counts.requests += 1
        counts.failed += item.failed
        counts.estimated_tokens += item.usage.estimated
        usage = item.usage
        self._time(item.at)
        rates = self._pricing.rates(item.model, item.at, usage.input_tokens)
        cost = item.cost
        if cost is None:
            cost = self._pricing.cost(item.model, item.at, usage)
        else:
            counts.stated_costs += 1
        if cost is None:
            self.unpriced.of(item.model).add(usage.input_tokens, usage.output_tokens, 0)
            return
        counts.spend += cost
        for by, name in (
            (self.models, self._pricing.name(item.model)),
            (self.endpoints, item.endpoint or "(none)"),
            (self.tenants, item.tenant or "(none)"),
            (self.days, "(no time)" if item.at is None else day_of(item.at)),
        ):
            by.of(name).add(usage.input_tokens, usage.output_tokens, cost)
        if rates is not None and usage.output_tokens and not item.failed:
            kind = item.kind or item.endpoint or "all requests"
            limited = item.chat.sampling.max_output_tokens is not None
            priced = self._pricing.cost(item.model, item.at, usage) or 0
            output = usage.output_tokens * rates.output // 1_000_000
            # Of a stated cost the same share as of the book's.
            self.lengths.add(kind, usage.output_tokens, output * cost // priced if priced else 0, limited=limited)
        self._claim(item, cost, rates)

    def _claim(self, record: LogRecord, cost: int, rates: Rates | None) -> None:
        claims = Claims(cost)
        now = record.at if record.at is not None else 0.0
        identity = Identity(record.tenant, "", record.user, record.model, record.chat).keys(0)
        # Without a user there is no entry of their own: such requests are told apart by everything else.
        exact = _short(identity.exact_for(self._per_user and bool(record.user)) or identity.exact)
        lost = self._lost.pop(exact)
        if lost is not None and abs(now - lost[0]) > RETRY_S:
            lost = None
        if lost is not None:
            self._note(Waste.RETRIES, record, claims, lost[1], exact)
        able = self._may_be_cached(record.chat)
        answered = self._answered.get(exact) if able and self._rules.exact else None
        if answered is not None and abs(now - answered[0]) < self._ttl:
            self._note(Waste.REPEATED, record, claims, claims.left, exact)
        elif able and self._storable(record):
            self._answered.put(exact, (now, record.line), now)
        if record.failed or record.cut:
            self._lost.put(exact, (now, (lost[1] if lost else 0) + claims.left), now)
        if not claims.left:
            return
        self.counts.unclaimed += 1
        readable, premium = self._prefix(record, rates)
        kept = None
        if self.blocks.wants:
            scope = identity.scope_for(self._per_user and bool(record.user)) or identity.scope
            askable = able and self._rules.semantic and self._storable(record) and record.chat.last_user_text
            kept = Kept(
                record.line,
                record.at,
                record.model,
                record.endpoint,
                _short(scope) if askable else None,
                record.chat.last_user_text,
                record.answer,
                record.chat,
                record.usage,
                claims.left,
                record.counts_cached,
                readable,
                premium,
            )
        self.blocks.add(kept)

    def _note(self, waste: Waste, record: LogRecord, claims: Claims, amount: int, key: int) -> None:
        got = claims.claim(waste, amount)
        self.counts.counted[waste].add(record.usage.input_tokens, record.usage.output_tokens, got)
        top = self.repeats if waste is Waste.REPEATED else self.retries
        top.add(key, got, lambda: self._example(record))
        if self._claimed is not None:
            self._claimed(Claimed(record.line, waste, got))

    def _example(self, record: LogRecord) -> Example:
        text = record.chat.last_user_text[:EXCERPT] if self._texts else ""
        return Example(record.line, record.model, record.endpoint, text)

    def _may_be_cached(self, chat: Chat) -> bool:
        temperature = chat.sampling.temperature
        return temperature is None or temperature <= self._rules.max_temperature

    def _storable(self, record: LogRecord) -> bool:
        """Whether the answer would have been kept."""
        tools = record.calls_tools and not self._rules.store_tool_calls
        return not (record.failed or record.cut or tools or record.finish_reason == "content_filter")

    def _prefix(self, record: LogRecord, rates: Rates | None) -> tuple[int, int]:
        """Prompt tokens that the vendor could have had warm, and those among them that had to be written for that.

        The newest messages are left out: what ends the prompt of one request is the prefix of the next only in a conversation,
        where it is counted one turn later.
        """
        cache = self._pricing.vendor_cache(record.model)
        if cache.control is Control.NONE or rates is None or record.at is None:
            return 0, 0
        if cache.control is Control.AUTOMATIC and not record.counts_cached:
            self.counts.uncounted_cache += 1
            return 0, 0
        prefix = self._static(record)
        if prefix is None or prefix.upto(prefix.newest) < cache.minimum_tokens:
            return 0, 0
        candidate = ("", self._pricing.name(record.model))
        end, name = prefix.newest, prefix.name(prefix.newest)
        warm = self._warmth.kept(candidate, prefix, record.at)
        self._warmth.keep(candidate, name, record.at + cache.short_ttl_s)
        read = prefix.upto(warm.end) if warm is not None else 0
        premium = 0
        if warm is not None:
            first = prefix.name(warm.end)
            self._warmth.keep(candidate, first, record.at + cache.short_ttl_s)
            premium = self._unpaid.pop(first + candidate[1].encode(), 0)
        if warm is None or warm.end < end:
            self._unpaid[name + candidate[1].encode()] = prefix.upto(end) - read
            if len(self._unpaid) > _UNPAID:
                self._unpaid.popitem(last=False)
        return read, premium

    def _static(self, record: LogRecord) -> Prefix | None:
        """Tools, system text and earlier turns; None without any."""
        chat, last = record.chat, record.chat.last_user_index
        static = chat.messages if last is None else chat.messages[:last]
        if not static and not chat.tools:
            return None
        return self._parts.read(replace(chat, messages=static), record.tenant, note=False)

    def _time(self, at: float | None) -> None:
        counts = self.counts
        if at is None:
            counts.untimed += 1
            return
        counts.first = at if counts.first is None else min(counts.first, at)
        counts.last = at if counts.last is None else max(counts.last, at)


def _short(digest: bytes) -> int:
    """Eight bytes of a digest: two of a million requests share them with a probability of 3 in 100 million."""
    return int.from_bytes(digest[:8], "little")
