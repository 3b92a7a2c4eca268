"""The seam for the operating system: every call by which the floors touch a disk or a kernel lock.

Callers write `_os.write(...)`, never `from ._os import write`, so a test that replaces one name here fails, stops or
kills exactly there.
"""

from __future__ import annotations

import fcntl
import struct
from os import (
    close as close,
)
from os import (
    fdatasync as fdatasync,
)
from os import (
    fstat as fstat,
)
from os import (
    ftruncate as ftruncate,
)
from os import (
    open as open,
)
from os import (
    pread as pread,
)
from os import (
    stat as stat,
)
from os import (
    write as write,
)

# struct flock on 64-bit Linux: l_type, l_whence, l_start, l_len, l_pid (which must be 0 for these commands).
_FLOCK = struct.Struct("hhqqi4x")
_SEEK_SET = 0


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
