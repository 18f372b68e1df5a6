"""Writing to disk: what cannot be written is named, in one sentence."""

import contextlib
import errno
import os
from collections.abc import Iterator

# Of the disk, the quota, the rights or the device; libraries in C++ give their texts only.
_OF_THE_DISK = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO,
)  # fmt: skip


class WriteError(OSError):
    """A file or folder could not be written; the message names it and says why."""


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Turns an `OSError` inside into a `WriteError` that names `what`, a file or folder."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise write_error(what, error) from error


def write_error(what: object, error: BaseException) -> WriteError:
    """The error to raise for one that happened while `what` was written."""
    return WriteError(f"{what} cannot be written: {reason(error) or error}")


def reason(error: BaseException) -> str | None:
    """Why the disk refused, such as "No space left on device"; None if it was something else."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    seen: BaseException | None = error
    while seen is not None:
        for number in _OF_THE_DISK:
            if os.strerror(number) in str(seen):
                return os.strerror(number)
        seen = seen.__cause__ or seen.__context__
    return None
