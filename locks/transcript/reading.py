"""Reading the records of a transcript while others write, without any lock. `prefix` says how that is safe."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Generator, Iterator

from .._os import FileId
from ..checks import whole_or_none
from ..errors import TranscriptError
from . import lines, prefix
from .decoding import Block, Decoding, broken, split
from .header import is_header
from .lines import NoRecord, decode
from .prefix import Giant, PrefixFile, TooLong, last_line_end, lines_before, opened, pieces, restless
from .records import BrokenLine, OnError, Position, Records

_FIRST_BLOCK = 1 << 16  # bytes, backwards: enough for some tens of usual records
_SHORT = 1 << 18  # bytes that are read where nothing may take long
_BATCH = 1 << 18  # bytes of lines that a stream hands out at once
_AHEAD = 1 << 20  # bytes that are read at once where a thread has to be woken for it; more only for a longer line


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
    check(on_error, last)
    with opened(path) as file:
        return _read(file, last, on_error, header)


def read_short(
    path: str, *, last: int | None = None, on_error: OnError = "skip", header: bytes | None = None
) -> Records | None:
    """As `read`, for where nothing may take long: `None` if 256 KiB of the file are not enough to know the answer."""
    check(on_error, last)
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
    decoding = Decoding(file.path, 0, on_error, header)
    for block in _blocks(file, 0):
        batch = decoding.batch(block)
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
    check(on_error)
    decoding = Decoding(path, after.offset if after else 0, on_error)
    with contextlib.closing(blocks(path, after)) as found:
        for block in found:
            yield decoding.batch(block)


def blocks(path: str, after: Position | None) -> Generator[Block, None, None]:
    """The lines of a transcript from behind a place on, as `stream`."""
    with opened(path) as file:
        if after is not None:
            _check_place(path, file, after)
        if file is not None:
            yield from _blocks(file, 0 if after is None else after.offset)


def _blocks(file: PrefixFile, start: int) -> Iterator[Block]:
    found: list[bytes | Giant] = []
    length = 0
    for piece in pieces(file, start):
        found.append(piece)
        length += piece.length if isinstance(piece, Giant) else len(piece)
        if length > _BATCH - prefix.BLOCK:
            yield Block(found, file.file_id)
            found, length = [], 0
    if found:
        yield Block(found, file.file_id)


class BlocksAhead:
    """The blocks of a stream, read in threads, one after the other; the stream may be given up at any time.

    A thread may hang in the disk long after it was given up, and a generator that is executing cannot be closed. Then
    the thread closes it.
    """

    def __init__(self, path: str, after: Position | None) -> None:
        self._blocks = blocks(path, after)
        self._mutex = threading.Lock()
        """Guards the flags; never held while a block is read."""
        self._reading = self._closed = False
        self.over = False
        """Whether there are no more blocks."""

    def next(self) -> list[Block]:
        """The next blocks, a few at once; none once the stream was closed."""
        with self._mutex:
            self._reading = True
        try:
            found: list[Block] = []
            for block in self._blocks:
                found.append(block)
                if sum(len(piece) for one in found for piece in one.pieces) > _AHEAD - _BATCH:
                    break
            else:
                self.over = True
            return found
        finally:
            with self._mutex:
                self._reading = False
                if self._closed:
                    self._blocks.close()

    def close(self) -> None:
        """Let go of the file, or have the thread that reads do it. From any thread, without waiting for the disk."""
        with self._mutex:
            self._closed = True
            if not self._reading:
                self._blocks.close()


def broken_lines(path: str, fd: int, file_id: FileId, start: int, end: int) -> Iterator[BrokenLine]:
    """The broken lines of an open file between two places, which are both right behind a line, or the beginning.

    Raises:
        OSError: the file cannot be read, or has become shorter.
    """
    decoding = Decoding(path, start, "skip")
    for block in _blocks(PrefixFile(path, fd, end, file_id), start):
        batch = decoding.batch(block)
        yield from batch.skipped
        assert batch.position is not None
        start = batch.position.offset
    if start < end:
        raise OSError(errno.EIO, "the file became shorter while it was read")


def check(on_error: str, last: int | None = None) -> None:
    """Refuse what these arguments cannot be."""
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


def _read_last(file: PrefixFile, last: int, on_error: OnError, header: bytes | None) -> Records:
    for _ in range(prefix.TRIES):
        end = last_line_end(file)
        records = Records()
        skipped: list[BrokenLine] = []
        start, length = end.offset, _FIRST_BLOCK
        while start > 0 and len(records) < last:
            piece = lines_before(file, start, length)
            if not piece or not end.stands(file):
                break  # the end was cut off meanwhile: look again where it is
            if isinstance(piece, Giant):
                start -= piece.length + 1
                skipped.append(broken(file.path, start, piece.length, None, lines.too_long(), on_error))
                continue
            found = split(piece)
            while found and len(records) < last:
                line = found.pop()
                start -= len(line) + 1
                try:
                    record = decode(line)
                except NoRecord as error:
                    skipped.append(broken(file.path, start, len(line), None, error, on_error))
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
