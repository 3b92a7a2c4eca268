"""The first line of a transcript: whether it is a header, which is no record, and whether it stays the first.

A line that names the session by the key `lanes.session` is a header to all readers. A program that gives its files a
header of another kind says so by the one that it would write itself (`SessionLayout(header=…)`): a first line that has
all fields of that one, and the value of one of them, is a header too.

A first line that others wrote may be a header without our knowing. Reading it as a record loses nothing, but taking it
away would leave a file that the program which wrote it cannot read. So what may be one stays the first line when the
transcript is replaced, although it is read as a record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import _os
from ..errors import TranscriptError
from .lines import NoRecord, decode

HEADER_KEY = "lanes.session"
"""A first line that has this key names the session and is no record."""
LONGEST_HEADER = 1 << 16
"""Bytes, its newline included; a longer first line is no header."""
_BY_TYPE = ("type", "session")  # so begin the transcripts of OpenClaw and of others of its kind


def is_header(record: Mapping[str, Any], length: int, ours: bytes | None = None) -> bool:
    """Whether the object on a first line is a header.

    Args:
        record: the object.
        length: of its line, in bytes, the newline aside.
        ours: the header that the reader would write itself, if any.
    """
    if length >= LONGEST_HEADER:
        return False
    if HEADER_KEY in record:
        return True
    if ours is None:
        return False
    fields = decode(ours) or {}
    return record == fields or (fields.keys() <= record.keys() and _have_one_in_common(fields, record))


def first_line(fd: int, size: int = LONGEST_HEADER) -> bytes:
    """The first line of a file with its newline; empty if there is none, or it is longer than a header may be.

    Args:
        size: as much of the file as counts.

    Raises:
        OSError: the file cannot be read.
    """
    line, newline, _ = _os.pread(fd, min(size, LONGEST_HEADER), 0).partition(b"\n")
    return line + newline if newline else b""


def key_in(line: bytes) -> str | None:
    """The key of the session, if a first line gives it."""
    try:
        found = (decode(line.removesuffix(b"\n")) or {}).get(HEADER_KEY)
    except NoRecord:
        return None
    return found if isinstance(found, str) else None


def stays_first(line: bytes, ours: bytes | None = None) -> bool:
    """Whether a first line remains the first of the file when the records behind it are replaced.

    That is a header, what may be one of another program, and what is no record: it was never read.
    """
    try:
        record = decode(line.removesuffix(b"\n"))
    except NoRecord:
        return True
    if record is None:
        return False
    name, value = _BY_TYPE
    return (
        is_header(record, len(line) - 1, ours)
        or record.get(name) == value
        or (ours is not None and _have_one_in_common(decode(ours) or {}, record))
    )


def refuse_as_first(data: bytes, path: str) -> None:
    """Raise if the first of some lines would be taken for a header, were it the first of a file.

    Raises:
        TranscriptError: it would.
    """
    if HEADER_KEY.encode() not in data:
        return
    line = data[: data.index(b"\n")]
    if is_header(decode(line) or {}, len(line)):
        raise TranscriptError(
            f"record has the key {HEADER_KEY!r}: as the first line of {path} it would be read as the header",
            path=path,
        )


def _have_one_in_common(fields: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    return any(name in record and record[name] == value for name, value in fields.items())
