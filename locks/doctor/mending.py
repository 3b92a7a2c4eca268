"""Mending one session: removing what is provably dead beside it, and seeing to its torn tail.

Nothing is judged by what an inspection has seen. Both rights of the session are taken from all processes, without
waiting, and the lock file that foreign gateways look at, and all is decided again under these three; where one of them
is not to be had, everything stays as it is. A symbolic link is not gone through, and nothing is removed that could be
the only copy of something.

Lock files may outlive their session. Nothing is there to lock then, so an empty session is made for as long as it
takes: a process that wants the session meanwhile finds it locked, and starts over once it is gone.

Rejected: holding the name of a lock file aside and putting it back if it was another program's fresh one (for an
instant, a live lock is not there); looking again right before the unlink (a process of ours may come in between).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from .. import _os
from ..engines.choose import engine_for
from ..engines.interface import Right
from ..errors import TranscriptError
from ..network import refuse
from ..paths import in_full
from ..rights.open_file import Entry
from ..sidecar import lockfile
from ..sidecar.lockfile import Found, Written
from ..sidecar.payload import Terms
from ..transcript.appending import seal, tail_of
from ..transcript.lines import Line
from ..transcript.replacing import SUFFIX as NEW
from .findings import Mended
from .inspection import TORN, kind_and_size, note_of

_MOST_MS = 60_000  # that it could take
_FLAGS = os.O_RDWR | os.O_APPEND | _os.O_NOFOLLOW | _os.O_NONBLOCK | _os.O_NOCTTY | _os.O_CLOEXEC | _os.O_BINARY


def mend(path: str) -> Mended:
    """Remove what is provably dead beside one session, and see to its torn tail, while no other process may write.

    Takes turn and write lease of the session from all processes and the lock file, none of which it waits for, and
    gives them back. Broken lines stay. Makes no session that was not there. Blocks for as long as the disk does.
    Callable from any thread. Killed at any point, it leaves what a killed writer leaves, or an empty session. Never
    raises an `OSError`.
    """
    mended = Mended()
    path = in_full("path", path)
    try:
        refuse(path)
        with _held(path) as (entry, made):
            _mend_held(entry, made, mended)
    except TranscriptError as error:
        mended.left.append(str(error))
    except FileExistsError:
        mended.left.append("the session has come into being meanwhile")
    except OSError as error:
        mended.left.append(f"cannot mend: {error.strerror or error}")
    return mended


# Internals


@contextmanager
def _held(path: str) -> Iterator[tuple[Entry, bool]]:
    """Both rights of a session, from all processes; and whether it was made for that.

    Raises:
        TranscriptError: another process has one.
        OSError: it cannot be opened or locked, or has just come into being.
    """
    made = False
    try:
        fd = _os.open(path, _FLAGS)
    except FileNotFoundError:
        fd, made = _os.open(path, _FLAGS | os.O_CREAT | os.O_EXCL, 0o600), True
    try:
        found = _os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise TranscriptError("it is no regular file any more", path=path)
        entry = Entry(path, fd, (found.st_dev, found.st_ino), engine=engine_for("auto"), grace=0.0, new_beside=None)
    except BaseException:
        _os.close(fd)
        raise
    try:
        for right in Right:
            queue = entry.queue(right)
            if not queue.relock():
                if queue.trouble is not None:
                    raise queue.trouble
                raise TranscriptError("somebody else has it now", path=path)
        if not entry.is_at(path):
            raise TranscriptError("it was replaced meanwhile", path=path)
        yield entry, made
    finally:
        entry.close()  # unlocks, and wakes the waiters


def _mend_held(entry: Entry, made: bool, mended: Mended) -> None:
    """Under both rights: have the lock file, then see to the rest."""
    path = entry.path
    # A lock on a file that was just made says nothing about the holder of the one that had its name before.
    before = lockfile.find(path, locked=not made)
    written: Written | Found | None = before
    if before is None or before.verdict.stale:
        written = _take_lock_file(path, before)
    if isinstance(written, Found):
        # If the session was made here, it stays: the owner of the lock file may have opened it to write to it.
        mended.left.append(f"{written} holds it: {written.verdict.reason}")
        return
    try:
        if before is not None:
            mended.done.append(f"removed the stale lock file of {before.who}: {before.verdict.reason}")
        try:
            _remove_note(path, mended)
            if not made:
                _remove_left_over(path, mended)
                _mend_tail(entry, mended)
        finally:
            if made and _os.fstat(entry.descriptor()).st_size == 0 and entry.is_at(path):
                _os.unlink(path)
    finally:
        if written is not None and (trouble := lockfile.release(written)) is not None:
            mended.left.append(f"its own lock file: {trouble.strerror or trouble}")


def _take_lock_file(path: str, before: Found | None) -> Written | Found | None:
    """The lock file, or whose it is; `None` on a full disk, where none can be written: what is removed makes room.

    A stale one is gone afterwards.

    Raises:
        OSError: as `lockfile.take`, for another reason.
    """
    try:
        return lockfile.take(path, Terms(None, None, 0, _MOST_MS), before)
    except OSError as error:
        if error.errno not in _os.NO_ROOM:
            raise
        return lockfile.find(path)


def _remove_note(path: str, mended: Mended) -> None:
    named, _ = note_of(path)
    if named is not None:
        _os.unlink(named.path)
        mended.done.append(f"removed the note of a turn of {named.who}")


def _remove_left_over(path: str, mended: Mended) -> None:
    kind, size = kind_and_size(path + NEW)
    if kind == stat.S_IFREG:
        _os.unlink(path + NEW)
        mended.done.append(f"removed {os.path.basename(path)}{NEW} ({size} bytes)")


def _mend_tail(entry: Entry, mended: Mended) -> None:
    fd = entry.descriptor()
    size = _os.fstat(fd).st_size
    kind = tail_of(fd, size)[1]
    sealed = seal(entry, fd, size) if size else 0
    if sealed > size:
        what = "record" if kind is Line.RECORD else "line"
        mended.done.append(f"gave its last {what} the newline that it lacked")
    elif sealed < size:
        mended.done.append(f"moved its torn last {size - sealed} bytes to {os.path.basename(entry.path)}{TORN}")
