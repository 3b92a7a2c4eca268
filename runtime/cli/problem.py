"""What is wrong with what the user gave: always one line, always exit code 2, always before anything is started."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

import msgspec

_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`", re.DOTALL)
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z_0-9]*)|\[(\d+|\.\.\.)\]")
_LONGEST = 300


class Problem(Exception):
    """The user's input cannot be used. The message is one printable line: the field, its value, what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Text that is safe to print as one line, whatever was in it."""
    clean = "".join(c if c.isprintable() else " " if c in "\n\t" else ascii(c)[1:-1] for c in text[: longest * 2])
    return clean if len(clean) <= longest else clean[: longest - 1] + "…"


def explain(error: msgspec.ValidationError, data: Any, kind: type[msgspec.Struct]) -> str:
    """Why decoded `data` is not of `kind`: the field, its value, and what is allowed."""
    found = _AT.match(str(error))
    assert found is not None
    what, path = found["what"], (found["path"] or "$").removeprefix("$")
    steps: list[str | int] = [name or (0 if index == "..." else int(index)) for name, index in _STEP.findall(path)]
    where = path.removeprefix(".")
    if (unknown := _UNKNOWN.match(what)) is not None:
        place = f"{where}.{unknown['field']}" if where else unknown["field"]
        fields = _struct_at(kind, steps)
        allowed = f"; allowed: {', '.join(fields)}" if fields else ""
        return f"{place}: unknown field{allowed}"
    value = _value_at(data, steps)
    expected = re.sub(r"^Expected (`.*?`)(, got .*)?$", r"allowed: \1", what).replace("`", "")
    if expected.startswith("allowed: "):
        return f"{where or 'the whole'}: {value!r:.80} is not allowed; {expected}"
    return f"{where}: {value!r:.80}: {what}" if where else what


def _value_at(data: Any, steps: list[str | int]) -> Any:
    for step in steps:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _struct_at(kind: Any, steps: list[str | int]) -> tuple[str, ...]:
    """The fields of the struct that `steps` lead to, as a user writes them."""
    for step in steps:
        if isinstance(step, int):
            kind = _first(kind, list)
            kind = typing.get_args(kind)[0] if kind is not None else None
        elif isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            kind = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}.get(step)
    kind = _first(kind, msgspec.Struct)
    return tuple(field.encode_name for field in msgspec.structs.fields(kind)) if kind is not None else ()


def _first(kind: Any, wanted: type) -> Any:
    """Of a union, the member of the wanted kind."""
    members = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    for member in members:
        origin = typing.get_origin(member) or member
        if isinstance(origin, type) and issubclass(origin, wanted):
            return member
    return None
