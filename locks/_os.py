"""The seam for the operating system: every call by which the floors touch a disk or a kernel lock.

Callers write `_os.write(...)`, never `from ._os import write`, so a test that replaces one name here fails, stops or
kills exactly there.

What a platform lacks is made up for here: on Windows there is no `fcntl`, on macOS and Windows no `fdatasync`.

Nothing that is opened here has the number 0, 1 or 2. A program may have closed its standard streams, or close them
while it runs, as daemons do. The kernel gives the lowest free number to whatever is opened next, and from then on each
`print` and each traceback of the program would be written into a session. So a descriptor with such a number is moved
up at once. From the first time on, and where a stream is closed at the start, the free numbers are occupied before
anything is opened: another thread that prints in between cannot reach a file either.

Rejected: to leave `/dev/null` in the place of a closed stream. A program that opens a file of its own next, and counts
on the number, would get another one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from os import (
    close as close,
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
    readlink as readlink,
)
from os import (
    rename as rename,
)
from os import (
    scandir as scandir,
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
    # It moves the descriptor's position, which harms nothing: writers append, and each reader opens its own.
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, length)


def _not_here(*_args: object) -> None:
    """For what a platform lacks and is not asked for there."""


def _no_attributes(_fd: int) -> list[str]:
    return []


def _no_attribute(_fd: int, _name: str) -> bytes:
    return b""


fchmod: Callable[[int, int], None] = getattr(os, "fchmod", _not_here)
fchown: Callable[[int, int, int], None] = getattr(os, "fchown", _not_here)
sched_yield: Callable[[], None] = getattr(os, "sched_yield", _not_here)
fdatasync: Callable[[int], None] = getattr(os, "fdatasync", _sync_fully)
pread: Callable[[int, int, int], bytes] = getattr(os, "pread", _seek_and_read)
listxattr: Callable[[int], list[str]] = getattr(os, "listxattr", _no_attributes)
getxattr: Callable[[int, str], bytes] = getattr(os, "getxattr", _no_attribute)
setxattr: Callable[[int, str, bytes], None] = getattr(os, "setxattr", _not_here)
removexattr: Callable[[int, str], None] = getattr(os, "removexattr", _not_here)


def file_system_magic(path: str) -> int | None:
    """The number that statfs(2) has for the type of a file system; `None` where it does not say. Never raises.

    Python has no `statfs`: its `statvfs` leaves the type out.
    """
    if sys.platform != "linux":
        return None
    import ctypes  # noqa: PLC0415 -- needed only where there is no mount table

    answer = (ctypes.c_ulong * 64)()  # longer than the structure is anywhere; the type comes first
    try:
        if ctypes.CDLL(None).statfs(os.fsencode(path), ctypes.byref(answer)) != 0:
            return None
    except (OSError, AttributeError, ValueError):
        return None
    return answer[0] & 0xFFFFFFFF


FileId = tuple[int, int]
"""Device and inode: the identity of a file, whatever it is called."""

# Flags for `open`; those that a platform lacks it does not need. Windows turns \n into \r\n without O_BINARY.
O_BINARY: int = getattr(os, "O_BINARY", 0)
O_CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
O_NOCTTY: int = getattr(os, "O_NOCTTY", 0)
O_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
O_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)

NO_ROOM = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}
"""The disk, the user's share of it or the file is as large as it may be."""

FS_IMMUTABLE, FS_APPEND = 0x10, 0x20
_FS_IOC_GETFLAGS = 0x80086601  # of Linux on 64-bit x86 and ARM; another platform knows no such call, and says so


def inode_flags(fd: int) -> int:
    """The flags that `chattr` sets; 0 where there are none."""
    if sys.platform != "linux":
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))[:4], sys.byteorder)
    except OSError:
        return 0  # the file system has none; if it cannot say, the rename will


_STANDARD = 2
"""The last number of a standard stream."""

# A descriptor of nothing. The root directory is there in a `chroot` without devices, too.
_NOTHING = os.devnull if os.name == "nt" else "/"
_NO_ACCESS = os.O_RDONLY | O_CLOEXEC | getattr(os, "O_PATH", 0)


def _is_closed(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return True
    return False


_exposed = any(map(_is_closed, range(_STANDARD + 1)))
"""Whether one of the standard streams was seen closed. It stays so: what was closed once may be closed again."""


_mutex = threading.RLock()
_takers = 0
"""How many threads need the free numbers of standard streams to be taken. Changed with `_mutex` held."""
_stand_ins: list[int] = []
"""What takes them. Changed with `_mutex` held; empty when there are no takers."""


@contextlib.contextmanager
def standard_streams_taken() -> Iterator[None]:
    """Inside, no number of a standard stream is free for what this thread opens, in whatever way.

    What stands in for a closed stream can be neither read nor written, as if it were closed, and is not inherited.
    """
    global _takers  # noqa: PLW0603 -- the program's streams belong to the process
    with _mutex:
        _takers += 1
    try:
        with _mutex:
            while (fd := os.open(_NOTHING, _NO_ACCESS)) <= _STANDARD:
                _stand_ins.append(fd)
            os.close(fd)
        yield
    finally:
        with _mutex:
            _takers -= 1
            if not _takers:
                _free_stand_ins()


def _free_stand_ins() -> None:
    nothing = os.stat(_NOTHING)
    while _stand_ins:
        fd = _stand_ins.pop()
        with contextlib.suppress(OSError):  # the program has closed it meanwhile
            if os.path.samestat(os.fstat(fd), nothing):  # else it has opened a stream of its own in its place
                os.close(fd)


def _forked() -> None:
    """In a forked child, the threads that needed the numbers are gone."""
    global _takers  # noqa: PLW0603 -- see above
    _takers = 0
    _free_stand_ins()
    _mutex.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_forked)


def open(path: str, flags: int, mode: int = 0o777) -> int:  # noqa: A001 -- named as in `os`, like all of this seam
    """As `os.open`; the descriptor is none of the standard streams'."""
    if _exposed:
        with standard_streams_taken():
            fd = os.open(path, flags, mode)
    else:
        fd = os.open(path, flags, mode)
    if fd > _STANDARD:
        return fd
    try:
        return _moved_up(fd)
    except OSError:
        if flags & os.O_EXCL:
            with contextlib.suppress(OSError):
                os.unlink(path)  # it was created just now, and the caller gets an error
        raise


def dup(fd: int) -> int:
    """As `os.dup`; the descriptor is none of the standard streams'."""
    if _exposed:
        with standard_streams_taken():
            fd = os.dup(fd)
    else:
        fd = os.dup(fd)
    return fd if fd > _STANDARD else _moved_up(fd)


def unix_socket(kind: int) -> socket.socket:
    """A new Unix socket; its descriptor is none of the standard streams'."""
    if _exposed:
        with standard_streams_taken():
            made = socket.socket(socket.AF_UNIX, kind)
    else:
        made = socket.socket(socket.AF_UNIX, kind)
    return made if made.fileno() > _STANDARD else socket.socket(fileno=_moved_up(made.detach()))


def _moved_up(fd: int) -> int:
    """Another descriptor of the same open file, above those of the standard streams; the given one is closed."""
    global _exposed  # noqa: PLW0603 -- the program's streams belong to the process, and so does what is known of them
    _exposed = True
    try:
        with standard_streams_taken():
            moved = os.dup(fd)
    finally:
        os.close(fd)
    return moved if moved > _STANDARD else _moved_up(moved)  # another thread has closed a stream just then


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
