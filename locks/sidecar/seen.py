"""Reading what stands beside a session: small regular files only, whatever stands in their place."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import NamedTuple

from .. import _os
from .._os import FileId
from ..errors import TranscriptError
from ..file_kinds import kind_of

MOST_BYTES = 4096
# Neither follows a symlink, nor waits for the other end of a FIFO, nor lets a terminal take charge of this process.
_READ = os.O_RDONLY | _os.O_NOFOLLOW | _os.O_NONBLOCK | _os.O_NOCTTY | _os.O_CLOEXEC | _os.O_BINARY
# A process that is killed between creating a lock file and writing it leaves an empty one, which could as well be a
# foreign program's that is about to be written, and would be waited for. This bit, which is there from the first
# instant and means nothing for files on Linux, tells them apart. (Elsewhere only root may set it.)
MARK = stat.S_ISVTX if sys.platform == "linux" else 0

Stamp = tuple[int, int, int, int, int]
"""What changes whenever something happens to a file, its content, its mode or its names, or it becomes another one."""


class Seen(NamedTuple):
    """What stands in a small regular file."""

    file_id: FileId
    data: bytes
    changed_at: float
    """By the wall clock."""
    marked: bool
    """Whether lanes created it."""
    stamp: Stamp | None = None


def see(path: str) -> Seen | None:
    """Read a small regular file; `None` when there is none.

    Raises:
        TranscriptError: it is something else, or too large.
        OSError: it cannot be read.
    """
    try:
        fd = _os.open(path, _READ)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        raise _cannot_judge(path, _REFUSED[error.errno]) from None
    try:
        found = _os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _cannot_judge(path, kind_of(found.st_mode))
        data = _os.pread(fd, MOST_BYTES + 1, 0)
    finally:
        with contextlib.suppress(OSError):  # the kernel lets go of a descriptor in any case
            _os.close(fd)
    if len(data) > MOST_BYTES:
        raise _cannot_judge(path, f"larger than {MOST_BYTES} bytes")
    return Seen((found.st_dev, found.st_ino), data, found.st_mtime, bool(found.st_mode & MARK), stamp_of(found))


def stamp_of(found: os.stat_result) -> Stamp:
    """The stamp of a file, by `fstat` or `lstat`."""
    # The time alone is not enough: kernels before 6.13 count it in steps of some milliseconds.
    return found.st_ino, found.st_ctime_ns, found.st_nlink, found.st_size, found.st_mode


# Internals

_REFUSED = {
    errno.ELOOP: "a symbolic link",
    errno.ENXIO: "a socket or a device",
    errno.EOPNOTSUPP: "a socket",  # on macOS
}


def _cannot_judge(path: str, kind: str) -> TranscriptError:
    return TranscriptError(
        f"{path} is {kind}, so no lock file can be judged there: move it away, or use sidecar=False", path=path
    )
