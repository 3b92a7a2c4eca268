"""The whole lines of a transcript that others write to meanwhile, in blocks, forwards or backwards, without any lock.

A reader takes the file's size once. What it reads is the *prefix* up to the last newline before that size: a torn tail
is no part of it, and what is appended later is not either. So far an append-only file would need nothing else.

But a transcript can become shorter: a writer whose write fails takes it back, perhaps lines that a reader saw, and a
torn tail is cut off. If something else is appended in its place, a reader that had read the one half before and reads
the other half after would see a record that was never written. Sizes do not show it, the file may have grown again;
times of change do not, they are too coarse. What shows it is that a file only ever loses its *end*: as long as the last
bytes of the prefix are those that stood there at first, nothing before them was cut. They are read before the first
block and compared after each, before any line of it is believed. The one thing this misses is harmless: the same bytes
appended again at the same place.

Rejected: locking, since a reader would wait for writers; reading all again and comparing, which costs the double.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .. import _os
from .._os import FileId
from ..errors import TranscriptError
from ..rights.open_file import cannot
from . import lines

BLOCK = 1 << 16  # bytes read at once, more only for a line that is longer: larger ones leave the processor's cache
_WITNESS = 1 << 12  # bytes by which a place is recognised
TRIES = 100  # how often a reader starts again before it takes the file for no transcript


@dataclass(slots=True)
class PrefixFile:
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
            TooLong: more than what is allowed. None of them were read.
        """
        if self.allowed is not None:
            self.allowed -= end - start
            if self.allowed < 0:
                raise TooLong
        pieces: list[bytes] = []
        while start < end:
            piece = _os.pread(self.fd, end - start, start)
            if not piece:
                break
            pieces.append(piece)
            start += len(piece)
        return b"".join(pieces)  # usually one, which is not copied


class TooLong(Exception):
    """A read that was to be short is not."""


class Giant(NamedTuple):
    """A line that is too long to be read: all that is in memory of it is its end."""

    length: int
    """Bytes, its newline aside."""
    end: bytes
    """The last bytes of it, with the newline."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place right behind a line, and the bytes before it by which it is recognised."""

    offset: int
    before: bytes

    def stands(self, file: PrefixFile) -> bool:
        """Whether nothing before the place was cut off since the mark was made."""
        return file.pread(self.offset - len(self.before), self.offset) == self.before


@contextlib.contextmanager
def opened(path: str) -> Iterator[PrefixFile | None]:
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
        yield PrefixFile(path, fd, found.st_size, (found.st_dev, found.st_ino))
    except OSError as error:
        raise cannot("read", path, error) from error
    finally:
        # The kernel lets go of a descriptor in any case, and nothing was written through this one.
        with contextlib.suppress(OSError):
            _os.close(fd)


def pieces(file: PrefixFile, start: int) -> Iterator[bytes | Giant]:
    """Whole lines from `start` on, which is right behind a line, to the end of the prefix."""
    done = Mark(start, b"\n" if start else b"")
    for _ in range(TRIES):
        end = last_line_end(file)
        if not done.stands(file):
            # Lines that were handed out have been taken back since. They did stand there, whole; what stands there
            # now begins elsewhere, and its second half would be read as a record. So this is where the prefix ends.
            return
        while done.offset < end.offset:
            piece = _lines_from(file, done.offset, end.offset)
            if not piece or not end.stands(file):
                break  # the end was cut off, and a line of `piece` may be two halves: look again where the end is
            yield piece
            if isinstance(piece, Giant):
                done = Mark(done.offset + piece.length + 1, piece.end)
            else:
                done = Mark(done.offset + len(piece), piece[-_WITNESS:])
        else:
            return
    raise restless(file)


def _lines_from(file: PrefixFile, start: int, end: int) -> bytes | Giant | None:
    """Whole lines from `start` on, a block or at least one; `None` when there is none before `end`."""
    length = BLOCK
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
        data = file.pread(stop, min(stop + BLOCK, end))
        if not data:
            return None
        whole = data.find(b"\n") + 1
        if whole:
            stop += whole
            return Giant(stop - 1 - start, file.pread(max(start, stop - _WITNESS), stop))
        stop += len(data)
    return None


def lines_before(file: PrefixFile, end: int, length: int) -> bytes | Giant | None:
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
        behind, start = start, max(0, start - BLOCK)
        data = file.pread(start, behind)
        if len(data) < behind - start:
            return None
        newline = data.rfind(b"\n") + 1
        if newline:
            start += newline
            break
    return Giant(end - 1 - start, last_bytes)


def last_line_end(file: PrefixFile) -> Mark:
    """The end of the prefix: behind the last newline before the size that the file had when it was opened."""
    end, length = file.size, 2 * _WITNESS
    while end > 0:
        start = max(0, end - length)
        data = file.pread(start, end)  # short or empty when the file became shorter
        whole = data.rfind(b"\n") + 1
        if whole and (whole >= _WITNESS or start == 0):
            return Mark(start + whole, data[max(0, whole - _WITNESS) : whole])
        end = start + whole  # further back; or from the newline again, when too little before it was read
        length = min(2 * length, BLOCK)
    return Mark(0, b"")


def restless(file: PrefixFile) -> TranscriptError:
    # A transcript loses its end only when a write fails. One that did so this often in so short a time is none.
    return TranscriptError(
        f"cannot read {file.path}: its end was rewritten {TRIES} times meanwhile; something writes to it that does not"
        " only append",
        path=file.path,
    )
