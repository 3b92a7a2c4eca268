"""A line about data that does not fit: the field, its value, and what is allowed, from an error of msgspec."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

import msgspec

from ..mismatch import taken_apart

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
_STEP = re.compile(r"(?:^|\.)([A-Za-z_][A-Za-z_0-9]*)|\[(\d+|\.\.\.)\]")


def explain(error: msgspec.ValidationError, data: Any, kind: type[msgspec.Struct]) -> str:
    """Why decoded `data` is not of `kind`: the field, its value, and what is allowed."""
    what, where, is_key, field, missing = taken_apart(error)
    steps = _steps(where)
    if field:
        place = f"{where}.{field}" if where else field
        return f"{place}: is missing" if missing else f"{place}: unknown field; allowed: {_choices(kind, steps)}"
    value = _value_at(data, steps)
    if (bad := _NO_CHOICE.match(what)) is not None:
        return f"{where}: {bad['value']} is not allowed; allowed: {_choices(kind, steps, keys=is_key)}"
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


def _choices(kind: Any, steps: list[str | int], keys: bool = False) -> str:
    """What may stand where `steps` lead: the fields of a struct, or the values of a `Literal`."""
    for step in steps:
        if isinstance(step, int):
            kind = typing.get_args(_first(kind, list))[0]
        else:
            struct = _first(kind, msgspec.Struct)
            kind = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}[step]
    if keys:
        kind = typing.get_args(_first(kind, dict))[0]
    struct = _first(kind, msgspec.Struct)
    if struct is not None:
        return ", ".join(field.encode_name for field in msgspec.structs.fields(struct))
    literals = [one for one in _members(kind) if typing.get_origin(one) is typing.Literal]
    return ", ".join(repr(value) for one in literals for value in typing.get_args(one))


def _members(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)


def _first(kind: Any, wanted: type) -> Any:
    """Of a union, the member of the wanted kind."""
    for member in _members(kind):
        origin = typing.get_origin(member) or member
        if isinstance(origin, type) and issubclass(origin, wanted):
            return member
    return None
