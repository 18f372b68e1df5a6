"""One process at a time trains in a run directory.

A POSIX record lock on `<run>/.lock`: the system releases it when the process ends, however it ends,
and children do not inherit it, so that one which survives its trainer blocks nobody (`flock`, and the
libraries on top of it, would let it). The file is empty and stays.
"""

import contextlib
import errno
import fcntl
import logging
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import jax

from steprl.disk import write_error
from steprl.run_directory.errors import RunDirectoryError

LOCK = ".lock"
_LOG = logging.getLogger("steprl")
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_held: dict[tuple[int, str], int] = {}  # (process, path of the run) -> open file


def hold(run: Path) -> None:
    """Takes the lock of a run for this process, until `release` or its end. Again is no work.

    Raises:
        RunDirectoryError: another process has it.
    """
    if jax.process_index() != 0:  # of a distributed run, one process speaks for all
        return
    key, file = _key(run), run / LOCK
    if key in _held:
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(_held[key]), file.stat()):
                return
        release(run)  # of a directory that was deleted since
    try:
        opened = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise write_error(file, error) from error
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _holder(opened)
        os.close(opened)
        if error.errno in _NO_LOCKS:
            _LOG.warning(
                "%s: its file system has no locks; make sure that no other process trains there",
                run,
            )
            return
        raise RunDirectoryError(
            f"{run} is in use by {holder}: wait for its end, or start another run with "
            "trainer.experiment_name=NAME"
        ) from None
    _held[key] = opened


def release(run: Path) -> None:
    """Gives the lock back, if this process has it."""
    opened = _held.pop(_key(run), None)
    if opened is not None:
        os.close(opened)


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the lock inside, whether or not it was taken before, and gives it back."""
    run.mkdir(parents=True, exist_ok=True)
    hold(run)
    try:
        yield
    finally:
        release(run)


def _key(run: Path) -> tuple[int, str]:
    return os.getpid(), os.path.realpath(run)


def _holder(opened: int) -> str:
    """Who has the lock, where the system tells: `struct flock` of 64-bit Linux."""
    if sys.platform == "linux" and sys.maxsize > 2**32:
        with contextlib.suppress(OSError):
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            process = struct.unpack("hhqqi4x", fcntl.fcntl(opened, fcntl.F_GETLK, asked))[4]
            if process > 0:
                return f"process {process}"
    return "another process"
