"""Which credit is better for household tasks? StepPO, PPO, GRPO, GiGPO and BranPO, with seeds.

    python benchmarks/household_methods.py [--save] [--resume] [--methods steppo grpo ...] [key=value ...]
    python benchmarks/household_methods.py --quick       # two methods, two iterations: does it run?

One size above `algorithms.py`: ALFWorld's texts in small generated rooms, played on the host
(configs/branpo_household.yaml), 3 seeds a method. The same for all: the warm-started model, the
number of sampled tokens (those of branches count, and a run stops when they are spent), optimiser,
batch and mini-batch, and the share of tokens whose ratio is clipped. One learning rate for all, which
falls as the tokens are spent; none is tuned. All runs get the same tasks in the same order. Success is
measured on 256 tasks in rooms not seen in training, at temperature 1, during training and at the end.

The intervals are over the seeds alone, and 3 are few: a 95 % interval of the interquartile mean of
three runs contained the truth in 76 % of trials (`steprl.laboratory.statistics`). Each run is a separate
process, as many at a time as there are cores; with --resume finished ones are kept.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = "configs/branpo_household.yaml"
METHODS = ("steppo", "ppo", "grpo", "gigpo", "branpo")
SUCCESS = "eval/valid_unseen/success_rate"
MOST_ITERATIONS = 100_000  # the budget of tokens ends a run long before
# Of processes beside each other: one thread each is fastest.
_FLAGS = "--xla_cpu_multi_thread_eigen=false"


class Size(NamedTuple):
    """How much is run."""

    methods: tuple[str, ...] = METHODS
    seeds: int = 3
    budget: int = 240_000  # tokens of a run
    test_freq: int = 15  # iterations between evaluations; there is one at the end too
    clip_fraction: float = 0.1
    settings: tuple[str, ...] = ("model.value_head=shared",)


QUICK = Size(
    methods=("steppo", "branpo"), seeds=2, budget=200, test_freq=2,
    settings=(
        "model.value_head=shared", "model.preset=tiny", "model.num_layers=1", "sft.steps=2",
        "sft.batch_size=8", "sft.warmup_steps=1", "env.household.max_steps=3",
        "rollout.batch_size=2", "rollout.n=4", "rollout.response_length=6",
        "actor.ppo_mini_batch_size=8", "eval.num_tasks=8",
    ),
)  # fmt: skip


def config_of(
    method: str, size: Size, overrides: Sequence[str], folder: Path, seed: int | None = None
) -> Any:
    """The configuration of a run from the warm start, or without a seed that of the warm start.

    Learning goes until the budget is spent, its schedule too.
    """
    from steprl.config import load_config

    own = [f"algorithm.name={method}", f"trainer.output_dir={folder}", "eval.greedy=false"]
    if seed is None:
        own += ["trainer.experiment_name=warm"]
    else:
        own += [
            f"trainer.experiment_name=run-{method}-{seed}", f"trainer.seed={seed}",
            f"trainer.init_from={folder / 'warm'}", "sft.steps=0", "actor.lr_warmup_steps=0",
            f"trainer.token_budget={size.budget}", f"trainer.total_training_steps={MOST_ITERATIONS}",
            f"trainer.test_freq={size.test_freq}", "trainer.val_before_train=false",
            f"actor.clip_fraction={size.clip_fraction}",
        ]  # fmt: skip
    return load_config(CONFIG, [*size.settings, *overrides, *own])


def warm_start(size: Size, overrides: Sequence[str], folder: Path) -> None:
    """The parameters that all runs start from, and how good they are; continues an interrupted run."""
    from steprl.evaluation import evaluate_all
    from steprl.run_directory import open_run
    from steprl.session import setup
    from steprl.train import run_warm_start

    session = setup(config_of("ppo", size, overrides, folder))
    begin = time.perf_counter()
    params = run_warm_start(session, open_run(session.config, "auto"))
    success = evaluate_all(session.player, params, session.config)[SUCCESS]
    _write(folder / "warm.json", {"success": success, "seconds": time.perf_counter() - begin})


def run(method: str, seed: int, size: Size, overrides: Sequence[str], folder: Path) -> float:
    """One run, and how many seconds it took, less those before it was cut."""
    from steprl.metrics import read_metrics
    from steprl.run_directory import open_run
    from steprl.session import setup
    from steprl.train import Event, train

    def watch(event: Event) -> None:
        if SUCCESS in event.metrics:
            tokens, success = event.metrics["token/total"], event.metrics[SUCCESS]
            _say(f"{method}, seed {seed}: {tokens:.0f} tokens, success {success:.3f}")

    begin = time.perf_counter()
    session = setup(config_of(method, size, overrides, folder, seed))
    directory = open_run(session.config, "auto")
    train(session, directory, watch)
    seconds = time.perf_counter() - begin
    found = curve_of(list(read_metrics(directory / "metrics.jsonl")))
    _write(file_of(method, seed, folder), found | {"seconds": seconds})
    return seconds


def curve_of(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Tokens and success of the evaluations of a run, and what is asked of its iterations."""
    evaluated = [row for row in rows if SUCCESS in row]
    kept = {
        "tokens": "token/total", "clipped": "actor/pg_clipfrac", "clip": "actor/clip_ratio",
        "gen_seconds": "timing_s/gen", "update_seconds": "timing_s/update",
    }  # fmt: skip
    return {
        "tokens": [row["token/total"] for row in evaluated],
        "success": [row[SUCCESS] for row in evaluated],
        "iterations": {name: [row[metric] for row in rows] for name, metric in kept.items()},
    }


def run_all(size: Size, overrides: Sequence[str], folder: Path, workers: int) -> float:
    """The runs that are missing, in processes; in this one where one worker is enough.

    Returns:
        Minutes that all of it took, earlier calls included.
    """
    clock = folder / "minutes.json"  # survives an interruption
    earlier = json.loads(clock.read_text()) if clock.exists() else 0.0
    start = time.perf_counter()

    def minutes() -> float:
        total: float = earlier + (time.perf_counter() - start) / 60
        _write(clock, total)
        return total

    if not (folder / "warm.json").exists():
        warm_start(size, overrides, folder)
        _say(f"warm start: {json.loads((folder / 'warm.json').read_text())}")
        minutes()
    jobs = [
        (method, seed, size, tuple(overrides), folder)
        for method in size.methods
        for seed in range(size.seeds)
        if not file_of(method, seed, folder).exists()
    ]
    begin = time.perf_counter()

    def note(number: int, method: str, seed: int, seconds: float) -> None:
        left = (time.perf_counter() - begin) / number * (len(jobs) - number) / 60
        _say(f"{number}/{len(jobs)} {method}, seed {seed}: {seconds:.0f} s, {left:.0f} min left")
        minutes()

    if workers == 1:
        for number, job in enumerate(jobs, 1):
            note(number, *job[:2], run(*job))
        return minutes()
    os.environ.setdefault("XLA_FLAGS", _FLAGS)  # for the processes that start now
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        waiting = {pool.submit(run, *job): job for job in jobs}
        for number, done in enumerate(concurrent.futures.as_completed(waiting), 1):
            note(number, *waiting[done][:2], done.result())
    return minutes()


def read(size: Size, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The runs of each method, each with the warm start as the first point of its curve."""
    warm = json.loads((folder / "warm.json").read_text())
    runs = {
        method: [
            json.loads(file_of(method, seed, folder).read_text()) for seed in range(size.seeds)
        ]
        for method in size.methods
    }
    for run in (run for group in runs.values() for run in group):
        run["tokens"], run["success"] = [0.0, *run["tokens"]], [warm["success"], *run["success"]]
    return runs


def table(runs: dict[str, list[dict[str, Any]]], budget: int) -> list[dict[str, Any]]:
    """Success at the end, area under the curve, the first method against the others, and the cost."""
    import numpy as np
    import record

    from steprl.laboratory import area_under_curve, interquartile_mean, stratified_bootstrap

    def gap(x: Any, y: Any) -> Any:
        return interquartile_mean(x) - interquartile_mean(y)

    def row(name: str, statistic: Any, scores: Any, unit: str = "share") -> dict[str, Any]:
        estimate, low, high = stratified_bootstrap(statistic, scores, seed=0)
        return record.row(name, estimate, unit, [low, high])

    scores_by_kind = {
        "success at the end": {
            method: np.array([[run["success"][-1]] for run in group])
            for method, group in runs.items()
        },
        "area under the curve": {
            method: np.array(
                [[area_under_curve(run["tokens"], run["success"], budget)] for run in group]
            )
            for method, group in runs.items()
        },
    }
    first = next(iter(runs))
    before = runs[first][0]["success"][0]
    rows = [record.row("success of the warm start", before, "share")]
    for kind, scores in scores_by_kind.items():
        rows += [row(f"{m}: {kind}", interquartile_mean, x) for m, x in scores.items()]
        rows += [
            row(f"{first} less {m}, {kind}", gap, (scores[first], x), "difference")
            for m, x in scores.items()
            if m != first
        ]
    for method, group in runs.items():
        tokens = [run["tokens"][-1] for run in group]
        rows += [
            record.row(f"{method}: tokens sampled", float(np.mean(tokens)) / 1e3, "thousand"),
            record.row(f"{method}: iterations", _mean_of(group, lambda x: len(x["tokens"])), "a run"),
            record.row(
                f"{method}: share of tokens clipped",
                _mean_of(group, lambda x: float(np.mean(x["clipped"]))), "share",
            ),
            record.row(
                f"{method}: minutes", float(np.mean([run["seconds"] for run in group])) / 60, "a run"
            ),
        ]  # fmt: skip
    return rows


def _mean_of(runs: list[dict[str, Any]], number: Any) -> float:
    return sum(number(run["iterations"]) for run in runs) / len(runs)


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> Path:
    """The learning curves over tokens."""
    from steprl.laboratory.pictures import plot_curves

    curves = {
        method: ([run["tokens"] for run in group], [run["success"] for run in group])
        for method, group in runs.items()
    }
    number = len(next(iter(runs.values())))
    title = f"household in small generated rooms, {number} seeds, same number of tokens"
    return plot_curves(curves, path, title, y_label="success in rooms not seen")


def file_of(method: str, seed: int, folder: Path) -> Path:
    """Where a finished run is."""
    return folder / f"{method}-{seed}.json"


def _write(path: Path, content: Any) -> None:
    """Whole or not at all, so that a run that was cut is done again."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)


def _say(line: str) -> None:
    print(line, flush=True)


def _check_same(size: Size, overrides: Sequence[str], folder: Path) -> None:
    """Kept runs are those of the same settings."""
    settings = {
        "settings": [*size.settings, *overrides],
        "budget": size.budget,
        "test_freq": size.test_freq,
        "clip_fraction": size.clip_fraction,
    }
    path = folder / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise SystemExit(
            f"--resume: {folder} holds runs of other settings ({path}); leave --resume out to throw "
            "them away, or name another --folder"
        )
    _write(path, settings)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny: does everything run?")
    parser.add_argument("--methods", nargs="+", help="the first one is compared with the others")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--budget", type=int, help="tokens of a run")
    parser.add_argument("--clip-fraction", type=float, help="share of tokens clipped")
    parser.add_argument("--workers", type=int, default=_cores(), help="runs at the same time")
    parser.add_argument("--folder", help="where runs are kept")
    parser.add_argument("--resume", action="store_true", help="keep finished runs")
    parser.add_argument("--variant", default="", help="part of the name of the result file")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/household-methods.*"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    options = arguments()
    size = QUICK if options.quick else Size()
    size = size._replace(
        methods=tuple(options.methods or size.methods),
        seeds=options.seeds or size.seeds,
        budget=options.budget or size.budget,
        clip_fraction=options.clip_fraction or size.clip_fraction,
    )
    default = "runs/household-methods-quick" if options.quick else "runs/household-methods"
    folder = Path(options.folder or default)
    if folder.exists() and not options.resume:
        if not (folder / "settings.json").exists():
            raise SystemExit(
                f"--folder {folder} holds no runs of this script, so it is not deleted"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _check_same(size, options.overrides, folder)
    # Seeds of a method, and methods with the same rollouts, compile the same programs.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    minutes = run_all(size, options.overrides, folder, options.workers)

    import record

    runs = read(size, folder)
    rows = table(runs, size.budget)
    record.show(rows)
    if options.save:
        path = record.save(
            "household-methods", rows, minutes, options.variant, config=CONFIG, seeds=size.seeds,
            settings=[*size.settings, *options.overrides], workers=options.workers,
            clip_fraction=size.clip_fraction,
            curves={
                method: [{k: run[k] for k in ("tokens", "success")} for run in group]
                for method, group in runs.items()
            },
        )  # fmt: skip
        print(f"written: {path} and {draw(runs, path.with_suffix('.png')).name}")
    else:
        print(f"drawn: {draw(runs, folder / 'curves.png')}")


if __name__ == "__main__":
    main()
