"""Progress and results on the terminal."""

import math
from collections.abc import Callable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Watch:
    """Progress on the terminal: a bar with the success rate, and a line an evaluation.

    Args:
        left: from the metrics of the second iteration of this process to a line about what is left, or
            None where that is little.
    """

    def __init__(self, console: Console, left: Callable[..., str | None] | None = None):
        self.console = console
        self.left = left
        self.iterations = 0
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
            note = _warm_start_note(metrics)
            measured = "sft/success_rate" in metrics
            if event.step % 100 == 0 or event.step == event.steps or measured:
                self.console.print(f"warm start {event.step:>5}/{event.steps}  {note}")
        else:
            self.bar("training", event.steps)
            rate = metrics.get("rollout/success_rate", metrics.get("eval/success_rate", 0.0))
            note = f"success {rate:.2f}{_returns(metrics)}{_tokens(metrics)}"
            if "eval/success_rate" in metrics:
                self.console.print(_evaluation_line(event))
            self.iterations += event.step > 0
            if event.step and self.iterations == 2 and self.left is not None:
                if line := self.left(event.step, metrics):
                    self.console.print(line, style="dim", markup=False)
        for task in self.bars.values():
            self.progress.update(task, completed=event.step, note=note)  # type: ignore[arg-type]


def _warm_start_note(metrics: dict[str, float]) -> str:
    """The loss, and where success was measured, on training tasks, what was found."""
    note = f"loss {metrics['sft/loss']:.3f}" if "sft/loss" in metrics else "loss   -  "
    if "sft/success_rate" in metrics:
        note += f"  success {metrics['sft/success_rate']:.3f}  return {metrics['sft/return']:.2f}"
        note += f"  entropy {metrics['sft/entropy']:.3f}"
    return note


def _evaluation_line(event) -> str:  # type: ignore[no-untyped-def]
    metrics = event.metrics
    line = f"iteration {event.step:>4}/{event.steps}  success {metrics['eval/success_rate']:.3f}"
    if "eval/success_rate_greedy" in metrics:
        line += f"  greedy {metrics['eval/success_rate_greedy']:.3f}"
    for name, value in metrics.items():
        if name.count("/") == 2 and name.endswith("/success_rate"):
            line += f"  {escape(name.split('/')[1])} {value:.3f}"
    line += _returns(metrics)
    if "num_turns/mean" in metrics:
        line += f"  turns {metrics['num_turns/mean']:.1f}  clip {metrics['actor/pg_clipfrac']:.3f}"
        line += f"  entropy {metrics['actor/entropy']:.3f}{_tokens(metrics)}"
    return line


def _returns(metrics: dict[str, float]) -> str:
    """The return, of the evaluation where there was one, and the tokens of an action in training."""
    text = ""
    name = "eval/return" if "eval/return" in metrics else "critic/rewards/mean"
    if name in metrics:
        text += f"  return {metrics[name]:.2f}"
    if "response_length/mean" in metrics:
        text += f"  length {metrics['response_length/mean']:.1f}"
    return text


def _tokens(metrics: dict[str, float]) -> str:
    """What was read and sampled, and how much of the contexts the cache held; branches if any."""
    if "token/reused" not in metrics:
        return ""
    prefilled, reused = metrics["token/prefilled"], metrics["token/reused"]
    text = f"  read {prefilled:,.0f}  sampled {metrics['token/decoded']:,.0f}"
    text += f"  cached {reused / max(prefilled + reused, 1):.0%}"
    if "branch/count" in metrics:
        text += f"  branches {metrics['branch/count']:.0f}"
    return text


def fewer_tasks(name: str, found: float, wanted: int) -> str:
    """What is said where an environment has fewer tasks than `eval.num_tasks` asks for."""
    return (
        f"{name} has {found:.0f} different tasks, fewer than eval.num_tasks={wanted}; intervals are over "
        f"{found:.0f} tasks (eval.n makes more attempts at each)"
    )


def print_results(
    results: dict[str, float], console: Console, num_tasks: int | None = None
) -> None:
    """Tables of success and of what else was measured.

    Args:
        num_tasks: that were asked for.
    """
    from rich.table import Table

    table = Table(box=None)
    titles = ("", "success", "95 % interval", "tasks", "return", "turns", "parse errors")
    for title in titles:
        table.add_column(title, justify="left" if not title else "right")
    for name, rate in results.items():
        if name.removesuffix("_greedy").endswith("/success_rate"):
            prefix, suffix = name.rsplit("/", 1)[0], "_greedy" if name.endswith("_greedy") else ""
            value_of = lambda key, p=prefix, s=suffix: results[f"{p}/{key}{s}"]  # noqa: E731
            table.add_row(
                escape(prefix) + (" greedy" if suffix else " sampled"),
                f"{rate:.3f}",
                f"{value_of('success_rate_low'):.3f} .. {value_of('success_rate_high'):.3f}",
                f"{value_of('num_tasks'):.0f}",
                f"{value_of('return'):.3f}",
                f"{value_of('num_turns'):.1f}",
                f"{value_of('parse_error_frac'):.3f}",
            )
    console.print(table)
    for name, failed in results.items():
        if failed and name.removesuffix("_greedy").endswith("/faults"):
            attempts = results[name.replace("/faults", "/attempts")]
            console.print(
                f"{name}: the environment failed in {failed:.0f} of {attempts:.0f} attempts, which are "
                "left out"
            )
    for name, found in results.items():
        if name.endswith("/num_tasks") and num_tasks is not None and found < num_tasks:
            console.print(fewer_tasks(name.rsplit("/", 1)[0], found, num_tasks), markup=False)
    measured = _measured(results)
    if measured:
        table = Table(box=None)
        for title in ("", "mean", "95 % interval"):
            table.add_column(title, justify="left" if not title else "right")
        for name in measured:
            base, suffix = name.removesuffix("_greedy"), "_greedy" if "_greedy" in name else ""
            low, high = results[f"{base}_low{suffix}"], results[f"{base}_high{suffix}"]
            cells = (f"{results[name]:.3f}", f"{low:.3f} .. {high:.3f}")
            # Such as the share of valid calls where no call was made.
            table.add_row(escape(name), *(("-", "-") if math.isnan(results[name]) else cells))
        console.print(table)


def _measured(results: dict[str, float]) -> list[str]:
    """Names of what the environment measures beside success: those with an interval."""
    names = []
    for name in results:
        base, suffix = name.removesuffix("_greedy"), "_greedy" if name.endswith("_greedy") else ""
        if f"{base}_low{suffix}" in results and not base.endswith("/success_rate"):
            names.append(name)
    return names
