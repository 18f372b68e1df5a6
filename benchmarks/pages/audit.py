"""How well critic, credit and branching scores agree with the enumerated values of the policy."""

from pathlib import Path

from pages.cells import file, interval, read, table


def correlations(results: Path, link: str) -> str:
    """A row an estimate, a column a checkpoint."""
    record = read(results, "audit")
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
        + f"\n\nOne seed, 95 % intervals over tasks, {record['minutes']:.0f} minutes on "
        f"{record['hardware']}: {file(link, 'audit.json')}.\n\n"
        f"![Credit against the enumerated truth]({link}/audit.png)"
    )
