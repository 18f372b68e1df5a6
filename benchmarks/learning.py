"""Success before and after reinforcement learning, for one configuration; shared by the benchmarks
of single environments. The run goes on from where it was cut when `--resume auto` is given."""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from typing import Any

import record

from steprl.config import load_config
from steprl.metrics import read_metrics
from steprl.report import plot_learning_curves
from steprl.run_directory import open_run
from steprl.session import setup
from steprl.train import Event, train


def arguments(question: str, config: str) -> argparse.Namespace:
    """The command line of such a benchmark."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--config", default=config)
    parser.add_argument("--variant", default="", help="part of the name of the result file")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/*.json and .png"
    )
    parser.add_argument("--resume", nargs="?", const="auto")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


def learn(options: argparse.Namespace, script: str, goals: dict[str, tuple[str, Callable]]) -> None:
    """Trains, prints the table, and saves it if asked.

    Args:
        script: name of the result file.
        goals: name of a row -> what is asked for, and a test of the value.
    """
    config = load_config(options.config, options.overrides)
    session = setup(config)
    run = open_run(config, options.resume, overwrite=options.resume is None)
    seconds = run / "seconds.json"  # survives a cut
    spent: dict[str, float] = json.loads(seconds.read_text()) if seconds.exists() else {}
    last = time.perf_counter()

    def watch(event: Event) -> None:
        nonlocal last
        now = time.perf_counter()
        spent[event.phase] = spent.get(event.phase, 0.0) + now - last
        last = now
        seconds.write_text(json.dumps(spent))
        if event.phase == "sft" and event.step % 100 == 0:
            print(
                f"warm start {event.step}/{event.steps} {event.metrics['sft/loss']:.3f}", flush=True
            )
        shown = {k: v for k, v in event.metrics.items() if k.endswith(("success_rate", "_greedy"))}
        if event.phase == "rl" and len(shown) > 1:
            rates = "  ".join(f"{k} {v:.3f}" for k, v in shown.items() if "success_rate" in k)
            print(f"iteration {event.step}/{event.steps}  {rates}", flush=True)

    train(session, run, watch)
    metrics = read_metrics(run / "metrics.jsonl")
    rows = success_rows(metrics, goals)
    training = sum(spent.values()) - sum(m.get("timing_s/testing", 0.0) for m in metrics)
    rows.append(record.row("minutes, evaluation included", sum(spent.values()) / 60, "min"))
    rows.append(record.row("minutes of warm start and training", training / 60, "min"))
    rows.append(record.row("agent steps per second, median", _median_speed(metrics), "steps/s"))
    for r in rows:
        if r["name"] in goals:
            r["goal"], r["met"] = goals[r["name"]][0], bool(goals[r["name"]][1](r["value"]))
    record.show(rows)
    if options.save:
        variant = options.variant
        path = record.save(
            script,
            rows,
            sum(spent.values()) / 60,
            variant,
            seed=config.trainer.seed,
            config=options.config,
        )
        title = f"{config.algorithm.name} on {config.env.name}"
        picture = plot_learning_curves(metrics, run / "plots" / "learning_curves.png", title)
        shutil.copy(picture, path.with_suffix(".png"))
        print(f"written: {path} and {path.with_suffix('.png').name}")


def success_rows(metrics: list[dict[str, Any]], goals: dict[str, Any]) -> list[dict[str, Any]]:
    """Before and after, with 95 % intervals, of every split and both ways of choosing tokens."""
    measured = [m for m in metrics if "eval/success_rate" in m]
    rows = []
    for name in measured[-1]:
        stem = name.removesuffix("_greedy")
        if not name.startswith("eval/") or not stem.endswith("/success_rate"):
            continue
        suffix = name[len(stem) :]
        split = stem.split("/")[1] if stem.count("/") == 2 else "main split"
        way = "greedy" if suffix else "sampled"
        for when, at in (("before RL", measured[0]), ("after RL", measured[-1])):
            interval = [at[f"{stem}_low{suffix}"], at[f"{stem}_high{suffix}"]]
            rows.append(record.row(f"success, {split}, {way}, {when}", at[name], "share", interval))
    return rows


def _median_speed(metrics: list[dict[str, Any]]) -> float:
    speeds = sorted(
        m["step/count"] / (m["timing_s/gen"] + m["timing_s/update"])
        for m in metrics
        if "step/count" in m
    )
    return speeds[len(speeds) // 2]
