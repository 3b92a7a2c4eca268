"""A lock file of ours while it is held: written, watched, removed; and what others have done to it meanwhile.

Only its owner may touch a live lock file, but others do: a foreign gateway that takes it for a left-over, a
clean-up script, a person. Nothing here can prevent that, and the right stays ours, because our own processes go by the
kernel lock. But it has to be said, because from then on foreign programs are not kept out.

The descriptor that is open for as long as the file is held makes it cheap to notice: whatever happens to a file, to its
content, its mode or its only name, changes the time or the number of names that `fstat` says. Then it is looked at.
Kernels before 6.13 count that time in steps of some milliseconds: what is rewritten within the step in which it was
made is noticed at the release, where the bytes are compared.
"""

from __future__ import annotations

import errno
import stat
from typing import NamedTuple

from .. import _os
from .._events import log
from .._os import FileId
from ..errors import TranscriptError
from ..rights.guard import Change
from .payload import parse
from .seen import MOST_BYTES, Seen, see

_REMOVALS = 4  # at once and three times more


class Written(NamedTuple):
    """A lock file of ours, held. Its holder must `release` it."""

    path: str
    file_id: FileId
    data: bytes
    fd: int
    """Open for as long as it is held: see the module's text."""
    mode: int
    changed_ns: int
    """Its `st_ctime_ns` when it was last looked at: it stays as it is while the file is not touched."""


def fill(path: str, fd: int, data: bytes) -> Written | None:
    """Write a lock file that was just created; `None` if it was taken away while it was still empty.

    Raises:
        OSError: it could not be written whole; it is removed again.
    """
    try:
        if (length := _os.write(fd, data)) != len(data):
            raise OSError(errno.ENOSPC, f"only {length} of {len(data)} bytes were written", path)
        made = _os.fstat(fd)
    except BaseException:
        _close(fd)
        if (error := remove(path)) is not None:
            log("sidecar_left", level="warning", path=path, error=str(error))
        raise
    if made.st_nlink == 0:
        # We were stopped between creating and writing, for so long that another program took the empty file for a
        # left-over. What was written went nowhere, and another one may hold the session by now.
        _close(fd)
        return None
    return Written(path, (made.st_dev, made.st_ino), data, fd, made.st_mode, made.st_ctime_ns)


def change_of(written: Written) -> Change | None:
    """What has become of a lock file of ours; `None` when it is there as it was written.

    Raises:
        OSError: that is unknown.
    """
    try:
        there = _os.lstat(written.path)
    except (FileNotFoundError, NotADirectoryError):
        return _gone(written)
    if (there.st_dev, there.st_ino) != written.file_id:
        return _another(written)
    data = _os.pread(written.fd, MOST_BYTES + 1, 0)
    if data != written.data:
        return Change(written.path, "rewritten", *_writer(data))
    if there.st_mode != written.mode:
        mode = f"{stat.S_IMODE(there.st_mode):04o}"
        return Change(written.path, "changed mode", f"unknown; its mode is {mode} now", ours=True)
    return None


def release(written: Written, *, told: bool = False) -> OSError | None:
    """Remove a lock file of ours, unless it is not ours any more. Called with the kernel lock held. Never raises.

    Args:
        told: whether it was said already what has become of it.

    Returns why it is still there, for the caller to report; the next one to take it reclaims it. Called again after an
    exception came in the middle, it finishes.
    """
    failed: OSError | None = None
    try:
        change = change_of(written)
        ours = change is None or change.ours
    except OSError as error:  # the long way finds out
        change, ours, failed = None, False, error.with_traceback(None)
    if ours or _is_open(written):
        _close(written.fd)  # before the unlink: ext4 keeps a list of what is removed while it is open
    else:
        told = True  # an exception came in the middle: whatever has become of it since, this process has done it
    if change is not None:
        _tell(change, told)
        if not change.ours:
            return None
    if ours:
        try:
            _os.unlink(written.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            failed = error.with_traceback(None)  # else it and this frame keep each other alive
        else:
            return None
    for _ in range(_REMOVALS - ours):
        try:
            seen = see(written.path)
            if seen is None or (seen.file_id, seen.data) != (written.file_id, written.data):
                _tell(_gone(written) if seen is None else _seen(written, seen), told or (seen is None and ours))
                return None
            _os.unlink(written.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            failed = error.with_traceback(None)  # as above
        except TranscriptError as error:
            _tell(Change(written.path, "replaced", str(error)), told)
            return None
        else:
            return None
    return failed


def remove(path: str) -> OSError | None:
    """Remove a file; returns why it is still there."""
    failed: OSError | None = None
    for _ in range(_REMOVALS):
        try:
            _os.unlink(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            failed = error.with_traceback(None)  # else it and this frame keep each other alive
        else:
            return None
    return failed


# Internals


def _is_open(written: Written) -> bool:
    """Whether its descriptor is open still: closed, its number may be another file's by now."""
    try:
        found = _os.fstat(written.fd)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == written.file_id


def _gone(written: Written) -> Change:
    return Change(written.path, "removed", "unknown; nothing is there now")


def _another(written: Written) -> Change:
    """What stands in the place of ours."""
    try:
        seen = see(written.path)
    except TranscriptError as error:
        return Change(written.path, "replaced", str(error))
    return _gone(written) if seen is None else _seen(written, seen)


def _seen(written: Written, seen: Seen) -> Change:
    what = "rewritten" if seen.file_id == written.file_id else "replaced"
    return Change(written.path, what, *_writer(seen.data))


def _writer(data: bytes) -> tuple[str, bool]:
    """The writer of what is there now, and whether that is a foreign program."""
    payload = parse(data)
    if payload is None:
        return "unreadable content", False
    return f"process {payload.pid or 'unknown'}", payload.instance is None


def _tell(change: Change, told: bool) -> None:
    if not told:
        log("sidecar_replaced", level="warning", path=change.path, by=change.by, what=change.what)


def _close(fd: int) -> None:
    try:
        _os.close(fd)
    except OSError:
        return  # the kernel lets go of a descriptor in any case, and no content of a lock file needs to last
