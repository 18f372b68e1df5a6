"""The command line: `steprl train | sft | eval | rollout`."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 on an error, 130 when interrupted."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes no second group of positionals: settings may stand behind options all the same.
    strangers = [word for word in rest if word.startswith("-") or "=" not in word]
    if strangers:
        parser.error(f"unknown argument {strangers[0]!r}")
    options.overrides = [*options.overrides, *rest]
    console = Console(highlight=False, soft_wrap=True)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # no PyTorch here is no news
    # Imports that load JAX come after the arguments are known, so that --help is quick.
    from steprl.config import ConfigError
    from steprl.run_directory import RunDirectoryError

    try:
        return options.command(options, console)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (ConfigError, RunDirectoryError, OSError, ImportError, ValueError) as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}")
        return EXIT_ERROR
    except FloatingPointError as error:
        console.print(f"[bold red]stopped:[/] {escape(str(error))}")
        return EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="steprl",
        description="Step-level reinforcement learning of language-model agents in JAX.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run, command_name=name)
        return sub

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
            help="go on where a run was stopped",
        )
        sub.add_argument("--overwrite", action="store_true", help="delete the run that is there")
        sub.add_argument(
            "--dry-run", action="store_true", help="check and print the settings, then stop"
        )
    sub = command("eval", _eval, "Success of a run's newest checkpoint, with 95 % intervals.")
    sub.add_argument("run", type=Path, help="directory of a run")
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="eval.temperature=0.7 ...")
    sub.add_argument("--n", type=int, help="number of tasks (default: eval.num_tasks)")
    sub.add_argument("--step", type=int, help="checkpoint to take (default: the newest)")
    sub = command("rollout", _rollout, "Play some tasks and print what happens, with credit.")
    sub.add_argument("run", type=Path, help="directory of a run")
    sub.add_argument("overrides", nargs="*", metavar="key=value")
    sub.add_argument("--n", type=int, default=3, help="number of tasks (default: 3)")
    sub.add_argument("--split", help="train or an evaluation split (default: the main one)")
    sub.add_argument("--first", type=int, default=0, help="number of the first task")
    sub.add_argument("--greedy", action="store_true", help="take the most likely token")
    return parser


def _train(options: argparse.Namespace, console: Console) -> int:
    from steprl.config import ConfigError
    from steprl.run_directory import open_run
    from steprl.train import setup, train

    config = _config(options)
    if options.dry_run:
        return _dry_run(config, console)
    if config.trainer.total_training_steps == 0:
        raise ConfigError("trainer.total_training_steps=0: nothing to train; use `steprl sft`")
    session = setup(config)
    run = open_run(config, options.resume, options.overwrite)
    _announce(session, run, console)
    with _Watch(console) as watch:
        try:
            params, _ = train(session, run, watch)
        except KeyboardInterrupt:
            return _interrupted(options, run, console)
    _finish(session, run, params, console)
    return 0


def _sft(options: argparse.Namespace, console: Console) -> int:
    from steprl.config import ConfigError
    from steprl.evaluation import evaluate_all
    from steprl.run_directory import open_run
    from steprl.train import interrupts, run_warm_start, setup

    config = _config(options)
    if options.dry_run:
        return _dry_run(config, console)
    if config.sft.steps == 0:
        raise ConfigError("sft.steps=0: there is nothing to do")
    session = setup(config)
    run = open_run(config, options.resume, options.overwrite)
    _announce(session, run, console)
    with _Watch(console) as watch, interrupts() as interrupted:
        try:
            params = run_warm_start(session, run, watch, interrupted)
        except KeyboardInterrupt:
            return _interrupted(options, run, console)
        _print_results(evaluate_all(session.player, params, config), console)
    console.print(f"Start from it with [bold]trainer.init_from={run}[/]")
    return 0


def _eval(options: argparse.Namespace, console: Console) -> int:
    from steprl.evaluation import evaluate_all
    from steprl.train import load_params, setup

    if options.n is not None and options.n < 1:
        raise ValueError(f"--n {options.n}: must be at least 1")
    session = setup(_config_of_run(options))
    params = load_params(session, options.run, options.step)
    with console.status("Playing ..."):
        results = evaluate_all(session.player, params, session.config, options.n)
    _print_results(results, console)
    (options.run / "eval.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"Written to {options.run / 'eval.json'}")
    return 0


def _rollout(options: argparse.Namespace, console: Console) -> int:
    import numpy as np

    from steprl.evaluation import inspect
    from steprl.train import load_params, setup
    from steprl.transcripts import draw_credit, pick, transcript

    if options.n < 1:
        raise ValueError(f"--n {options.n}: must be at least 1")
    session = setup(_config_of_run(options))
    split = options.split or session.player.splits[1]
    if split not in session.player.splits:
        raise ValueError(
            f"--split {split}: this environment has {', '.join(session.player.splits)}"
        )
    params = load_params(session, options.run)
    rows = -(-options.n // session.mesh.size) * session.mesh.size
    tasks = np.arange(options.first, options.first + rows)
    seen = inspect(
        session.policy,
        session.player,
        params,
        session.config,
        split,
        tasks,
        0.0 if options.greedy else None,
    )[: options.n]
    for one in seen:
        console.print(transcript(one, f"{split} task {one.trajectory.task}"))
    picture = draw_credit(
        pick(seen), options.run / "plots" / "credit.png", "Credit over a trajectory"
    )
    console.print(f"Credit of the longest one: {picture}")
    return 0


def _config(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from steprl.config import load_config

    return load_config(options.config, options.overrides)


def _config_of_run(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from steprl.config import load_config

    saved = options.run / "config.resolved.yaml"
    if not saved.is_file():
        raise FileNotFoundError(f"{options.run} is not a run: it has no config.resolved.yaml")
    return load_config(saved, options.overrides)


def _dry_run(config, console: Console) -> int:  # type: ignore[no-untyped-def]
    from omegaconf import OmegaConf

    from steprl.train import abstract_params, setup

    session = setup(config)
    console.print(escape(OmegaConf.to_yaml(OmegaConf.structured(config))))
    console.print(f"Settings are fine: {_parameters(abstract_params(session)):,} parameters.")
    return 0


def _parameters(tree) -> int:  # type: ignore[no-untyped-def]
    import math

    import jax

    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _announce(session, run: Path, console: Console) -> None:  # type: ignore[no-untyped-def]
    from steprl.train import abstract_params

    config, devices = session.config, session.mesh.devices.flatten()
    console.print(
        f"[bold]{config.algorithm.name}[/] on [bold]{config.env.name}[/]: "
        f"{_parameters(abstract_params(session)):,} parameters, {len(devices)} x {devices[0].platform}, "
        f"seed {config.trainer.seed}, run directory {run}"
    )


class _Watch:
    """Progress on the terminal: a bar with the success rate, and a line an evaluation."""

    def __init__(self, console: Console):
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.bars: dict[str, object] = {}

    def __enter__(self):  # type: ignore[no-untyped-def]
        self.progress.start()
        self.bar("compiling", None)
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def bar(self, name: str, total: int | None) -> None:
        if name not in self.bars:
            for other in self.bars.values():
                self.progress.remove_task(other)  # type: ignore[arg-type]
            self.bars = {name: self.progress.add_task(name, total=total, note="")}

    def __call__(self, event) -> None:  # type: ignore[no-untyped-def]
        metrics = event.metrics
        if event.phase == "sft":
            self.bar("warm start", event.steps)
            note = f"loss {metrics['sft/loss']:.3f}"
            if event.step % 100 == 0 or event.step == event.steps:
                self.console.print(f"warm start {event.step:>5}/{event.steps}  {note}")
        else:
            self.bar("training", event.steps)
            rate = metrics.get("rollout/success_rate", metrics.get("eval/success_rate", 0.0))
            note = f"success {rate:.2f}"
            if "eval/success_rate" in metrics:
                self.console.print(_evaluation_line(event))
        for task in self.bars.values():
            self.progress.update(task, completed=event.step, note=note)  # type: ignore[arg-type]


def _evaluation_line(event) -> str:  # type: ignore[no-untyped-def]
    metrics = event.metrics
    line = f"iteration {event.step:>4}/{event.steps}  success {metrics['eval/success_rate']:.3f}"
    if "eval/success_rate_greedy" in metrics:
        line += f"  greedy {metrics['eval/success_rate_greedy']:.3f}"
    for name, value in metrics.items():
        if name.count("/") == 2 and name.endswith("/success_rate"):
            line += f"  {name.split('/')[1]} {value:.3f}"
    if "num_turns/mean" in metrics:
        line += f"  turns {metrics['num_turns/mean']:.1f}  clip {metrics['actor/pg_clipfrac']:.3f}"
        line += f"  entropy {metrics['actor/entropy']:.3f}"
    return line


def _print_results(results: dict[str, float], console: Console) -> None:
    from rich.table import Table

    table = Table(box=None)
    for title in ("", "success", "95 % interval", "turns", "parse errors"):
        table.add_column(title, justify="left" if not title else "right")
    for name, rate in results.items():
        if name.removesuffix("_greedy").endswith("/success_rate"):
            prefix, suffix = name.rsplit("/", 1)[0], "_greedy" if name.endswith("_greedy") else ""
            of = lambda key, p=prefix, s=suffix: results[f"{p}/{key}{s}"]  # noqa: E731
            table.add_row(
                prefix + (" greedy" if suffix else " sampled"),
                f"{rate:.3f}",
                f"{of('success_rate_low'):.3f} .. {of('success_rate_high'):.3f}",
                f"{of('num_turns'):.1f}",
                f"{of('parse_error_frac'):.3f}",
            )
    console.print(table)


def _interrupted(options: argparse.Namespace, run: Path, console: Console) -> int:
    words = ["steprl", options.command_name, str(options.config), *options.overrides]
    again = shlex.join([*words, "--resume", options.resume or "auto"])
    console.print(
        f"Interrupted; the state is saved in {run}. Go on with:\n  [bold]{escape(again)}[/]"
    )
    return EXIT_INTERRUPTED


def _finish(session, run: Path, params, console: Console) -> None:  # type: ignore[no-untyped-def]
    """Before and after, a sample transcript, and the pictures."""
    import numpy as np

    from steprl.evaluation import inspect
    from steprl.metrics import read_metrics
    from steprl.report import plot_learning_curves
    from steprl.transcripts import draw_credit, pick, transcript

    config, rows = session.config, read_metrics(run / "metrics.jsonl")
    measured = [row for row in rows if "eval/success_rate" in row]
    split = session.player.splits[1]
    tasks = np.arange(config.rollout.batch_size * config.rollout.n)
    one = pick(inspect(session.policy, session.player, params, config, split, tasks)[:8])
    console.print(transcript(one, f"a sample: {split} task {one.trajectory.task}"))
    title = f"{config.algorithm.name} on {config.env.name}"
    curves = plot_learning_curves(rows, run / "plots" / "learning_curves.png", title)
    credit = draw_credit(one, run / "plots" / "credit.png", f"Credit of {title}")
    for name in [key for key in measured[-1] if "success_rate" in key and "rollout" not in key]:
        if not name.endswith(("_low", "_high")) and "_low_" not in name and "_high_" not in name:
            first, last = measured[0].get(name), measured[-1][name]
            was = f"{first:.3f}" if first is not None else "  -  "
            console.print(f"{name:40s} before {was}   after [bold]{last:.3f}[/]")
    console.print(f"pictures: {curves} and {credit}")
    console.print(f"look at more with: [bold]steprl rollout {run} --n 3[/]")


if __name__ == "__main__":
    sys.exit(main())
