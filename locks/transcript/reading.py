"""Reading the records of a transcript while others write, without any lock. `prefix` says how that is safe."""

from __future__ import annotations

import errno
import threading
from collections.abc import Generator, Iterator

from .._os import FileId
from ..checks import whole_or_none
from ..errors import TranscriptError
from . import lines, prefix
from .header import is_header
from .lines import NoRecord, decode
from .prefix import Giant, PrefixFile, TooLong, last_line_end, lines_before, opened, pieces, restless
from .records import BrokenLine, OnError, Position, Records

_FIRST_BLOCK = 1 << 16  # bytes, backwards: enough for some tens of usual records
_SHORT = 1 << 18  # bytes that are read where nothing may take long


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
    with opened(path) as file:
        return _read(file, last, on_error, header)


def read_short(
    path: str, *, last: int | None = None, on_error: OnError = "skip", header: bytes | None = None
) -> Records | None:
    """As `read`, for where nothing may take long: `None` if 256 KiB of the file are not enough to know the answer."""
    _check(on_error, last)
    with opened(path) as file:
        if file is not None and file.size > _SHORT:
            if last is None:
                return None
            file.allowed = _SHORT  # a line may be longer than that, and so may what a crash has left behind the last
        try:
            return _read(file, last, on_error, header)
        except TooLong:
            return None


def _read(file: PrefixFile | None, last: int | None, on_error: OnError, header: bytes | None) -> Records:
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
    with opened(path) as file:
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
    for batch in _batches(PrefixFile(path, fd, end, file_id), start, "skip"):
        yield from batch.skipped
        assert batch.position is not None
        start = batch.position.offset
    if start < end:
        raise OSError(errno.EIO, "the file became shorter while it was read")


def _check(on_error: str, last: int | None = None) -> None:
    whole_or_none("last", last)
    if on_error not in ("skip", "raise"):
        raise ValueError(f"on_error: {on_error!r} is unknown; allowed: 'skip', 'raise'")


def _check_place(path: str, file: PrefixFile | None, after: Position) -> None:
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


def _batches(file: PrefixFile, start: int, on_error: OnError, header: bytes | None = None) -> Iterator[Records]:
    number = None if start else 0  # of the lines before the piece
    for piece in pieces(file, start):
        if isinstance(piece, Giant):
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


def _records_of(found: list[bytes], file: PrefixFile, start: int, number: int | None, on_error: OnError) -> Records:
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


def _read_last(file: PrefixFile, last: int, on_error: OnError, header: bytes | None) -> Records:
    for _ in range(prefix.TRIES):
        end = last_line_end(file)
        records = Records()
        skipped: list[BrokenLine] = []
        start, length = end.offset, _FIRST_BLOCK
        while start > 0 and len(records) < last:
            piece = lines_before(file, start, length)
            if not piece or not end.stands(file):
                break  # as above
            if isinstance(piece, Giant):
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
            length = min(2 * length, prefix.BLOCK)
        else:
            records.reverse()
            records.position = Position.behind(end.before, end.offset, file.file_id)
            records.skipped = tuple(reversed(skipped))
            return records
    raise restless(file)


def _broken(
    file: PrefixFile, offset: int, length: int, number: int | None, why: NoRecord | str, on_error: OnError
) -> BrokenLine:
    if on_error == "raise":
        where = f"line {number}" if number is not None else f"the line at byte {offset}"
        cause = why if isinstance(why, NoRecord) else None
        raise TranscriptError(f"{file.path}, {where}: {why}", path=file.path) from cause
    return BrokenLine(offset, number, str(why), length)


def _split(data: bytes) -> list[bytes]:
    """Whole lines without their newlines."""
    found = data.split(b"\n")
    found.pop()  # behind the last newline
    return found
