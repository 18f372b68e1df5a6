"""What kills, damage, broken environments, wrong files and wrong command lines did to a run."""

from pathlib import Path

from pages.cells import file, read, table

_PARTS = {
    "kills": "runs killed at random points ({points} kills) and resumed: the same metrics and parameters, "
    "bit for bit",
    "damage": "files of the newest checkpoint damaged: an older one, or the undamaged rest, is used, and "
    "the run ends the same",
    "environments": "faults of an environment, in threads and in processes: each ends its own trajectory",
    "files": "wrong files of data and of models: refused, naming the file",
    "commands": "wrong command lines: refused, naming what is wrong",
}


def campaign(results: Path, link: str) -> str:
    """A row a part: cases, cases that went right, tracebacks, silent ones, lost trajectories."""
    record = read(results, "robustness")
    if record is None:
        return ""
    by_name = {row["name"]: row for row in record["rows"]}
    rows = []
    for part, meaning in _PARTS.items():
        if part not in by_name:
            continue
        counts = (
            by_name[f"{part}: {name}"] for name in ("tracebacks", "silent", "lost trajectories")
        )
        rows.append(
            (
                meaning.format(points=record["kills"]),
                by_name[part]["goal"],
                f"{by_name[part]['value']:.0f}",
                *(f"{row['value']:.0f}" for row in counts),
            )
        )
    head = ("what was done", "cases", "right", "tracebacks", "silent", "trajectories lost")
    return table(head, rows) + f"\n\n{file(link, 'robustness.json')}"
