"""The price book for people."""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal

from rich import box
from rich.console import Console
from rich.table import Table

from services.common.prices import LongContext, ModelPrices, Price, PriceBook

WIDTH = 100
_FIELDS = ("input", "output", "cache_read", "cache_write", "cache_write_long")


def as_json(book: PriceBook, today: date) -> dict[str, object]:
    """Today's prices by model in dollars per million tokens, what is unset left out; null where no price holds today."""
    return {"on": today.isoformat(), "models": {name: _entry(entry, today) for name, entry in book.models.items()}}


def _entry(entry: ModelPrices, today: date) -> dict[str, object]:
    price = entry.on(today)
    return {
        "source": entry.source,
        "speed": None if entry.speed is None else entry.speed.model_dump(),
        "price": None if price is None else _plain(price.model_dump(exclude_none=True)),
    }


def _plain(value: object) -> object:
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case Decimal():
            return float(value)
        case date():
            return value.isoformat()
        case _:
            return value


def show(book: PriceBook, today: date, console: Console) -> None:
    """A table of today's prices, as wide as the console and at most WIDTH. A model with a step in price has two rows."""
    table = Table(
        title=f"Dollars per million tokens on {today}",
        title_justify="left",
        caption="cached: read, and written for minutes or for an hour and more; batch: the share that a batch pays; "
        "tok/s: expected",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("model", overflow="fold")
    for name in ("in", "out", "read", "write", "1 h", "batch", "tok/s", "since"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, entry in book.models.items():
        price = entry.on(today)
        speed = "-" if entry.speed is None else f"{entry.speed.tokens_per_s:,.0f}"
        if price is None:
            table.add_row(name, *["-"] * len(_FIELDS), "-", speed, "no price")
            continue
        batch = "-" if price.batch_factor == 1 else f"{price.batch_factor:.0%}"
        table.add_row(name, *_dollars(price), batch, speed, price.valid_from.isoformat())
        if (long := price.long_context) is not None:
            table.add_row(f"  above {long.from_tokens:,} in", *_dollars(long), "", "", "", style="dim")
    console.print(table, width=min(console.width, WIDTH))


def _dollars(price: Price | LongContext) -> Iterator[str]:
    for field in _FIELDS:
        dollars: Decimal | None = getattr(price, field)
        yield "-" if dollars is None else f"{dollars.normalize():f}"
