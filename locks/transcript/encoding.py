"""From a record to its line, such that what is read from it is equal to what was written.

msgspec writes some values as others without a word: NaN and infinities as `null`, a key that is no text as text, so
that two keys may become one, a set in any order, bytes as base64, and `Raw` as it is, newlines included. All these are
refused. Accepted is what JSON has, and what is said in JSON in one way only: tuples as arrays, dataclasses and the
structs of msgspec as objects; times, UUIDs, decimals and enums as the text or the value that they stand for.

The usual record, of texts and numbers in dicts and lists, is known by the types of its values; everything else is
looked at value by value.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from ..errors import TranscriptError
from . import lines
from .header import LONGEST_HEADER
from .lines import DEEPEST, MOST_DIGITS, is_too_deep, too_deep, too_long

_encode = msgspec.json.Encoder().encode
_PLAIN = frozenset({str, int, bool, type(None)})
_are_plain = _PLAIN.issuperset
_are_text = frozenset({str}).issuperset
_CONTAINERS = frozenset({dict, list})
_LOST = (bytes, bytearray, memoryview, set, frozenset, msgspec.Raw)
_LONGEST_WAY = 300  # characters
_MOST = 10**MOST_DIGITS
_PIECE = 500  # digits at once: no process can be set to allow fewer than 640
_A_PIECE = 10**_PIECE


def encode(record: Mapping[str, Any], path: str) -> bytes:
    """One record as a line.

    Raises:
        TranscriptError: it is no mapping; or holds what would not come back equal, and where; or is longer, or nested
            more deeply, than what can be read.
    """
    if type(record) is dict:  # as most are: asking an abstract class takes longer than the encoding
        fields: dict[str, Any] = record
    elif isinstance(record, Mapping):
        fields = dict(record)
    else:
        raise TranscriptError(f"record: {record!r:.80} is no mapping; a line of {path} is a JSON object", path=path)
    try:
        data = _encode(fields)
    except (TypeError, ValueError, RecursionError) as error:
        data = _encode_slowly(fields, path, error)
    else:
        flat = _are_plain(map(type, fields.values())) and _are_text(map(type, fields))
        if not flat and not _is_usual(fields, data):
            _refuse_what_is_lost(fields, path)
    if len(data) > lines.LONGEST_LINE:
        raise TranscriptError(f"record cannot be written: its line would be {too_long()}", path=path)
    return data + b"\n"


def encode_all(records: Iterable[Mapping[str, Any]], path: str) -> bytes:
    """Several records as lines."""
    return b"".join([encode(record, path) for record in records])


def encode_header(header: Mapping[str, Any], path: str) -> bytes:
    """The first line of a file, as `encode`.

    Raises:
        TranscriptError: as there; or it is too long for a header.
    """
    line = encode(header, path)
    if len(line) > LONGEST_HEADER:
        raise TranscriptError(f"header of {path} has {len(line)} bytes; allowed: {LONGEST_HEADER}", path=path)
    return line


def _encode_slowly(record: dict[str, Any], path: str, error: Exception) -> bytes:
    """Say what is wrong with a record, and where; or write it, if only the caller's stack or setting was in the way."""
    _refuse_what_is_lost(record, path)
    try:
        if isinstance(error, TypeError):
            raise error
        return _encode_in_pieces(record)
    except (TypeError, ValueError, RecursionError) as second:
        raise TranscriptError(f"record cannot be written as JSON: {second}", path=path) from second


class _Between(NamedTuple):
    """What stands between values."""

    data: bytes


def _encode_in_pieces(record: dict[str, Any]) -> bytes:
    """As msgspec does, without recursion."""
    pieces: list[bytes] = []
    waiting: list[Any] = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _Between):
            pieces.append(value.data)
        elif isinstance(value, dict):
            parts: list[Any] = []
            for key, one in value.items():
                parts += (_Between(b"," if parts else b""), _Between(_encode(str.__str__(key)) + b":"), one)
            waiting += reversed([_Between(b"{"), *parts, _Between(b"}")])
        elif isinstance(value, (list, tuple)):
            parts = []
            for one in value:
                parts += (_Between(b"," if parts else b""), one)
            waiting += reversed([_Between(b"["), *parts, _Between(b"]")])
        else:
            pieces.append(_digits(value) if type(value) is int else _encode(value))
    return b"".join(pieces)


def _digits(number: int) -> bytes:
    """All digits of an integer, however few of them this process lets `str` write at once."""
    pieces: list[str] = []
    left = abs(number)
    while left >= _A_PIECE:
        left, low = divmod(left, _A_PIECE)
        pieces.append(f"{low:0{_PIECE}d}")
    pieces.append(f"{'-' if number < 0 else ''}{left}")
    return "".join(reversed(pieces)).encode()


def _is_usual(record: dict[str, Any], data: bytes) -> bool:
    """Whether it holds nothing but what comes back equal, as far as types show."""
    found: list[Any] = [record]
    numbers = False
    for one in found:  # which grows by what is inside
        if type(one) is dict:
            for key in one:
                if type(key) is not str:
                    return False
            one = one.values()  # noqa: PLW2901 -- what is looked at is the same for both
        for value in one:
            kind = type(value)
            if kind is str:
                continue
            if kind in _CONTAINERS:
                found.append(value)
            elif kind is float:
                numbers = True
            elif kind not in _PLAIN:
                return False
    if numbers and b"null" in data:
        return False  # one of them may be a NaN, which is written so
    return len(found) <= DEEPEST or not is_too_deep(record)


# Value by value


class _Place(NamedTuple):
    """A value of a record, and the way to it."""

    value: Any
    step: str
    above: _Place | None
    depth: int

    def __str__(self) -> str:
        steps, place = [], self
        while place.above is not None:
            steps.append(place.step)
            place = place.above
        steps.append(place.step)
        return "".join(reversed(steps))


def _refuse_what_is_lost(record: dict[str, Any], path: str) -> None:
    """Raise if a value would not come back equal: the first, with the way to it."""
    waiting = [_Place(record, "$", None, 0)]
    while waiting:
        place = waiting.pop()
        if isinstance(place.value, enum.Enum):
            place = place._replace(value=place.value.value)  # what is written
        why, inside = _why_lost(place.value), _inside(place)
        if why is None and inside is not None and place.depth == DEEPEST:
            why = too_deep()
        if why is not None:
            where = str(place)
            where = where if len(where) <= _LONGEST_WAY else f"{where[: _LONGEST_WAY - 100]}…{where[-99:]}"
            raise TranscriptError(f"record cannot be written as JSON: {where}: {why}", path=path)
        waiting += reversed(list(inside or ()))


def _why_lost(value: Any) -> str | None:
    """Why a value, but for what is inside it, would not come back equal; `None` if it would."""
    kind = type(value)
    if kind is str:
        return _why_no_text(value)
    if kind is float:
        return None if math.isfinite(value) else f"JSON has no {value}"
    if kind is int:
        return None if -_MOST < value < _MOST else f"an integer of more than {MOST_DIGITS} digits"
    if isinstance(value, dict):
        return next((why for key in value if (why := _why_no_key(key)) is not None), None)
    if isinstance(value, _LOST):
        return f"JSON has no {kind.__name__}"
    if kind is bool or value is None or isinstance(value, (list, tuple)) or _fields_of(value) is not None:
        return None
    try:
        _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        return str(error)
    return None


def _why_no_key(key: Any) -> str | None:
    if not isinstance(key, str):
        return f"the key {key!r:.40} is no text"
    why = _why_no_text(key)
    return None if why is None else f"the key {key!r:.40}: {why}"


def _why_no_text(text: str) -> str | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair at {error.start}"
    return None


def _inside(place: _Place) -> Iterator[_Place] | None:
    """What is inside a value; `None` if it is not made to hold others."""
    value, depth = place.value, place.depth + 1
    if isinstance(value, (list, tuple)):
        return (_Place(one, f"[{n}]", place, depth) for n, one in enumerate(value))
    fields = value if isinstance(value, dict) else _fields_of(value)
    if fields is None:
        return None
    return (
        _Place(one, f".{name}" if str.isidentifier(name) else f"[{name!r:.40}]", place, depth)
        for name, one in fields.items()
    )


def _fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of what is written as an object, though it is no dict; `None` for all else."""
    if isinstance(value, type):
        return None
    if isinstance(value, msgspec.Struct):
        names: Iterable[str] = value.__struct_fields__
    elif dataclasses.is_dataclass(value):
        names = (field.name for field in dataclasses.fields(value))
    elif hasattr(type(value), "__attrs_attrs__"):
        names = (field.name for field in type(value).__attrs_attrs__)
    else:
        return None
    found = {name: getattr(value, name, msgspec.UNSET) for name in names}
    return {name: one for name, one in found.items() if one is not msgspec.UNSET}
