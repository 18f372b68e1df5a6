"""Does a pretrained language model become a better agent on two CPU cores? SmolLM2-135M, three tasks.

    python benchmarks/agents.py household --save     # ALFWorld's texts in small generated rooms
    python benchmarks/agents.py shop --save          # WebShop's rules
    python benchmarks/agents.py search --save        # HotpotQA with a search tool
    python benchmarks/agents.py household --quick    # does it run? a few iterations, a few tasks

One warm start on demonstrations; then GRPO and StepPO, both from it, with the same number of sampled
tokens. The model as the warm start left it and at the end of each run is measured on the same held-out
tasks, sampled at temperature 1, with 95 % intervals over the tasks; one seed, which shows that it learns,
not which method is better. Everything is kept in runs/agents-TASK, and the same command continues what was
interrupted. Real products, questions and passages are given by path:

    python benchmarks/agents.py shop --save \\
        env.mini_shop.products=webshop_products.parquet env.mini_shop.goals=webshop_goals.parquet
"""

import argparse
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import record
from rich.console import Console

from steprl.config import Config, load_config
from steprl.evaluation import PANEL_KEY, evaluate_all
from steprl.interrupts import interrupts
from steprl.metrics import read_metrics
from steprl.report import plot_learning_curves
from steprl.run_directory import open_run
from steprl.sampling import Sampling
from steprl.session import Session, load_params, setup
from steprl.train import Event, run_warm_start, train
from steprl.types import Params, Trajectory

METHODS = {"grpo": "GRPO", "steppo": "StepPO"}
WARM_START = "warm_start"
QUICK = (
    "sft.steps=2", "sft.warmup_steps=1", "trainer.total_training_steps=2", "trainer.test_freq=0",
    "eval.num_tasks=4", "rollout.batch_size=2", "rollout.n=2", "actor.ppo_mini_batch_size=4",
    "actor.ppo_micro_batch_size=0",
)  # fmt: skip


class Task(NamedTuple):
    """A configuration, and what is measured of it: metrics of an evaluation and their titles."""

    config: str
    measures: dict[str, str]


TASKS = {
    "household": Task("configs/household_smollm2.yaml", {"success_rate": "success"}),
    "shop": Task("configs/shop_smollm2.yaml", {"success_rate": "success", "return": "score"}),
    "search": Task(
        "configs/search_smollm2.yaml",
        {
            "exact_match": "exact match",
            "f1": "F1",
            "valid_call_frac": "tool calls that could be made",
            "num_searches": "searches an episode",
        },
    ),
}


def main() -> None:
    """Warm start, a run of each method, measurements, and with `--save` the result files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/agents-*")
    parser.add_argument("--quick", action="store_true", help="a few iterations: does it run?")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tasks", type=int, default=200, help="held-out tasks of the last measure")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args()
    folder = Path("runs") / f"agents-{options.task}{'-quick' * options.quick}"
    overrides = [*(QUICK if options.quick else ()), *options.overrides]
    tasks = 4 if options.quick else options.tasks
    task = TASKS[options.task]
    configs = {
        name: config_of(task, name, folder, overrides) for name in (WARM_START, *options.methods)
    }
    measured = {name: measure(name, config, folder, tasks) for name, config in configs.items()}
    rows = rows_of(task, measured)
    record.show(rows)
    (folder / "transcripts.txt").write_text(
        transcripts(configs[options.methods[0]], folder, options.methods[0], tasks)
    )
    if options.save:
        save(options, folder, rows, configs)


def config_of(task: Task, stage: str, folder: Path, overrides: Sequence[str]) -> Config:
    """The configuration of the warm start, or of a method that begins with it."""
    own = [f"trainer.output_dir={folder}", f"trainer.experiment_name={stage}"]
    if stage != WARM_START:
        start = folder / WARM_START
        own += [f"algorithm.name={stage}", "sft.steps=0", f"trainer.init_from={start}"]
    return load_config(task.config, [*overrides, *own])


def measure(stage: str, config: Config, folder: Path, tasks: int) -> dict[str, Any]:
    """Trains a stage from where it was interrupted, and evaluates it; kept in a file once it is done."""
    file = folder / f"{stage}.json"
    if file.is_file():
        return json.loads(file.read_text())
    session = setup(config)
    run = open_run(config, "auto")
    clock = _Clock(folder / f"{stage}.seconds")
    if stage == WARM_START:
        with interrupts() as interrupted:
            params = run_warm_start(session, run, clock.watch, interrupted)
    else:
        params, _ = train(session, run, clock.watch)
    minutes = clock.minutes()
    found = evaluate_all(session.player, params, config, num_tasks=tasks)
    measured = {"minutes": minutes, "results": found}
    file.write_text(json.dumps(measured))
    print(f"{stage}: {minutes:.1f} minutes, success {found['eval/success_rate']:.3f}", flush=True)
    return measured


class _Clock:
    """Minutes of a stage, those before an interruption included."""

    def __init__(self, file: Path):
        self._file = file
        self._before = float(file.read_text()) if file.is_file() else 0.0
        self._begin = time.perf_counter()

    def watch(self, event: Event) -> None:
        """Prints how it goes, and keeps the time."""
        self._file.write_text(str(60 * self.minutes()))
        names = ("sft/loss", "rollout/success_rate", "eval/success_rate", "actor/entropy")
        shown = (f"{name} {event.metrics[name]:.3f}" for name in names if name in event.metrics)
        print(f"{event.phase} {event.step}/{event.steps}  {'  '.join(shown)}", flush=True)

    def minutes(self) -> float:
        return (self._before + time.perf_counter() - self._begin) / 60


def rows_of(task: Task, measured: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a measure and stage, and the minutes of each."""
    rows = []
    for name, title in task.measures.items():
        for stage, found in measured.items():
            results, key = found["results"], f"eval/{name}"
            interval = None
            if f"{key}_low" in results:
                interval = [results[f"{key}_low"], results[f"{key}_high"]]
            when = "after the warm start" if stage == WARM_START else f"after {METHODS[stage]}"
            unit = "searches" if name == "num_searches" else "share"
            rows.append(record.row(f"{title}, {when}", results[key], unit, interval))
    for stage, found in measured.items():
        what = "warm start" if stage == WARM_START else METHODS[stage]
        rows.append(record.row(f"minutes, {what}", found["minutes"], "min"))
    return rows


def transcripts(config: Config, folder: Path, stage: str, tasks: int) -> str:
    """A held-out task before and after: the first that only the trained model solves, else the first."""
    session = setup(config)
    played = {
        when: _play(session, load_params(session, folder / name), min(tasks, 32))
        for when, name in (("the warm start", WARM_START), (METHODS[stage], stage))
    }
    before, after = played.values()
    gained = [i for i, one in enumerate(before) if after[i].success and not one.success]
    index = gained[0] if gained else 0
    parts = (
        f"Held-out task {index}, sampled, after {when}:\n\n{as_text(found[index])}"
        for when, found in played.items()
    )
    return "\n\n".join(parts)


def _play(session: Session, params: Params, tasks: int) -> tuple[Trajectory, ...]:
    player, numbers = session.player, np.arange(tasks)
    assert player.explore is not None
    return player.explore(
        params, jax.random.key(PANEL_KEY), numbers, np.zeros_like(numbers), sampling=Sampling(1.0),
        split=player.splits[1], remember=False,
    ).trajectories  # fmt: skip


def as_text(trajectory: Trajectory) -> str:
    """What the agent read and wrote, and what came of it."""
    output = io.StringIO()
    console = Console(file=output, width=100)
    for step in trajectory.steps:
        for line in step.observation.strip().splitlines():
            shown = line if len(line) <= 96 else line[:93] + "..."
            console.print(f"    {shown}", markup=False, highlight=False)
        console.print(f"> {step.action}", markup=False, highlight=False)
    verdict = "solved" if trajectory.success else "not solved"
    console.print(f"{verdict}, return {trajectory.total_reward:.2f}", highlight=False)
    return output.getvalue()


def save(
    options: argparse.Namespace,
    folder: Path,
    rows: list[dict[str, Any]],
    configs: dict[str, Config],
) -> None:
    """Result, curve and transcripts."""
    minutes = sum(row["value"] for row in rows if row["unit"] == "min")
    tokens = {
        name: read_metrics(folder / name / "metrics.jsonl")[-1]["token/total"]
        for name in options.methods
    }
    config = configs[options.methods[0]]
    path = record.save(
        "agents", rows, minutes, options.task, seed=config.trainer.seed,
        config=TASKS[options.task].config, overrides=options.overrides, heldout_tasks=options.tasks,
        tokens=tokens,
    )  # fmt: skip
    curves = {
        METHODS[name]: read_metrics(folder / name / "metrics.jsonl") for name in options.methods
    }
    plot_learning_curves(curves, path.with_suffix(".png"), f"SmolLM2-135M on {config.env.name}")
    path.with_suffix(".txt").write_text((folder / "transcripts.txt").read_text())
    print(f"written: {path}, with .png and .txt beside it")


if __name__ == "__main__":
    main()
