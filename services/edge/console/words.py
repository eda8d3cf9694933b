"""Numbers and times for people."""

from datetime import UTC, datetime

from services.common.money import NANO


def money(nanousd: int | float) -> str:
    """Dollars: cents from a dollar up, three figures below."""
    dollars = nanousd / NANO
    size, sign = abs(dollars), "−" if nanousd < 0 else ""
    if size >= 10_000:
        return f"{sign}${size:,.0f}"
    if size >= 1 or size == 0:
        return f"{sign}${size:,.2f}"
    places = next(p for p in range(3, 12) if size >= 10 ** (2 - p) or p == 11)
    text = f"{size:.{places}f}"
    return f"{sign}${text.removesuffix('0') if places == 3 else text}"


def share(part: float, whole: float) -> str:
    """A percentage, or a dash where there is nothing to take a part of."""
    return "–" if not whole else percent(part / whole)


def percent(value: float) -> str:
    """A share of 0 to 1 as a percentage, with as many places as small ones need."""
    if 0.99 < value < 1:
        return f"{int(value * 1000) / 10:.1f}%"  # nearly certain is not certain
    places = 0 if value in (0.0, 1.0) or abs(value) >= 0.1 else 1 if abs(value) >= 0.01 else 2
    return f"{value * 100:.{places}f}%".replace("-", "−")


def count(number: int | float) -> str:
    """A whole number with thousands apart."""
    return f"{number:,.0f}"


def moment(at: float | None) -> str:
    """A time in UTC, to the minute; a dash for none."""
    return "–" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def plural(number: int, one: str) -> str:
    """A number with its noun."""
    return f"{count(number)} {one}" if number == 1 else f"{count(number)} {one}s"
