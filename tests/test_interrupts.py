"""Signals: the first one asks a run to stop, a second Ctrl-C stops it, and nothing is left behind."""

import signal
import threading

import jax
import numpy as np
import pytest

from steprl import interrupts as module
from steprl.cli.options import exit_code
from steprl.interrupts import Stopped, interrupts

ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers():
    """Whatever a test does, handlers are as before."""
    before = [signal.getsignal(number) for number in ALL]
    yield
    assert [signal.getsignal(number) for number in ALL] == before


@pytest.mark.parametrize(
    "number, name, code",
    [(ALL[0], "Ctrl-C", 130), (ALL[1], "SIGTERM", 143), (ALL[2], "SIGUSR1", 138)],
)
def test_the_first_signal_asks_and_says_so(caplog, number, name, code):
    with pytest.raises(Stopped) as stopped, interrupts() as asked:
        assert not asked()
        signal.raise_signal(number)
        assert asked()
        raise KeyboardInterrupt  # as the loop does, when it has saved
    assert stopped.value.signal == number and exit_code(stopped.value) == code
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{name}: ") and "saved, then the run stops" in line


@pytest.mark.parametrize("first", ALL)
def test_a_second_control_c_acts_at_once_and_promises_nothing(caplog, first):
    with pytest.raises(KeyboardInterrupt) as caught, interrupts():
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it should not come here")
    assert not isinstance(caught.value, Stopped) and exit_code(caught.value) == 130
    assert len(caplog.records) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_schedulers_may_send_theirs_several_times(caplog, number):
    with interrupts() as asked:
        for _ in range(3):
            signal.raise_signal(number)
        signal.raise_signal(signal.SIGTERM)
        assert asked()
    assert len(caplog.records) == 1


def test_a_run_that_ends_all_the_same_ends_as_usual():
    with interrupts():
        signal.raise_signal(signal.SIGTERM)


def test_without_a_signal_an_interrupt_is_what_it_was():
    with pytest.raises(KeyboardInterrupt) as caught, interrupts() as asked:
        assert not asked()
        raise KeyboardInterrupt
    assert not isinstance(caught.value, Stopped)


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with interrupts() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert not asked()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_outside_the_main_thread_nothing_is_done():
    seen = []

    def run():
        with interrupts() as asked:
            seen.append((asked(), signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGTERM))]


def test_of_several_processes_all_stop_when_one_is_told_to(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    elsewhere = np.int32(signal.SIGTERM)
    monkeypatch.setattr(
        module.multihost_utils, "process_allgather", lambda own: np.stack([own, elsewhere])
    )
    with pytest.raises(Stopped) as stopped, interrupts() as asked:
        assert asked()
        raise KeyboardInterrupt
    assert stopped.value.signal == signal.SIGTERM
