"""A session's transcript as data: records, the lines they are written as, and places between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from zlib import crc32

import msgspec

from .. import _os
from .._os import FileId
from ..errors import TranscriptError

HEADER_KEY = "lanes.session"
"""A first line that has this key names the session and is no record."""
_WITNESS = 1 << 12  # bytes
_encoder = msgspec.json.Encoder()
decoder = msgspec.json.Decoder()
_LONGEST_HEADER = 1 << 16  # bytes
_LONGEST_LINE = 1 << 23  # bytes; a longer tail is torn, without a look whether it is whole

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


class Records(list[dict[str, Any]]):
    """The records that were read, oldest first."""

    position: Position | None = None
    """Behind the last line that was read; `None` when there is no file yet."""
    skipped: tuple[BrokenLine, ...] = ()
    """The lines left out because they are no records."""


def encode(record: Mapping[str, Any], path: str) -> bytes:
    """One record as a line.

    Raises:
        TranscriptError: it is no mapping, or holds what JSON cannot.
    """
    if not isinstance(record, Mapping):
        raise TranscriptError(f"record: {record!r:.80} is no mapping; a line of {path} is a JSON object", path=path)
    try:
        return _encoder.encode(record if type(record) is dict else dict(record)) + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise TranscriptError(f"record cannot be written as JSON: {error}", path=path) from error


def encode_all(records: Iterable[Mapping[str, Any]], path: str) -> bytes:
    """Several records as lines."""
    return b"".join([encode(record, path) for record in records])


def decode(line: bytes) -> dict[str, Any]:
    """The record that a line is.

    Raises:
        ValueError, RecursionError: it is none.
    """
    record = decoder.decode(line)
    if not isinstance(record, dict):
        raise ValueError("not a JSON object")
    return record


def is_record(fd: int, start: int, end: int) -> bool:
    """Whether what a file has between two places is a record, its newline aside.

    Raises:
        OSError: the file cannot be read.
    """
    if end - start > _LONGEST_LINE:
        return False
    try:
        decode(_os.pread(fd, end - start, start))
    except (ValueError, RecursionError):
        return False
    return True


def header_of(fd: int, size: int = _LONGEST_HEADER) -> tuple[bytes, Any]:
    """The first line of a file, if it is no record, and the name that it gives the session; else nothing and `None`.

    Args:
        size: as much of the file as counts.

    Raises:
        OSError: the file cannot be read.
    """
    line, newline, _ = _os.pread(fd, min(size, _LONGEST_HEADER), 0).partition(b"\n")
    try:
        found = decode(line) if newline else {}
    except (ValueError, RecursionError):
        found = {}
    return (line + newline, found[HEADER_KEY]) if HEADER_KEY in found else (b"", None)
