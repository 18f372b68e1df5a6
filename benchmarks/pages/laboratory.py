"""Which credit is better: the laboratory, `household` one size up, and what one program gains."""

from pathlib import Path
from typing import Any

from laboratory.names import NAMES

from pages.cells import file, interval, read, table


def in_short(results: Path, link: str) -> str:
    """The picture, the effects, and all games together."""
    record = read(results, "algorithms")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    methods = sorted(
        (m for m in NAMES if f"all cells: {m}: area" in rows),
        key=lambda m: -rows[f"all cells: {m}: area"]["value"],
    )
    lines = []
    for method in methods:
        area, end = (interval(rows[f"all cells: {method}: {name}"]) for name in ("area", "end"))
        lines.append((NAMES[method], area, end, interval(rows.get(f"P(steppo > {method}), area"))))
    complete = [
        cell["title"]
        for name, cell in record["cells"].items()
        if all(f"{name}: {method}: area" in rows for method in methods)
    ]
    head = ("method", "area under the learning curve", "success at the end", "StepPO is better")
    return (
        f"![Methods with their intervals]({link}/algorithms-intervals.png)\n\n"
        + _effects(record)
        + "\n\n"
        + table(head, lines)
        + f"\n\nInterquartile means over {record['seeds']} seeds in each of {len(complete)} games "
        f"({'; '.join(complete)}) with 95 % stratified bootstrap intervals; the last column is the "
        "probability that a run of StepPO has the larger area. All methods have the same warm start, the "
        f"same number of sampled tokens and the same tuning. {_minutes(record)} on {record['hardware']}."
    )


def in_full(results: Path, link: str) -> str:
    """Every method in every game, and the settings that the tuning chose."""
    record = read(results, "algorithms")
    if record is None:
        return ""
    rows, cells = {row["name"]: row for row in record["rows"]}, record["cells"]
    lines = [("before (sampled)", *(f"{record['warm_start'][cell]:.3f}" for cell in cells))]
    for method, name in NAMES.items():
        found = [rows.get(f"{cell}: {method}: area") for cell in cells]
        if any(found):
            lines.append((name, *(interval(row) for row in found)))
    chosen = "; ".join(f"{NAMES[m]} {_chosen(*point)}" for m, point in record["settings"].items())
    return "\n\n".join(
        (
            table(("area under the curve", *(cell["title"] for cell in cells.values())), lines),
            f"Learning rate and share of clipped tokens that the tuning chose: {chosen}. "
            f"All runs, by seed, are in {file(link, 'algorithms.json')}.",
            f"![Learning curves]({link}/algorithms-curves.png)",
            f"![Share of runs above each success]({link}/algorithms-profiles.png)",
            f"![Effects by horizon and by length of an action]({link}/algorithms-effects.png)",
        )
    )


def household(results: Path, link: str) -> str:
    """The same question one size up, on the host."""
    record = read(results, "household-methods")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    lines = []
    for method, name in NAMES.items():
        if f"{method}: success at the end" not in rows:
            continue
        end, area = (
            interval(rows[f"{method}: {x}"]) for x in ("success at the end", "area under the curve")
        )
        tokens, count = (rows[f"{method}: {x}"]["value"] for x in ("tokens sampled", "iterations"))
        lines.append((name, end, area, f"{tokens:.0f} k", f"{count:.0f}"))
    before = rows["success of the warm start"]["value"]
    head = ("method", "success at the end", "area under the curve", "tokens sampled", "iterations")
    return (
        table(head, lines)
        + f"\n\n`household` in small generated rooms, success in rooms not seen in training, {before:.3f} "
        f"before RL; interquartile means over {record['seeds']} seeds, whose 95 % intervals are too "
        f"narrow for so few. {record['minutes']:.0f} minutes on {record['hardware']}: "
        f"{file(link, 'household-methods.json')}.\n\n"
        f"![Learning curves on household]({link}/household-methods.png)"
    )


def one_program(results: Path, link: str) -> str:
    """Agent steps a second of the four ways to drive one training, and what seeds cost."""
    record = read(results, "one_program")
    if record is None:
        return ""
    rows = {row["name"]: row for row in record["rows"]}
    ways = ("one program", "two programs", "a call a turn", "text environment")
    cells = list(dict.fromkeys(name.split(":")[0] for name in rows))
    head = (
        "one training, driven by",
        *(f"{cell}: steps/s" for cell in cells),
        *(f"{cell}: gain of one program, clock and processor" for cell in cells),
    )
    lines = []
    for way in ways:
        rates = [f"{rows[f'{cell}: {way}']['value']:.0f}" for cell in cells]
        gains = [
            " x, ".join(
                f"{rows[name]['value']:.1f}"
                for kind in ("wall", "processor")
                if (name := f"{cell}: one program over {way}, {kind}") in rows
            )
            for cell in cells
        ]
        lines.append((way, *rates, *(gain and f"{gain} x" for gain in gains)))
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
        table(head, lines)
        + f"\n\nMedians of rounds in turn on {record['hardware']}, {record['minutes']:.0f} minutes, each "
        "program in one thread; the attempts of the first iteration are the same, token by token, in all "
        f"four. 8 seeds in one program cost, over one seed: {seeds}. All numbers: "
        f"{file(link, 'one_program.json')}."
    )


def _effects(record: dict[str, Any]) -> str:
    """What credit and ratio of steps add, a column a game."""
    rows, cells = {row["name"]: row for row in record["rows"]}, record["cells"]
    lines = [
        (
            f"{effect} of steps, not tokens",
            *(interval(rows.get(f"{cell}: effect of {effect}: area"), "+.3f") for cell in cells),
        )
        for effect in ("credit", "ratio")
    ]
    return table(("what it adds to the area", *(cell["title"] for cell in cells.values())), lines)


def _chosen(lr: float, clip: float, critic: float = 1.0, decay: float = 0.4) -> str:
    """A point of the grid; what a method without a critic does not see is as by default."""
    text = f"{lr:g}, {100 * clip:g} %"
    if (critic, decay) != (1.0, 0.4):
        text += f", critic x {critic:g}, λ = 1 - {decay:g} / horizon"
    return text


def _minutes(record: dict[str, Any]) -> str:
    more = record.get("minutes_of_effects", 0)
    extra = f" (and {more:.0f} for the longest games, of fewer methods)" if more else ""
    jobs = f", {record['workers']} jobs at a time" if "workers" in record else ""
    return f"{record['minutes']:.0f} minutes{extra}{jobs}"
