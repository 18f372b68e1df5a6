"""`steprl eval` and `steprl rollout`."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from steprl.cli.options import add_source, add_step, open_source
from steprl.cli.progress import print_results


def add_commands(command: Any) -> None:
    """Adds both to the parser."""
    sub = command(
        "eval", _eval, "Success, with 95 % intervals, of a run or of a model as it comes."
    )
    add_source(sub, "eval.temperature=0.7 ...")
    sub.add_argument("--tasks", type=int, help="number of tasks (default: eval.num_tasks)")
    _add_places(sub, "eval.json")
    sub = command("rollout", _rollout, "Play some tasks and print what happens, with credit.")
    add_source(sub, "rollout.response_length=64 ...")
    _add_places(sub, "plots/credit.png")
    sub.add_argument("--tasks", type=int, default=3, help="number of tasks (default: 3)")
    sub.add_argument("--split", help="train or an evaluation split (default: the main one)")
    sub.add_argument("--first", type=int, default=0, help="number of the first task")
    sub.add_argument("--greedy", action="store_true", help="take the most likely token")


def _add_places(sub: argparse.ArgumentParser, file: str) -> None:
    add_step(sub)
    sub.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help=f"where {file} is written (default: into the run; of a model or configuration, nowhere)",
    )


def _eval(options: argparse.Namespace, console: Console) -> int:
    from steprl.evaluation import evaluate_all

    if options.tasks is not None and options.tasks < 1:
        raise ValueError(f"--tasks {options.tasks}: must be at least 1")
    ready = open_source(options, console)
    session = ready.session
    with console.status("Playing ..."):
        config, rows = session.config, None
        if options.tasks is not None:  # few are not filled up to an iteration's
            devices = session.mesh.size
            rows = min(
                -(-options.tasks * config.eval.n // devices) * devices,
                config.rollout.batch_size * config.rollout.n,
            )
        results = evaluate_all(session.player, ready.params, config, options.tasks, rows)
    print_results(results, console, options.tasks or session.config.eval.num_tasks)
    folder = options.output or ready.run
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "eval.json").write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"Written to {escape(str(folder / 'eval.json'))}")
    return 0


def _rollout(options: argparse.Namespace, console: Console) -> int:
    import numpy as np

    from steprl.evaluation import inspect
    from steprl.transcripts import draw_credit, pick, transcript

    if options.tasks < 1:
        raise ValueError(f"--tasks {options.tasks}: must be at least 1")
    ready = open_source(options, console)
    session = ready.session
    split = options.split or session.player.splits[1]
    if split not in session.player.splits:
        raise ValueError(
            f"--split {split}: this environment has {', '.join(session.player.splits)}"
        )
    rows = -(-options.tasks // session.mesh.size) * session.mesh.size
    tasks = np.arange(options.first, options.first + rows)
    trajectories = inspect(
        session,
        ready.params,
        split,
        tasks,
        0.0 if options.greedy else None,
    )[: options.tasks]
    for played in trajectories:
        console.print(transcript(played, f"{split} task {played.trajectory.task}"))
    if failed := sum(bool(played.trajectory.fault) for played in trajectories):
        console.print(f"The environment failed in {failed} of {len(trajectories)} attempts.")
    folder = options.output or ready.run
    if folder is not None:
        picture = draw_credit(
            pick(trajectories), folder / "plots" / "credit.png", "Credit over a trajectory"
        )
        console.print(f"Credit of the longest one: {escape(str(picture))}")
    return 0
