"""The process between the program and a worker: it kills all that the worker has started, in the end.

A supervisor is a "subreaper": what loses its parent below it becomes its child, so nothing that a worker
starts gets out of its sight, whether by a session of its own, by two forks, or as a daemon. It ends when
the program asks, when the program is gone, however it went, or when the worker is; and it does not end
before all its descendants have. Where the supervisor itself is killed, the worker dies with it.

Linux only: elsewhere the worker is killed with its process group, and what left that group lives on. So
does on Linux what others start on the worker's behalf, as the daemons of systemd and Docker do, and what
runs as another user. It is no sandbox: a worker may kill its supervisor.

Nothing is imported here but small modules of the standard library: each child pays for it.
"""

import contextlib
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Iterable, Sequence

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LINUX = sys.platform.startswith("linux")
_HANDLED = {signal.SIGTERM, signal.SIGCHLD}


def enter(lifeline: int, program: int, connections: Sequence[int] = ()) -> None:
    """Makes this process a supervisor, and returns in its worker; in the supervisor it never does.

    Args:
        lifeline: a pipe, the other end of which only the program has: at its end, so is the program.
        program: the process id of the program.
        connections: file descriptors that are the worker's alone.
    """
    _control(_PR_SET_CHILD_SUBREAPER, 1)
    # Whatever comes between the fork and the handlers is kept until there are handlers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    supervisor, worker = os.getpid(), os.fork()
    if worker == 0:
        os.close(lifeline)
        os.setsid()  # a group of its own; Ctrl-C is for the program
        _control(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it was killed before the last line
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return
    status = 1
    try:
        for connection in connections:
            os.close(connection)
        status = _watch(worker, lifeline, program)
        sweep()
    finally:
        _leave(status)


def descendants(root: int) -> list[int]:
    """Ids of the processes below one, as `/proc` shows them; none where there is no `/proc`."""
    children: dict[int, list[int]] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit() and (parent := _parent(name)) is not None:
                children.setdefault(parent, []).append(int(name))
    found, waiting = [], [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def kill(pids: Iterable[int]) -> bool:
    """Kills processes; whether there was one that may be killed."""
    some = False
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
            some = True
    return some


def sweep() -> None:
    """Kills all descendants of this process, which has to be a subreaper, until there are none.

    What dies hands its children to this process. So as long as anything lives, this process has a child.
    """
    pause = 0.0005
    while _reap():
        if not kill(descendants(os.getpid())) and pause > 0.1:
            return  # what is left belongs to somebody else
        time.sleep(pause)
        pause = min(2 * pause, 0.2)


def _reap() -> bool:
    """Takes notice of children that have ended; whether there are others."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if pid == 0:
            return True


def _watch(worker: int, lifeline: int, program: int) -> int:
    """Waits for the end, and makes it that of the worker; the worker's status, as of `os.waitpid`."""
    asked = False

    def ask(*_: object) -> None:
        nonlocal asked
        asked = True

    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(awake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
    events = select.poll()
    for source in (awake, lifeline, _handle(program)):
        if source is None:
            return _end(worker)
        if source >= 0:
            events.register(source, select.POLLIN)
    while True:
        while True:  # orphans are looked after too, so that no zombies gather
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == worker:
                return status
            if pid == 0:
                break
        ready = {source for source, _ in events.poll()}
        with contextlib.suppress(BlockingIOError):
            os.read(awake, 4096)  # before the look at what it may have been
        if asked or ready - {awake}:
            return _end(worker)


def _end(worker: int) -> int:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker, signal.SIGKILL)
    kill([worker])
    return os.waitpid(worker, 0)[1]


def _handle(program: int) -> int | None:
    """A descriptor that is ready when the program is gone; -1 where the system has none, None: it is."""
    if not hasattr(os, "pidfd_open"):
        return -1
    try:
        return os.pidfd_open(program)
    except ProcessLookupError:
        return None
    except OSError:  # an old kernel, or a sandbox; the lifeline has to do
        return -1


def _leave(status: int) -> None:
    """Ends this process as its worker ended."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
        os.kill(os.getpid(), -code)
    os._exit(max(code, 1) if code < 0 else code)


def _parent(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):  # it has ended meanwhile
        return None


def _control(option: int, value: int) -> None:
    if not _LINUX:
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
