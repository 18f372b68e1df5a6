"""The results: scores of runs, their intervals, table, pictures and result file."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record
from rich.console import Console
from rich.table import Table

from laboratory import design, jobs
from laboratory.names import NAMES
from steprl.laboratory import (
    Estimate,
    area_under_curve,
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
    stratified_bootstrap,
)
from steprl.laboratory.pictures import plot_curves, plot_effects, plot_intervals, plot_profiles

RESULT = record.RESULTS / "algorithms.json"


class Runs(NamedTuple):
    """Of a method in a cell, [R] each."""

    end: np.ndarray  # held-out success when the tokens are spent
    area: np.ndarray  # mean height of the learning curve until then
    curves: tuple[list[np.ndarray], list[np.ndarray]]
    clipped: float  # share of the tokens, mean
    clip: float  # of the ratio, mean over the second half
    broken: int  # updates that were not finite


Found = Mapping[str, Mapping[str, Runs]]
"""Cell -> method -> runs."""


def read(scale: design.Scale, methods: Sequence[str], folder: Path) -> Found:
    """The runs that are finished so far."""
    size = min(scale.seeds, design.LANES)
    runs: dict[str, dict[str, Runs]] = {}
    for cell in design.CELLS:
        for method in methods:
            files = [
                folder / cell / f"{method}.{first}-{size}.npz"
                for first in range(0, scale.seeds, design.LANES)
            ]
            if all(file.exists() for file in files):
                parts = [dict(np.load(file)) for file in files]
                runs.setdefault(cell, {})[method] = _runs(cell, parts)
    return runs


def _runs(cell: str, parts: Sequence[Mapping[str, np.ndarray]]) -> Runs:
    budget = design.token_budget(cell)
    xs, ys = [], []
    for part in parts:
        for x, y in zip(*jobs.curves(part), strict=True):
            xs.append(x)
            ys.append(y)
    area = np.array([area_under_curve(x, y, budget) for x, y in zip(xs, ys, strict=True)])
    # Nothing was measured while a run stood still.
    join = lambda name: np.concatenate(  # noqa: E731
        [part[name][jobs.live(part)] for part in parts]
    )
    first = parts[0]
    late = jobs.live(first) & (
        2 * np.cumsum(jobs.live(first), axis=1) > jobs.live(first).sum(1, keepdims=True)
    )
    return Runs(
        np.concatenate([part["heldout"] for part in parts]), area, (xs, ys),
        float(join("clip_fraction").mean()), float(first["clip_ratio"][late].mean()),
        int(join("nonfinite").sum()),
    )  # fmt: skip


def table(found: Found) -> list[dict[str, Any]]:
    """Rows of the result file."""
    rows = []
    for cell, of_cell in found.items():
        for method, runs in of_cell.items():
            for name, scores in (("end", runs.end), ("area", runs.area)):
                rows.append(_row(f"{cell}: {method}: {name}", _iqm(scores[:, None])))
    for method, columns in overall(found).items():
        rows += [_row(f"all cells: {method}: {name}", x) for name, x in columns.items()]
    for (better, worse), interval in improvements(found).items():
        rows.append(_row(f"P({better} > {worse}), area", interval))
    for effect, by_cell in effects(found).items():
        rows += [_row(f"{cell}: effect of {effect}: area", x) for cell, x in by_cell.items()]
    return rows


def _row(name: str, interval: Estimate) -> dict[str, Any]:
    return record.row(name, interval.estimate, "share", [interval.low, interval.high])


def _iqm(scores_rs: np.ndarray) -> Estimate:
    return stratified_bootstrap(interquartile_mean, scores_rs, seed=0)


def _complete(found: Found) -> tuple[list[str], list[str]]:
    """The cells and methods whose runs are complete: these are compared over cells."""
    methods = [m for m in design.METHODS if any(m in of_cell for of_cell in found.values())]
    cells = [cell for cell, of_cell in found.items() if all(m in of_cell for m in methods)]
    return cells, methods


def scores(found: Found, method: str, cells: Sequence[str], name: str) -> np.ndarray:
    """[R, S]"""
    return np.stack([getattr(found[cell][method], name) for cell in cells], axis=1)


def overall(found: Found) -> dict[str, dict[str, Estimate]]:
    """Method -> end and area over all cells."""
    cells, methods = _complete(found)
    if not cells:
        return {}
    return {
        method: {name: _iqm(scores(found, method, cells, name)) for name in ("end", "area")}
        for method in methods
    }


def improvements(found: Found) -> dict[tuple[str, str], Estimate]:
    """How likely a run of StepPO has a larger area than one of another method."""
    cells, methods = _complete(found)
    if not cells or "steppo" not in methods:
        return {}
    steppo = scores(found, "steppo", cells, "area")
    return {
        ("steppo", other): stratified_bootstrap(
            probability_of_improvement, (steppo, scores(found, other, cells, "area")), seed=0
        )
        for other in methods
        if other != "steppo"
    }


def effects(found: Found) -> dict[str, dict[str, Estimate]]:
    """What each half of StepPO does to the area, in each cell: credit of steps in place of tokens,
    and ratios of steps in place of tokens; each the mean over both choices of the other half."""

    def credit(ss: Any, st: Any, ts: Any, tt: Any) -> Any:
        return (_mean(ss) - _mean(ts) + _mean(st) - _mean(tt)) / 2

    def ratio(ss: Any, st: Any, ts: Any, tt: Any) -> Any:
        return (_mean(ss) - _mean(st) + _mean(ts) - _mean(tt)) / 2

    kinds: dict[str, Callable[..., Any]] = {"credit": credit, "ratio": ratio}
    cells = [cell for cell, runs in found.items() if all(m in runs for m in design.ABLATION)]
    return {
        name: {
            cell: stratified_bootstrap(
                kind, tuple(found[cell][m].area[:, None] for m in design.ABLATION), seed=0
            )
            for cell in cells
        }
        for name, kind in kinds.items()
    }


def _mean(x_brs: np.ndarray) -> np.ndarray:
    return np.mean(x_brs, axis=(-2, -1))


def show(found: Found, quick: bool = False) -> None:
    """Prints a table a cell; a quick run beside the committed numbers."""
    committed_rows = (
        {row["name"]: row for row in _committed()["rows"]} if quick and RESULT.exists() else {}
    )
    for cell, of_cell in found.items():
        title = f"{design.CELLS[cell].title}, {design.token_budget(cell):,} tokens"
        printed = Table(title=title, title_justify="left")
        columns = ("method", "success at the end", "area", "clipped", "clip")
        for column in (*columns, *(("committed area", "agree") if committed_rows else ())):
            printed.add_column(column)
        for method, runs in sorted(
            of_cell.items(), key=lambda one: -interquartile_mean(one[1].area[:, None])
        ):
            area = _iqm(runs.area[:, None])
            cells = [
                NAMES[method], _text(_iqm(runs.end[:, None])), _text(area), f"{runs.clipped:.3f}",
                f"{runs.clip:.3f}",
            ]  # fmt: skip
            row = committed_rows.get(f"{cell}: {method}: area")
            if row:
                low, high = row["spread"]
                agree = area.low <= high and low <= area.high
                cells += [_text(Estimate(row["value"], low, high)), "yes" if agree else "NO"]
            printed.add_row(*cells)
        Console(width=120).print(printed)


def _text(interval: Estimate) -> str:
    return f"{interval.estimate:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def committed(method: str) -> design.Point:
    """The point that the tuning of the committed table chose.

    Raises:
        FileNotFoundError: there is none.
    """
    return design.Point(*map(float, _committed()["settings"][method]))


def _committed() -> dict[str, Any]:
    if not RESULT.exists():
        raise FileNotFoundError(
            f"{RESULT.name}: a quick run takes its settings from the committed table; run without --quick"
        )
    committed_record: dict[str, Any] = json.loads(RESULT.read_text())
    return committed_record


def minutes(folder: Path, scale: str, workers: int) -> float:
    """Minutes of all finished jobs of a scale, `workers` at a time, whichever call ran them."""
    settings, size = design.SCALES[scale], min(design.SCALES[scale].seeds, design.LANES)
    files = [
        folder / cell / f"{method}.{first}-{size}.npz"
        for cell in settings.cells
        for method in settings.methods
        for first in range(0, settings.seeds, design.LANES)
    ]
    if settings.tune and scale != "effects":
        files += [folder / design.TUNED_ON / f"{method}.tuning.npz" for method in settings.methods]
    seconds = sum(float(np.load(file)["seconds"][0]) for file in files if file.exists())
    for cell in settings.cells:
        report = folder / cell / "warm.json"
        seconds += json.loads(report.read_text())["seconds"] if report.exists() else 0.0
    return seconds / 60 / workers


def save(
    found: Found, rows: Sequence[Mapping[str, Any]], scale: str, folder: Path, workers: int
) -> list[Path]:
    """The result file and its pictures; the longest cells are added to those of the table.

    Raises:
        ValueError: of the standard table something is missing, which would be lost by it.
    """
    table = "standard" if scale == "effects" else scale
    missing = [
        f"{cell} {method}"
        for cell in design.SCALES[table].cells
        for method in design.METHODS
        if method not in found.get(cell, {})
    ]
    if table == "standard" and missing:
        raise ValueError(
            f"--save: {folder} has no {', '.join(missing[:3])} ({len(missing)} missing); run without "
            "--cells, --methods and --effects first"
        )
    methods = [m for m in design.METHODS if any(m in of_cell for of_cell in found.values())]
    path = record.save(
        "algorithms", rows, minutes(folder, table, workers), "" if table == "standard" else table,
        minutes_of_effects=round(minutes(folder, "effects", workers), 2),
        workers=workers,
        seeds=design.SCALES[table].seeds,
        tuning_seeds=design.TUNING_SEEDS,
        grid={m: [list(point) for point in design.grid_of(m)] for m in methods},
        critic=list(design.CRITIC),
        settings={m: list(jobs.best(m, folder)) for m in methods} if design.SCALES[table].tune else
        {m: list(committed(m)) for m in methods},
        cells={c: design.CELLS[c]._asdict() | {"token_budget": design.token_budget(c)} for c in found},
        warm_start={
            cell: json.loads((folder / cell / "warm.json").read_text())["success"] for cell in found
        },
        clip={c: {m: round(r.clip, 4) for m, r in runs.items()} for c, runs in found.items()},
        clipped={c: {m: round(r.clipped, 4) for m, r in runs.items()} for c, runs in found.items()},
        not_finite=sum(r.broken for runs in found.values() for r in runs.values()),
        scores={
            cell: {
                m: {"end": _rounded(r.end), "area": _rounded(r.area)} for m, r in of_cell.items()
            }
            for cell, of_cell in found.items()
        },
    )  # fmt: skip
    return [path, *_pictures(found, path.with_suffix(""))]


def _rounded(x: np.ndarray) -> list[float]:
    return [round(float(one), 4) for one in x]


# Methods of no library, by the credit that they give.
_FAMILIES = {
    NAMES["step_credit_token_ratio"]: "step credit",
    NAMES["token_credit_step_ratio"]: "token credit",
    NAMES["ppo_step_lambda"]: "token credit",
}


def _pictures(found: Found, stem: Path) -> list[Path]:
    named = lambda name: stem.with_name(f"{stem.name}-{name}.png")  # noqa: E731
    cells, methods = _complete(found)
    titles = {cell: design.CELLS[cell].title for cell in found}
    paths = [
        plot_curves(
            {titles[c]: {NAMES[m]: r.curves for m, r in runs.items()} for c, runs in found.items()},
            named("curves"), "Success while learning", x_label="tokens sampled", families=_FAMILIES,
        )
    ]  # fmt: skip
    if cells:
        names = {"end": "success at the end", "area": "area under the curve"}
        table = {
            NAMES[method]: {names[name]: interval for name, interval in columns.items()}
            for method, columns in overall(found).items()
        }
        seeds = len(next(iter(found[cells[0]].values())).end)
        paths.append(
            plot_intervals(
                table, named("intervals"),
                f"Methods of credit, {len(cells)} games x {seeds} seeds, 95 % intervals",
                families=_FAMILIES,
            )
        )  # fmt: skip
        levels = np.linspace(0, 1, 51)
        profiles = {
            NAMES[m]: performance_profile(scores(found, m, cells, "end"), levels) for m in methods
        }
        paths.append(
            plot_profiles(
                profiles, named("profiles"), "Success at the end of all runs", families=_FAMILIES
            )
        )
    panels = {}
    for panel, order, size in (
        ("by steps of an episode", design.BY_HORIZON, lambda cell: cell.horizon),
        ("by tokens of an action", design.BY_TOKENS, lambda cell: cell.tokens),
    ):
        effect_lines = {
            f"{name} of steps": {
                size(design.CELLS[cell]): by_cell[cell] for cell in order if cell in by_cell
            }
            for name, by_cell in effects(found).items()
        }
        if all(len(points) > 1 for points in effect_lines.values()):
            panels[panel] = effect_lines
    if panels:
        paths.append(
            plot_effects(
                panels, named("effects"), "What steps in place of tokens do", x_label="",
                y_label="difference in area under the curve",
            )
        )  # fmt: skip
    return paths
