"""Appending to a session's transcript: whole or not at all, and only while the file is the one that its name leads to.

A process that is killed tears the line it is writing, inside one `write`, at a page edge (measured: 171 of 171 tears at
4 KiB edges), and whatever is appended to a torn tail is destroyed with it. So before each append the last byte is
looked at: a tail that is a record or blank gets its newline, any other is moved to `<file>.torn`. A write that fails or
comes up short is rolled back. Thus an acknowledged record is never lost or damaged, and a crash leaves at most one
torn tail.

Everything here is synchronous; writers hold the file's mutex and its write lease.
"""

from __future__ import annotations

import os
import stat

from .. import _os
from ..errors import LeaseLost, TranscriptError
from ..rights.open_file import Entry, cannot
from . import lines
from .header import refuse_as_first
from .records import Position
from .syncing import not_synced

_BLOCK = 1 << 16


def append(entry: Entry, path: str, data: bytes, header: bytes | None = None) -> Position:
    """Append whole lines, sealing or moving away a torn tail first; called with the mutex and the write lease held.

    Raises:
        TranscriptError: the operating system refused, or a sync has failed before, or the first record of a file would
            be read as its header; the file is as before.
        LeaseLost: the file was replaced or removed under the lease; nothing was written.
    """
    fd = entry.descriptor()
    try:
        found = _os.fstat(fd)
    except OSError as error:
        raise cannot("append to", path, error) from error
    check_in_place(entry, path)
    size = found.st_size
    if size and size != entry.sealed_size:
        size = seal(entry, fd, size)
    if size == 0:
        if header is None:
            refuse_as_first(data, path)
        else:
            data = header + data
    entry.sealed_size = -1  # until this write is whole, nothing is known of the tail
    _write_whole(entry, fd, path, data, size)
    entry.sealed_size = size + len(data)
    return Position.behind(data, entry.sealed_size, entry.file_id)


def check_in_place(entry: Entry, path: str) -> None:
    """Raise unless what is written to an entry now is in the file of that name, and can be trusted to stay there.

    Raises:
        LeaseLost: it was replaced or removed.
        TranscriptError: a sync of it has failed; or the operating system does not say.
    """
    if entry.poisoned:
        raise not_synced(path, entry.poisoned)
    if not entry.is_at(path):
        raise LeaseLost(f"{path} was replaced or removed while it was held: nothing written", path=path, holder=None)


def _write_whole(entry: Entry, fd: int, path: str, data: bytes, size: int) -> None:
    try:
        written = _os.write(fd, data)
        while written < len(data):  # short: ask again, the answer is the reason
            more = _os.write(fd, data[written:])
            if more <= 0:
                raise OSError(5, "the file takes no more bytes")
            written += more
    except BaseException as error:
        try:
            _os.ftruncate(fd, size)
        except OSError as second:
            # The torn tail stays; the next append, of any process, finds it and moves it away.
            entry.note("append_roll_back_failed", path=path, size=size, error=str(second))
        if isinstance(error, OSError):
            raise cannot("append to", path, error) from error
        raise


def seal(entry: Entry, fd: int, size: int) -> int:
    """Make the file end with a newline; returns its new size."""
    path = entry.path
    try:
        if _os.pread(fd, 1, size - 1) == b"\n":
            return size
        start, kind = tail_of(fd, size)
        length = size - start
        if length > lines.LONGEST_LINE:
            # No crash of ours left that: no record is so long. Nothing says what it is, and where it belongs.
            raise TranscriptError(
                f"{path} ends with more than {lines.LONGEST_LINE} bytes without a newline: no transcript; move it away",
                path=path,
            )
        if kind is not lines.Line.BROKEN:
            _write_whole(entry, fd, path, b"\n", size)
            entry.note("transcript_tail_sealed", path=path, offset=start)
            return size + 1
        _save_torn(entry, fd, start, size)
        _os.ftruncate(fd, start)
    except OSError as error:
        raise cannot("seal the tail of", path, error) from error
    entry.note("transcript_tail_torn", path=path, offset=start, bytes=length, moved_to=path + ".torn")
    return start


def tail_of(fd: int, size: int) -> tuple[int, lines.Line]:
    """Where the last line of a file begins that lacks its newline, and what it is; a blank one if there is none.

    Of a line that is longer than the longest, which is broken, the place is one inside it.

    Raises:
        OSError: the file cannot be read.
    """
    start = _tail_start(fd, size)
    if size - start > lines.LONGEST_LINE:
        return start, lines.Line.BROKEN
    return start, lines.kind_of(_os.pread(fd, size - start, start))


def _tail_start(fd: int, size: int) -> int:
    """Where the unterminated last line starts; or a place inside it, as above."""
    end, furthest = size, max(0, size - lines.LONGEST_LINE - 1)
    while end > furthest:
        start = max(furthest, end - _BLOCK)
        newline = _os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return furthest


def _save_torn(entry: Entry, source: int, start: int, end: int) -> None:
    """Keep what is cut off: moved aside first, cut off afterwards, so that a crash in between loses nothing."""
    path = entry.path + ".torn"
    try:
        fd = _os.open(
            path,
            os.O_WRONLY | os.O_APPEND | os.O_CREAT | _os.O_BINARY | _os.O_CLOEXEC | _os.O_NOFOLLOW | _os.O_NONBLOCK,
            0o600,
        )
    except OSError as error:
        raise cannot("move a torn tail to", path, error) from error
    try:
        found = _os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise TranscriptError(f"cannot move a torn tail to {path}: it is no regular file", path=path)
        size = found.st_size
        while start < end:
            block = _os.pread(source, min(_BLOCK, end - start), start)
            if not block:
                break  # it became shorter meanwhile
            _write_whole(entry, fd, path, block, size)
            start, size = start + len(block), size + len(block)
        _write_whole(entry, fd, path, b"\n", size)
    finally:
        _os.close(fd)
