"""What a line of a transcript is: a record, a blank, or broken. Everything that looks at lines asks here.

A record is a line that Python's `json` takes and that is an object: so says `decode`, with the bounds below. They hold
for each reader and for what may be appended, on every version of Python and whatever the caller's stack is like. The
list for users stands in docs/locks.md, "What counts as a record".
"""

from __future__ import annotations

from enum import StrEnum
from io import BytesIO
from typing import Any

import msgspec

from . import tolerant

LONGEST_LINE = 1 << 26
"""Bytes of a line, its newline aside: the longest that may be appended, that is read, and that is sealed."""
DEEPEST = 1000
"""Objects and arrays inside each other, the record included: the most that may be appended, and that is read."""
MOST_DIGITS = 4300
"""Of an integer; what Python's `json` allows by default."""

_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_SHALLOW = 2 * DEEPEST  # bytes: each level has two, so a shorter line is not too deep, and not too long
_CONTAINERS = frozenset({dict, list})
_are_objects = frozenset({dict}).issuperset
_decode = msgspec.json.Decoder().decode


class Line(StrEnum):
    """What a line is."""

    RECORD = "record"
    BLANK = "blank"
    BROKEN = "broken"


class NoRecord(ValueError):
    """A line is broken; the text says why."""


class NoObject(NoRecord):
    """A line is JSON, but no object."""

    def __init__(self, value: Any) -> None:
        super().__init__("not a JSON object")
        self.value = value


def decode(line: bytes) -> dict[str, Any] | None:
    """The record that a line is; `None` for a blank line. The newline is no part of it.

    Raises:
        NoRecord: it is a broken line, and why; `NoObject` for other values of JSON.
    """
    try:
        value = _decode(line)
    except (ValueError, RecursionError):
        if is_blank(line):
            return None
        value = _tolerantly(line)
    if type(value) is not dict:
        raise NoObject(value)
    if len(line) > _SHALLOW:
        if len(line) > LONGEST_LINE:
            raise NoRecord(too_long())
        if line.count(b"{") + line.count(b"[") > DEEPEST and is_too_deep(value):
            raise NoRecord(too_deep())
    return value


def decode_usual(data: bytes) -> list[dict[str, Any]] | None:
    """What `decode` makes of whole lines, in less time; `None` unless each is a record that is surely not too deep."""
    try:
        records = list(map(_decode, BytesIO(data)))  # each line with its newline, which the parser takes for a blank
    except (ValueError, RecursionError):
        return None
    return records if _are_objects(map(type, records)) and not _has_a_long_line(data) else None


def _has_a_long_line(data: bytes) -> bool:
    """Whether one of some whole lines is so long that it may be too deep."""
    start = 0
    while start < len(data):
        start = data.rfind(b"\n", start, start + _SHALLOW + 1) + 1  # many lines in one step
        if not start:
            return True
    return False


def kind_of(line: bytes) -> Line:
    """What a line is."""
    try:
        return Line.BLANK if decode(line) is None else Line.RECORD
    except NoRecord:
        return Line.BROKEN


def is_blank(line: bytes) -> bool:
    """Whether nothing stands on a line but what JSON takes for blanks, behind a byte order mark perhaps."""
    return not line.removeprefix(_BOM).strip(_BLANK)


def is_too_deep(record: dict[str, Any]) -> bool:
    """Whether a record of dicts and lists is nested more deeply than the deepest."""
    if _CONTAINERS.isdisjoint(map(type, record.values())):
        return False  # flat, as most are
    found: list[Any] = [record]
    for one in found:  # which grows by what is inside
        values = one.values() if type(one) is dict else one
        if not _CONTAINERS.isdisjoint(map(type, values)):
            found += [value for value in values if type(value) in _CONTAINERS]
    return len(found) > DEEPEST and _is_too_deep(record)  # with fewer in all, no more can be inside each other


def too_long() -> str:
    """What is wrong with a line that is longer than the longest."""
    return f"longer than {LONGEST_LINE} bytes"


def too_deep() -> str:
    """What is wrong with a record that is nested more deeply than the deepest."""
    return f"nested more than {DEEPEST} deep"


def _tolerantly(line: bytes) -> Any:
    if len(line) > LONGEST_LINE:
        raise NoRecord(too_long())
    try:
        text = line.removeprefix(_BOM).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise NoRecord(f"not UTF-8: {error.reason} (byte {error.start})") from error
    try:
        return tolerant.parse(text, deepest=DEEPEST, most_digits=MOST_DIGITS)
    except tolerant.Refused as error:
        raise NoRecord(str(error)) from error


def _is_too_deep(record: dict[str, Any]) -> bool:
    level: list[Any] = [record]
    for _ in range(DEEPEST):
        inside = [one.values() if type(one) is dict else one for one in level]
        level = [value for values in inside for value in values if type(value) in _CONTAINERS]
        if not level:
            return False
    return True
