"""One job: all runs of a method in a cell, batched in one program; its results go to a file."""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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
    success = _evaluate(cell)(jax.tree.map(lambda x: x[None], params))
    report = {
        "success": float(np.mean(success)),
        "demonstrations_solved": float(np.mean(metrics["sft/demonstrations_solved"])),
        "seconds": time.perf_counter() - begin,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    (folder / cell / "warm.json").write_text(json.dumps(report))
    write(path, arrays)
    return jax.device_get(params)


def tune(method: str, folder: Path) -> None:
    """Every pair of the grid on seeds of its own; keeps area and end of each curve."""
    lr, clip = (np.repeat(x, design.TUNING_SEEDS) for x in zip(*design.GRID, strict=True))
    seed = np.tile(np.arange(design.TUNING_SEEDS), len(design.GRID))
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(TUNING_KEY), s))(seed)
    budget = design.token_budget(design.TUNED_ON)
    areas, ends, seconds = [], [], 0.0
    # As many at once as in the table, so that it is the same program.
    for first in range(0, len(lr), design.LANES):
        part = slice(first, first + design.LANES)
        metrics = _runs(design.TUNED_ON, method, keys[part], lr[part], clip[part], folder)
        areas += [area_under_curve(x, y, budget) for x, y in zip(*curves(metrics), strict=True)]
        ends += metrics["heldout"].tolist()
        seconds += metrics["seconds"][0]
    results = {"lr": lr, "clip": clip, "area": np.array(areas), "heldout": np.array(ends)}
    path = folder / design.TUNED_ON / f"{method}.tuning.npz"
    write(path, results | {"seconds": np.array([seconds])})


def best(method: str, folder: Path) -> tuple[float, float]:
    """Learning rate and clip fraction that the tuning chose.

    The gentlest pair whose mean area is within a standard error of the best one's: what is better by
    chance is not chosen, and a second tuning seldom chooses otherwise. StepPO, its halves and PPO share
    one pair, of all their runs together, so that they differ in credit and ratio alone.
    """
    group = design.TUNED_TOGETHER if method in design.TUNED_TOGETHER else (method,)
    files = [folder / design.TUNED_ON / f"{member}.tuning.npz" for member in group]
    area = np.concatenate(
        [np.load(file)["area"].reshape(len(design.GRID), -1) for file in files], axis=1
    )
    mean = area.mean(axis=1)
    top = int(np.argmax(mean))
    threshold = mean[top] - area[top].std(ddof=1) / np.sqrt(area.shape[1])
    return design.GRID[int(np.argmax(mean >= threshold))]


def run(
    cell: str, method: str, first: int, seeds: int, chosen: tuple[float, float], folder: Path
) -> None:
    """Seeds first .. first + seeds - 1 with the chosen learning rate and clip fraction."""
    lr, clip = (np.full(seeds, x) for x in chosen)
    lr = lr / design.CELLS[cell].slower
    keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.key(TABLE_KEY), s))(
        first + np.arange(seeds)
    )
    metrics = _runs(cell, method, keys, lr, clip, folder)
    write(folder / cell / f"{method}.{first}-{seeds}.npz", metrics | {"lr": lr, "clip": clip})


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
    cell: str, method: str, keys: Any, lr: Any, clip: Any, folder: Path
) -> dict[str, np.ndarray]:
    """Runs side by side until each has spent its tokens."""
    params = warm_start(cell, folder)
    begin, advance = _compiled(cell, method)
    settings = design.settings_of(
        jnp.asarray(lr, jnp.float32), jnp.asarray(clip, jnp.float32), cell
    )
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
    success = _evaluate(cell)(state.params)
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

    axes = {"actor.lr": 0, "critic.lr": 0, "clip_fraction": 0, "token_budget": 0}
    begin = jax.jit(jax.vmap(program.begin, in_axes=(None, axes)))

    each = mapped(lambda one: advance(*one))
    return begin, jax.jit(lambda *all_runs: each(all_runs), donate_argnums=0)


def mapped(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Over runs: one after the other on a CPU, so that what each works on stays in its cache."""
    if jax.default_backend() == "cpu":
        return functools.partial(jax.lax.map, function)
    return jax.vmap(function)


@functools.lru_cache(maxsize=2)
def _evaluate(cell: str) -> Any:
    """Success of each held-out episode of each run."""
    program = _program(cell, "ppo")
    key = jax.random.key(PANEL_KEY)
    return jax.jit(mapped(lambda params: program.evaluate(params, key, design.HELDOUT)))


def write(path: Path, arrays: dict[str, Any]) -> None:
    """Whole or not at all, so that a run that was cut is done again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part.npz")
    np.savez(part, **arrays)
    part.replace(path)
