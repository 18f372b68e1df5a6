"""Trajectories as text and pictures: what was seen, what was done, and what each step was worth."""

from pathlib import Path

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from steprl.evaluation import Inspected
from steprl.report import plot_credit


def transcript(seen: Inspected, title: str) -> Panel:
    """Observation, action, reward, value and advantage, a step a row; or what went wrong."""
    table = Table(box=None, pad_edge=False, expand=True)
    table.add_column("step", justify="right", style="dim")
    table.add_column("observation and action", ratio=1, overflow="fold")
    for name in ("reward", "value", "advantage"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, step in enumerate(seen.trajectory.steps):
        words = Text(step.observation.strip(), style="dim")
        words.append(
            "\n> " + (step.action or "(empty)"), style="bold" if step.valid else "bold red"
        )
        table.add_row(
            str(number + 1),
            words,
            f"{step.reward:+.2f}",
            f"{seen.values[number]:+.2f}",
            f"{seen.advantages[number]:+.2f}",
        )
    last = seen.trajectory.steps[-1] if seen.trajectory.steps else None
    if seen.trajectory.fault or last is None:
        fault = Text(f"the environment failed: {seen.trajectory.fault}", style="bold red")
        return Panel(Group(table, fault), title=Text(title), title_align="left")
    ending = "terminated" if last.terminated else f"truncated ({last.stop_reason})"
    verdict = "solved" if seen.trajectory.success else "not solved"
    footer = Text(f"{verdict}, {ending}, return {seen.trajectory.total_reward:.2f}", style="dim")
    return Panel(Group(table, footer), title=Text(title), title_align="left")


def pick(seen: list[Inspected]) -> Inspected:
    """One worth showing: solved if there is one, and of those the one with most steps."""
    return max(seen, key=lambda one: (one.trajectory.success, len(one.trajectory.steps)))


def draw_credit(seen: Inspected, path: Path, title: str) -> Path:
    """The picture of credit over the tokens of a trajectory."""
    return plot_credit(
        seen.tokens, seen.step_ids, seen.advantage, seen.value, seen.reward, path, title=title
    )
