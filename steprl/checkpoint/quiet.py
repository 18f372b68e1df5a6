"""Orbax and tensorstore report each error many times before it is raised: hundreds of lines."""

import contextlib
import gc
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import TracebackType


class _OrbaxFilter(logging.Filter):
    """Drops what orbax logs: progress, and tracebacks of errors that are raised as well."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname


def silence() -> Callable[[], None]:
    """Hides what orbax logs, and what its threads report of an error; gives back how to end that.

    What it raises is raised.
    """
    absl, no_orbax, before = logging.getLogger("absl"), _OrbaxFilter(), sys.excepthook

    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        # Of an array that was still being written or read when another one failed.
        late = isinstance(value, RuntimeError) and str(value) == "Event loop is closed"
        if not late or threading.current_thread() is threading.main_thread():
            before(kind, value, trace)

    def end() -> None:
        absl.removeFilter(no_orbax)
        if sys.excepthook is hook:
            sys.excepthook = before

    absl.addFilter(no_orbax)
    sys.excepthook = hook
    return end


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the log of orbax while we are inside it."""
    end = silence()
    try:
        yield
    finally:
        end()


@contextlib.contextmanager
def quiet_failure() -> Iterator[None]:
    """As `quiet`, and where a read fails, asyncio does not report each other read that was going on."""
    before, log = sys.unraisablehook, logging.getLogger("asyncio")
    level = log.level
    sys.unraisablehook = lambda _: None
    log.setLevel(logging.CRITICAL + 1)
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", RuntimeWarning
            )  # coroutines that nobody awaits any more
            try:
                yield
            except Exception:
                gc.collect()
                raise
    finally:
        sys.unraisablehook = before
        log.setLevel(level)
