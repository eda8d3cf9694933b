"""What is wrong with a price book, and with the policy and vendors that go with it. Every problem says where and what to do."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from services.common.policy import Policy
from services.common.prices import LongContext, ModelPrices, Price, PriceBook, Speed
from services.common.yaml_file import ConfigError, find_line, load_yaml_model
from services.provider.vendors import VendorsFile

# Whose models these are says the name; each of these vendors has a batch API at a discount.
_BATCH_VENDORS = {
    "OpenAI": re.compile(r"(gpt-(?!oss)|o\d)"),
    "Anthropic": re.compile(r"claude-"),
    "Google": re.compile(r"gemini-"),
}
_FIELDS = sorted({*ModelPrices.model_fields, *Price.model_fields, *LongContext.model_fields, *Speed.model_fields})
_CACHED = ("cache_read", "batch_cache_read")
_MISTAKE = re.compile(r"(?P<file>.+?):(?P<line>\d+): (?P<what>.+)", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"(?:.*\.)?(?P<field>[^.]+): Extra inputs are not permitted")


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a line (from 1) of a file, and what to do about it."""

    file: Path
    line: int
    what: str
    to_do: str


def problems_in(prices: Path, policy: Path, vendors: Path | None, today: date) -> list[Problem]:
    """Everything that is wrong, in the order of the files. `vendors` is None where it is not known who serves what.

    A file that cannot be read as what it is ends the search: what hangs on it cannot be judged.
    """
    try:
        book = PriceBook.load(prices)
    except ConfigError as error:
        return _mistakes(error, prices, _FIELDS)
    found = list(_in_book(book, prices, today))
    served = None
    if vendors is not None:
        try:
            file = load_yaml_model(vendors, VendorsFile)
        except ConfigError as error:
            return [*found, *_mistakes(error, vendors)]
        found += _in_vendors(file, vendors, book, today)
        served = {model for vendor in file.vendors for model in vendor.models}
    try:
        rules = Policy.load(policy, book)
    except ConfigError as error:
        return [*found, *_mistakes(error, policy)]
    return found if served is None else [*found, *_not_served(rules, policy, served)]


def _mistakes(error: ConfigError, file: Path, fields: Sequence[str] = ()) -> list[Problem]:
    """What a file's own check says, line by line. `fields` are those that may have been meant."""
    found = []
    for text in str(error).splitlines():
        match = _MISTAKE.fullmatch(text)
        where, line, what = (Path(match["file"]), int(match["line"]), match["what"]) if match else (file, 1, text)
        found.append(Problem(where, line, what, _advice(what, fields)))
    return found


def _advice(what: str, fields: Sequence[str] = ()) -> str:
    if unknown := _UNKNOWN_FIELD.fullmatch(what):
        near = difflib.get_close_matches(unknown["field"], fields, n=1)
        return f"write {near[0]}" if near else "remove it"
    if "no price is known" in what:
        return "add the model to the price book, or take it out here"
    return "correct the line"


def _in_book(book: PriceBook, path: Path, today: date) -> Iterator[Problem]:
    for model, entry in book.models.items():

        def problem(what: str, to_do: str, *where: int | str, of: str = model) -> Problem:
            return Problem(path, find_line(path, "models", of, *where), f"{of}: {what}", to_do)

        if not entry.source:
            yield problem("nothing says whose price this is", "add `source`: whose list, as of when")
        if entry.on(today) is None:
            yield problem(f"no price holds today, {today}", "add the price that holds now, with its first day")
        for index, price in enumerate(entry.prices):
            before = entry.prices[index - 1].valid_from if index else None
            where = ("prices", index)
            if before == price.valid_from:
                yield problem(f"two prices begin on {before}", "keep one of them", *where)
            elif before is not None and before > price.valid_from:
                yield problem(
                    f"{price.valid_from} stands behind {before}", "put the prices in order, oldest first", *where
                )
            vendor = next((name for name, pattern in _BATCH_VENDORS.items() if pattern.match(model)), None)
            if vendor and "batch_factor" not in price.model_fields_set:
                yield problem(
                    f"{vendor} has a batch API, and batch_factor is not set",
                    "set it, 1 for a model that takes no batches",
                    *where,
                )
            for kind, place in ((price, where), (price.long_context, (*where, "long_context"))):
                if kind is not None:
                    yield from (problem(*said, *place, field) for field, said in _odd(kind))
            if (long := price.long_context) is not None and (long.input < price.input or long.output < price.output):
                yield problem(
                    "long requests are cheaper than short ones", "compare both with the source", *where, "long_context"
                )


def _odd(price: Price | LongContext) -> Iterator[tuple[str, tuple[str, str]]]:
    """Prices that no vendor would ask: (field, (what is odd, what to do))."""
    for field in ("input", "output", "cache_write", "cache_write_long"):
        if getattr(price, field) == 0:
            advice = "set the price; where it is not known leave the model out, so that it counts as unpriced"
            yield field, (f"{field} costs nothing", advice)
    for field in _CACHED:
        cached = getattr(price, field)
        if cached is not None and cached > price.input:
            yield field, (f"{field} ({cached}) is dearer than input ({price.input})", "compare both with the source")


def _in_vendors(file: VendorsFile, path: Path, book: PriceBook, today: date) -> Iterator[Problem]:
    for index, vendor in enumerate(file.vendors):
        for model in vendor.models:
            if book.rates(model, today) is None:
                line = find_line(path, "vendors", index, "models", model)
                what = f"{vendor.name}: no price is known for model {model!r}"
                yield Problem(path, line, what, _advice(what))


def _not_served(policy: Policy, path: Path, served: set[str]) -> Iterator[Problem]:
    to_do = "add it to a vendor's models, or take it out here"
    for tier, rules in policy.tiers.items():
        for index, model in enumerate(rules.candidates):
            if model not in served:
                line = find_line(path, "tiers", tier, "candidates", index)
                yield Problem(path, line, f"tiers.{tier}: no vendor serves {model!r}", to_do)
    for name, namespace in policy.namespaces.items():
        judge = namespace.cache.judge
        if judge is not None and judge not in served:
            line = find_line(path, "namespaces", name, "cache", "judge")
            yield Problem(path, line, f"namespaces.{name}.cache.judge: no vendor serves {judge!r}", to_do)
