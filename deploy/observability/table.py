"""The table of metrics in docs/observability.md: `python deploy/observability/table.py` writes it."""

from pathlib import Path

from services.common.metrics import EVERY, FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "observability.md"
BEGIN, END = "<!-- metrics: python deploy/observability/table.py -->\n", "<!-- end of metrics -->\n"


def rendered() -> str:
    """The table, by service."""
    rows = ["| metric | kind | labels | from | what |", "|---|---|---|---|---|"]
    for family in FAMILIES:
        labels = ", ".join(f"`{label}`" for label in family.labels) or "–"
        by = "every service" if family.service == EVERY else family.service
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {by} | {family.help} |")
    return "\n".join(rows) + "\n"


def filled(page: str) -> str:
    """The page with the table in its place."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + rendered() + END + rest.split(END)[1]


def main() -> None:
    """Writes the page."""
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
