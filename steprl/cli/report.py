"""`steprl report`."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape


def add_commands(command: Any) -> None:
    """Adds it to the parser."""
    sub = command(
        "report", _report, "One page that shows a run: curves, trajectories, credit of each token."
    )
    sub.add_argument("run", type=Path, help="directory of a run")
    sub.add_argument(
        "--out", type=Path, metavar="FILE", help="page to write (default: RUN/report.html)"
    )
    sub.add_argument(
        "--trajectories", type=int, default=1000, metavar="N", help="shown at most (default: 1000)"
    )


def _report(options: argparse.Namespace, console: Console) -> int:
    from steprl.report import write_report

    if options.trajectories < 0:
        raise ValueError(f"--trajectories {options.trajectories}: must be at least 0")
    page = write_report(options.run, options.out, options.trajectories)
    console.print(f"report: [bold]{escape(str(page))}[/], open it in a browser")
    return 0


def report_of_run(run: Path, console: Console) -> None:
    """Writes the page at the end of a run. A run does not fail by it: one line says what is wrong."""
    try:
        from steprl.report import write_report

        console.print(f"report: [bold]{escape(str(write_report(run)))}[/], open it in a browser")
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        console.print(f"[yellow]no report:[/] {escape(said)}")
