"""The results of the laboratory on the pages of the project, from their result files."""

import json
from pathlib import Path
from typing import Any

NAMES = {
    "steppo": "StepPO",
    "step_credit_token_ratio": "step credit, token ratio",
    "token_credit_step_ratio": "token credit, step ratio",
    "ppo": "PPO",
    "ppo_step_lambda": "PPO, λ a step",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "reinforce_pp": "REINFORCE++",
    "gspo": "GSPO",
    "gigpo": "GiGPO",
    "branpo": "BranPO",
    "appo": "APPO",
    "arpo": "ARPO",
}


def in_short(results: Path) -> str:
    """The main page: the picture, and all cells together."""
    record = _read(results, "algorithms")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    methods = sorted(
        (m for m in NAMES if f"all cells: {m}: area" in rows),
        key=lambda m: -rows[f"all cells: {m}: area"]["value"],
    )
    lines = [
        "| method | area under the learning curve | success at the end | StepPO is better |",
        "|---|---|---|---|",
    ]
    for method in methods:
        area, end = (_text(rows[f"all cells: {method}: {name}"]) for name in ("area", "end"))
        better = rows.get(f"P(steppo > {method}), area")
        lines.append(f"| {NAMES[method]} | {area} | {end} | {_text(better) if better else ''} |")
    complete = [
        cell["title"]
        for name, cell in record["cells"].items()
        if all(f"{name}: {method}: area" in rows for method in methods)
    ]
    return (
        "![Methods with their intervals](benchmarks/results/algorithms-intervals.png)\n\n"
        + _effects(record)
        + "\n\n"
        + "\n".join(lines)
        + f"\n\nInterquartile means over {record['seeds']} seeds in each of {len(complete)} games "
        f"({'; '.join(complete)}) with 95 % stratified bootstrap intervals; the last column is the "
        "probability that a run of StepPO has the larger area. Same warm start, same number of sampled "
        f"tokens, same tuning. {_minutes(record)} on {record['hardware']}: "
        "[benchmarks/README.md](benchmarks/README.md#which-credit-is-better)."
    )


def in_full(results: Path) -> str:
    """The page of the benchmarks: every cell, the halves of StepPO, settings."""
    record = _read(results, "algorithms")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    cells = record["cells"]
    head = "| area under the curve | " + " | ".join(c["title"] for c in cells.values()) + " |"
    lines = [head, "|---" * (len(cells) + 1) + "|"]
    lines.append(
        "| before (sampled) | " + " | ".join(f"{record['warm_start'][c]:.3f}" for c in cells) + " |"
    )
    for method, name in NAMES.items():
        cell_rows = [rows.get(f"{cell}: {method}: area") for cell in cells]
        if any(cell_rows):
            lines.append(
                f"| {name} | " + " | ".join(_text(row) if row else "" for row in cell_rows) + " |"
            )
    chosen = "; ".join(
        f"{NAMES[m]} {lr:g}, {100 * clip:g} %" for m, (lr, clip) in record["settings"].items()
    )
    return "\n\n".join(
        (
            "\n".join(lines),
            _effects(record),
            f"Learning rate and share of clipped tokens that the tuning chose: {chosen}. "
            "All runs, by seed, are in [results/algorithms.json](results/algorithms.json).",
            "![Learning curves](results/algorithms-curves.png)",
            "![Share of runs above each success](results/algorithms-profiles.png)",
            "![Effects by horizon and by length of an action](results/algorithms-effects.png)",
        )
    )


def _effects(record: dict[str, Any]) -> str:
    """What credit and ratio of steps add, a column a cell."""
    rows, cells = {row["name"]: row for row in record["rows"]}, record["cells"]
    lines = [
        "| what it adds to the area | " + " | ".join(c["title"] for c in cells.values()) + " |",
        "|---" * (len(cells) + 1) + "|",
    ]
    for effect in ("credit", "ratio"):
        cell_rows = [rows.get(f"{cell}: effect of {effect}: area") for cell in cells]
        columns = " | ".join(_signed(row) if row else "" for row in cell_rows)
        lines.append(f"| {effect} of steps, not tokens | {columns} |")
    return "\n".join(lines)


def one_program(results: Path) -> str:
    """Agent steps a second of the four ways to drive one training, and what seeds cost."""
    record = _read(results, "one_program")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    drivers = ("one program", "two programs", "a call a turn", "text environment")
    cells = list(dict.fromkeys(name.split(":")[0] for name in rows))
    lines = [
        "| one training, driven by | " + " | ".join(f"{cell}: steps/s" for cell in cells)
        + " | " + " | ".join(f"{cell}: gain of one program, clock and processor" for cell in cells)
        + " |",
        "|---" * (2 * len(cells) + 1) + "|",
    ]  # fmt: skip
    for driver in drivers:
        rates = [f"{rows[f'{cell}: {driver}']['value']:.0f}" for cell in cells]
        gains = [
            " x, ".join(
                f"{rows[name]['value']:.1f}"
                for kind in ("wall", "processor")
                if (name := f"{cell}: one program over {driver}, {kind}") in rows
            )
            for cell in cells
        ]
        gains = [gain and f"{gain} x" for gain in gains]
        lines.append("| " + " | ".join((driver, *rates, *gains)) + " |")
    seeds = "; ".join(
        "{}: {:.1f} x side by side (`vmap`), {:.1f} x one after another (`lax.map`)".format(
            cell,
            *(
                rows[f"{cell}: 8 seeds {how} over 1 seed, wall"]["value"]
                for how in ("side by side", "one after another")
            ),
        )
        for cell in cells
    )
    return (
        "\n".join(lines)
        + f"\n\nMedians of rounds in turn on {record['hardware']}, {record['minutes']:.0f} minutes, each "
        "program in one thread; the attempts of the first iteration are the same, token by token, in all "
        f"four. 8 seeds in one program cost, over one seed: {seeds}. All numbers: "
        "[results/one_program.json](results/one_program.json)."
    )


def household(results: Path) -> str:
    """The same question one size up, on the host."""
    record = _read(results, "household-methods")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    lines = [
        "| method | success at the end | area under the curve | tokens sampled | iterations |",
        "|---|---|---|---|---|",
    ]
    for method, name in NAMES.items():
        if f"{method}: success at the end" not in rows:
            continue
        end, area = (
            _text(rows[f"{method}: {x}"]) for x in ("success at the end", "area under the curve")
        )
        tokens, count = (rows[f"{method}: {x}"]["value"] for x in ("tokens sampled", "iterations"))
        lines.append(f"| {name} | {end} | {area} | {tokens:.0f} k | {count:.0f} |")
    before = rows["success of the warm start"]["value"]
    return (
        "\n".join(lines)
        + f"\n\n`household` in small generated rooms, success in rooms that training has not, {before:.3f} "
        f"before RL; interquartile means over {record['seeds']} seeds, whose 95 % intervals are too "
        f"narrow for so few. {record['minutes']:.0f} minutes on {record['hardware']}: "
        "[results/household-methods.json](results/household-methods.json).\n\n"
        "![Learning curves on household](results/household-methods.png)"
    )


def _minutes(record: dict[str, Any]) -> str:
    more = record.get("minutes_of_effects", 0)
    extra = f" (and {more:.0f} for the longest games, of StepPO and its halves)" if more else ""
    jobs = f", {record['workers']} jobs at a time" if "workers" in record else ""
    return f"{record['minutes']:.0f} minutes{extra}{jobs}"


def _read(results: Path, name: str) -> dict[str, Any] | None:
    path = results / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def _text(row: dict[str, Any]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(row["value"], *row["spread"])


def _signed(row: dict[str, Any]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(row["value"], *row["spread"])
