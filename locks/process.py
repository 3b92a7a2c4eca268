"""Which process this is, and what another one is: identities that survive neither a reused number nor a restart.

A process number alone names nobody: it is used again, it is 7 in every container, and after a restart of the container
it is 7 once more. So an identity also says when the process was started, on which boot of which machine, and carries a
random `instance`, which an interpreter makes once: an `exec` keeps number and start time, a fork keeps all but the
number, and neither keeps the instance.

Own code instead of `psutil` where there is a `/proc`: psutil has no start time in the clock ticks that lock files
state, and takes a process that `hidepid` hides for one that does not exist. Elsewhere it is used, imported with the
first question, because a command line must answer `--help` faster than that.

Sources: proc_pid_stat(5); time_namespaces(7), by which start times and `CLOCK_BOOTTIME` agree in containers.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass

from . import _os

_LARGEST_PID = (1 << 31) - 1
_STATE, _STARTTIME = 0, 19  # counted behind the name, which may contain anything
_DEAD_STATES = (b"Z", b"X", b"x")

wall = time.time
"""The wall clock, which may be set at any moment. In one place, for tests to set it."""

_wall_ahead_s = time.time() - time.monotonic()


def carried_wall() -> float:
    """What the wall clock would say if nobody had set it since this process was started.

    It stands still while the machine is suspended, as the monotonic clock does that carries it.
    """
    return _wall_ahead_s + time.monotonic()


@dataclass(frozen=True, slots=True)
class Identity:
    """One process, told apart from every other one that has or had its number."""

    pid: int
    starttime: int | None
    """When it was started, in clock ticks since the boot; `None` where there is no `/proc`."""
    boot_id: str | None
    """The boot of the machine; `None` where the system has no such thing."""
    host: str
    instance: str
    """16 random hexadecimal digits, made by this interpreter."""


_me: Identity | None = None


def me() -> Identity:
    """This process. Computed once, and anew in a forked child. Callable from any thread."""
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


def age_s() -> float | None:
    """How long this process has lived, an `exec` included, in seconds; `None` when that is not known."""
    ticks = me().starttime
    if ticks is not None:
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    import psutil  # noqa: PLC0415 -- see the module's text

    try:
        return time.time() - psutil.Process().create_time()
    except (psutil.Error, OSError):
        return None


def is_alive(pid: int) -> bool:
    """Whether a process with this number runs, as far as can be told from here. Never raises.

    One that has ended and that its parent has not waited for is dead. One that may not be asked is alive.
    """
    if not 0 < pid <= _LARGEST_PID:
        return False
    if not _has_proc():
        return _is_alive_elsewhere(pid)
    try:
        _os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # EPERM: another user's, so there is one
    fields = _stat(pid)
    return fields is None or fields[_STATE] not in _DEAD_STATES


def starttime(pid: int) -> int | None:
    """When a process was started, in clock ticks since the boot; `None` where that is not known. Never raises."""
    fields = _stat(pid)
    try:
        return None if fields is None else int(fields[_STARTTIME])
    except (IndexError, ValueError):
        return None


def _stat(pid: int) -> list[bytes] | None:
    text = _read(f"/proc/{pid}/stat")
    # The name stands in parentheses and may itself contain some, and blanks: what counts begins behind the last one.
    fields = text.rpartition(b")")[2].split() if text else None
    return fields or None


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


def _has_proc() -> bool:
    return me().starttime is not None


def _is_alive_elsewhere(pid: int) -> bool:
    # Not by a signal: on Windows, signal 0 ends the process.
    import psutil  # noqa: PLC0415 -- see the module's text

    try:
        return bool(psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD))
    except psutil.NoSuchProcess:
        return False  # also what a zombie is called on some systems
    except (psutil.Error, OSError):
        return True


def _after_fork() -> None:
    global _me  # noqa: PLW0603 -- once per process is the point
    _me = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
