"""Reading a transcript while others write, without any lock: whole lines only, in blocks, forwards or backwards.

A reader takes the file's size once. What it reads is the *prefix* up to the last newline before that size: a torn tail
is no part of it, and what is appended later is not either. So far an append-only file would need nothing else.

But a transcript can become shorter: a writer whose write fails takes it back, perhaps lines that a reader saw, and a
torn tail is cut off. If something else is appended in its place, a reader that had read the one half before and reads
the other half after would see a record that nobody wrote. Sizes do not show it, the file may have grown again; times
of change do not, they are too coarse. What shows it is that a file only ever loses its *end*: as long as the last bytes
of the prefix are those that stood there at first, nothing before them was cut. They are read before the first block
and compared after each, before any line of it is believed. The one thing this misses is harmless: the same bytes
appended again at the same place.

Rejected: locking, since a reader would wait for writers; reading all again and comparing, which costs the double.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .. import _os
from .._os import FileId
from ..checks import whole_or_none
from ..errors import TranscriptError
from ..rights.open_file import cannot
from . import lines
from .header import is_header
from .lines import NoRecord, decode
from .records import BrokenLine, OnError, Position, Records

_BLOCK = 1 << 18  # bytes read at once and lines handed out at once; more only for a line that is longer
_FIRST_BLOCK = 1 << 16  # bytes, backwards: enough for some tens of usual records
_WITNESS = 1 << 12  # bytes by which a place is recognised
_SHORT = 1 << 18  # bytes that are read where nothing may take long
_TRIES = 100  # how often a reader begins anew before it takes the file for no transcript


@dataclass(slots=True)
class _File:
    """An open transcript, as it was when it was opened."""

    path: str
    fd: int
    size: int
    file_id: FileId
    allowed: int | None = None
    """How many bytes may still be read; `None` for any number."""

    def pread(self, start: int, end: int) -> bytes:
        """The bytes between two places; less when the file ends before the second.

        Raises:
            _TooLong: more than what is allowed. None of them were read.
        """
        if self.allowed is not None:
            self.allowed -= end - start
            if self.allowed < 0:
                raise _TooLong
        pieces: list[bytes] = []
        while start < end:
            piece = _os.pread(self.fd, end - start, start)
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)  # usually one, which is not copied


class _TooLong(Exception):
    """A read that was to be short is not."""


class _Giant(NamedTuple):
    """A line that is too long to be read: all that is in memory of it is its end."""

    length: int
    """Bytes, its newline aside."""
    end: bytes
    """The last bytes of it, with the newline."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place right behind a line, and the bytes before it by which it is recognised."""

    offset: int
    before: bytes

    def stands(self, file: _File) -> bool:
        """Whether nothing before the place was cut off since the mark was made."""
        return file.pread(self.offset - len(self.before), self.offset) == self.before


def read(path: str, *, last: int | None = None, on_error: OnError = "skip", header: bytes | None = None) -> Records:
    """Read the records of a transcript, without any lock: a whole prefix, never a torn line.

    Beside the records, a block of the file is in memory at a time, or one line where that is longer: of `LONGEST_LINE`
    at most, since a longer one is broken, and passed over. With `last`, the file is read backwards, and only as far as
    needed.

    Args:
        path: the file. A missing one reads as empty.
        last: only the last so many records.
        on_error: what to do about a broken line. A blank one is none.
        header: the first line that the reader would give a file; see `is_header`.

    Raises:
        TranscriptError: it cannot be read, or with `on_error="raise"` has a broken line (its place is named).
    """
    _check(on_error, last)
    with _opened(path) as file:
        return _read(file, last, on_error, header)


def read_short(
    path: str, *, last: int | None = None, on_error: OnError = "skip", header: bytes | None = None
) -> Records | None:
    """As `read`, for where nothing may take long: `None` if 256 KiB of the file are not enough to know the answer."""
    _check(on_error, last)
    with _opened(path) as file:
        if file is not None and file.size > _SHORT:
            if last is None:
                return None
            file.allowed = _SHORT  # a line may be longer than that, and so may what a crash has left behind the last
        try:
            return _read(file, last, on_error, header)
        except _TooLong:
            return None


def _read(file: _File | None, last: int | None, on_error: OnError, header: bytes | None) -> Records:
    if file is None:
        return Records()
    if last is not None:
        return _read_last(file, last, on_error, header)
    records = Records()
    records.position = Position(0, file.file_id)
    skipped: list[BrokenLine] = []
    for batch in _batches(file, 0, on_error, header):
        records += batch
        skipped += batch.skipped
        records.position = batch.position
    records.skipped = tuple(skipped)
    return records


def stream(path: str, *, after: Position | None = None, on_error: OnError = "skip") -> Generator[Records, None, None]:
    """Read a transcript in batches of about 256 KiB of lines, without any lock: a whole prefix, never a torn line.

    The prefix is that of the first `next()`: what is appended later is not read. Each batch has its `.position` behind
    its last line, where another stream can go on; it has no records if none of its lines is one. A file
    without whole lines has no batches. One descriptor is open from the first `next()` until the generator ends, is
    closed or dropped.

    Args:
        path: the file. A missing one reads as empty.
        after: begin behind this place, which an earlier read or append returned.
        on_error: what to do about a broken line. A blank one is none.

    Raises:
        TranscriptError: it cannot be read; with `on_error="raise"` has a broken line (its place is named), where the
            batches before have been handed out; or the file is not the one that `after` is a place in.
    """
    _check(on_error)
    with _opened(path) as file:
        if after is not None:
            _check_place(path, file, after)
        if file is not None:
            yield from _batches(file, 0 if after is None else after.offset, on_error)


class Batches:
    """The batches of a `stream` that are taken in threads, one after the other, and may be given up at any time.

    A thread may hang in the disk long after it was given up, and a generator that is executing cannot be closed. Then
    the thread closes it.
    """

    def __init__(self, batches: Generator[Records, None, None]) -> None:
        self._batches = batches
        self._mutex = threading.Lock()
        """Guards the flags; never held while a batch is read."""
        self._reading = self._closed = False

    def next(self) -> Records | None:
        """The next batch; `None` at the end, and once it was closed."""
        with self._mutex:
            self._reading = True
        try:
            return next(self._batches, None)
        finally:
            with self._mutex:
                self._reading = False
                if self._closed:
                    self._batches.close()

    def close(self) -> None:
        """Let go of the file, or have the thread that reads do it. From any thread, without waiting for the disk."""
        with self._mutex:
            self._closed = True
            if not self._reading:
                self._batches.close()


def broken_lines(path: str, fd: int, file_id: FileId, start: int, end: int) -> Iterator[BrokenLine]:
    """The broken lines of an open file between two places, which are both right behind a line, or the beginning.

    Raises:
        OSError: the file cannot be read, or has become shorter.
    """
    for batch in _batches(_File(path, fd, end, file_id), start, "skip"):
        yield from batch.skipped
        assert batch.position is not None
        start = batch.position.offset
    if start < end:
        raise OSError(errno.EIO, "the file became shorter while it was read")


def _check(on_error: str, last: int | None = None) -> None:
    whole_or_none("last", last)
    if on_error not in ("skip", "raise"):
        raise ValueError(f"on_error: {on_error!r} is unknown; allowed: 'skip', 'raise'")


def _check_place(path: str, file: _File | None, after: Position) -> None:
    if file is None:
        found = "there is no file now"
    elif file.file_id != after.file_id:
        found = f"now it is file {file.file_id}"
    elif not after.stands(file.fd):
        found = f"now it has {file.size} bytes, and other ones before that place, or no line ends there"
    else:
        return
    raise TranscriptError(
        f"{path} was replaced since that position was taken, at byte {after.offset} of file {after.file_id}: {found}",
        path=path,
    )


@contextlib.contextmanager
def _opened(path: str) -> Iterator[_File | None]:
    """Open a transcript for the block; `None` when there is none."""
    fd: int | None
    try:
        fd = _os.open(path, os.O_RDONLY | _os.O_BINARY | _os.O_CLOEXEC | _os.O_NONBLOCK)
    except FileNotFoundError:
        fd = None
    except OSError as error:
        raise cannot("read", path, error) from error
    if fd is None:
        yield None
        return
    try:
        found = _os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise TranscriptError(f"{path} is no regular file: a session needs one of its own", path=path)
        yield _File(path, fd, found.st_size, (found.st_dev, found.st_ino))
    except OSError as error:
        raise cannot("read", path, error) from error
    finally:
        # The kernel lets go of a descriptor in any case, and nothing was written through this one.
        with contextlib.suppress(OSError):
            _os.close(fd)


# Forwards


def _batches(file: _File, start: int, on_error: OnError, header: bytes | None = None) -> Iterator[Records]:
    number = None if start else 0  # of the lines before the piece
    for piece in _pieces(file, start):
        if isinstance(piece, _Giant):
            records = Records()
            place = None if number is None else number + 1
            records.skipped = (_broken(file, start, piece.length, place, lines.too_long(), on_error),)
            count, length, before = 1, piece.length + 1, piece.end
        else:
            found = _split(piece)
            records = _records_of(found, file, start, number, on_error)
            if not start and records and _is_header(found[0], header):
                del records[0]
            count, length, before = len(found), len(piece), piece
        start += length
        number = None if number is None else number + count
        records.position = Position.behind(before, start, file.file_id)
        yield records


def _records_of(found: list[bytes], file: _File, start: int, number: int | None, on_error: OnError) -> Records:
    """The records of some lines that follow each other, and those that are broken."""
    records = Records()
    skipped: list[BrokenLine] = []
    known, add = 0, records.append
    for index, line in enumerate(found):
        try:
            record = decode(line)
        except NoRecord as error:
            start += sum(map(len, found[known:index])) + index - known
            known = index
            place = None if number is None else number + index + 1
            skipped.append(_broken(file, start, len(line), place, error, on_error))
        else:
            if record is not None:
                add(record)
    records.skipped = tuple(skipped)
    return records


def _is_header(line: bytes, header: bytes | None) -> bool:
    try:
        record = decode(line)
    except NoRecord:
        return False
    return record is not None and is_header(record, len(line), header)


def _split(data: bytes) -> list[bytes]:
    """Whole lines without their newlines."""
    found = data.split(b"\n")
    found.pop()  # behind the last newline
    return found


def _pieces(file: _File, start: int) -> Iterator[bytes | _Giant]:
    """Whole lines from `start` on, which is right behind a line, to the end of the prefix."""
    done = _Mark(start, b"\n" if start else b"")
    for _ in range(_TRIES):
        end = _last_line_end(file)
        if not done.stands(file):
            # Lines that were handed out have been taken back since. They did stand there, whole; what stands there
            # now begins elsewhere, and its second half would be read as a record. So this is where the prefix ends.
            return
        while done.offset < end.offset:
            piece = _lines_from(file, done.offset, end.offset)
            if not piece or not end.stands(file):
                break  # the end was cut off, and a line of `piece` may be two halves: look anew where the end is
            yield piece
            if isinstance(piece, _Giant):
                done = _Mark(done.offset + piece.length + 1, piece.end)
            else:
                done = _Mark(done.offset + len(piece), piece[-_WITNESS:])
        else:
            return
    raise _restless(file)


def _lines_from(file: _File, start: int, end: int) -> bytes | _Giant | None:
    """Whole lines from `start` on, a block or at least one; `None` when there is none before `end`."""
    length = _BLOCK
    while True:
        stop = min(start + min(length, lines.LONGEST_LINE + 1), end)
        data = file.pread(start, stop)
        whole = data.rfind(b"\n") + 1
        if whole:
            return data[:whole]
        if start + len(data) < stop or stop == end:
            return None
        if length > lines.LONGEST_LINE:
            break
        length *= 2  # read again from the start: twice the bytes at most, where joining pieces would hold two copies
    while stop < end:
        data = file.pread(stop, min(stop + _BLOCK, end))
        if not data:
            return None
        whole = data.find(b"\n") + 1
        if whole:
            stop += whole
            return _Giant(stop - 1 - start, file.pread(max(start, stop - _WITNESS), stop))
        stop += len(data)
    return None


# Backwards


def _read_last(file: _File, last: int, on_error: OnError, header: bytes | None) -> Records:
    for _ in range(_TRIES):
        end = _last_line_end(file)
        records = Records()
        skipped: list[BrokenLine] = []
        start, length = end.offset, _FIRST_BLOCK
        while start > 0 and len(records) < last:
            piece = _lines_before(file, start, length)
            if not piece or not end.stands(file):
                break  # as above
            if isinstance(piece, _Giant):
                start -= piece.length + 1
                skipped.append(_broken(file, start, piece.length, None, lines.too_long(), on_error))
                continue
            found = _split(piece)
            while found and len(records) < last:
                line = found.pop()
                start -= len(line) + 1
                try:
                    record = decode(line)
                except NoRecord as error:
                    skipped.append(_broken(file, start, len(line), None, error, on_error))
                else:
                    if record is not None and (start or not is_header(record, len(line), header)):
                        records.append(record)
            length = min(2 * length, _BLOCK)
        else:
            records.reverse()
            records.position = Position.behind(end.before, end.offset, file.file_id)
            records.skipped = tuple(reversed(skipped))
            return records
    raise _restless(file)


def _lines_before(file: _File, end: int, length: int) -> bytes | _Giant | None:
    """Whole lines up to `end`, about `length` bytes or at least one line; `None` when the file became shorter."""
    longest = lines.LONGEST_LINE + 2  # with its own newline, and that of the line before
    while True:
        start = max(0, end - min(length, longest))
        data = file.pread(start, end)
        if len(data) < end - start:
            return None
        if start == 0:
            return data
        first = data.find(b"\n", 0, -1) + 1  # the last byte is the newline of the last line itself
        if first:
            return data[first:]
        if length >= longest:
            break
        length *= 2
    last_bytes = data[-_WITNESS:]
    while start > 0:
        behind, start = start, max(0, start - _BLOCK)
        data = file.pread(start, behind)
        if len(data) < behind - start:
            return None
        newline = data.rfind(b"\n") + 1
        if newline:
            start += newline
            break
    return _Giant(end - 1 - start, last_bytes)


# Both


def _last_line_end(file: _File) -> _Mark:
    """The end of the prefix: behind the last newline before the size that the file had when it was opened."""
    end, length = file.size, 2 * _WITNESS
    while end > 0:
        start = max(0, end - length)
        data = file.pread(start, end)  # short or empty when the file became shorter
        whole = data.rfind(b"\n") + 1
        if whole and (whole >= _WITNESS or start == 0):
            return _Mark(start + whole, data[max(0, whole - _WITNESS) : whole])
        end = start + whole  # further back; or from the newline again, when too little before it was read
        length = min(2 * length, _BLOCK)
    return _Mark(0, b"")


def _broken(
    file: _File, offset: int, length: int, number: int | None, why: NoRecord | str, on_error: OnError
) -> BrokenLine:
    if on_error == "raise":
        where = f"line {number}" if number is not None else f"the line at byte {offset}"
        cause = why if isinstance(why, NoRecord) else None
        raise TranscriptError(f"{file.path}, {where}: {why}", path=file.path) from cause
    return BrokenLine(offset, number, str(why), length)


def _restless(file: _File) -> TranscriptError:
    # A transcript loses its end only when a write fails. One that did so this often in so short a time is none.
    return TranscriptError(
        f"cannot read {file.path}: its end was rewritten {_TRIES} times meanwhile; something writes to it that does not"
        " only append",
        path=file.path,
    )
