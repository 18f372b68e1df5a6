"""Does every method of the table learn `multihop`? One learning curve each.

    python benchmarks/methods.py [--save] [--resume] [--methods steppo grpo ...] [key=value ...]
    python benchmarks/methods.py --methods grpo branpo appo arpo --variant branching --save

All start from the same warm-started model and see the same tasks, 32 an iteration with 8 attempts
at each, with the settings of configs/quickstart.yaml. One seed and no tuning of any method: this
shows that each one works, not which one is better. The table has the tokens that each run sampled, those
of branches included. With --resume finished runs are kept and interrupted ones continue.
"""

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import record

from steprl.algorithms import ALGORITHMS
from steprl.config import load_config
from steprl.metrics import read_metrics
from steprl.report import plot_learning_curves
from steprl.run_directory import open_run
from steprl.session import setup
from steprl.train import run_warm_start, train

CONFIG = "configs/quickstart.yaml"
GOAL = 0.8  # sampled success after training; the warm start has about 0.2


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/methods.*")
    parser.add_argument("--variant", default="", help="part of the name of the result file")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    resume = "auto" if options.resume else None

    begin = time.perf_counter()
    warm = learn("warm", options.overrides, resume)
    curves: dict[str, Any] = {}
    rows = []
    for method in options.methods:
        start = time.perf_counter()
        settings = [f"algorithm.name={method}", "sft.steps=0", f"trainer.init_from={warm}"]
        run = learn(method, options.overrides + settings, resume)
        curves[method] = read_metrics(run / "metrics.jsonl")
        rows += success(method, curves[method])
        rate = rows[-3]["value"]
        print(f"{method:24s} {rate:.3f}  {time.perf_counter() - start:5.0f} s", flush=True)
    record.show(rows)
    if options.save:
        minutes = (time.perf_counter() - begin) / 60
        path = record.save("methods", rows, minutes, options.variant, seed=0, config=CONFIG)
        title = "Branching methods" if options.variant == "branching" else "Every method"
        picture = plot_learning_curves(
            curves, path.with_suffix(".png"), f"{title} on multihop, one seed, untuned"
        )
        print(f"written: {path} and {picture.name}")


def learn(name: str, overrides: list[str], resume: str | None) -> Path:
    """A run of the quickstart; "warm" is its warm start alone."""
    config = load_config(CONFIG, [*overrides, f"trainer.experiment_name=methods/{name}"])
    session = setup(config)
    run = open_run(config, resume, overwrite=resume is None)
    if name == "warm":
        run_warm_start(session, run)
    elif not finished(run, config.trainer.total_training_steps):
        train(session, run)
        shutil.rmtree(run / "checkpoints")  # only the curves are kept
    return run


def finished(run: Path, iterations: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and int(read_metrics(path)[-1]["training/global_step"]) == iterations


def success(method: str, metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Held-out success at the end, and how soon half of it was reached."""
    measured = [m for m in metrics if "eval/success_rate" in m]
    last = measured[-1]
    interval = [last["eval/success_rate_low"], last["eval/success_rate_high"]]
    rate, greedy = last["eval/success_rate"], last["eval/success_rate_greedy"]
    before = measured[0]["eval/success_rate"]
    sampled = record.row(f"{method}: success, sampled (before RL {before:.3f})", rate, "share")
    return [
        sampled | {"spread": interval, "goal": f"at least {GOAL}", "met": rate >= GOAL},
        record.row(f"{method}: success, greedy", greedy, "share"),
        record.row(f"{method}: tokens sampled in training", sampled_tokens(metrics) / 1e6, "M"),
    ]


def sampled_tokens(metrics: list[dict[str, Any]]) -> float:
    """Of all iterations; what branches share with their originals was sampled once."""
    iterations = [m for m in metrics if "step/count" in m]
    return sum(
        m.get("token/decoded", m["step/count"] * m["response_length/mean"]) for m in iterations
    )


if __name__ == "__main__":
    main()
