"""What several commands share: their exit codes, and the settings they run with."""

import argparse
import contextlib
import logging
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """As shells have it: 128 and the number of the signal, 130 for Ctrl-C, 143 for SIGTERM."""
    from steprl.interrupts import Stopped

    return 128 + interrupt.signal if isinstance(interrupt, Stopped) else EXIT_INTERRUPTED


@contextlib.contextmanager
def notices_on(console: Console) -> Iterator[None]:
    """Prints what the package logs: each a line, as it is, whatever other packages do to the log."""

    class Printer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(OSError):  # of a terminal that is gone
                console.print(f"[yellow]{escape(record.getMessage())}[/]")

    log, printer = logging.getLogger("steprl"), Printer(logging.WARNING)
    before, log.propagate = log.propagate, False
    log.addHandler(printer)
    try:
        yield
    finally:
        log.removeHandler(printer)
        log.propagate = before


def config_of(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from steprl.config import load_config

    return load_config(options.config, options.overrides)


def config_of_run(options: argparse.Namespace):  # type: ignore[no-untyped-def]
    from steprl.config import load_config

    file = options.run / "config.resolved.yaml"
    if not file.is_file():
        raise FileNotFoundError(f"{options.run} is not a run: it has no config.resolved.yaml")
    return load_config(file, options.overrides)
