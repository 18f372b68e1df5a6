"""The results: scores of runs, their differences to the plain critic, table and picture."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record
from laboratory import design, jobs
from rich.console import Console
from rich.table import Table

from critic_study import runs, variants
from steprl.laboratory import (
    Estimate,
    area_under_curve,
    interquartile_mean,
    stratified_bootstrap,
)
from steprl.laboratory.pictures import plot_curves

Scores = dict[str, np.ndarray]
"""Name of a score -> [R] of each run."""

AREA, LAST, HELDOUT = "area", "last five", "held-out at the end"
EXPLAINED = "explained variance, late"
RANK = {when: f"rank correlation, {when}" for when in runs.LOOKS}
CEILING = {when: f"highest rank correlation, {when}" for when in runs.LOOKS}
TRUE = {when: f"explained variance of true values, {when}" for when in runs.LOOKS}
UNITS = dict.fromkeys((AREA, LAST, HELDOUT), "share")
COMPARED = (AREA, LAST, EXPLAINED, RANK["middle"], RANK["end"])
_WORST = -1.0  # an explained variance below says no more than that the critic is useless


class Found(NamedTuple):
    """Of a variant in a cell."""

    scores: Scores
    explained: tuple[list[np.ndarray], list[np.ndarray]]  # of each run: iterations, and its curve
    broken: int  # updates that were not finite
    seconds: float


def read(scale: variants.Scale, folder: Path) -> dict[str, dict[str, Found]]:
    """Cell -> variant -> what is finished so far."""
    found: dict[str, dict[str, Found]] = {}
    for cell, variant in variants.pairs(scale):
        path = runs.file_of(cell, variant, scale.seeds, folder)
        if path.exists():
            found.setdefault(cell, {})[variant] = _of_runs(cell, dict(np.load(path)))
    return found


def _of_runs(cell: str, table: Mapping[str, np.ndarray]) -> Found:
    budget = design.token_budget(cell)
    curves, live_RI = zip(*jobs.curves(table), strict=True), jobs.live(table)
    scores: Scores = {
        AREA: np.array([area_under_curve(x, y, budget) for x, y in curves]),
        LAST: np.array([y[live][-5:].mean() for y, live in zip(table["success"], live_RI, strict=True)]),
        HELDOUT: table["heldout"],
    }  # fmt: skip
    xs, ys = [], []
    if "rank_end" in table:
        for explained, live in zip(table["explained"], live_RI, strict=True):
            ys.append(np.clip(np.nan_to_num(explained[live], nan=_WORST), _WORST, 1.0))
            xs.append(np.arange(1.0, len(ys[-1]) + 1))
        scores[EXPLAINED] = np.array([y[len(y) // 2 :].mean() for y in ys])
        for when in runs.LOOKS:
            for names, key in ((RANK, "rank"), (CEILING, "ceiling"), (TRUE, "true_explained")):
                # A critic that says the same of every state ranks nothing.
                score = np.nan_to_num(table[f"{key}_{when}"], nan=0.0)
                scores[names[when]] = np.maximum(score, _WORST)
    broken = int(np.nansum(table["nonfinite"]))
    return Found(scores, (xs, ys), broken, float(table["seconds"][0]))


def interval(score: np.ndarray) -> Estimate:
    """Interquartile mean over runs."""
    return stratified_bootstrap(interquartile_mean, score[:, None], seed=0)


def difference(score: np.ndarray, plain: np.ndarray) -> Estimate:
    """Of the interquartile means."""
    return stratified_bootstrap(
        lambda x, y: interquartile_mean(x) - interquartile_mean(y),
        (score[:, None], plain[:, None]),
        seed=0,
    )


def rows(found: Mapping[str, Mapping[str, Found]]) -> list[dict[str, Any]]:
    """Rows of the result file: every score, and its difference to the plain critic."""
    table = []
    for cell, of_cell in found.items():
        plain = of_cell.get(variants.PLAIN)
        for variant, one in of_cell.items():
            for name, score in one.scores.items():
                unit = UNITS.get(name, "ratio")
                table.append(_row(f"{cell}: {variant}: {name}", interval(score), unit))
                if plain and variant != variants.PLAIN and name in COMPARED:
                    gap = difference(score, plain.scores[name])
                    table.append(_row(f"{cell}: {variant} less plain: {name}", gap, unit))
    return table


def _row(name: str, found: Estimate, unit: str) -> dict[str, Any]:
    return record.row(name, found.estimate, unit, [found.low, found.high])


def show(found: Mapping[str, Mapping[str, Found]]) -> None:
    """Prints a table a cell."""
    for cell, of_cell in found.items():
        title = f"{design.CELLS[cell].title}, {design.token_budget(cell):,} tokens"
        printed = Table(title=title, title_justify="left")
        for column in ("critic", *COMPARED, "area less plain"):
            printed.add_column(column)
        plain = of_cell.get(variants.PLAIN)
        for variant, one in of_cell.items():
            cells = [_text(interval(one.scores[x])) if x in one.scores else "" for x in COMPARED]
            gap = ""
            if plain and variant != variants.PLAIN:
                gap = _text(difference(one.scores[AREA], plain.scores[AREA]), "+.3f")
            printed.add_row(variants.VARIANTS[variant].title, *cells, gap)
        Console(width=170).print(printed)


def _text(found: Estimate, form: str = ".3f") -> str:
    return "{} [{}, {}]".format(*(format(x, form) for x in found))


def minutes(scale: variants.Scale, folder: Path, workers: int) -> float:
    """Minutes of all finished jobs, `workers` at a time, and of the warm starts."""
    seconds = 0.0
    for of_cell in read(scale, folder).values():
        seconds += sum(one.seconds for one in of_cell.values())
    for cell in scale.cells:
        report = folder / cell / "warm.json"
        seconds += json.loads(report.read_text())["seconds"] if report.exists() else 0.0
    return seconds / 60 / workers


def save(
    found: Mapping[str, Mapping[str, Found]], scale: variants.Scale, variant: str, folder: Path,
    workers: int,
) -> list[Path]:  # fmt: skip
    """The result file and its picture.

    Raises:
        ValueError: a run of the scale is missing.
    """
    missing = [f"{c} {v}" for c, v in variants.pairs(scale) if v not in found.get(c, {})]
    if missing:
        raise ValueError(
            f"--save: {folder} has no {', '.join(missing[:3])} ({len(missing)} missing); run without "
            "--report first"
        )
    path = record.save(
        "critics", rows(found), minutes(scale, folder, workers), variant,
        workers=workers, seeds=scale.seeds, learning_rate=variants.LR,
        clip_fraction=variants.CLIP, clip_fraction_of_grpo=variants.GRPO_CLIP,
        episodes=variants.ROWS, states=variants.STATES, continuations=variants.CONTINUATIONS,
        middle=variants.MIDDLE,
        variants={v: {"title": variants.VARIANTS[v].title,
                      "overrides": list(variants.VARIANTS[v].overrides)} for v in scale.variants},
        cells={c: design.CELLS[c]._asdict() | {"token_budget": design.token_budget(c)} for c in found},
        warm_start={c: json.loads((folder / c / "warm.json").read_text())["success"] for c in found},
        not_finite=sum(one.broken for of_cell in found.values() for one in of_cell.values()),
        scores={
            cell: {v: {name: [round(float(x), 4) for x in score] for name, score in one.scores.items()}
                   for v, one in of_cell.items()}
            for cell, of_cell in found.items()
        },
    )  # fmt: skip
    return [path, _picture(found, path.with_suffix(""))]


def _picture(found: Mapping[str, Mapping[str, Found]], stem: Path) -> Path:
    curves = {
        design.CELLS[cell].title: {
            variants.VARIANTS[v].title: one.explained for v, one in of_cell.items() if one.explained[0]
        }
        for cell, of_cell in found.items()
    }  # fmt: skip
    return plot_curves(
        curves, stem.with_name(f"{stem.name}-explained.png"), "Explained variance of the critic",
        x_label="iteration", y_label="explained variance", percent=False,
    )  # fmt: skip
