"""How well critic, credit and branching scores agree with the enumerated values of the policy."""

from pathlib import Path
from typing import Any

from pages.cells import file, interval, read, table


def correlations(results: Path, link: str) -> str:
    """A row an estimate, a column a checkpoint."""
    return _correlations(results, link, "audit")


def errand(results: Path, link: str) -> str:
    """The same of errands."""
    return _correlations(results, link, "audit-errand-16")


def shop(results: Path, link: str) -> str:
    """The same of the shop."""
    return _correlations(results, link, "audit-shop-8")


def _correlations(results: Path, link: str, name: str) -> str:
    record = read(results, name)
    if record is None:
        return ""
    columns: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        when, _, name = row["name"].partition(": ")
        if row["unit"] == "rank correlation" and row["spread"] and "random" not in name:
            columns.setdefault(when, {})[name] = interval(row, ".2f")
    names = dict.fromkeys(name for found in columns.values() for name in found)
    rows = [
        (name.replace("|", "\\|"), *(found.get(name, "") for found in columns.values()))
        for name in names
    ]
    return (
        table(("", *columns), rows)
        + f"\n\n{_game(record)}One seed, 95 % intervals over tasks, {record['minutes']:.0f} minutes on "
        f"{record['hardware']}: {file(link, f'{name}.json')}.\n\n"
        f"![Credit against the enumerated truth]({link}/{name}.png)"
    )


def _game(record: dict[str, Any]) -> str:
    """What is played, and how narrow the enumerated values are, where it is not the quickstart."""
    if "game" not in record:
        return ""
    widths = [row["value"] for row in record["rows"] if row["name"].endswith("bounds of V, mean")]
    return (
        f"{record['game'][0].upper()}{record['game'][1:]}; enumerated values are certain within "
        f"{min(widths):.3f} to {max(widths):.3f} on average. "
    )
