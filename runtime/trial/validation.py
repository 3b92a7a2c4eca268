"""From what msgspec says about data that does not fit to a line that names field, value, and what is allowed."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

import msgspec

_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`")
_NO_CHOICE = re.compile(r"Invalid enum value (?P<value>.*)", re.DOTALL)
_EXPECTED = re.compile(r"Expected `(?P<kinds>[^`]*)`(?:, got .*)?$", re.DOTALL)
_WORDS = {
    "str": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z_0-9]*)|\[(\d+|\.\.\.)\]")


def explain(error: msgspec.ValidationError, data: Any, kind: type[msgspec.Struct]) -> str:
    """Why decoded `data` is not of `kind`: the field, its value, and what is allowed."""
    found = _AT.match(str(error))
    assert found is not None
    what, steps = found["what"], _steps(found["path"] or "")
    where = (found["path"] or "").removeprefix("$").removeprefix(".")
    if (unknown := _UNKNOWN.match(what)) is not None:
        place = f"{where}.{unknown['field']}" if where else unknown["field"]
        return f"{place}: unknown field; allowed: {', '.join(_choices(kind, steps))}"
    if (missing := _MISSING.match(what)) is not None:
        return f"{where + '.' if where else ''}{missing['field']}: is missing"
    value = _value_at(data, steps)
    if (bad := _NO_CHOICE.match(what)) is not None:
        return f"{where}: {bad['value']} is not allowed; allowed: {', '.join(_choices(kind, steps, keys=found['key']))}"
    if (wrong := _EXPECTED.match(what)) is not None:
        kinds = " or ".join(_WORDS.get(one, one) for one in wrong["kinds"].split(" | "))
        return f"{where or 'value'}: {value!r:.80} is not allowed; allowed: {kinds}"
    return f"{where}: {value!r:.80}: {what}" if where else what.replace("`", "")


def _steps(path: str) -> list[str | int]:
    return [name or (0 if index == "..." else int(index)) for name, index in _STEP.findall(path)]


def _value_at(data: Any, steps: list[str | int]) -> Any:
    for step in steps:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _choices(kind: Any, steps: list[str | int], keys: str | None = None) -> tuple[str, ...]:
    """What may stand where `steps` lead: the fields of a struct, or the values of a `Literal`."""
    for step in steps:
        if isinstance(step, int):
            kind = typing.get_args(_first(kind, list))[0]
        else:
            struct = _first(kind, msgspec.Struct)
            kind = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}[step]
    if keys is not None:
        kind = typing.get_args(_first(kind, dict))[0]
    struct = _first(kind, msgspec.Struct)
    if struct is not None:
        return tuple(field.encode_name for field in msgspec.structs.fields(struct))
    literals = [one for one in _members(kind) if typing.get_origin(one) is typing.Literal]
    return tuple(repr(value) for one in literals for value in typing.get_args(one))


def _members(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _first(kind: Any, wanted: type) -> Any:
    """Of a union, the member of the wanted kind."""
    for member in _members(kind):
        origin = typing.get_origin(member) or member
        if isinstance(origin, type) and issubclass(origin, wanted):
            return member
    return None
