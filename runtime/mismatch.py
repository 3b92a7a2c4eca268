"""Errors of msgspec about data that does not fit, taken apart. They have no fields, so their text is read."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$?\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"^Object (?P<fault>missing required|contains unknown) field `(?P<field>.*)`$", re.DOTALL)


class Mismatch(NamedTuple):
    """Where data does not fit, and how."""

    what: str
    """In the words of msgspec."""
    path: str
    """Where it stands: `lanes[0].retry`; empty for the data as a whole."""
    is_key: bool
    """Whether a key is wrong, rather than its value."""
    field: str
    """The field that is missing or not known; empty for any other fault."""
    missing: bool


def taken_apart(error: msgspec.ValidationError) -> Mismatch:
    """The parts of an error of `msgspec.convert` or of a decoder."""
    found = _AT.match(str(error))
    assert found is not None  # all of it is optional
    named = _FIELD.match(found["what"])
    return Mismatch(
        found["what"],
        found["path"] or "",
        found["key"] is not None,
        named["field"] if named is not None else "",
        named is not None and named["fault"].startswith("missing"),
    )
