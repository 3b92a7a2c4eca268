"""A session's transcript as data: records, the lines they are written as, and places between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from ..engines.bell import FileId
from ..errors import TranscriptError

HEADER_KEY = "lanes.session"
"""A first line that has this key names the session and is no record."""
_encoder = msgspec.json.Encoder()
decoder = msgspec.json.Decoder()

OnError = Literal["skip", "raise"]


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a transcript: right behind a record."""

    offset: int
    """Bytes from the beginning of the file."""
    file_id: FileId
    """Device and inode, so that a place in a file that was replaced is recognised."""


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
