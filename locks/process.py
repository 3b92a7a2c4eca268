"""Which process this is, and what another one is: identities that survive neither a reused number nor a restart.

A process number alone identifies no process: it is used again, it is 7 in every container, and after a restart of the
container it is 7 once more. So an identity also says when the process was started, on which boot of which machine, and
carries a random `instance`, which an interpreter makes once: an `exec` keeps number and start time, a fork keeps all
but the number, and neither keeps the instance.

Own code instead of `psutil` where there is a `/proc`: psutil has no start time in the clock ticks that lock files
state, and takes a process that `hidepid` hides for one that does not exist. Elsewhere it is used, imported with the
first question, because a command line must answer `--help` faster than that.

What proves that a process is dead: the kernel finds no such number (`kill` says ESRCH), or says that it is a zombie.
What proves nothing: a `/proc` that is not mounted, that hides the process, or that shows the processes of another PID
namespace, in which the same numbers are other processes. Then a process counts as alive, and its start time as
unknown. A start time is unknown as well where the process lives in another time namespace: the kernel states it by the
clock of the reader, so the same process has a different one on each side.

Sources: proc_pid_stat(5); proc(5), "hidepid"; pid_namespaces(7), "/proc and PID namespaces"; time_namespaces(7).
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

from . import _os

_LARGEST_PID = (1 << 31) - 1
_STATE, _STARTTIME = 0, 19  # counted behind the name, which may contain anything
_DEAD_STATES = (b"Z", b"X", b"x")

wall = time.time
"""The wall clock, which may be set at any moment. In one place, for tests to set it."""

_wall_ahead_s = time.time() - time.monotonic()


def carried_wall() -> float:
    """What the wall clock would say if it had not been set since this process was started.

    It stands still while the machine is suspended, as the monotonic clock does that carries it.
    """
    return _wall_ahead_s + time.monotonic()


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told apart from every other one that has or had its number."""

    pid: int
    starttime: int | None
    """When it was started, in clock ticks since the boot; `None` where there is no `/proc` of its own."""
    boot_id: str | None
    """The boot of the machine; `None` where the system has no such thing."""
    host: str
    instance: str
    """16 random hexadecimal digits, made by this interpreter."""


_me: Identity | None = None
_shifts: Shifts | None = None


class Shifts(NamedTuple):
    """What a time namespace adds to the clocks of the machine, in nanoseconds; 0 outside of one."""

    monotonic: int = 0
    boottime: int = 0


def me() -> Identity:
    """This process. Computed once, and again in a forked child. Callable from any thread."""
    global _me  # noqa: PLW0603 -- once per process is the point
    known = _me
    if known is None:
        pid = os.getpid()
        boot_id = _read("/proc/sys/kernel/random/boot_id")
        known = _me = Identity(
            pid=pid,
            starttime=starttime(pid),
            boot_id=boot_id.decode("ascii", "replace").strip() or None if boot_id else None,
            host=socket.gethostname(),
            instance=os.urandom(8).hex(),
        )
    return known


def shifts() -> Shifts:
    """How the clocks of this process differ from those of the machine. Computed once, and again in a forked child.

    Without a `/proc` it cannot be known, and counts as not at all. Callable from any thread.
    """
    global _shifts  # noqa: PLW0603 -- once per process is the point
    known = _shifts
    if known is None:
        # What the file shows is the namespace of children to come. It is another one after `unshare` without an exec.
        own = _link("/proc/self/ns/time") == _link("/proc/self/ns/time_for_children")
        known = _shifts = (_shifts_of("self") if own else None) or Shifts()
    return known


def age_s() -> float | None:
    """How long this process has lived, an `exec` included, in seconds; `None` when that is not known."""
    ticks = me().starttime
    if ticks is not None:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    if not _psutil_can_tell():
        return None
    import psutil  # noqa: PLC0415 -- see the module's text

    try:
        return time.time() - psutil.Process().create_time()
    except (psutil.Error, OSError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process with this number runs, as far as it shows from here. Never raises.

    One that has ended and that its parent has not waited for is dead. One of which nothing can be known is alive.
    """
    if not 0 < pid <= _LARGEST_PID:
        return False
    if not _has_proc():
        return _is_alive_elsewhere(pid)
    if not _has_number(pid):
        return False
    fields = _stat(pid)
    return fields is None or fields[_STATE] not in _DEAD_STATES


def starttime(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot; `None` where that is not known. Never raises.

    Of two processes in different time namespaces, neither knows the other's.
    """
    if not _proc_is_ours() or _shifts_of(pid) != _shifts_of("self"):
        return None
    fields = _stat(pid)
    try:
        return None if fields is None else int(fields[_STARTTIME])
    except (IndexError, ValueError):
        return None


def has_open(file_id: _os.FileId) -> bool:
    """Whether a descriptor of this process is open on a file. `False` where that cannot be known. Never raises."""
    for directory in ("/proc/self/fd", "/dev/fd"):
        try:
            names = _os.listdir(directory)
        except OSError:
            continue
        return any(_is_open_on(int(name), file_id) for name in names if name.isdecimal())
    return False


def _is_open_on(fd: int, file_id: _os.FileId) -> bool:
    try:
        found = _os.fstat(fd)
    except OSError:
        return False  # the one that the directory was listed through
    return (found.st_dev, found.st_ino) == file_id


def _has_number(pid: int) -> bool:
    """Whether the kernel knows a process of that number, a zombie included."""
    try:
        _os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # EPERM: another user's, so there is one
    return True


def _stat(pid: int) -> list[bytes] | None:
    text = _read(f"/proc/{pid}/stat")
    # The name stands in parentheses and may itself contain some, and blanks: what counts begins behind the last one.
    fields = text.rpartition(b")")[2].split() if text else None
    return fields or None


def _shifts_of(pid: int | str) -> Shifts | None:
    """What the time namespace of a process adds; `None` where there are none, or it does not say."""
    text = _read(f"/proc/{pid}/timens_offsets") or b""
    try:
        found = {name: int(s) * 10**9 + int(ns) for name, s, ns in (line.split() for line in text.splitlines())}
        return Shifts(found[b"monotonic"], found[b"boottime"])
    except (KeyError, ValueError):
        return None


def _read(path: str) -> bytes | None:
    try:
        fd = _os.open(path, os.O_RDONLY | _os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _os.pread(fd, 4096, 0)
    except OSError:
        return None  # it ended in between
    finally:
        with contextlib.suppress(OSError):
            _os.close(fd)


def _link(path: str) -> str | None:
    try:
        return _os.readlink(path)
    except OSError:
        return None


def _has_proc() -> bool:
    return me().starttime is not None


def _proc_is_ours() -> bool:
    """Whether there is a `/proc`, and its numbers are those of this process's PID namespace."""
    return _link("/proc/self") == str(os.getpid())


def _psutil_can_tell() -> bool:
    return sys.platform != "linux" or _proc_is_ours()  # there it reads `/proc`, whosever that is


def _is_alive_elsewhere(pid: int) -> bool:
    # Not by a signal first: on Windows, signal 0 ends the process.
    if _psutil_can_tell():
        import psutil  # noqa: PLC0415 -- see the module's text

        try:
            return bool(psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
        except psutil.ZombieProcess:
            return False
        except psutil.NoSuchProcess:
            if os.name != "posix":
                return False
        except (psutil.Error, OSError):
            return True
    return _has_number(pid)  # a zombie as well, which nothing here distinguishes from a process that runs


def _after_fork() -> None:
    global _me, _shifts, _wall_ahead_s  # noqa: PLW0603 -- once per process is the point
    _me = _shifts = None
    _wall_ahead_s = time.time() - time.monotonic()  # a child may be in another time namespace


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
