"""What does credit of steps gain where few steps matter? Signal and noise of gradients by decision density.

    python benchmarks/density.py [--save]        # 15 minutes on 2 cores; can be resumed
    python benchmarks/density.py --quick         # tiny sizes, to see that it runs
    python benchmarks/density.py --curves --save # adds learning curves of StepPO and GRPO

arXiv 2606.22164 claims that the signal-to-noise ratio of turn credit over that of trajectory credit grows
with decision density to the power of -1/2. In `errand` with idle steps the density, the share of the best
play's steps that matter, is set while the horizon stays. In each cell one policy is trained on
demonstrations and then kept as it is. From it, groups of 8 attempts are played; of each the policy gradient
is taken with the credit of GRPO (of whole trajectories), of StepPO with a critic that learnt at this
policy, and with the true advantage of each step, from continuations. Signal is the squared length of the
mean gradient, noise the trace of its covariance; the ratio is of amplitudes, the square root of theirs.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=1 --xla_cpu_multi_thread_eigen=false"
)

import jax
import jax.numpy as jnp
import numpy as np
import record
from laboratory.gradients import exponent, group_gradients, products, ratios, signal_to_noise

from steprl.config import Config, load_config
from steprl.envs.opening import open_game
from steprl.laboratory import area_under_curve, make_program
from steprl.laboratory.pictures import plot_effects
from steprl.laboratory.statistics import Estimate

CLAIM = -0.5
GROUPS_OF_BATCH = 8  # of the laboratory; numbers of a batch are those of a group times this
CREDITS = {"critic": "StepPO, learnt critic", "true": "true advantages of steps"}


class Cell(NamedTuple):
    """A horizon and a density."""

    horizon: int
    density: float
    errands: int
    plain: bool  # an errand of 4 steps, not 8
    warm_steps: int

    @property
    def name(self) -> str:
        density = "1" if self.density == 1 else f"1/{round(1 / self.density)}"
        return f"{self.horizon} steps, density {density}"


CELLS = (
    Cell(16, 1, 2, False, 2500),
    Cell(16, 1 / 2, 1, False, 1500),
    Cell(16, 1 / 4, 1, True, 1000),
    Cell(32, 1, 4, False, 4000),
    Cell(32, 1 / 2, 2, False, 3000),
    Cell(32, 1 / 4, 1, False, 2000),
    Cell(32, 1 / 8, 1, True, 1500),
)


class Size(NamedTuple):
    """How much is run."""

    groups: int
    continuations: int  # from each state, in each of two halves
    critic_iterations: int
    seeds: int  # of learning curves
    iterations: int
    warm: float = 1.0  # times the updates of the warm start
    samples: int = 1000  # of the bootstrap


SIZES = {"full": Size(512, 2, 60, 4, 40), "quick": Size(12, 1, 2, 2, 2, 0.04, 200)}
RATES = {"actor.lr": 1e-3, "critic.lr": 1e-3, "clip_fraction": 0.1}  # of learning curves
WARM_KEY, CRITIC_KEY, GROUP_KEY, CURVE_KEY = range(4)


def config_of(cell: Cell, size: Size, method: str) -> Config:
    """The model, batch and optimiser of the laboratory."""
    hard = not cell.plain
    idle = cell.horizon - cell.errands * (8 if hard else 4)
    return load_config(
        overrides=[
            "env.name=errand", f"env.errand.errands={cell.errands}",
            f"env.errand.hidden={hard}", f"env.errand.transform={hard}",
            f"env.errand.idle_steps={idle}", f"algorithm.name={method}",
            "algorithm.gamma=1.0", "algorithm.lam=0.95", "algorithm.norm_adv=false",
            "model.preset=tiny", "model.d_model=32", "model.d_ff=96", "model.num_heads=2",
            "model.num_kv_heads=2", "model.head_dim=16", "model.value_head=separate", "critic.init=policy",
            f"sft.steps={max(1, round(size.warm * cell.warm_steps))}", "sft.batch_size=64",
            "sft.lr=2e-3", "rollout.batch_size=8", "rollout.n=8", "actor.grad_clip=0",
            "actor.ppo_epochs=2", "actor.ppo_mini_batch_size=32",
            f"trainer.total_training_steps={max(size.critic_iterations, size.iterations)}",
        ]
    )  # fmt: skip


def study(number: int, kind: str, folder: str) -> float:
    """Gradients of a cell, to a file; seconds."""
    begin = time.perf_counter()
    cell, size = CELLS[number], SIZES[kind]
    config = config_of(cell, size, "steppo")
    program = make_program(config)
    params, _ = jax.jit(program.warm_start)(jax.random.key(WARM_KEY))
    success = np.mean(jax.jit(lambda p: program.evaluate(p, jax.random.key(9), 256))(params))
    # The policy's rate is 0, and the critic has a network of its own: the policy stays as it is.
    rates = {"actor.lr": jnp.float32(0.0), "critic.lr": jnp.float32(1e-3)}
    step = jax.jit(lambda state: program.iterate(state, jax.random.key(CRITIC_KEY), rates))
    state, explained = program.begin(params, rates), []
    for _ in range(size.critic_iterations):
        state, metrics = step(state)
        explained.append(float(metrics["critic/vf_explained_var"]))

    env = open_game(config.env).make(False)
    one = functools.partial(group_gradients, program.policy, env)
    groups = jax.jit(
        lambda params, tasks: jax.lax.map(
            lambda task: one(params, jax.random.key(GROUP_KEY), task, config, size.continuations),
            tasks,
        )
    )
    # Tasks that the critic has not seen: its own begin at random.
    found = [
        np.asarray(groups(state.params, jnp.arange(first, first + 4, dtype=jnp.int32)))
        for first in range(0, size.groups, 4)
    ]
    results = {f"product {name}": x for name, x in products(np.concatenate(found)).items()}
    np.savez(
        Path(folder) / f"{kind}-{number}.part.npz", success=success,
        explained=np.mean(explained[-10:]), seconds=time.perf_counter() - begin, **results,
    )  # fmt: skip
    (Path(folder) / f"{kind}-{number}.part.npz").rename(Path(folder) / f"{kind}-{number}.npz")
    return time.perf_counter() - begin


def learn(number: int, kind: str, folder: str) -> float:
    """Learning curves of a cell, to a file; seconds."""
    begin = time.perf_counter()
    cell, size = CELLS[number], SIZES[kind]
    warm_start = make_program(config_of(cell, size, "steppo")).warm_start
    params, _ = jax.jit(warm_start)(jax.random.key(WARM_KEY))
    settings = {name: jnp.float32(x) for name, x in RATES.items()}
    keys = jax.random.split(jax.random.key(CURVE_KEY), size.seeds)
    areas = {}
    for method in ("steppo", "grpo"):
        program = make_program(config_of(cell, size, method))
        train = functools.partial(_curve, program, params, settings, size.iterations)
        tokens, success = jax.device_get(jax.jit(functools.partial(jax.lax.map, train))(keys))
        areas[method] = np.array(
            [area_under_curve(x, y, float(x[-1])) for x, y in zip(tokens, success, strict=True)]
        )
    path = Path(folder) / f"{kind}-{number}.curves"
    np.savez(path.with_suffix(".part.npz"), seconds=time.perf_counter() - begin, **areas)
    path.with_suffix(".part.npz").rename(path.with_suffix(".curves.npz"))
    return time.perf_counter() - begin


def _curve(program: Any, params: Any, settings: Any, length: int, key: jax.Array) -> Any:
    """Tokens sampled and success of each iteration of a run."""

    def step(state: Any, _: None) -> Any:
        state, metrics = program.iterate(state, key, settings)
        return state, (metrics["token/total"], metrics["rollout/success_rate"])

    return jax.lax.scan(step, program.begin(params, settings), length=length)[1]


def report(
    kind: str, folder: Path
) -> tuple[list[dict[str, Any]], dict[str, dict[float, Estimate]]]:
    """Rows of the result file, and the ratios that are drawn, of the cells that are finished."""
    size, rng = SIZES[kind], np.random.default_rng(0)
    rows, drawn, table, done = [], {}, {name: [] for name in CREDITS}, []
    for number, cell in enumerate(CELLS):
        if not (folder / f"{kind}-{number}.npz").exists():
            continue
        saved = np.load(folder / f"{kind}-{number}.npz")
        found = {k.removeprefix("product "): saved[k] for k in saved if k.startswith("product ")}
        done.append(cell)
        rows.append(record.row(f"{cell.name}: success", float(saved["success"]), "share"))
        rows.append(
            record.row(f"{cell.name}: explained variance", float(saved["explained"]), "share")
        )
        for name, product in found.items():
            value = GROUPS_OF_BATCH * signal_to_noise(product)
            rows.append(record.row(f"{cell.name}: {name}: |mean|^2 / trace", value, "of a batch"))
        for name, values in ratios(found, size.samples, rng).items():
            table[name].append(values)
            estimate = _interval(values)
            rows.append(_row(f"{cell.name}: {name} over trajectory", estimate, "ratio"))
            if np.isfinite(estimate).all():
                line = drawn.setdefault(f"{CREDITS[name]}, {cell.horizon} steps", {})
                line[cell.density] = estimate
        curves = folder / f"{kind}-{number}.curves.npz"
        if curves.exists():
            areas = np.load(curves)
            for method in ("steppo", "grpo"):
                area = areas[method]
                spread = [float(area.min()), float(area.max())]
                rows.append(
                    record.row(f"{cell.name}: {method}: area", float(area.mean()), "share", spread)
                )
    density, horizon = (np.array([getattr(c, x) for c in done]) for x in ("density", "horizon"))
    for name, columns in table.items():
        for only in (16, 32, None):
            of = np.array([only in (None, c.horizon) for c in done], bool)
            if of.sum() > 1:
                slopes = exponent(density[of], np.array(columns)[of], horizon[of])
                where = "both horizons" if only is None else f"{only} steps"
                rows.append(_row(f"exponent, {name}, {where}", _interval(slopes), "power"))
    return rows, drawn


def _interval(values: np.ndarray) -> Estimate:
    """The estimate, and the 95 % interval of the draws in which there was a signal."""
    finite = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(finite, (0.025, 0.975)) if len(finite) else (np.nan, np.nan)
    return Estimate(float(values[0]), float(low), float(high))


def _row(name: str, interval: Estimate, unit: str) -> dict[str, Any]:
    spread = [interval.low, interval.high]
    if not np.isfinite(interval).all():  # JSON has no such number
        return record.row(name, 0.0, f"{unit}, no signal was found")
    return record.row(name, interval.estimate, unit, spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two cells")
    parser.add_argument("--curves", action="store_true", help="learning curves as well")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/density.*")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path("runs/density"))
    parser.add_argument("--fresh", action="store_true", help="throw away the cells that are kept")
    options = parser.parse_args()
    kind = "quick" if options.quick else "full"
    if options.quick and options.save:
        parser.error("--save keeps the full measurement; --quick is too small for it")
    if options.fresh:
        shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True, exist_ok=True)

    numbers = (
        (1, 2) if options.quick else sorted(range(len(CELLS)), key=lambda n: -CELLS[n].horizon)
    )
    jobs = [(study, number, ".npz") for number in numbers]
    jobs += [(learn, number, ".curves.npz") for number in numbers] if options.curves else []
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        waiting = {
            pool.submit(job, number, kind, str(options.folder)): (job.__name__, CELLS[number].name)
            for job, number, ending in jobs
            if not (options.folder / f"{kind}-{number}{ending}").exists()
        }
        for future in concurrent.futures.as_completed(waiting):
            print(*waiting[future], f"{future.result():.0f} s", flush=True)
    rows, drawn = report(kind, options.folder)
    record.show(rows)
    if options.save:
        files = [*options.folder.glob(f"{kind}-*.npz")]
        seconds = sum(float(np.load(file)["seconds"]) for file in files)
        size = SIZES[kind]
        path = record.save(
            "density", rows, seconds / 60 / options.workers, workers=options.workers, seed=0,
            claim=CLAIM, groups=size.groups, attempts=8, continuations=2 * size.continuations,
            batch=GROUPS_OF_BATCH, seeds=size.seeds,
            cells={c.name: {"horizon": c.horizon, "density": c.density} for c in CELLS},
        )  # fmt: skip
        picture = plot_effects(
            drawn, path.with_suffix(".png"), "Signal over noise, step credit over trajectory credit",
            "decision density", "ratio of amplitudes",
        )  # fmt: skip
        print(f"written: {path} and {picture.name}")


if __name__ == "__main__":
    main()
