"""From the lines of a transcript, block by block, to records, and to places of broken lines."""

from __future__ import annotations

from typing import Any, NamedTuple

from .._os import FileId
from ..errors import TranscriptError
from . import lines, prefix
from .header import is_header
from .lines import NoRecord, decode
from .prefix import Giant
from .records import BrokenLine, OnError, Position, Records


class Block(NamedTuple):
    """Whole lines of a file that follow each other, not decoded yet."""

    pieces: list[bytes | Giant]
    file_id: FileId


class TakesLong(Exception):
    """To decode a block may take long."""


class Decoding:
    """Makes a batch of records of each block of a transcript. The blocks are given in their order.

    Args:
        path: the transcript, for errors.
        start: where the first block begins.
        on_error: what to do about a broken line.
        header: the first line that the reader would give a file; see `is_header`.
    """

    def __init__(self, path: str, start: int, on_error: OnError, header: bytes | None = None) -> None:
        self._path = path
        self._start = start
        self._number = None if start else 0
        """How many lines there are before `_start`."""
        self._on_error: OnError = on_error
        self._header = header

    def batch(self, block: Block, *, quick: bool = False) -> Records:
        """The records of the next block.

        Args:
            quick: only if all its lines are usual ones, for where nothing may take long.

        Raises:
            TakesLong: not all are; the block is still the next one.
            TranscriptError: a line is broken, and that is an error.
        """
        start, number, before = self._start, self._number, b""
        records, skipped = Records(), list[BrokenLine]()
        for piece in block.pieces:
            if isinstance(piece, Giant):
                place = None if number is None else number + 1
                skipped.append(broken(self._path, start, piece.length, place, lines.too_long(), self._on_error))
                count, length, before = 1, piece.length + 1, piece.end
            else:
                found, count = self._records_of(piece, start, number, skipped, quick)
                if not start and found and _is_header(piece[: piece.index(b"\n")], self._header):
                    del found[0]
                records += found
                length, before = len(piece), piece
            start += length
            number = None if number is None else number + count
        self._start, self._number = start, number
        records.position = Position.behind(before, start, block.file_id)
        records.skipped = tuple(skipped)
        return records

    def _records_of(
        self, piece: bytes, start: int, number: int | None, skipped: list[BrokenLine], quick: bool
    ) -> tuple[list[dict[str, Any]], int]:
        """The records of some lines, and how many lines there are; the broken ones are added to `skipped`."""
        usual = lines.decode_usual(piece) if not quick or len(piece) <= prefix.BLOCK else None
        if usual is not None:
            return usual, len(usual)
        if quick:
            raise TakesLong
        found = split(piece)
        records: list[dict[str, Any]] = []
        known, add = 0, records.append
        for index, line in enumerate(found):
            try:
                record = decode(line)
            except NoRecord as error:
                start += sum(map(len, found[known:index])) + index - known
                known = index
                place = None if number is None else number + index + 1
                skipped.append(broken(self._path, start, len(line), place, error, self._on_error))
            else:
                if record is not None:
                    add(record)
        return records, len(found)


def _is_header(line: bytes, header: bytes | None) -> bool:
    try:
        record = decode(line)
    except NoRecord:
        return False
    return record is not None and is_header(record, len(line), header)


def broken(
    path: str, offset: int, length: int, number: int | None, why: NoRecord | str, on_error: OnError
) -> BrokenLine:
    """A line that is no record.

    Raises:
        TranscriptError: that is an error.
    """
    if on_error == "raise":
        where = f"line {number}" if number is not None else f"the line at byte {offset}"
        cause = why if isinstance(why, NoRecord) else None
        raise TranscriptError(f"{path}, {where}: {why}", path=path) from cause
    return BrokenLine(offset, number, str(why), length)


def split(data: bytes) -> list[bytes]:
    """Whole lines without their newlines."""
    found = data.split(b"\n")
    found.pop()  # behind the last newline
    return found
