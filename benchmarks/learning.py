"""Success before and after reinforcement learning, for one configuration; shared by the benchmarks
of single environments. An interrupted run continues when `--resume auto` is given."""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import record

from steprl.config import load_config
from steprl.evaluation import inspect
from steprl.metrics import read_metrics
from steprl.report import plot_learning_curves
from steprl.run_directory import open_run
from steprl.session import Session, setup
from steprl.train import Event, train
from steprl.transcripts import draw_credit, pick
from steprl.types import Params


def arguments(question: str, config: str, *flags: str) -> argparse.Namespace:
    """The command line of such a benchmark, with further `flags` that are on or off."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--config", default=config)
    parser.add_argument("--variant", default="", help="part of the name of the result file")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/*.json and .png"
    )
    parser.add_argument("--resume", nargs="?", const="auto")
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_args()


class Trained(NamedTuple):
    """A run that is done, and what it cost."""

    session: Session
    run: Path
    params: Params
    metrics: list[dict[str, Any]]
    minutes: float  # evaluation included


def trained(options: argparse.Namespace) -> Trained:
    """Runs a configuration, from where it was interrupted if `--resume` is given."""
    config = load_config(options.config, options.overrides)
    session = setup(config)
    run = open_run(config, options.resume, overwrite=options.resume is None)
    seconds = run / "seconds.json"  # survives an interruption
    seconds_by_phase: dict[str, float] = json.loads(seconds.read_text()) if seconds.exists() else {}
    last = time.perf_counter()

    def watch(event: Event) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds_by_phase[event.phase] = seconds_by_phase.get(event.phase, 0.0) + now - last
        last = now
        seconds.write_text(json.dumps(seconds_by_phase))
        if event.phase == "sft" and event.step % 100 == 0:
            print(
                f"warm start {event.step}/{event.steps} {event.metrics['sft/loss']:.3f}", flush=True
            )
        success = {
            k: v for k, v in event.metrics.items() if k.endswith(("success_rate", "_greedy"))
        }
        if event.phase == "rl" and len(success) > 1:
            rates = "  ".join(f"{k} {v:.3f}" for k, v in success.items() if "success_rate" in k)
            print(f"iteration {event.step}/{event.steps}  {rates}", flush=True)

    params, _ = train(session, run, watch)
    metrics = read_metrics(run / "metrics.jsonl")
    return Trained(session, run, params, metrics, sum(seconds_by_phase.values()) / 60)


def learn(
    options: argparse.Namespace, script: str, goals: dict[str, tuple[str, Callable]]
) -> Trained:
    """Trains, prints the table, and saves it with `--save`.

    Args:
        script: name of the result file.
        goals: name of a row -> the goal in words, and a test of the value.
    """
    done = trained(options)
    rows = success_rows(done.metrics, goals)
    testing = sum(m.get("timing_s/testing", 0.0) for m in done.metrics) / 60
    rows.append(record.row("minutes, evaluation included", done.minutes, "min"))
    rows.append(record.row("minutes of warm start and training", done.minutes - testing, "min"))
    rows.append(
        record.row("agent steps per second, median", _median_speed(done.metrics), "steps/s")
    )
    for r in rows:
        if r["name"] in goals:
            r["goal"], r["met"] = goals[r["name"]][0], bool(goals[r["name"]][1](r["value"]))
    report(options, script, rows, done)
    return done


def save_credit(done: Trained, script: str) -> None:
    """Draws the credit of one held-out episode, as `steprl train` does at the end of a run."""
    session, config = done.session, done.session.config
    tasks = np.arange(config.rollout.batch_size * config.rollout.n)
    split = session.player.splits[1]
    one = pick(inspect(session, done.params, split, tasks)[:8])
    path = record.RESULTS / f"{script}-credit.png"
    draw_credit(one, path, f"Credit of {config.algorithm.name} on {config.env.name}")
    print(f"written: {path}")


def report(
    options: argparse.Namespace, script: str, rows: list[dict[str, Any]], done: Trained
) -> None:
    """Prints the rows; with `--save` writes them and the picture of the run."""
    record.show(rows)
    if options.save:
        config = done.session.config
        path = record.save(
            script,
            rows,
            done.minutes,
            options.variant,
            seed=config.trainer.seed,
            config=options.config,
        )
        title = f"{config.algorithm.name} on {config.env.name}"
        picture = done.run / "plots" / "learning_curves.png"
        shutil.copy(plot_learning_curves(done.metrics, picture, title), path.with_suffix(".png"))
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
        choice = "greedy" if suffix else "sampled"
        for stage, at in (("before RL", measured[0]), ("after RL", measured[-1])):
            interval = [at[f"{stem}_low{suffix}"], at[f"{stem}_high{suffix}"]]
            rows.append(
                record.row(f"success, {split}, {choice}, {stage}", at[name], "share", interval)
            )
    return rows


def _median_speed(metrics: list[dict[str, Any]]) -> float:
    speeds = sorted(
        m["step/count"] / (m["timing_s/gen"] + m["timing_s/update"])
        for m in metrics
        if "step/count" in m
    )
    return speeds[len(speeds) // 2]
