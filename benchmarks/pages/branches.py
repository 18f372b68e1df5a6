"""What a branch costs, what training on trees saves, and what faulty environments cost."""

from pathlib import Path
from typing import Any

from pages.cells import file, machine, read, table


def in_short(results: Path, link: str) -> str:
    """One branch after 64 steps, and the gain of trees."""
    parts = []
    if record := read(results, "branching"):
        rows = {row["name"]: row for row in record["rows"]}
        name = next(n for n in reversed(rows) if n.endswith("depth 64: fork"))
        row, model = rows[name], name.split(",")[0]
        tokens = rows[f"{name.removesuffix(': fork')}: replay, prefilled"]["value"]
        parts.append(
            f"A branch after 64 steps ({model}) takes {row['value'] / 1000:.1f} s and reads one token; "
            f"reset, replay and a new prefill take {row['peer_value'] / 1000:.0f} s and read {tokens:.0f} "
            f"tokens, {row['ratio']:.0f} times as long ({file(link, 'branching.json')}).\n\n"
            f"![Time of a branch against its depth]({link}/branching.png)"
        )
    if record := read(results, "trees"):
        of = {row["name"]: row["value"] for row in record["rows"]}
        saved = [
            f"{of[f'{case}, tree over rows apart, processor time']:.1f} times ({case})"
            for case in ("2 rows, 50% shared", "4 rows, 75% shared", "8 rows, 75% shared")
        ]
        parts.append(
            "An update of separate rows takes more processor time than one of a tree: "
            + ", ".join(saved)
            + f" ({file(link, 'trees.json')})."
        )
    return "\n\n".join(parts)


def in_full(results: Path, link: str) -> str:
    """Every depth, and what faults and refilled slots come to."""
    parts = []
    if record := read(results, "branching"):
        parts.append(_depths(record, link))
    if record := read(results, "rollout"):
        parts.append(_rollouts(record, link))
    return "\n\n".join(parts)


def _depths(record: dict[str, Any], link: str) -> str:
    rows = {row["name"]: row for row in record["rows"]}
    forks = [n.removesuffix(": fork").split(", depth ") for n in rows if n.endswith(": fork")]
    models, depths = (list(dict.fromkeys(column)) for column in zip(*forks, strict=True))
    head = ["steps before"]
    for model in models:
        head += [f"{model}: fork", "replay", "ratio"]
    lines = []
    for depth in depths:
        cells = [depth]
        for model in models:
            name = f"{model}, depth {depth}"
            row = rows[f"{name}: fork"]
            for way, key in (("fork", "value"), ("replay", "peer_value")):
                tokens = rows[f"{name}: {way}, prefilled"]["value"]
                cells.append(f"{row[key]:.0f} ms, {tokens:.0f} read")
            cells.append(f"{row['ratio']:.1f} x")
        lines.append(cells)
    worst = max(row["value"] for row in rows.values() if row["unit"] == "largest difference")
    turns = []
    for name, row in rows.items():
        if name.endswith("turns: prefilled"):
            time = rows[name.replace(": prefilled", ": time")]["ratio"]
            turns.append(
                f"{row['ratio']:.1f} times the tokens and take {time:.2f} times as long ({name[:-11]})"
            )
    return (
        table(head, lines) + f"\n\nMedians, both ways in turn, on {machine(record)}: "
        f"{file(link, 'branching.json')}. "
        f"Log-probs of forks and of a full pass differ by {worst:.0e} at most. "
        "Where every turn reads its whole context again, eight turns read "
        + ", ".join(turns)
        + f".\n\n![Time of a branch against its depth]({link}/branching.png)"
    )


def _rollouts(record: dict[str, Any], link: str) -> str:
    rows = record["rows"]
    lines = []
    for row in rows:
        if row["name"].endswith(": agent steps"):
            ratio = "" if row["ratio"] is None else f"{100 * row['ratio']:.0f} %"
            lines.append((row["name"][:-13], f"{row['value']:.0f}", ratio))

    def ratios(end: str) -> str:
        return " / ".join(f"{row['ratio']:.2f}" for row in rows if row["name"].endswith(end))

    refilled = [row for row in rows if row["name"].endswith(": refilled")]
    slots = " / ".join(row["name"].split()[0] for row in refilled)
    checked = [row for row in rows if row["goal"] and not row["name"].endswith(": agent steps")]
    sound = "No task was lost, and every fault ended its own trajectory and changed no other. "
    start = "".join(
        f"A process that hung or crashed is started again, which takes {row['value']:.0f} ms: long "
        "compared with a turn of this small model, short compared with one of a large model. "
        for row in rows
        if row["name"].endswith(": start of one")
    )
    return (
        table(("tool calls", "agent steps/s", "of the healthy"), lines)
        + f"\n\nMedians on {machine(record)}: {file(link, 'rollout.json')}. "
        + (sound if all(row["met"] for row in checked) else "")
        + start
        + f"Slots that take the next task at once, against batches that end together, with {slots} slots: "
        f"{ratios(': turns, refilled')} times fewer turns, {ratios(': refilled')} times the agent steps a "
        "second, which is the noisier number."
    )
