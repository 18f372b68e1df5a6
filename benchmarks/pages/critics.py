"""Which setting of the critic helps: learning, and agreement with true values, beside what ships."""

from pathlib import Path
from typing import Any

from pages.cells import file, interval, read, table

PLAIN = "plain"
COLUMNS = (
    "area", "last five", "explained variance, late", "rank correlation, middle",
    "rank correlation, end",
)  # fmt: skip


def in_short(results: Path, link: str) -> str:
    """A table a game: what each variant adds, and the pictures."""
    record = read(results, "critics")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    parts = [_of_game(record, rows, cell) for cell in record["cells"]]
    workers = f", {record['workers']} jobs at a time" if "workers" in record else ""
    parts.append(
        f"Interquartile means over {record['seeds']} seeds with 95 % bootstrap intervals; below the first "
        "line of a table, differences to it, in bold where the interval is clear of zero. Rank "
        f"correlation: of the critic with the mean return of {record['continuations']} continuations "
        f"from each of {record['states']} states of held-out episodes, after {record['middle']} "
        f"iterations and at the end. {record['minutes']:.0f} minutes{workers} on {record['hardware']}: "
        f"{file(link, 'critics.json')}."
    )
    parts.append(f"![Explained variance of the critic]({link}/critics-explained.png)")
    return "\n\n".join(parts)


def _of_game(record: dict[str, Any], rows: dict[str, Any], cell: str) -> str:
    lines = []
    for variant, about in record["variants"].items():
        plain = variant == PLAIN
        which = variant if plain else f"{variant} less {PLAIN}"
        found = [rows.get(f"{cell}: {which}: {column}") for column in COLUMNS]
        if any(found):
            settings = ", ".join(f"`{x}`" for x in about["overrides"])
            name = f"{about['title']} ({settings})" if settings else about["title"]
            lines.append((name, *(_number(row, plain) for row in found)))
    return table((f"{record['cells'][cell]['title']}: critic", *COLUMNS), lines)


def _number(row: dict[str, Any] | None, absolute: bool) -> str:
    if row is None or absolute:
        return interval(row, ".3f")
    low, high = row["spread"]
    text = interval(row, "+.3f")
    return f"**{text}**" if low > 0 or high < 0 else text
