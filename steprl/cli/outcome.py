"""What is printed when a run is complete: a task before and after, success, pictures, what to do next."""

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from steprl.cli.report import report_of_run

_SHOWN = 8
"""Tasks that are played, to show one of them."""


def print_outcome(session: Any, run: Path, params: Any, console: Console) -> None:
    """Prints all of it, and writes pictures and report."""
    from steprl.metrics import read_metrics
    from steprl.report import plot_learning_curves
    from steprl.transcripts import draw_credit

    config, rows = session.config, read_metrics(run / "metrics.jsonl")
    sample = _print_sample(session, run, params, console)
    title = f"{config.algorithm.name} on {config.env.name}"
    curves = plot_learning_curves(rows, run / "plots" / "learning_curves.png", title)
    credit = draw_credit(sample, run / "plots" / "credit.png", f"Credit of {title}")
    measured = [row for row in rows if "eval/success_rate" in row] or [{}]
    for name in [key for key in measured[-1] if "success_rate" in key and "rollout" not in key]:
        if not name.endswith(("_low", "_high")) and "_low_" not in name and "_high_" not in name:
            first, last = measured[0].get(name), measured[-1][name]
            before = f"{first:.3f}" if first is not None else "  -  "
            console.print(f"{escape(f'{name:40s}')} before {before}   after [bold]{last:.3f}[/]")
    console.print(f"pictures: {curves} and {credit}", markup=False)
    if line := _best_line(config.trainer.keep_best, rows, run):
        console.print(escape(line))
    report_of_run(run, console)
    more = shlex.join(["steprl", "rollout", str(run), "--tasks", "3"])
    console.print(f"look at more with: [bold]{escape(more)}[/]")


def _print_sample(session: Any, run: Path, params: Any, console: Console) -> Any:
    """A held-out task, in text environments after the warm start as well; what came of it."""
    import numpy as np

    from steprl.evaluation import inspect
    from steprl.transcripts import pick, transcript

    rollout, split = session.config.rollout, session.player.splits[1]
    is_text = session.suite.game is None
    # A game on the device has a program for a whole batch already; in text, each task takes its time.
    tasks = np.arange(_SHOWN if is_text else rollout.batch_size * rollout.n)
    shown = inspect(session, params, split, tasks)[:_SHOWN]
    warm = _warm_start(session, run) if is_text else None
    if warm is None:
        sample = pick(shown)
        task = sample.trajectory.task
        console.print(transcript(sample, f"a sample: {split} task {task}"))
        return sample
    pairs = list(zip(inspect(session, warm, split, tasks)[:_SHOWN], shown, strict=True))
    sample = pick(_learnt(pairs) or shown)
    before = next(then for then, now in pairs if now is sample)
    task = sample.trajectory.task
    console.print(transcript(before, f"{split} task {task}, after the warm start"))
    console.print(transcript(sample, f"{split} task {task}, after training"))
    return sample


def _warm_start(session: Any, run: Path) -> Any:
    """Its parameters; None where the run had none, or nothing of it can be read any more."""
    from steprl.checkpoint import DamagedCheckpoint, begun
    from steprl.session import load_params
    from steprl.session.parameters import WARM_START

    try:
        return load_params(session, run, WARM_START) if begun(run / "sft") else None
    except DamagedCheckpoint:  # the run is complete all the same
        return None


def _learnt(pairs: list[tuple[Any, Any]]) -> list[Any]:
    """Of attempts before and after, those after that solve what was not solved before."""
    return [now for then, now in pairs if now.trajectory.success and not then.trajectory.success]


def _best_line(metric: str | None, rows: list[dict[str, float]], run: Path) -> str | None:
    """Where the last evaluation is not the best, which one was, and how to use its checkpoint."""
    from steprl.checkpoint import best_steps
    from steprl.metrics import STEP

    if metric is None:
        return None
    measured = [row for row in rows if metric in row]
    steps = best_steps(run / "checkpoints", metric)
    if not steps or not measured or steps[0] == measured[-1][STEP]:
        return None
    value = {row[STEP]: row[metric] for row in measured}
    step, last = steps[0], int(measured[-1][STEP])
    command = shlex.join(["steprl", "eval", str(run), "--step", "best"])
    return (
        f"iteration {step} was the best, {metric} {value.get(step, float('nan')):.3f}, and the last, {last}, "
        f"has {value[last]:.3f}: --step best takes it, as in {command}"
    )
