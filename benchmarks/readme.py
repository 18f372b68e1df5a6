"""Fills the results in README.md from `benchmarks/results/*.json`; `--check` only compares."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: made by benchmarks/readme.py -->", "<!-- end of results -->"
RUNS = (
    ("multihop.json", "`multihop`, 2 to 4 hops (the quickstart)"),
    ("multihop-hard.json", "`multihop`, 2 to 6 hops, 10 % of searches fail"),
    ("household.json", "`household`, ALFWorld's 120 rooms"),
    ("household-gpu.json", "`household`, larger model on a GPU"),
)
PICTURED = ("multihop.json", "household.json")


def table(results: Path) -> str:
    """Success before and after RL, a row a run and split, with 95 % intervals."""
    lines = [
        "| task | sampled, before | after StepPO | greedy, before | after StepPO | minutes | hardware |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, title in RUNS:
        if not (results / name).exists():
            continue
        record = json.loads((results / name).read_text())
        rows = {row["name"]: row for row in record["rows"]}
        splits = [n.split(", ")[1] for n in rows if n.endswith(", sampled, after RL")]
        for split in splits:
            cells = [title if split == "main split" else f"{title}: {split}"]
            if len(splits) > 1 and split == "main split":
                cells = [f"{title}: rooms seen in training"]
            for way in ("sampled", "greedy"):
                for when in ("before RL", "after RL"):
                    row = rows.get(f"success, {split}, {way}, {when}")
                    cells.append(_with_interval(row) if row else "")
            cells += [f"{record['minutes']:.1f}", record["hardware"]]
            lines.append("| " + " | ".join(cells) + " |")
    pictures = [
        f"![Success and diagnostics of StepPO: {title}](benchmarks/results/{picture})"
        for name, title in RUNS
        if (results / (picture := name.replace(".json", ".png"))).exists() and name in PICTURED
    ]
    return "\n".join(lines) + "".join("\n\n" + picture for picture in pictures)


def _with_interval(row: dict) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(row["value"], *row["spread"])


def filled(readme: str, results: Path) -> str:
    """The README with its results replaced."""
    head, rest = readme.split(BEGIN)
    return f"{head}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


def main() -> int:
    """Writes the README, or says whether it is up to date."""
    path = ROOT / "README.md"
    before = path.read_text()
    after = filled(before, ROOT / "benchmarks" / "results")
    if "--check" in sys.argv:
        print("up to date" if before == after else "README.md: run `python benchmarks/readme.py`")
        return int(before != after)
    path.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
