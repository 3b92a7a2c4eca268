"""The seam for the operating system: every call by which the floors touch a disk or a kernel lock.

Callers write `_os.write(...)`, never `from ._os import write`, so a test that replaces one name here fails, stops or
kills exactly there.

What a platform lacks is made up for here: on Windows there is no `fcntl`, on macOS and Windows no `fdatasync`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from os import (
    close as close,
)
from os import (
    dup as dup,
)
from os import (
    fstat as fstat,
)
from os import (
    fsync as fsync,
)
from os import (
    ftruncate as ftruncate,
)
from os import (
    kill as kill,
)
from os import (
    listdir as listdir,
)
from os import (
    lstat as lstat,
)
from os import (
    open as open,
)
from os import (
    rename as rename,
)
from os import (
    stat as stat,
)
from os import (
    unlink as unlink,
)
from os import (
    write as write,
)
from os.path import (
    ismount as ismount,
)
from os.path import (
    realpath as realpath,
)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # then `HAS_OFD_LOCKS` is false, and nothing else here needs it


def _sync_fully(fd: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: its fsync leaves the data in the device's cache
    try:
        if full is not None:
            fcntl.fcntl(fd, full)
            return
    except OSError:
        pass  # not on this file system
    os.fsync(fd)


def _seek_and_read(fd: int, length: int, offset: int) -> bytes:
    # It moves the descriptor's position, which nobody minds: writers append, and each reader opens its own.
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, length)


def _not_here(*_args: object) -> None:
    """For what a platform lacks and is not asked for there."""


fchmod: Callable[[int, int], None] = getattr(os, "fchmod", _not_here)
fchown: Callable[[int, int, int], None] = getattr(os, "fchown", _not_here)
fdatasync: Callable[[int], None] = getattr(os, "fdatasync", _sync_fully)
pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)

FileId = tuple[int, int]
"""Device and inode: the identity of a file, whatever it is called."""

# Flags for `open`; those that a platform lacks it does not need. Windows turns \n into \r\n without O_BINARY.
O_BINARY: int = getattr(os, "O_BINARY", 0)
O_CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
O_NOCTTY: int = getattr(os, "O_NOCTTY", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (which must be 0 for these commands).
_FLOCK = struct.Struct("hhqqi4x")
_SEEK_SET = 0

HAS_OFD_LOCKS = hasattr(fcntl, "F_OFD_SETLK")
"""Whether there are such calls at all; if so, a kernel may still refuse them."""


def ofd_lock(fd: int, position: int) -> bool:
    """Take the exclusive lock of one byte for this open file description; `False` when another one has it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, _SEEK_SET, position, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def ofd_unlock(fd: int, position: int) -> None:
    """Give the lock of one byte back; nothing happens when it was not held."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, _SEEK_SET, position, 1, 0))


def ofd_conflict(fd: int, start: int, length: int) -> int | None:
    """The position of *some* byte in the range that another open file description has locked (not the lowest)."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, _SEEK_SET, start, length, 0))
    kind, _, position, _, _ = _FLOCK.unpack(answer)
    return None if kind == fcntl.F_UNLCK else max(start, position)
