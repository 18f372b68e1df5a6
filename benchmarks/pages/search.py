"""The search agent on HotpotQA: a table of each run, a column a stage, and an episode of it."""

from pathlib import Path

from pages.cells import interval, read, table


def steppo(results: Path, link: str) -> str:
    """The run on a CPU, and the one on a GPU where there is one."""
    parts = [_run(results, name) for name in ("wiki_search", "wiki_search-gpu")]
    return "\n\n".join(part for part in parts if part)


def appo(results: Path, link: str) -> str:
    """APPO on questions whose answer is yes or no."""
    found = _run(results, "wiki_search-appo")
    picture = f"![Learning curves of APPO on HotpotQA]({link}/wiki_search-appo.png)"
    return f"{found}\n\n{picture}" if found else ""


def _run(results: Path, name: str) -> str:
    record = read(results, name)
    if record is None:
        return ""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in record["rows"]:
        measure, *split, stage = row["name"].split(", ")
        if split:
            stage, _, none = stage.partition(" (")
            cells.setdefault((measure, split[0]), {})[stage] = (
                "none" if none else interval(row, ".2f")
            )
    stages = list(next(iter(cells.values())))
    rows = [
        (f"{measure}, {split}", *(found[stage] for stage in stages))
        for (measure, split), found in cells.items()
    ]
    notes = f" {record['notes']}" if record.get("notes") else ""
    parts = [
        table(("held-out questions", *stages), rows),
        f"{record['minutes']:.0f} minutes on {record['hardware']}, one seed, 95 % intervals.{notes}",
    ]
    if (episode := results / f"{name}.txt").exists():
        parts.append("```text\n" + episode.read_text(encoding="utf-8").rstrip() + "\n```")
    return "\n\n".join(parts)
