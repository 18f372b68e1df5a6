"""Fills the results in README.md and benchmarks/README.md from `benchmarks/results/*.json`.

`--check` only compares.
"""

import json
import sys
from pathlib import Path

from laboratory import page

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- {}: made by benchmarks/readme.py -->", "<!-- end of {} -->"
RUNS = (
    ("multihop.json", "`multihop`, 2 to 4 hops (the quickstart)"),
    ("multihop-hard.json", "`multihop`, 2 to 6 hops, 10 % of searches fail"),
    ("household.json", "`household`, ALFWorld's 120 rooms"),
    ("household-gpu.json", "`household`, larger model on a GPU"),
    ("household-branpo.json", "`household` in small generated rooms, BranPO"),
)
PICTURED = ("multihop.json", "household.json", "household-branpo.json")


def table(results: Path) -> str:
    """Success before and after RL, a row a run and split, with 95 % intervals."""
    lines = [
        "| task | sampled, before | after RL | greedy, before | after RL | minutes | hardware |",
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
        f"![Success and diagnostics: {title}](benchmarks/results/{picture})"
        for name, title in RUNS
        if (results / (picture := name.replace(".json", ".png"))).exists() and name in PICTURED
    ]
    return "\n".join(lines) + "".join("\n\n" + picture for picture in pictures)


def _with_interval(row: dict) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(row["value"], *row["spread"])


def search(results: Path) -> str:
    """What the search agent reached, and an episode of it."""
    parts = [_searched(results, name) for name in ("wiki_search", "wiki_search-gpu")]
    parts = [part for part in parts if part]
    if (path := results / "parity.json").exists():
        parts.append(_parity(json.loads(path.read_text())["rows"]))
    if (path := results / "generate.json").exists():
        parts.append(_generation(json.loads(path.read_text())))
    return "\n\n".join(parts)


def _searched(results: Path, name: str) -> str:
    """A table of one run, a column a stage, and an episode of it; nothing where there is no file."""
    parts = []
    if (results / f"{name}.json").exists():
        record = json.loads((results / f"{name}.json").read_text())
        cells: dict[tuple[str, str], dict[str, str]] = {}
        for row in record["rows"]:
            measure, *split, stage = row["name"].split(", ")
            if split:
                stage, _, none = stage.partition(" (")
                cell = "none" if none else f"{row['value']:.2f}"
                if row["spread"]:
                    cell += " [{:.2f}, {:.2f}]".format(*row["spread"])
                cells.setdefault((measure, split[0]), {})[stage] = cell
        stages = list(next(iter(cells.values())))
        lines = [
            "| held-out questions | " + " | ".join(stages) + " |",
            "|---|" + "---|" * len(stages),
        ]
        for (measure, split), found in cells.items():
            lines.append(f"| {measure}, {split} | " + " | ".join(found[s] for s in stages) + " |")
        parts.append("\n".join(lines))
        notes = f" {record['notes']}" if record.get("notes") else ""
        parts.append(
            f"{record['minutes']:.0f} minutes on {record['hardware']}, one seed, 95 % intervals.{notes}"
        )
        if (episode := results / f"{name}.txt").exists():
            parts.append("```text\n" + episode.read_text().rstrip() + "\n```")
    return "\n\n".join(parts)


def _parity(rows: list[dict]) -> str:
    """The largest difference of logits among those that have the goal of float32."""
    checked = [row for row in rows if row["unit"] == "largest difference of logits" and row["goal"]]
    worst = max(row["value"] for row in checked)
    return (
        f"Logits are those of transformers within {worst:.1e} in float32, in {len(checked)} comparisons "
        "(GGUF and safetensors in and out, padding, KV cache, all families): "
        "[benchmarks/results/parity.json](benchmarks/results/parity.json)."
    )


def _generation(record: dict) -> str:
    """Tokens a second, prompt included, beside transformers and tunix."""
    cells: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        case, _, peer = row["name"].partition(": end to end, against ")
        if peer:
            cells.setdefault(case, {"": f"{row['value']:.0f}"})[peer] = f"{row['ratio']:.2f} x"
    lines = [
        "| 64 + 64 tokens, float32 | tokens/s | of transformers | of tunix |",
        "|---|---|---|---|",
    ]
    for case, found in cells.items():
        peers = (found.get(peer, "") for peer in ("transformers", "tunix"))
        lines.append(f"| {case} | {found['']} | " + " | ".join(peers) + " |")
    return (
        "\n".join(lines) + f"\n\nMedians, contenders in turn, on {record['hardware']}: "
        "[benchmarks/results/generate.json](benchmarks/results/generate.json) has the goals, met and "
        "missed."
    )


def methods(results: Path) -> str:
    """What each method reached, how biased each is, and how fast the functions are."""
    parts = []
    if (path := results / "methods.json").exists():
        record = json.loads(path.read_text())
        reached = {}
        for row in record["rows"]:
            if ", sampled" in row["name"]:
                reached[row["name"].split(":")[0]] = _with_interval(row)
        parts.append(
            "| | " + " | ".join(f"`{name}`" for name in reached) + " |\n"
            "|---|" + "---|" * len(reached) + "\n"
            "| success after RL | " + " | ".join(reached.values()) + " |\n\n"
            "Held-out success on `multihop` at temperature 1 from the same warm start, one seed, one "
            "setting for all: it shows that each method works, not which is better.\n\n"
            "![A learning curve of each method](benchmarks/results/methods.png)"
        )
    if (path := results / "bias.json").exists():
        rows = json.loads(path.read_text())["rows"]
        claims = [row for row in rows if row["goal"]]
        rest = [row["value"] for row in rows if not row["goal"]]
        parts.append(
            f"Bias, enumerated ([benchmarks/results/bias.json](benchmarks/results/bias.json)): in a "
            f"world whose trajectories can all be listed, the {len(claims)} estimators that claim to "
            f"be unbiased have the exact gradient in expectation (largest relative error "
            f"{max(row['value'] for row in claims):.0e}); the {len(rest)} others are off by "
            f"{min(rest):.2f} to {max(rest):.2f} in direction."
        )
    if (path := results / "ops.json").exists():
        parts.append(_speed(json.loads(path.read_text())))
    return "\n\n".join(parts)


def _speed(record: dict) -> str:
    """The ratios to PyTorch in the manner of the references, as measured, at the large shape."""
    ways = ("from strings", "ids given", "from strings, memory reused", "ids given, memory reused")
    cells: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        name, _, rest = row["name"].partition(", 512 x 32 x 512, ")
        if row["peer_value"] is not None and rest in ways:
            cell = f"{row['value']:.0f} ms, {row['ratio']:.1f} x"
            cells.setdefault(name, {"peer": f"{row['peer_value']:.0f} ms"})[rest] = cell
    lines = [
        "| 512 trajectories x 32 steps x 512 tokens | PyTorch | " + " | ".join(ways) + " |",
        "|---|---|" + "---|" * len(ways),
    ]
    for name, found in cells.items():
        row = [name, found["peer"], *(found.get(way, "") for way in ways)]
        lines.append("| " + " | ".join(row) + " |")
    return (
        "Time from a batch in the layout of the references to advantages and returns of every token, "
        "against plain PyTorch written as those trainers are "
        "([benchmarks/results/ops.json](benchmarks/results/ops.json)):\n\n"
        + "\n".join(lines)
        + f"\n\nMedians of one run on {record['hardware']}. *From strings*: names of trajectories, "
        "groups and observations become numbers on the host within the time. *Memory reused*: the "
        "results are written over the inputs; otherwise two new arrays of 33 MB are most of the time "
        "of step GAE, GRPO and GiGPO."
    )


def branches(results: Path) -> str:
    """What a branch costs at each depth, and what reuse, faults and refilled slots come to."""
    parts = []
    if (path := results / "branching.json").exists():
        parts.append(_branching(json.loads(path.read_text())))
    if (path := results / "rollout.json").exists():
        parts.append(_rollouts(json.loads(path.read_text())))
    return "\n\n".join(parts)


def _branching(record: dict) -> str:
    rows = {row["name"]: row for row in record["rows"]}
    forks = [n.removesuffix(": fork").split(", depth ") for n in rows if n.endswith(": fork")]
    models, depths = (list(dict.fromkeys(column)) for column in zip(*forks, strict=True))
    head = ["steps before"]
    for model in models:
        head += [f"{model}: fork", "replay", "ratio"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for depth in depths:
        cells = [depth]
        for model in models:
            name = f"{model}, depth {depth}"
            row = rows[f"{name}: fork"]
            for way, key in (("fork", "value"), ("replay", "peer_value")):
                read = rows[f"{name}: {way}, prefilled"]["value"]
                cells.append(f"{row[key]:.0f} ms, {read:.0f} read")
            cells.append(f"{row['ratio']:.1f} x")
        lines.append("| " + " | ".join(cells) + " |")
    worst = max(row["value"] for row in rows.values() if row["unit"] == "largest difference")
    turns = []
    for name, row in rows.items():
        if name.endswith("turns: prefilled"):
            time = rows[name.replace(": prefilled", ": time")]["ratio"]
            turns.append(
                f"{row['ratio']:.1f} times the tokens and take {time:.2f} times as long ({name[:-11]})"
            )
    return (
        "\n".join(lines) + f"\n\nMedians, both ways in turn, on {_machine(record)}: "
        "[results/branching.json](results/branching.json). "
        f"Log-probs of forks and of a full pass differ by {worst:.0e} at most. "
        "Where every turn reads its whole context again, eight turns read "
        + ", ".join(turns)
        + ".\n\n![Time of a branch against its depth](results/branching.png)"
    )


def _rollouts(record: dict) -> str:
    rows = record["rows"]
    lines = ["| tool calls | agent steps/s | of the healthy |", "|---|---|---|"]
    for row in rows:
        if row["name"].endswith(": agent steps"):
            ratio = "" if row["ratio"] is None else f"{100 * row['ratio']:.0f} %"
            lines.append(f"| {row['name'][:-13]} | {row['value']:.0f} | {ratio} |")
    of = lambda end: [row for row in rows if row["name"].endswith(end)]  # noqa: E731
    ratios = lambda end: " / ".join(f"{row['ratio']:.2f}" for row in of(end))  # noqa: E731
    slots = " / ".join(row["name"].split()[0] for row in of(": refilled"))
    checked = [row for row in rows if row["goal"] and not row["name"].endswith(": agent steps")]
    sound = "No task was lost, and every fault ended its own trajectory and changed no other. "
    start = "".join(
        f"A process that hung or crashed is started again, which takes {row['value']:.0f} ms: long beside "
        "a turn of this small model, little beside one of a large model. "
        for row in of(": start of one")
    )
    return (
        "\n".join(lines) + f"\n\nMedians on {_machine(record)}: "
        "[results/rollout.json](results/rollout.json). "
        + (sound if all(row["met"] for row in checked) else "")
        + start
        + f"Slots that take the next task at once, against batches that end together, with {slots} slots: "
        f"{ratios(': turns, refilled')} times fewer turns, {ratios(': refilled')} times the agent steps a "
        "second, which is the noisier number."
    )


def in_short(results: Path) -> str:
    """Branches on the main page: what one costs, what trees save, and what was learnt on them."""
    parts = []
    if (path := results / "branching.json").exists():
        rows = {row["name"]: row for row in json.loads(path.read_text())["rows"]}
        name = next(n for n in reversed(rows) if n.endswith("depth 64: fork"))
        row, model = rows[name], name.split(",")[0]
        read = rows[f"{name.removesuffix(': fork')}: replay, prefilled"]["value"]
        parts.append(
            f"A branch behind 64 steps ({model}): {row['value'] / 1000:.1f} s and one token read again; "
            f"with reset, replay and a new prefill {row['peer_value'] / 1000:.0f} s and {read:.0f} tokens, "
            f"{row['ratio']:.0f} x ([benchmarks/README.md](benchmarks/README.md)).\n\n"
            "![Time of a branch against its depth](benchmarks/results/branching.png)"
        )
    if (path := results / "trees.json").exists():
        of = {row["name"]: row["value"] for row in json.loads(path.read_text())["rows"]}
        saved = [
            f"{of[f'{case}, tree over rows apart, processor time']:.1f} x ({case})"
            for case in ("2 rows, 50% shared", "4 rows, 75% shared", "8 rows, 75% shared")
        ]
        parts.append(
            "An update of trees takes less processor time than one of separate rows: "
            + ", ".join(saved)
            + " ([benchmarks/results/trees.json](benchmarks/results/trees.json))."
        )
    if (path := results / "methods-branching.json").exists():
        rows = json.loads(path.read_text())["rows"]
        lines = [
            "| `multihop`, 60 iterations | success after RL | tokens sampled |",
            "|---|---|---|",
        ]
        tokens = {r["name"].split(":")[0]: r["value"] for r in rows if "tokens" in r["name"]}
        for row in rows:
            if ", sampled" in row["name"]:
                method = row["name"].split(":")[0]
                lines.append(f"| `{method}` | {_with_interval(row)} | {tokens[method]:.2f} M |")
        parts.append(
            "\n".join(lines) + "\n\nOne seed, one setting for all, same warm start.\n\n"
            "![Learning curves of the methods that branch](benchmarks/results/methods-branching.png)"
        )
    if found := _searched(results, "wiki_search-appo"):
        parts.append(
            "`configs/appo_wiki_search.yaml`, APPO on comparisons of HotpotQA whose answer is yes or no:"
            "\n\n" + found + "\n\n"
            "![Learning curves of APPO on HotpotQA](benchmarks/results/wiki_search-appo.png)"
        )
    if (path := results / "audit.json").exists():
        parts.append(_audit(json.loads(path.read_text())))
    return "\n\n".join(parts)


def _audit(record: dict) -> str:
    """How well estimates agree in rank with the enumerated truth, a column a checkpoint."""
    columns: dict[str, dict[str, str]] = {}
    for row in record["rows"]:
        when, _, name = row["name"].partition(": ")
        if row["unit"] == "rank correlation" and row["spread"] and "random" not in name:
            low, high = row["spread"]
            columns.setdefault(when, {})[name] = f"{row['value']:.2f} [{low:.2f}, {high:.2f}]"
    names = list(next(iter(columns.values())))
    names += [name for found in columns.values() for name in found if name not in names]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(names):
        cells = (found.get(name, "") for found in columns.values())
        shown = name.replace("|", "\\|")
        lines.append(f"| {shown} | " + " | ".join(cells) + " |")
    return (
        "What `steprl audit` finds on `multihop`: rank correlation with the values of the policy, which are "
        "enumerated (stake: variance of the value over the actions of a state), 95 % intervals over tasks, "
        "one seed ([benchmarks/results/audit.json](benchmarks/results/audit.json)).\n\n"
        + "\n".join(lines)
    )


def _machine(record: dict) -> str:
    load = f", of which others took their part (load {record['load']:.0f})"
    return record["hardware"] + (load if record["load"] > 2 else "")


PAGES = {
    "README.md": (
        ("search", search),
        ("results", table),
        ("methods", methods),
        ("branches", in_short),
        ("laboratory", page.in_short),
    ),
    "benchmarks/README.md": (
        ("branches", branches),
        ("algorithms", page.in_full),
        ("household", page.household),
        ("one program", page.one_program),
    ),
}


def filled(page: str, parts: tuple, results: Path) -> str:
    """A page with its measured parts replaced."""
    for name, part in parts:
        begin, end = BEGIN.format(name), END.format(name)
        head, rest = page.split(begin)
        page = f"{head}{begin}\n{part(results)}\n{end}{rest.split(end)[1]}"
    return page


def main() -> int:
    """Writes the pages, or says whether they are up to date."""
    stale = []
    for name, parts in PAGES.items():
        path = ROOT / name
        before = path.read_text()
        after = filled(before, parts, ROOT / "benchmarks" / "results")
        if before != after:
            stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(after)
    if "--check" not in sys.argv:
        return 0
    print(f"{', '.join(stale)}: run `python benchmarks/readme.py`" if stale else "up to date")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
