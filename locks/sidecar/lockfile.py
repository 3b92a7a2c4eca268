"""Taking, judging and removing the lock file `<file>.lock` of a session.

All of this is called on the event loop's thread while the kernel lock of the session file is held (only `find` may also
be called without it). That is what makes "check, then unlink" safe here: of all processes of ours, one at a time looks
at a lock file in order to remove it, so none removes what another has just created. A foreign program that reclaims in
the same instant can still be unlucky, as it can with its own kind; looking again right before the unlink makes that
window as small as it can be.

A lock file is never rewritten: it is created whole and removed. Device, inode and bytes say which one it is. The
descriptor stays open for as long as it is held, so its inode number cannot be given to another file, and the comparison
means what it says; that costs one descriptor per write lease, and those are held for moments. A session's path is not
resolved: the kernel finds the same directory for `dir/a.jsonl.lock` as for `dir/a.jsonl`, symlinks and all.

Nothing is synced: after a power cut no process is left to hold anything.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from dataclasses import dataclass
from typing import NamedTuple

from .. import _clock, _os, process
from .._events import log
from .._os import FileId
from ..errors import TranscriptError
from ..holder import Holder
from .judge import Here, Verdict, judge
from .payload import Payload, Terms, encode, parse

MOST_BYTES = 4096
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _os.O_CLOEXEC | _os.O_BINARY
# Neither follows a symlink, nor waits for the other end of a FIFO, nor lets a terminal take charge of this process.
_READ = os.O_RDONLY | _os.O_NOFOLLOW | _os.O_NONBLOCK | _os.O_NOCTTY | _os.O_CLOEXEC | _os.O_BINARY
# A process that is killed between creating a lock file and writing it leaves an empty one, which could as well be a
# foreign program's that is about to be written, and would be waited for. This bit, which is there from the first
# instant and means nothing for files on Linux, tells them apart. (Elsewhere only root may set it.)
_MARK = stat.S_ISVTX if sys.platform == "linux" else 0
_REMOVALS = 4  # at once and three times more
_ROUNDS = 10  # of creating what was free and finding what was not

_warned = False


class Written(NamedTuple):
    """A lock file of ours, held. Whoever has it must `release` it."""

    path: str
    file_id: FileId
    data: bytes
    fd: int
    """Open for as long as it is held: see the module's text."""


class Seen(NamedTuple):
    """What stands in a small regular file."""

    file_id: FileId
    data: bytes
    changed_at: float
    """By the wall clock."""
    marked: bool
    """Whether lanes created it."""


@dataclass(frozen=True, slots=True)
class Found:
    """Somebody's lock file, and what to think of it."""

    path: str
    file_id: FileId
    data: bytes
    payload: Payload | None
    """`None` when it is empty or cannot be parsed."""
    seen_at: float
    """When the very same file was first seen, on the clock of this package."""
    verdict: Verdict

    @property
    def foreign(self) -> bool:
        """Whether another program than lanes wrote it."""
        return self.payload is not None and self.payload.instance is None

    @property
    def holder(self) -> Holder:
        """Who wrote it, as far as it says; the number of a process that is not named is 0."""
        payload = self.payload or Payload()
        return Holder(payload.lane, payload.run_id, payload.pid or 0)

    @property
    def who(self) -> str:
        """Who wrote it, in words."""
        payload = self.payload
        if payload is None:
            return "an unreadable lock file"
        if self.foreign:
            what = "a foreign gateway"
        elif payload.run_id is not None:
            what = f"run {payload.run_id}" + ("" if payload.lane is None else f" on lane {payload.lane}")
        else:
            what = "lanes"
        where = "" if payload.host in (None, process.me().host) else f" on {payload.host}"
        return f"process {payload.pid or 'unknown'}{where} ({what})"

    @property
    def held_s(self) -> float:
        """For how long it had been held when it was found."""
        return self.verdict.age_s

    @property
    def remaining_s(self) -> float:
        """For how long it could be held from then on by its own word."""
        return max(0.0, self.verdict.limit_s - self.verdict.age_s)

    def __str__(self) -> str:
        return f"{self.who} since {self.held_s:.1f} s, for at most {self.remaining_s:.1f} s more"

    def is_same(self, other: Found | Seen) -> bool:
        """Whether that is the very same file, with the same content."""
        return self.file_id == other.file_id and self.data == other.data


def path_of(session_path: str) -> str:
    """The lock file of a session."""
    return session_path + ".lock"


def take(session_path: str, terms: Terms, before: Found | None = None) -> Written | Found:
    """Create the lock file of a session, reclaiming a stale one; or find whose it is.

    Args:
        before: what was found the last time, so that it is known for how long it has been there.

    Called with the kernel lock held. Either the file is there, whole, and the caller owns it, or nothing of it is left.

    Raises:
        OSError: it could not be created and written, or a stale one could not be removed.
        TranscriptError: there is something that cannot be judged; see `find`.
    """
    path = path_of(session_path)
    for _ in range(_ROUNDS):
        data = encode(terms, process.wall())
        try:
            fd = _os.open(path, _CREATE, 0o600 | _MARK)
        except FileExistsError:
            pass
        else:
            written = _fill(path, fd, data)
            if written is not None:
                return written
            continue
        found = find(session_path, before, locked=True)
        if found is None:
            continue  # removed in between
        before = found
        if found.foreign:
            warn_once_about_robbery()
        if not found.verdict.stale:
            return found
        _reclaim(session_path, found)
    raise TranscriptError(
        f"{path} changed {_ROUNDS} times while it was being judged: something keeps creating and removing it", path=path
    )


def release(written: Written) -> OSError | None:
    """Remove a lock file of ours, unless it is not ours any more. Called with the kernel lock held. Never raises.

    Returns why it is still there, for the caller to report; the next one to take it reclaims it. Called again after an
    exception came in the middle, it finishes.
    """
    ours = _stands(written)
    if ours or _is_open(written):
        _close(written.fd)  # before the unlink: ext4 keeps a list of what is removed while it is open
    failed: OSError | None = None
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
            if seen is None:
                return None
            if (seen.file_id, seen.data) != (written.file_id, written.data):
                log("sidecar_replaced", level="warning", path=written.path, by=_who(seen))
                return None
            _os.unlink(written.path)
        except FileNotFoundError:
            return None
        except OSError as error:
            failed = error.with_traceback(None)  # as above
        except TranscriptError as error:
            log("sidecar_replaced", level="warning", path=written.path, by=str(error))
            return None
        else:
            return None
    return failed


def find(session_path: str, before: Found | None = None, *, locked: bool = False) -> Found | None:
    """Look at the lock file of a session and judge it; `None` when there is none.

    Args:
        before: what was found the last time.
        locked: whether the caller holds the kernel lock of the session.

    Raises:
        TranscriptError: it is no small regular file, or cannot be read. It counts as held by somebody, never as free.
    """
    path = path_of(session_path)
    try:
        seen = see(path)
    except OSError as error:
        raise TranscriptError(
            f"cannot read the lock file {path}: {error.strerror or error}; until then it counts as held: "
            f"let this user read it, or use sidecar=False",
            path=path,
            errno=error.errno,
        ) from error
    if seen is None:
        return None
    now = _clock.clock.now()
    seen_at = before.seen_at if before is not None and before.is_same(seen) else now
    here = _here()
    payload = parse(seen.data)
    verdict = judge(
        payload,
        here=here,
        age_of_file_s=here.age_of(seen.changed_at),
        seen_for_s=now - seen_at,
        locked=locked,
        marked=seen.marked,
    )
    return Found(path, seen.file_id, seen.data, payload, seen_at, verdict)


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
            raise _cannot_judge(path, _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file"))
        data = _os.pread(fd, MOST_BYTES + 1, 0)
    finally:
        _close(fd)
    if len(data) > MOST_BYTES:
        raise _cannot_judge(path, f"larger than {MOST_BYTES} bytes")
    return Seen((found.st_dev, found.st_ino), data, found.st_mtime, bool(found.st_mode & _MARK))


def warn_once_about_robbery() -> None:
    """Say, once per process, how to keep a foreign gateway from taking our lock files for left-overs.

    It robs an owner whose command line has no bare argument `openclaw`.
    """
    global _warned  # noqa: PLW0603 -- once per process is the point
    if not _warned and "openclaw" not in sys.orig_argv:
        _warned = True
        log(
            "foreign_gateway_seen",
            level="warning",
            hint="it takes lock files of other programs for left-overs; start this one as: python -X openclaw -m …",
        )


# Internals

_REFUSED = {
    errno.ELOOP: "a symbolic link",
    errno.ENXIO: "a socket or a device",
    errno.EOPNOTSUPP: "a socket",  # on macOS
}
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def _fill(path: str, fd: int, data: bytes) -> Written | None:
    """Write a lock file that was just created; `None` if it was taken away while it was still empty."""
    try:
        if (length := _os.write(fd, data)) != len(data):
            raise OSError(errno.ENOSPC, f"only {length} of {len(data)} bytes were written", path)
        made = _os.fstat(fd)
    except BaseException:
        _close(fd)
        if (error := _remove(path)) is not None:
            log("sidecar_left", level="warning", path=path, error=str(error))
        raise
    if made.st_nlink == 0:
        # We were stopped between creating and writing, for so long that somebody took the empty file for a left-over.
        # What was written went nowhere, and another one may hold the session by now.
        _close(fd)
        return None
    return Written(path, (made.st_dev, made.st_ino), data, fd)


def _stands(written: Written) -> bool:
    """Whether the very file is there still, unchanged; if not, or if nobody can tell, the long way finds out."""
    try:
        there = _os.lstat(written.path)
        return (there.st_dev, there.st_ino) == written.file_id and (
            _os.pread(written.fd, MOST_BYTES, 0) == written.data
        )
    except OSError:
        return False


def _is_open(written: Written) -> bool:
    """Whether its descriptor is open still: closed, its number may be another file's by now."""
    try:
        found = _os.fstat(written.fd)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == written.file_id


def _reclaim(session_path: str, found: Found) -> None:
    """Remove a stale lock file, if it is still the same and still stale.

    Raises:
        OSError: it cannot be removed.
    """
    # Looked at again: what was judged may have gone, and what is there now may be somebody's fresh one.
    again = find(session_path, found, locked=True)
    if again is None or not again.is_same(found) or not again.verdict.stale:
        return
    if (error := _remove(found.path)) is not None:
        raise error
    log("sidecar_reclaimed", path=found.path, holder=found.who, reason=again.verdict.reason)


def _remove(path: str) -> OSError | None:
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


def _close(fd: int) -> None:
    try:
        _os.close(fd)
    except OSError:
        return  # the kernel lets go of a descriptor in any case, and no content of a lock file needs to last


def _here() -> Here:
    return Here(
        me=process.me(),
        my_age_s=process.age_s,
        wall=process.wall(),
        carried=process.carried_wall(),
        is_alive=process.is_alive,
        starttime=process.starttime,
    )


def _who(seen: Seen) -> str:
    payload = parse(seen.data)
    return "unreadable content" if payload is None else f"process {payload.pid or 'unknown'}"


def _cannot_judge(path: str, kind: str) -> TranscriptError:
    return TranscriptError(
        f"{path} is {kind}, so no lock file can be judged there: move it away, or use sidecar=False", path=path
    )
