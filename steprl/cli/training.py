"""`steprl train` and `steprl sft`."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from steprl.cli.options import EXIT_ERROR, config_of, exit_code
from steprl.cli.progress import Watch, print_results


def add_commands(command: Any) -> None:
    """Adds both to the parser."""
    for name, run, text in (
        ("train", _train, "Warm start, then reinforcement learning, as a configuration says."),
        ("sft", _sft, "The supervised warm start alone."),
    ):
        sub = command(name, run, text)
        sub.add_argument("config", type=Path, help="YAML file, such as configs/quickstart.yaml")
        sub.add_argument(
            "overrides", nargs="*", metavar="key=value", help="algorithm.gamma=0.99 ..."
        )
        sub.add_argument(
            "--resume",
            nargs="?",
            const="auto",
            metavar="auto|RUN",
            help="continue where a run was stopped",
        )
        sub.add_argument("--overwrite", action="store_true", help="delete the run that is there")
        sub.add_argument(
            "--dry-run", action="store_true", help="check and print the settings, then stop"
        )


def _train(options: argparse.Namespace, console: Console) -> int:
    from steprl.config import ConfigError
    from steprl.disk import WriteError
    from steprl.run_directory import open_run, run_path
    from steprl.session import setup
    from steprl.train import train

    _read_resume(options)
    config = config_of(options)
    run_path(config)  # a name that cannot be is told at once
    if options.dry_run:
        return _dry_run(config, console)
    if config.trainer.total_training_steps == 0:
        raise ConfigError("trainer.total_training_steps=0: nothing to train; use `steprl sft`")
    session = setup(config)
    run = open_run(session.config, options.resume, options.overwrite)
    _announce(session, run, console)
    with Watch(console) as watch:
        try:
            params, _ = train(session, run, watch)
        except KeyboardInterrupt as interrupt:
            return _interrupted(options, run, console, interrupt)
        except WriteError as error:
            return _not_written(options, run, console, error)
    try:
        _finish(session, run, params, console)
    except OSError as error:
        console.print(
            f"[bold red]error:[/] {escape(str(error))}; the run itself is complete and saved"
        )
        return EXIT_ERROR
    return 0


def _sft(options: argparse.Namespace, console: Console) -> int:
    from steprl.config import ConfigError
    from steprl.disk import WriteError
    from steprl.evaluation import evaluate_all
    from steprl.interrupts import interrupts
    from steprl.run_directory import open_run, run_path
    from steprl.session import setup
    from steprl.train import run_warm_start

    _read_resume(options)
    config = config_of(options)
    run_path(config)
    if options.dry_run:
        return _dry_run(config, console)
    if config.sft.steps == 0:
        raise ConfigError("sft.steps=0: there is nothing to do")
    session = setup(config)
    run = open_run(session.config, options.resume, options.overwrite)
    _announce(session, run, console)
    with Watch(console) as watch:
        try:
            with interrupts() as interrupted:
                params = run_warm_start(session, run, watch, interrupted)
        except KeyboardInterrupt as interrupt:
            return _interrupted(options, run, console, interrupt)
        except WriteError as error:
            return _not_written(options, run, console, error)
        print_results(evaluate_all(session.player, params, config), console)
    console.print(f"Start from it with [bold]trainer.init_from={run}[/]")
    return 0


def _read_resume(options: argparse.Namespace) -> None:
    """A setting right behind --resume is a setting, and no run."""
    word = options.resume
    if word and "=" in word and not Path(word).exists():
        options.resume, options.overrides = "auto", [*options.overrides, word]


def _dry_run(config, console: Console) -> int:  # type: ignore[no-untyped-def]
    from omegaconf import OmegaConf

    from steprl.session import abstract_params, setup

    session = setup(config)
    console.print(escape(OmegaConf.to_yaml(OmegaConf.structured(config))))
    console.print(f"Settings are fine: {_parameters(abstract_params(session)):,} parameters.")
    return 0


def _parameters(tree) -> int:  # type: ignore[no-untyped-def]
    import math

    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _announce(session, run: Path, console: Console) -> None:  # type: ignore[no-untyped-def]
    from steprl.session import abstract_params

    config, devices = session.config, session.mesh.devices.flatten()
    console.print(
        f"[bold]{config.algorithm.name}[/] on [bold]{config.env.name}[/]: "
        f"{_parameters(abstract_params(session)):,} parameters, {len(devices)} x {devices[0].platform}, "
        f"seed {config.trainer.seed}, run directory {run}"
    )


def _interrupted(
    options: argparse.Namespace, run: Path, console: Console, interrupt: KeyboardInterrupt
) -> int:
    from steprl.interrupts import Stopped

    if isinstance(interrupt, Stopped):
        said = f"Interrupted; the state is saved in {run}"
    else:
        said = "Interrupted at once; what was learnt since the last save is lost"
    console.print(escape(f"{said}: {_last_saved(run)}. Continue with:"))
    console.print(f"  [bold]{escape(_resume_command(options))}[/]")
    return exit_code(interrupt)


def _not_written(options: argparse.Namespace, run: Path, console: Console, error: OSError) -> int:
    console.print(f"[bold red]stopped:[/] {escape(f'{error}. In {run}, {_last_saved(run)}')}.")
    command = escape(_resume_command(options))
    console.print(f"When it can be written, continue with:\n  [bold]{command}[/]")
    return EXIT_ERROR


def _last_saved(run: Path) -> str:
    """What is on disk now, whatever was meant to be."""
    from steprl.checkpoint import latest_step

    iteration, step = latest_step(run / "checkpoints"), latest_step(run / "sft")
    if iteration is not None:
        return f"iteration {iteration} is the last that is saved"
    if step is not None:
        return f"step {step} of the warm start is the last that is saved"
    return "nothing is saved yet"


def _resume_command(options: argparse.Namespace) -> str:
    words = ["steprl", options.command_name, str(options.config), *options.overrides]
    return shlex.join([*words, "--resume", options.resume or "auto"])


def _finish(session, run: Path, params, console: Console) -> None:  # type: ignore[no-untyped-def]
    """Before and after, a sample transcript, and the pictures."""
    import numpy as np

    from steprl.evaluation import inspect
    from steprl.metrics import read_metrics
    from steprl.report import plot_learning_curves
    from steprl.transcripts import draw_credit, pick, transcript

    config, rows = session.config, read_metrics(run / "metrics.jsonl")
    measured = [row for row in rows if "eval/success_rate" in row] or [{}]
    split = session.player.splits[1]
    tasks = np.arange(config.rollout.batch_size * config.rollout.n)
    sample = pick(inspect(session, params, split, tasks)[:8])
    console.print(transcript(sample, f"a sample: {split} task {sample.trajectory.task}"))
    title = f"{config.algorithm.name} on {config.env.name}"
    curves = plot_learning_curves(rows, run / "plots" / "learning_curves.png", title)
    credit = draw_credit(sample, run / "plots" / "credit.png", f"Credit of {title}")
    for name in [key for key in measured[-1] if "success_rate" in key and "rollout" not in key]:
        if not name.endswith(("_low", "_high")) and "_low_" not in name and "_high_" not in name:
            first, last = measured[0].get(name), measured[-1][name]
            before = f"{first:.3f}" if first is not None else "  -  "
            console.print(f"{name:40s} before {before}   after [bold]{last:.3f}[/]")
    console.print(f"pictures: {curves} and {credit}")
    console.print(f"look at more with: [bold]steprl rollout {run} --n 3[/]")
