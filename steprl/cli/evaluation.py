"""`steprl eval` and `steprl rollout`."""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from steprl.cli.options import config_of_run
from steprl.cli.progress import print_results


def add_commands(command: Any) -> None:
    """Adds both to the parser."""
    sub = command("eval", _eval, "Success of a run's newest checkpoint, with 95 % intervals.")
    sub.add_argument("run", type=Path, help="directory of a run")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="eval.temperature=0.7 ...")
    sub.add_argument("--tasks", type=int, help="number of tasks (default: eval.num_tasks)")
    sub.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    sub = command("rollout", _rollout, "Play some tasks and print what happens, with credit.")
    sub.add_argument("run", type=Path, help="directory of a run")
    sub.add_argument("overrides", nargs="*", metavar="key=value")
    sub.add_argument("--tasks", type=int, default=3, help="number of tasks (default: 3)")
    sub.add_argument("--split", help="train or an evaluation split (default: the main one)")
    sub.add_argument("--first", type=int, default=0, help="number of the first task")
    sub.add_argument("--greedy", action="store_true", help="take the most likely token")


def _eval(options: argparse.Namespace, console: Console) -> int:
    from steprl.evaluation import evaluate_all
    from steprl.session import load_params, setup

    if options.tasks is not None and options.tasks < 1:
        raise ValueError(f"--tasks {options.tasks}: must be at least 1")
    session = setup(config_of_run(options))
    params = load_params(session, options.run, options.step)
    with console.status("Playing ..."):
        results = evaluate_all(session.player, params, session.config, options.tasks)
    print_results(results, console)
    (options.run / "eval.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"Written to {options.run / 'eval.json'}", markup=False)
    return 0


def _rollout(options: argparse.Namespace, console: Console) -> int:
    import numpy as np

    from steprl.evaluation import inspect
    from steprl.session import load_params, setup
    from steprl.transcripts import draw_credit, pick, transcript

    if options.tasks < 1:
        raise ValueError(f"--tasks {options.tasks}: must be at least 1")
    session = setup(config_of_run(options))
    split = options.split or session.player.splits[1]
    if split not in session.player.splits:
        raise ValueError(
            f"--split {split}: this environment has {', '.join(session.player.splits)}"
        )
    params = load_params(session, options.run)
    rows = -(-options.tasks // session.mesh.size) * session.mesh.size
    tasks = np.arange(options.first, options.first + rows)
    trajectories = inspect(
        session,
        params,
        split,
        tasks,
        0.0 if options.greedy else None,
    )[: options.tasks]
    for played in trajectories:
        console.print(transcript(played, f"{split} task {played.trajectory.task}"))
    picture = draw_credit(
        pick(trajectories), options.run / "plots" / "credit.png", "Credit over a trajectory"
    )
    console.print(f"Credit of the longest one: {picture}", markup=False)
    return 0
