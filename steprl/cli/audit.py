"""`steprl audit`."""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from steprl.cli.options import add_source, add_step, open_source

_THRESHOLD = 1e-5  # less likely is bounded, not enumerated


def add_commands(command: Any) -> None:
    """Adds it to the parser."""
    sub = command(
        "audit", _audit, "Score critic, credit and branching of a run against continuations."
    )
    add_source(sub, "algorithm.gamma=0.9 ...")
    sub.add_argument("--tasks", type=int, default=32, help="number of tasks (default: 32)")
    sub.add_argument("--attempts", type=int, default=8, help="at each task (default: 8)")
    sub.add_argument("--continuations", type=int, default=32, help="from each state (default: 32)")
    sub.add_argument("--split", help="train or an evaluation split (default: the main one)")
    add_step(sub)
    sub.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where audit.json and pictures are written (default: into the run; otherwise nowhere)",
    )
    sub.add_argument(
        "--exact",
        nargs="?",
        type=float,
        const=_THRESHOLD,
        metavar="THRESHOLD",
        help="where the game can be enumerated, do so with all that is likelier than this (default: 1e-5)",
    )


def _audit(options: argparse.Namespace, console: Console) -> int:
    from steprl.audit import as_record, run_audit
    from steprl.audit.pictures import draw_audit, draw_trajectory

    ready = open_source(options, console)
    session, params, step = ready.session, ready.params, ready.step
    older, earlier = (None, None) if ready.run is None else _older(session, ready.run, step)
    # The critic of a warm start has learnt nothing yet.
    critic = step is not None and "critic" in session.method.needs
    split = options.split or session.player.splits[1]
    with _bar(console) as watch:
        audit = run_audit(
            session, params, split, options.tasks, options.attempts, options.continuations,
            critic, older, options.exact, watch,
        )  # fmt: skip
    _print(audit, console)
    folder = options.output or ready.run
    if folder is None:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "settings": {
            "split": split, "tasks": options.tasks, "attempts": options.attempts,
            "continuations": options.continuations, "checkpoint": step,
            "older": earlier, "threshold": options.exact,
            "gamma": session.config.algorithm.gamma, "lam": session.config.algorithm.lam,
            "temperature": session.config.rollout.temperature,
        },
        **as_record(audit),
    }  # fmt: skip
    file = folder / "audit.json"
    file.write_text(json.dumps(record, allow_nan=False) + "\n")
    name = session.config.algorithm.name
    stage = "before training" if ready.run is None else "warm start"
    stage = stage if step is None else f"iteration {step}"
    title = f"{name} on {session.config.env.name}, {stage}, {split}"
    plots = folder / "plots"
    picture = draw_audit(audit, plots / "audit.png", f"Credit against the truth: {title}")
    trajectory = draw_trajectory(audit, plots / "audit_trajectory.png", f"A trajectory: {title}")
    console.print(f"Written to {file}; pictures: {picture} and {trajectory}", markup=False)
    return 0


def _older(session, run: Path, step: int | None):  # type: ignore[no-untyped-def]
    """The newest parameters before a step that can be read, and their step; None if there are none."""
    from steprl.checkpoint import DamagedCheckpoint, all_steps
    from steprl.session import load_params

    earlier = [s for s in all_steps(run / "checkpoints") if step is not None and s < step]
    for saved in reversed(earlier):
        try:
            return load_params(session, run, saved), saved
        except DamagedCheckpoint as error:
            logging.getLogger("steprl").warning("%s; an earlier step is taken", error)
    return None, None


def _bar(console: Console):  # type: ignore[no-untyped-def]
    from contextlib import contextmanager

    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def progress_bar():  # type: ignore[no-untyped-def]
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            bars = {"continuing": progress.add_task("continuing", total=1.0)}

            def watch(phase: str, share: float) -> None:
                if phase not in bars:
                    bars[phase] = progress.add_task(phase, total=1.0)
                progress.update(bars[phase], completed=share)

            yield watch

    return progress_bar()


def _print(audit, console: Console) -> None:  # type: ignore[no-untyped-def]
    from rich.table import Table

    from steprl.audit import CONTINUATIONS, RANK, TARGETS

    facts = audit.facts
    console.print(
        f"{facts['trajectories']:.0f} trajectories, {facts['steps']:.0f} steps, success "
        f"{facts['success_rate']:.3f}; {facts['tokens_sampled']:.0f} tokens sampled in "
        f"{facts['seconds'] / 60:.1f} minutes"
    )
    meanings = {
        "value": "V before the step",
        "advantage": "Q - V",
        "stake": "(Q - V)^2, what the choice decides",
    }
    kinds = list(dict.fromkeys(score.truth for score in audit.scores))
    table = Table(box=None)
    table.add_column("rank correlation with")
    for kind in kinds:
        table.add_column(f"by {kind}", no_wrap=True)
    table.add_column("linear", no_wrap=True)
    for target in TARGETS:
        table.add_row(f"[bold]{meanings[target]}[/]")
        by_name: dict[str, dict[str, Any]] = {}
        for score in audit.scores:
            if score.target == target:
                column = score.truth if score.kind == RANK else "linear"
                # The better truth comes last.
                by_name.setdefault(score.estimate, {})[column] = score
        for name, scores in by_name.items():
            cells = [
                f"{scores[k].correlation:5.2f} [{scores[k].low:.2f}, {scores[k].high:.2f}]"
                for k in kinds
            ]
            table.add_row(f"  {escape(name)}", *cells, f"{scores['linear'].correlation:5.2f}")
        halves, ceiling = audit.reliability[target]
        cells = [f"[dim]{ceiling:5.2f} (halves {halves:.2f})[/]" if k == CONTINUATIONS else ""
                 for k in kinds]  # fmt: skip
        table.add_row("  [dim]at most, about[/]", *cells)
    console.print(table)
    if "critic_rmse" in facts:
        console.print(
            f"The critic is off by {facts['critic_rmse']:.3f} (root mean square), "
            f"{facts['critic_bias']:+.3f} on average."
        )
    if audit.bounds is not None:
        console.print(
            f"Enumerated values are certain within {facts['enumerated_width_mean']:.3f} on average, "
            f"{facts['enumerated_width_max']:.3f} at most; the squared error of the continuations is "
            f"{facts['squared_error_over_expected']:.2f} times what chance explains."
        )
