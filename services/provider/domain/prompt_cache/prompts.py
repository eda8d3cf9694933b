"""The prompt-cache planner: one `Prompt` a request, from the chat as it came to the report on what its prefix brought."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar

from services.common.chat import Chat
from services.common.chat_pb import Caller
from services.common.money import LONG_TTL_S, Rates, RatesOf, Usage, price
from services.provider.domain.prompt_cache import (
    NO_HINTS,
    Breakpoint,
    CacheHints,
    CacheOutcome,
    Control,
    PromptCacheReport,
    VendorCache,
)
from services.provider.domain.prompt_cache.canonical import Canonical, canonical
from services.provider.domain.prompt_cache.planner import Segment, cheapest_marks
from services.provider.domain.prompt_cache.prefix import PartBook, Prefix, change_between
from services.provider.domain.prompt_cache.reuse import Kind, Reuse
from services.provider.domain.prompt_cache.tally import Row, Tally
from services.provider.domain.prompt_cache.volatile import Finder
from services.provider.domain.prompt_cache.warmth import CandidateId, Warmth

_NEARLY = 0.9
"""Our token counts are estimates: a prefix that may be long enough is marked, which costs nothing where it is not."""
_OUTPUT_TOKENS = 300.0
_MAX_USES = 20.0
_MAX_MEANS = 4096
_CALLS_PER_KEY = 15
"""Calls per minute beyond which a vendor spreads one key over several machines by itself."""
_MAX_SPREAD = 16

Scope = tuple[str, str]


class Place(Protocol):
    """Where a request may go: a model of a vendor."""

    @property
    def model(self) -> str:
        """The model's name in the price book."""
        ...

    @property
    def vendor(self) -> str:
        """The vendor's name."""
        ...

    @property
    def cache(self) -> VendorCache:
        """How it keeps prefixes."""
        ...


P = TypeVar("P", bound=Place)


class _Means:
    """Running means by key, the latest keys."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._means: OrderedDict[tuple[str, str], float] = OrderedDict()

    def get(self, key: tuple[str, str]) -> float:
        return self._means.get(key, self._start)

    def add(self, key: tuple[str, str], value: float) -> None:
        old = self._means.get(key)
        self._means[key] = value if old is None else old + 0.2 * (value - old)
        self._means.move_to_end(key)
        if len(self._means) > _MAX_MEANS:
            self._means.popitem(last=False)


class PromptCache:
    """Plans requests. Everything it knows it has seen in this process; it holds hashes and counts, and no text."""

    def __init__(self, rates: RatesOf, monotonic: Callable[[], float], *, move_volatile: bool = False) -> None:
        """`move_volatile`: sentences of the system text that hold times, ids or counters are sent behind the prefix."""
        self.rates = rates
        self.monotonic = monotonic
        self.tally = Tally()
        self.book = PartBook()
        self.reuse = Reuse()
        self.warmth = Warmth()
        self.scales = _Means(1.0)  # by candidate: the vendor's tokens to one of our estimate
        self.outputs = _Means(_OUTPUT_TOKENS)  # by scope: tokens of an answer
        self._finder = Finder()
        self._move_volatile = move_volatile

    def prepare(self, chat: Chat, caller: Caller, candidates: Sequence[Place]) -> "Prompt":
        """The request as it is sent to whichever candidate. Where none of them keeps prefixes, the chat stays as it is."""
        scope = (caller.tenant, caller.endpoint)
        if all(candidate.cache.control is Control.NONE for candidate in candidates):
            return Prompt(self, scope, Canonical(chat, (), ()), None)
        sent = canonical(chat, self._finder, move_volatile=self._move_volatile)
        prefix = self.book.read(sent.chat, caller.tenant, note=sent.note)
        now = self.monotonic()
        if prefix.previous:
            self.reuse.returned(prefix.name(prefix.previous), now)
        for end, kind in _ends(prefix):
            self.reuse.note(scope, kind, prefix.name(end), now)
        return Prompt(self, scope, sent, prefix)

    def rows(self, tenant: str = "", endpoint: str | None = None) -> list[Row]:
        """What came of all requests so far; empty and None mean all of them."""
        return self.tally.rows(tenant, endpoint)


class Prompt:
    """One request: what to send, to whom first, with which hints, and what came of it."""

    def __init__(self, cache: PromptCache, scope: Scope, sent: Canonical, prefix: Prefix | None) -> None:
        self._cache = cache
        self._scope = scope
        self._sent = sent
        self._prefix = prefix
        self._marks: dict[CandidateId, tuple[tuple[int, int], ...]] = {}

    @property
    def chat(self) -> Chat:
        """The canonical chat, which is the one to send."""
        return self._sent.chat

    def ordered(self, candidates: Sequence[P]) -> Sequence[P]:
        """The candidates in the order in which to try them.

        One that has the prefix warm goes first where the first has not, and staying costs less than switching: for this request
        and those to expect while the prefix lives.
        """
        prefix, cache, now = self._prefix, self._cache, self._cache.monotonic()
        first = candidates[0]
        if prefix is None or len(candidates) < 2 or cache.warmth.kept(_id(first), prefix, now):
            return candidates
        least = self._expected_price(first, prefix, 0)
        if least is None:
            return candidates
        chosen = first
        for candidate in candidates[1:]:
            kept = cache.warmth.kept(_id(candidate), prefix, now)
            total = self._expected_price(candidate, prefix, kept.end) if kept else None
            if total is not None and total < least:
                chosen, least = candidate, total
        return [chosen, *(candidate for candidate in candidates if candidate is not chosen)]

    def hints(self, candidate: Place) -> CacheHints:
        """What to tell the candidate's vendor."""
        prefix = self._prefix
        if prefix is None or candidate.cache.control is Control.NONE:
            return NO_HINTS
        tools = prefix.tools
        return CacheHints(
            tuple(
                Breakpoint(None if end == tools else end - tools - 1, ttl)
                for end, ttl in self._marks_for(candidate, prefix)
            ),
            self._key(candidate, prefix),
            candidate.cache.control is Control.BREAKPOINTS,
        )

    def answered(self, candidate: Place, usage: Usage) -> PromptCacheReport:
        """What came of it, by the vendor's own count; remembered for the next requests."""
        cache, prefix = self._cache, self._prefix
        read, written = usage.cache_read_input_tokens, usage.cache_write_input_tokens
        if prefix is None:
            outcome = CacheOutcome.HIT if read else CacheOutcome.OFF
            report = PromptCacheReport(outcome, 0, read, written)
        else:
            estimated = prefix.tokens[-1]
            if not usage.estimated and usage.input_tokens and estimated:
                scale = min(max(usage.input_tokens / estimated, 0.5), 2.0)
                cache.scales.add(_id(candidate), scale)
            else:
                scale = cache.scales.get(_id(candidate))
            static_tokens = round(prefix.upto(prefix.earlier) * scale)
            outcome = self._outcome(candidate, prefix, usage, static_tokens)
            change = None
            if outcome is CacheOutcome.FIRST:
                old = cache.warmth.most_like(self._scope, _id(candidate), prefix)
                change = change_between(cache.book, old, prefix, self._sent) if old is not None else None
                outcome = CacheOutcome.CHANGED if change else outcome
            report = PromptCacheReport(outcome, static_tokens, read, written, change, self._sent.volatile)
            self._remember(candidate, prefix, usage, scale)
        cache.outputs.add(self._scope, usage.output_tokens)
        rates = cache.rates(candidate.model, input_tokens=usage.input_tokens)
        saved = 0 if rates is None or usage.estimated else _saved(rates, usage)
        cache.tally.count(self._scope, candidate.model, candidate.vendor, usage, report, saved)
        return report

    def _outcome(self, candidate: Place, prefix: Prefix, usage: Usage, static_tokens: int) -> CacheOutcome:
        """Why nothing was read, if nothing was. FIRST may turn out to be CHANGED."""
        rules, warmth = candidate.cache, self._cache.warmth
        if usage.cache_read_input_tokens:
            return CacheOutcome.HIT
        if rules.control is Control.NONE:
            return CacheOutcome.OFF
        if usage.estimated or not rules.reported:
            return CacheOutcome.UNREPORTED
        if static_tokens < rules.minimum_tokens:
            return CacheOutcome.TOO_SHORT
        if rules.control is Control.BREAKPOINTS and not self._marks_for(candidate, prefix):
            return CacheOutcome.OFF
        if warmth.kept(_id(candidate), prefix):
            return CacheOutcome.EXPIRED
        if warmth.kept_elsewhere(_id(candidate), prefix):
            return CacheOutcome.SWITCHED
        return CacheOutcome.FIRST

    def _remember(self, candidate: Place, prefix: Prefix, usage: Usage, scale: float) -> None:
        """What the candidate keeps now, as far as its usage speaks for it."""
        rules, warmth, now = candidate.cache, self._cache.warmth, self._cache.monotonic()
        if rules.control is Control.NONE:
            return
        warmth.remember(self._scope, _id(candidate), prefix)
        if rules.control is Control.BREAKPOINTS:
            if usage.cache_read_input_tokens or usage.cache_write_input_tokens:
                for end, ttl in self._marks_for(candidate, prefix):
                    warmth.keep(_id(candidate), prefix.name(end), now + _real_ttl(candidate, ttl))
        elif rules.reported and not usage.estimated:
            for end in dict.fromkeys((prefix.tools, prefix.system, prefix.previous, prefix.newest)):
                if end and prefix.upto(end) * scale >= rules.minimum_tokens:
                    warmth.keep(_id(candidate), prefix.name(end), now + rules.short_ttl_s)

    def _marks_for(self, candidate: Place, prefix: Prefix) -> tuple[tuple[int, int], ...]:
        """(end, lifetime) of the breakpoints, in order, at most four: tools, system, the last turn, this one."""
        known = self._marks.get(_id(candidate))
        if known is None:
            known = self._marks[_id(candidate)] = tuple(self._find_marks(candidate, prefix))
        return known

    def _find_marks(self, candidate: Place, prefix: Prefix) -> Iterator[tuple[int, int]]:
        rules, cache, now = candidate.cache, self._cache, self._cache.monotonic()
        rates = self._rates(candidate, prefix)
        if rules.control is not Control.BREAKPOINTS or rates is None:
            return
        scale = cache.scales.get(_id(candidate))
        least = rules.minimum_tokens * _NEARLY
        kept = cache.warmth.kept(_id(candidate), prefix, now)
        segments: list[Segment] = []
        ends = list(_ends(prefix))
        if prefix.previous:
            ends.insert(-1, (prefix.previous, Kind.TURN))
        begin = 0
        for end, kind in ends:
            # A turn is continued by a longer one: what is known of its kind speaks for it.
            name = prefix.name(end) if kind in (Kind.TOOLS, Kind.SYSTEM) else None
            short = cache.reuse.share(self._scope, kind, name, rules.short_ttl_s, now)
            long = None
            if rules.long_ttl_s is not None:
                long = cache.reuse.share(self._scope, kind, name, rules.long_ttl_s, now)
            markable = prefix.upto(end) * scale >= least and (kind is not Kind.TOOLS or rules.tools)
            further = cache.reuse.further(prefix.name(end), (end - prefix.system) / 4 if kind is Kind.TURN else 0.0)
            warm = kept is not None and kept.end >= end
            segments.append(Segment(prefix.upto(end) - begin, markable, short, long, warm, further))
            begin = prefix.upto(end)
        for (end, _), ttl in zip(ends, cheapest_marks(segments, rates), strict=True):
            if ttl is not None:
                yield end, ttl

    def _key(self, candidate: Place, prefix: Prefix) -> str:
        """The same for requests that share what is worth sharing: tools and system text, or else the conversation.

        Where more calls share it than one machine takes, conversations are spread over several keys.
        """
        opening = min(prefix.system + 1, prefix.newest)
        shared = prefix.upto(prefix.system) * self._cache.scales.get(_id(candidate)) >= candidate.cache.minimum_tokens
        name = prefix.name(prefix.system if shared else opening)
        spread = 1
        if shared:
            calls = self._cache.reuse.per_minute(name, self._cache.monotonic())
            while spread < _MAX_SPREAD and calls > spread * _CALLS_PER_KEY:
                spread *= 2
        slot = int.from_bytes(prefix.name(opening)[:2], "big") % spread
        return blake2b(name + bytes([slot]), digest_size=16).hexdigest()

    def _expected_price(self, candidate: Place, prefix: Prefix, kept: int) -> float | None:
        """What this request and the expected further ones cost at the candidate, which keeps `kept` parts now."""
        rates = self._rates(candidate, prefix)
        if rates is None:
            return None
        end, kind = (prefix.previous, Kind.TURN) if prefix.previous else (prefix.system, Kind.SYSTEM)
        share = 0.0
        if end:
            name = prefix.name(end) if kind is Kind.SYSTEM else None
            now = self._cache.monotonic()
            share = self._cache.reuse.share(self._scope, kind, name, candidate.cache.short_ttl_s, now)
        uses = min(1 / (1 - share), _MAX_USES) if share < 1 else _MAX_USES
        now_price = self._price(candidate, prefix, rates, kept)
        return now_price + (uses - 1) * self._price(candidate, prefix, rates, max(end, kept))

    def _price(self, candidate: Place, prefix: Prefix, rates: Rates, kept: int) -> float:
        """The price of this request with the first `kept` parts read from the cache, in nano-USD times a million."""
        scale = self._cache.scales.get(_id(candidate))
        whole = prefix.tokens[-1]
        if not self._is_kept(candidate, prefix, kept, scale):
            kept = 0
        read = prefix.upto(kept)
        cost, begin = read * rates.cache_read, read
        for end, ttl in self._marks_for(candidate, prefix):
            if prefix.upto(end) > begin:
                cost += (prefix.upto(end) - begin) * (
                    rates.cache_write_long if ttl >= LONG_TTL_S else rates.cache_write
                )
                begin = prefix.upto(end)
        written = candidate.cache.control is Control.AUTOMATIC and whole * scale >= candidate.cache.minimum_tokens
        cost += (whole - begin) * (rates.cache_write if written else rates.input)
        limit = self.chat.sampling.max_output_tokens
        output = self._cache.outputs.get(self._scope)
        return cost * scale + (output if limit is None else min(output, limit)) * rates.output

    def _rates(self, candidate: Place, prefix: Prefix) -> Rates | None:
        tokens = round(prefix.tokens[-1] * self._cache.scales.get(_id(candidate)))
        return self._cache.rates(candidate.model, input_tokens=tokens)

    def _is_kept(self, candidate: Place, prefix: Prefix, end: int, scale: float) -> bool:
        """Whether the candidate would keep the first `end` parts at all."""
        match candidate.cache.control:
            case Control.BREAKPOINTS:
                return any(mark >= end for mark, _ in self._marks_for(candidate, prefix))
            case Control.AUTOMATIC:
                return prefix.upto(end) * scale >= candidate.cache.minimum_tokens
        return False


def _ends(prefix: Prefix) -> Iterator[tuple[int, Kind]]:
    """Where a prefix of each kind ends, in order."""
    if prefix.tools:
        yield prefix.tools, Kind.TOOLS
    if prefix.system > prefix.tools:
        yield prefix.system, Kind.SYSTEM
    if prefix.newest > prefix.system:
        yield prefix.newest, Kind.TURN if prefix.previous else Kind.OPENING


def _id(candidate: Place) -> CandidateId:
    return candidate.vendor, candidate.model


def _real_ttl(candidate: Place, ttl: int) -> int:
    rules = candidate.cache
    return rules.long_ttl_s if ttl >= LONG_TTL_S and rules.long_ttl_s is not None else rules.short_ttl_s


def _saved(rates: Rates, usage: Usage) -> int:
    plain = Usage(usage.input_tokens, usage.output_tokens)
    return price(rates, plain) - price(rates, usage)
