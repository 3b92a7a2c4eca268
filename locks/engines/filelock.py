"""Exclusion between processes elsewhere than on Linux: the library `filelock`, a lock file per right.

The idea. macOS and Windows have no lock that belongs to an open file, leaves the file readable and can be asked for
byte by byte, as kernel locks are on Linux. What they have, `flock` and the sharing of handles, `filelock` wraps well.
It locks files of its own, `<file>.turn.flock` and `<file>.write.flock`, beside the session.

What it keeps: one holder at a time, also among the registries of one process; a right is free when its holder has died;
waiting is polling, so it is cancellable anywhere; order of arrival within a registry. What is weaker:

- Processes have no order among each other: the one that polls at the right moment gets the right, so a process that
  takes it again without a gap may keep others waiting for long. In return, a stopped waiter delays no other.
- The lock is on a name, not on the file. Symlinks lead to one name; two hard links are two, and exclude each other in
  one process only.
- Two empty files stay behind per session. They are harmless, and must not be removed while any process works with the
  session: the holder of the removed file and the process that creates it again would both have the right.
- All processes of a session must use the same engine: this one and kernel locks do not see each other.
- A forked child excludes no process and admits none from `filelock` 4 on. With older versions it unlocks its parent's
  right as soon as it drops what it inherited: programs that fork need 4.

Rejected: `SoftFileLock`, to which `filelock` resorts by itself where the file system has no `flock`; then a person
must decide whether a lock file's owner is dead. A file system without locks is an error here.

Sources: the documentation of `filelock`, "Trust boundaries"; flock(2).
"""

from __future__ import annotations

import errno
import inspect
import os
from typing import TYPE_CHECKING, Any

from .. import _os
from .._os import FileId
from .interface import Right, Unordered

if TYPE_CHECKING:
    from filelock import BaseFileLock


class NamedLock(Unordered):
    """One right of one session: the lock of a file beside it.

    The event loop's thread and the steward call it, one at a time, inside the file's mutex.
    """

    def __init__(self, lock: BaseFileLock, directory: str, refused: type[Exception]) -> None:
        self._lock = lock
        self._directory = directory
        self._refused = refused
        """What `filelock` raises when the right is held elsewhere. It is an `OSError`, but no failure."""

    def try_lock(self) -> bool:
        """Take the right unless another process or registry has it."""
        _os.stat(self._directory)  # a failure if it was removed; `filelock` would create it again
        try:
            self._lock.acquire(blocking=False)
        except self._refused:
            return False
        except NotImplementedError as error:  # how some versions say that the file system has no locks
            raise OSError(errno.ENOTSUP, str(error)) from error
        return True

    def unlock(self) -> None:
        """Give the right back, and close the lock file."""
        self._lock.release(force=True)


class FileLockEngine:
    """`filelock`, on a name beside the session; see above for what it does not promise."""

    name = "filelock"

    def __init__(self) -> None:
        import filelock  # noqa: PLC0415 -- it takes milliseconds to import, and Linux never needs it

        self._new = filelock.FileLock
        self._timeout = filelock.Timeout
        # No lifetime of its own, no file that comes and goes, no second-best lock: as far as the version has a say.
        wanted = {"preserve_lock_file": True, "fallback_to_soft": False}
        known = inspect.signature(self._new.__init__).parameters
        self._options: dict[str, Any] = {name: value for name, value in wanted.items() if name in known}

    def lock(self, path: str, fd: int, file_id: FileId, right: Right) -> NamedLock:
        """The lock of one right of the session at `path`, under whichever of its symlinks."""
        real = _os.realpath(path)
        # Not per thread, for the steward unlocks; not one for all, for registries exclude each other.
        lock = self._new(
            f"{real}.{right.name.lower()}.flock", mode=0o600, thread_local=False, is_singleton=False, **self._options
        )
        return NamedLock(lock, os.path.dirname(real), self._timeout)
