"""Commands that set a process apart from this one, to be put before its own: no `/proc`, no `/dev/shm`,
or shifted clocks.

That takes root, or namespaces of users. Where neither is to be had a command is empty, and what is set apart elsewhere
is an ordinary process: a test shows the same of two processes then, and no more. Each such case has a twin with a
replaced seam that runs everywhere.
"""

from __future__ import annotations

import functools
import shutil
import subprocess

_NO_SHM = ("sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh")
_NO_PROC = ("sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh")


@functools.cache
def without_proc() -> tuple[str, ...]:
    """The same PID namespace, and nothing in `/proc`."""
    return _first_that_works(("--mount",), _NO_PROC, ("test", "!", "-e", "/proc/self"))


@functools.cache
def without_shm() -> tuple[str, ...]:
    """Nothing can be written to `/dev/shm`."""
    return _first_that_works(("--mount",), _NO_SHM, ("sh", "-c", "! touch /dev/shm/lanes-probe"))


@functools.cache
def with_clocks_ahead(seconds: int) -> tuple[str, ...]:
    """A time namespace: its monotonic clock, and that by which processes have started, are so far ahead."""
    # Of times before the boot the kernel knows nothing, so a negative shift must be small.
    shift = ("--time", "--monotonic", str(seconds), "--boottime", str(seconds))
    differs = ("sh", "-c", f'test "$(head -1 /proc/self/timens_offsets | xargs)" = "monotonic {seconds} 0"')
    return _first_that_works(shift, (), differs)


def _first_that_works(apart: tuple[str, ...], then: tuple[str, ...], probe: tuple[str, ...]) -> tuple[str, ...]:
    if shutil.which("unshare") is None:
        return ()
    for user in ((), ("--user", "--map-root-user")):
        command = ("unshare", *user, *apart, *then)
        if subprocess.run([*command, *probe], capture_output=True, check=False).returncode == 0:
            return command
    return ()
