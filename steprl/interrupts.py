"""Signals: a run that is told to stop finishes what it is at, saves, and ends.

Ctrl-C (SIGINT), SIGTERM, which every scheduler sends before it kills, and SIGUSR1, which Slurm sends
ahead of a time limit if asked to (`--signal=USR1@600`), are alike. Only a second Ctrl-C acts at once:
schedulers may send theirs several times.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_LOG = logging.getLogger("steprl")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stopped(KeyboardInterrupt):
    """A run has stopped because a signal asked for it, its state saved.

    Attributes:
        signal: its number; a process that ends for it exits with 128 + number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Interrupts:
    """Whether a run is asked to stop. Of several processes, all are when one of them is."""

    def __init__(self) -> None:
        self._number = 0
        self._at_once = False
        self._said: list[threading.Thread] = []

    def __call__(self) -> bool:
        if (
            jax.process_count() > 1
        ):  # or they would stop at different steps, and wait for each other
            everywhere = multihost_utils.process_allgather(np.int32(self._number))
            self._number = int(np.max(everywhere))
        return self._number != 0

    def _receive(self, number: int, _: Any) -> None:
        if self._number and number == signal.SIGINT:
            self._at_once = True
            raise KeyboardInterrupt
        if not self._number:
            self._number = number
            name = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
            # In a thread: a handler must not write to a stream that is being written to.
            said = threading.Thread(
                target=_LOG.warning,
                args=(
                    "%s: this step or iteration is finished and saved, then the run stops. "
                    "Ctrl-C%s stops it at once, without saving.",
                    name,
                    " again" if number == signal.SIGINT else "",
                ),
                daemon=True,
            )
            said.start()
            self._said.append(said)


@contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Turns the first signal into a flag that is read between steps; a second Ctrl-C acts at once.

    A `KeyboardInterrupt` that the flag led to leaves as `Stopped`. Signals that are ignored when it
    begins stay so, but for Ctrl-C; outside the main thread nothing is done.
    """
    asked = Interrupts()
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN or number == signal.SIGINT:
                before[number] = signal.SIG_DFL if handler is None else handler
                signal.signal(number, asked._receive)
    try:
        yield asked
    except KeyboardInterrupt:
        if asked._number and not asked._at_once:
            raise Stopped(asked._number) from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for said in asked._said:
            said.join()
