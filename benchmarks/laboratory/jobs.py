"""One job: all runs of a method in a cell, batched in one program; its results go to a file."""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from laboratory import design
from steprl.laboratory import Program, area_under_curve, make_program

WARM_KEY, TUNING_KEY, TABLE_KEY, PANEL_KEY = 0, 1, 2, 3


def warm_start(cell: str, folder: Path) -> Any:
    """The parameters that all runs of a cell begin with, made once."""
    path = folder / cell / "warm.npz"
    program = _program(cell, "ppo")
    shapes = jax.eval_shape(program.policy.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    if path.exists():
        saved = np.load(path)
        return jax.tree.unflatten(tree, [saved[f"leaf_{i}"] for i in range(len(leaves))])
    begin = time.perf_counter()
    params, metrics = jax.jit(program.warm_start)(jax.random.key(WARM_KEY))
    arrays = {f"leaf_{i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(params))}
    success = _evaluate(cell, "ppo")(jax.tree.map(lambda x: x[None], params))
    report = {
        "success": float(np.mean(success)),
        "demonstrations_solved": float(np.mean(metrics["sft/demonstrations_solved"])),
        "seconds": time.perf_counter() - begin,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / cell / "warm.json").write_text(json.dumps(report))
    write(path, arrays)
    return jax.device_get(params)


def _first_params(cell: str, method: str, folder: Path) -> Any:
    """Those of the warm start; a method without a critic has no part for one."""
    shapes = jax.eval_shape(_program(cell, method).policy.init, jax.random.key(0))
    params = warm_start(cell, folder)
    return {name: params[name] for name in shapes}


def tune(method: str, folder: Path) -> None:
    """Every point of the grid on seeds of its own; keeps area and end of each curve."""
    grid = design.grid_of(method)
    points = [point for point in grid for _ in range(design.TUNING_SEEDS)]
    seed = np.tile(np.arange(design.TUNING_SEEDS), len(grid))
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(TUNING_KEY), s))(seed)
    budget = design.token_budget(design.TUNED_ON)
    areas, ends, seconds = [], [], 0.0
    # As many at once as in the table, so that it is the same program.
    for first in range(0, len(points), design.LANES):
        part = slice(first, first + design.LANES)
        metrics = _runs(design.TUNED_ON, method, keys[part], points[part], folder)
        areas += [area_under_curve(x, y, budget) for x, y in zip(*curves(metrics), strict=True)]
        ends += metrics["heldout"].tolist()
        seconds += metrics["seconds"][0]
    results = {"points": np.array(points), "area": np.array(areas), "heldout": np.array(ends)}
    path = folder / design.TUNED_ON / f"{method}.tuning.npz"
    write(path, results | {"seconds": np.array([seconds])})


def best(method: str, folder: Path) -> design.Point:
    """The point that the tuning chose.

    The gentlest one whose mean area is within a standard error of the best one's: what is better by
    chance is not chosen, and a second tuning seldom chooses otherwise. StepPO, its halves and PPO share
    one point, of all their runs together, so that they differ in credit and ratio alone.

    Raises:
        ValueError: a method was tuned over other points than these.
    """
    group = design.TUNED_TOGETHER if method in design.TUNED_TOGETHER else (method,)
    grid = design.grid_of(method)
    areas = []
    for member in group:
        saved = np.load(folder / design.TUNED_ON / f"{member}.tuning.npz")
        if "points" not in saved or not np.array_equal(
            saved["points"], np.repeat(grid, design.TUNING_SEEDS, axis=0)
        ):
            raise ValueError(
                f"{folder} has a tuning of {member} over another grid: start over with --fresh"
            )
        areas.append(saved["area"].reshape(len(grid), -1))
    area = np.concatenate(areas, axis=1)
    mean = area.mean(axis=1)
    top = int(np.argmax(mean))
    threshold = mean[top] - area[top].std(ddof=1) / np.sqrt(area.shape[1])
    return grid[int(np.argmax(mean >= threshold))]


def run(cell: str, method: str, first: int, seeds: int, chosen: design.Point, folder: Path) -> None:
    """Seeds first .. first + seeds - 1 at the chosen point."""
    point = chosen._replace(lr=chosen.lr / design.CELLS[cell].slower)
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(TABLE_KEY), s))(
        first + np.arange(seeds)
    )
    metrics = _runs(cell, method, keys, [point] * seeds, folder)
    write(folder / cell / f"{method}.{first}-{seeds}.npz", metrics | {"point": np.array(point)})


def curves(found: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of each run: tokens sampled before each iteration, and the success in it; the last point is
    the held-out success at the end."""
    xs, ys = [], []
    for tokens, success, end, live_k in zip(
        found["tokens"], found["success"], found["heldout"], live(found), strict=True
    ):
        xs.append(np.concatenate([[0.0], tokens[live_k]]))
        ys.append(np.concatenate([success[live_k], [end]]))
    return xs, ys


def live(found: Any) -> np.ndarray:
    """[runs, iterations] the run had tokens left."""
    return np.diff(found["tokens"], prepend=0.0, axis=1) > 0


def _runs(
    cell: str, method: str, keys: Any, points: Sequence[design.Point], folder: Path
) -> dict[str, np.ndarray]:
    """Runs side by side until each has spent its tokens."""
    params = _first_params(cell, method, folder)
    begin, advance = _compiled(cell, method)
    settings = design.settings_of(points, cell, method)
    budget = design.token_budget(cell)
    start = time.perf_counter()
    state = begin(params, settings)
    parts: list[dict[str, np.ndarray]] = []
    while not parts or parts[-1]["tokens"][:, -1].min() < budget:
        state, metrics = advance(state, keys, settings)
        parts.append(jax.device_get(metrics))
        if len(parts) == 1:
            first_call = time.perf_counter() - start
    found = {name: np.concatenate([p[name] for p in parts], axis=1) for name in parts[0]}
    success = _evaluate(cell, method)(state.params)
    found["heldout"] = np.mean(success, axis=1)
    found["seconds"] = np.array([time.perf_counter() - start, first_call])
    return found


KEPT = {
    "tokens": "token/total", "success": "rollout/success_rate", "clip_fraction": "actor/pg_clipfrac",
    "clip_ratio": "actor/clip_ratio", "entropy": "actor/entropy", "steps": "step/count",
    "nonfinite": "train/nonfinite", "branches": "branch/count",
}  # fmt: skip


@functools.lru_cache(maxsize=4)
def _program(cell: str, method: str) -> Program:
    return make_program(design.config_of(cell, method), design.METHODS[method].algorithm)


@functools.lru_cache(maxsize=1)
def _compiled(cell: str, method: str) -> Any:
    program = _program(cell, method)

    def advance(state: Any, key: jax.Array, settings: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            state, metrics = program.iterate(state, key, settings)
            return state, {name: metrics[key] for name, key in KEPT.items()}

        return jax.lax.scan(step, state, length=design.CHUNK)

    begin = jax.jit(jax.vmap(program.begin, in_axes=(None, 0)))

    each = mapped(lambda one: advance(*one))
    return begin, jax.jit(lambda *all_runs: each(all_runs), donate_argnums=0)


def mapped(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Over runs: one after the other on a CPU, so that what each works on stays in its cache."""
    if jax.default_backend() == "cpu":
        return functools.partial(jax.lax.map, function)
    return jax.vmap(function)


@functools.lru_cache(maxsize=2)
def _evaluate(cell: str, method: str) -> Any:
    """Success of each held-out episode of each run."""
    program = _program(cell, method)
    key = jax.random.key(PANEL_KEY)
    return jax.jit(mapped(lambda params: program.evaluate(params, key, design.HELDOUT)))


def write(path: Path, arrays: dict[str, Any]) -> None:
    """Whole or not at all, so that a run that was cut is done again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.replace(path)
