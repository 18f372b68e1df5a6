"""Success before and after reinforcement learning: the kept runs, and each method on one task."""

from pathlib import Path

from pages.cells import interval, read, table

RUNS = (
    ("multihop", "`multihop`, 2 to 4 hops (the quickstart)"),
    ("multihop-hard", "`multihop`, 2 to 6 hops, 10 % of searches fail"),
    ("household", "`household`, ALFWorld's 120 rooms"),
    ("household-gpu", "`household`, larger model on a GPU"),
    ("household-branpo", "`household` in small generated rooms, BranPO"),
)


def success(results: Path, link: str) -> str:
    """The table of results: a row a run and split, with 95 % intervals."""
    lines = []
    for name, title in RUNS:
        record = read(results, name)
        if record is None:
            continue
        rows = {row["name"]: row for row in record["rows"]}
        splits = [n.split(", ")[1] for n in rows if n.endswith(", sampled, after RL")]
        for split in splits:
            cells = [title if split == "main split" else f"{title}: {split}"]
            if len(splits) > 1 and split == "main split":
                cells = [f"{title}: rooms seen in training"]
            for way in ("sampled", "greedy"):
                for when in ("before RL", "after RL"):
                    cells.append(interval(rows.get(f"success, {split}, {way}, {when}")))
            lines.append([*cells, f"{record['minutes']:.1f}", record["hardware"]])
    head = "task", "sampled, before RL", "after RL", "greedy, before RL", "after RL"
    return table((*head, "minutes", "hardware"), lines)


def curves(results: Path, link: str) -> str:
    """What to know about each run, and its learning curves."""
    parts = []
    for name, title in RUNS:
        record = read(results, name)
        if record is None:
            continue
        notes = f" {record['notes']}" if record.get("notes") else ""
        parts.append(f"**{title}**: `{record['config']}`, seed {record['seed']}.{notes}")
        if (results / f"{name}.png").exists():
            parts.append(f"![Success and diagnostics: {title}]({link}/{name}.png)")
    return "\n\n".join(parts)


def methods(results: Path, link: str) -> str:
    """What each method reached from one warm start, branching ones in a table of their own."""
    parts = []
    if record := read(results, "methods"):
        reached = {
            row["name"].split(":")[0]: interval(row)
            for row in record["rows"]
            if ", sampled" in row["name"]
        }
        parts.append(
            table(
                ("`algorithm.name`", "success after RL"),
                [(f"`{name}`", value) for name, value in reached.items()],
            )
            + f"\n\n![A learning curve of each method]({link}/methods.png)"
        )
    if record := read(results, "methods-branching"):
        rows = record["rows"]
        tokens = {r["name"].split(":")[0]: r["value"] for r in rows if "tokens" in r["name"]}
        lines = []
        for row in rows:
            if ", sampled" in row["name"]:
                method = row["name"].split(":")[0]
                lines.append((f"`{method}`", interval(row), f"{tokens[method]:.2f} M"))
        parts.append(
            "Methods that branch, beside GRPO, with the tokens that they sampled, those of branches "
            "included:\n\n"
            + table(("`algorithm.name`", "success after RL", "tokens sampled"), lines)
            + f"\n\n{record['notes']}\n\n"
            f"![Learning curves of the methods that branch]({link}/methods-branching.png)"
        )
    return "\n\n".join(parts)
