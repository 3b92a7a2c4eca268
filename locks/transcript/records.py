"""A session's transcript as data: records, lines that are none, and places between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

from .. import _os
from .._os import FileId

_WITNESS = 1 << 12  # bytes

OnError = Literal["skip", "raise"]


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a transcript: right behind a record."""

    offset: int
    """Bytes from the beginning of the file."""
    file_id: FileId
    """Device and inode, so that a place in a file that was replaced is recognised."""
    witness: tuple[int, int] = field(default=(0, 0), compare=False, repr=False)
    """How many bytes before the place were looked at, and their checksum: the number of a file that is gone is soon
    given to another, on ext4 to the next but one."""

    @classmethod
    def behind(cls, before: bytes, offset: int, file_id: FileId) -> Position:
        """The place behind some bytes, of which the last ones are enough."""
        before = before[-_WITNESS:]
        return cls(offset, file_id, (len(before), crc32(before)))

    def stands(self, fd: int) -> bool:
        """Whether a file has a line's end there, and before it what it had."""
        length, checksum = self.witness
        if length == 0 and self.offset:
            return _os.pread(fd, 1, self.offset - 1) == b"\n"
        before = _os.pread(fd, length, self.offset - length)
        return before[-1:] in (b"\n", b"") and len(before) == length and crc32(before) == checksum


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line that is no record. It stays in the file as it is."""

    offset: int
    """Where it begins, in bytes from the beginning of the file."""
    number: int | None
    """Counted from 1, the header included; `None` when the lines before it were not read."""
    reason: str
    length: int = 0
    """Bytes, its newline aside."""


class Records(list[dict[str, Any]]):
    """The records that were read, oldest first."""

    position: Position | None = None
    """Behind the last line that was read; `None` when there is no file yet."""
    skipped: tuple[BrokenLine, ...] = ()
    """The lines left out because they are no records. Blank lines are not among them."""
